"""Lua files as commands: each a script of its own, run in Redis as one atomic step."""

import hashlib
import importlib.resources
import re
from typing import Any

import redis

_COMMAND = re.compile(r"^(?=function commands\.(\w+)\(\))", re.MULTILINE)


class Scripts:
    """The commands of a Lua file, which are its functions ``commands.<name>()``.

    What stands before the first of them belongs to all. Redis runs a script from its first line at each
    call, so a command does not carry the others: that would be a third of its time.

    Args:
        client: from :func:`ownpod.store.connect`.
        file: its name in this package.
        constants: Lua that is put in front.
    """

    def __init__(self, client: redis.Redis, file: str, constants: str) -> None:
        self._redis = client
        text = importlib.resources.files("ownpod").joinpath(file).read_text()
        common, *rest = _COMMAND.split(text)
        self._sources = {
            name: f"{constants}{common}{body}\nreturn commands.{name}()\n"
            for name, body in zip(rest[::2], rest[1::2], strict=True)
        }
        self._digests = {
            name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in self._sources.items()
        }

    def __call__(self, command: str, *arguments: str | float) -> Any:
        """Runs a command; its name is ``ARGV[1]``, which shows in Redis's ``MONITOR``."""
        # Not redis-py's Script, which takes longer than Redis does.
        try:
            return self._redis.execute_command(
                "EVALSHA", self._digests[command], 0, command, *arguments
            )
        except redis.exceptions.NoScriptError:
            return self._redis.execute_command(
                "EVAL", self._sources[command], 0, command, *arguments
            )
