"""Lua files as commands: each command is a script of its own, which Redis runs as one atomic step."""

import functools
import hashlib
import importlib.resources
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import redis

from ownpod.store import schema
from ownpod.store.client import execute, execute_all, repeated

INSIST_S = 25.0
"""Seconds for which a client's command is repeated while its answer is lost: longer than Redis stalls when
it forks or swaps, and shorter than a proxy waits."""

_COMMAND = re.compile(r"^(?=function commands\.(\w+)\(\))", re.MULTILINE)
_LOCAL = re.compile(r"^(?=local )", re.MULTILINE)
_NAMES = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")
_WORD = re.compile(r"\w+")
_ESCAPED = re.compile(rb'[^ -~]|["\\]')
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)

CLOCK = "local now = redis.call('TIME')\nnow = now[1] * 1000 + math.floor(now[2] / 1000)\n"
"""Lua for ``now``, Redis's clock in ms. No host's clock is compared with an instant in Redis."""


def lua(value: str | float | Iterable[str | int] | Mapping[str, Any]) -> str:
    """A value as Lua: a string, a number, a list, or a table by keys that are Lua names."""
    if isinstance(value, str):
        # Bytes as escapes of three digits, because a digit may follow.
        plain = _ESCAPED.sub(lambda found: b"\\%03d" % found[0][0], value.encode())
        return f'"{plain.decode()}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} = {lua(part)}' for name, part in value.items())}}}"
    return f"{{{', '.join(map(lua, value))}}}"


def constants(**values: str | float | Iterable[str | int] | Mapping[str, Any]) -> str:
    """Lua that declares each value under its name."""
    return "".join(f"local {name} = {lua(value)}\n" for name, value in values.items())


def _needed(head: str, command: str) -> str:
    """The command with those locals of ``head`` that it uses, directly or through another.

    Redis runs a script from its first line at each call, so what a command does not use would be a third of
    its time.
    """
    first, *pieces = _LOCAL.split(head)
    words, kept = set(_WORD.findall(command)), [command]
    for piece in reversed(pieces):
        match = _NAMES.match(piece)
        if match is not None and words & set(match[1].split(", ")):
            words |= set(_WORD.findall(piece))
            kept.append(piece)
    return "".join([first, *reversed(kept)])


@functools.cache
def _sources(files: tuple[str, ...], constants: str) -> tuple[dict[str, str], dict[str, str]]:
    """The script of each command of these files, and its SHA-1, by its name."""
    sources = dict[str, str]()
    head = CLOCK + constants
    for file in files:
        text = importlib.resources.files("ownpod.store").joinpath(file).read_text()
        local, *commands = _COMMAND.split(_COMMENT.sub("", text))
        head += local
        for name, body in zip(commands[::2], commands[1::2], strict=True):
            command = f"{body}\nreturn commands.{name}()\n"
            sources[name] = schema.lua() + _needed(head, command)
    digests = {
        name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        for name, source in sources.items()
    }
    return sources, digests


class Scripts:
    """The commands of Lua files, which are the functions ``commands.<name>()``.

    The locals before a file's first command are for the commands of this file and of those after it.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        files: names in this package.
        constants: from :func:`constants`.
        repeatable: commands that may be executed twice: their fence makes the second time change
            nothing. Only these are repeated when their answer is lost.
        insist: those of them that a client waits for: they are repeated for :data:`INSIST_S`.
    """

    def __init__(
        self,
        client: redis.Redis,
        *files: str,
        constants: str,
        repeatable: Collection[str] = (),
        insist: Collection[str] = (),
    ) -> None:
        self._redis = client
        self.sources, self._digests = _sources(files, constants)
        """The text of each command's script."""
        self._insist_s = {name: INSIST_S if name in insist else 0.0 for name in repeatable}

    def __call__(self, command: str, *arguments: str | float) -> Any:
        """Runs a command; its name is ``ARGV[1]``, which shows in Redis's ``MONITOR``.

        Raises:
            AnswerLost: it may have been executed.
            RedisUnavailable: it was not executed.
        """
        if command not in self._insist_s:
            return self._once(command, arguments)
        return repeated(lambda: self._once(command, arguments), insist_s=self._insist_s[command])

    def all(self, command: str, calls: Iterable[tuple[str | float, ...]]) -> list[Any]:
        """Runs a command for each of ``calls``, in one round trip, once.

        Returns:
            For each what the script has returned, or the redis.ResponseError with which it was refused.

        Raises:
            AnswerLost: some may have been executed.
            RedisUnavailable: none was executed.
        """
        digest = self._digests[command]
        return execute_all(self._redis, [("EVALSHA", digest, 0, command, *call) for call in calls])

    def _once(self, command: str, arguments: tuple[str | float, ...]) -> Any:
        try:
            return execute(self._redis, "EVALSHA", self._digests[command], 0, command, *arguments)
        except redis.exceptions.NoScriptError:
            return execute(self._redis, "EVAL", self.sources[command], 0, command, *arguments)
