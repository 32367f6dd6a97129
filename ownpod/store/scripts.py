"""Lua files as commands: each a script of its own, run in Redis as one atomic step."""

import hashlib
import importlib.resources
import re
from collections.abc import Collection
from typing import Any

import redis

from ownpod.store import schema
from ownpod.store.client import execute, repeated

_COMMAND = re.compile(r"^(?=function commands\.(\w+)\(\))", re.MULTILINE)

INSIST_S = 25.0
"""Seconds for which a client's command is repeated while its answer is lost: longer than Redis stalls when
it forks or swaps, and shorter than a proxy waits."""


def head() -> str:
    """Lua in front of every command: the check of the schema, and ``now``, Redis's clock in ms.

    No host's clock is compared with an instant in Redis; callers pass durations.
    """
    return (
        f"{schema.lua()}"
        "local now = redis.call('TIME')\n"
        "now = now[1] * 1000 + math.floor(now[2] / 1000)\n"
    )


class Scripts:
    """The commands of a Lua file, which are its functions ``commands.<name>()``.

    What stands before the first of them belongs to all. Redis runs a script from its first line at each
    call, so a command does not carry the others: that would be a third of its time.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        file: its name in this package.
        constants: Lua that is put in front, after :func:`head`.
        repeatable: commands that may be executed twice: their fence makes the second time change
            nothing. Only these are repeated when their answer is lost.
        insist: those of them that a client waits for: they are repeated for :data:`INSIST_S`.
    """

    def __init__(
        self,
        client: redis.Redis,
        file: str,
        constants: str,
        *,
        repeatable: Collection[str] = (),
        insist: Collection[str] = (),
    ) -> None:
        self._redis = client
        text = importlib.resources.files("ownpod.store").joinpath(file).read_text()
        common, *rest = _COMMAND.split(text)
        self._sources = {
            name: f"{head()}{constants}{common}{body}\nreturn commands.{name}()\n"
            for name, body in zip(rest[::2], rest[1::2], strict=True)
        }
        self._digests = {
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self._sources.items()
        }
        self._insist_s = {name: INSIST_S if name in insist else 0.0 for name in repeatable}

    def __call__(self, command: str, *arguments: str | float) -> Any:
        """Runs a command; its name is ``ARGV[1]``, which shows in Redis's ``MONITOR``.

        Raises:
            AnswerLost: it may have been executed.
            RedisUnavailable: it was not.
        """
        if command not in self._insist_s:
            return self._once(command, arguments)
        return repeated(lambda: self._once(command, arguments), insist_s=self._insist_s[command])

    def _once(self, command: str, arguments: tuple[str | float, ...]) -> Any:
        try:
            return execute(self._redis, "EVALSHA", self._digests[command], 0, command, *arguments)
        except redis.exceptions.NoScriptError:
            return execute(self._redis, "EVAL", self._sources[command], 0, command, *arguments)
