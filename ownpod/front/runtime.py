"""HAProxy's runtime socket: commands, and the parsing of what they return."""

import contextlib
import csv
import logging
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ownpod.front.layout import SOCKET, Maps

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""Time limit in seconds for the response to one batch of commands. HAProxy answers in less than a millisecond."""

BATCH = 100
"""Commands on one connection. HAProxy stops reading while its responses are not read, so a batch must be short."""

PATH_BYTES = 100
"""Longest path of a Unix socket that all systems accept."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PROMPT = "\n> "


class RuntimeUnavailable(Exception):
    """HAProxy does not answer on its runtime socket."""


class Runtime:
    """HAProxy's runtime socket in a directory. Each batch of commands has a connection of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ask(self, *commands: str) -> list[str]:
        """Executes commands in order. Returns their responses, without surrounding white space.

        Raises: RuntimeUnavailable.
        """
        answers: list[str] = []
        for start in range(0, len(commands), BATCH):
            answers += self._batch(commands[start : start + BATCH])
        return answers

    def run(self, commands: Iterable[str], *fine: str) -> list[str]:
        """Executes commands that change something. Logs and returns the responses of those that failed.

        Args:
            commands: the commands.
            fine: parts of responses that are no failure.
        """
        given = list(commands)
        failed = []
        for command, answer in zip(given, self.ask(*given), strict=True):
            if not answer or any(part in answer for part in fine):
                continue
            # The command may have a secret as its last word.
            log.warning("HAProxy refused %r: %s", " ".join(command.split()[:4]), answer)
            failed.append(answer)
        return failed

    def process(self) -> int | None:
        """The pid of the process that listens; None: none does, or it is in another PID namespace or system."""
        try:
            with self._connect() as connection:
                if not hasattr(socket, "SO_PEERCRED"):
                    return None
                peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except RuntimeUnavailable:
            return None
        pid = int(struct.unpack("3i", peer)[0])
        return pid if pid > 0 else None

    def _batch(self, commands: Sequence[str]) -> list[str]:
        with self._connect() as connection:
            # With a prompt after each response, empty responses can be distinguished, too.
            text = "\n".join(["prompt", *commands, "quit", ""])
            received = bytearray()
            try:
                connection.sendall(text.encode())
                while data := connection.recv(262_144):
                    received += data
            except OSError as error:
                raise RuntimeUnavailable(str(error)) from None
        answers = received.decode(errors="replace").split(_PROMPT)[1:-1]
        if len(answers) != len(commands):
            raise RuntimeUnavailable(f"{len(answers)} responses to {len(commands)} commands")
        return [answer.strip() for answer in answers]

    @contextlib.contextmanager
    def _connect(self) -> Iterator[socket.socket]:
        connection = socket.socket(socket.AF_UNIX)
        directory = -1
        try:
            connection.settimeout(ANSWER_S)
            path = str(self._directory / SOCKET)
            if len(path) > PATH_BYTES:
                directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
                path = f"/proc/self/fd/{directory}/{SOCKET}"
            connection.connect(path)
            yield connection
        except OSError as error:
            raise RuntimeUnavailable(str(error)) from None
        finally:
            if directory >= 0:
                os.close(directory)
            connection.close()


def word(text: str) -> str:
    """A value as one word of a command. Raises: ValueError: a control character would begin another command."""
    if _CONTROL.search(text) or not text:
        raise ValueError("a control character, or nothing")
    return re.sub(r"([\\; ])", r"\\\1", text)


def map_changes(
    wanted: Mapping[Maps, Mapping[str, str]], actual: Mapping[Maps, Mapping[str, str]]
) -> list[str]:
    """The commands that make maps what they should be.

    What is removed comes first, routes before all else; new routes come last: a route never has another one's limits or keys.
    """
    removed, added = [], []
    order = sorted(wanted, key=lambda name: name is not Maps.ROUTES)
    for name in order:
        gone = [key for key in actual.get(name, {}) if key not in wanted[name]]
        removed += [f"del map {name} {word(key)}" for key in gone]
    for name in reversed(order):
        known = actual.get(name, {})
        for key, value in wanted[name].items():
            if known.get(key) != value:
                verb = "set" if key in known else "add"
                added.append(f"{verb} map {name} {word(key)} {word(value)}")
    return removed + added


def parse_map(text: str) -> dict[str, str]:
    """The entries in the response to ``show map <file>``: ``<pointer> <key> <value>`` each."""
    entries = {}
    for line in text.splitlines():
        parts = line.strip().split(" ", 2)
        if len(parts) == 3 and parts[0].startswith("0x"):
            entries[parts[1]] = parts[2]
    return entries


def parse_table(text: str) -> dict[str, dict[str, int]]:
    """The whole numbers of the entries in the response to ``show table <name>``, by key."""
    entries: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        head, mark, rest = line.partition(": key=")
        if not mark or not head.strip().startswith("0x"):
            continue
        key, *fields = rest.split(" ")
        values = {}
        for field in fields:
            name, _, value = field.partition("=")
            if value.isdecimal():
                values[name] = int(value)
        entries[key] = values
    return entries


def parse_rows(text: str, separator: str) -> list[dict[str, str]]:
    """The rows of ``show stat`` (separator ",") or ``show servers state`` (" "), by the names in the line of "# ".

    A row that is shorter than the names is left out.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if line.startswith("# ")), None)
    if start is None:
        return []
    names = lines[start][2:].strip().split(separator)
    rows = csv.reader(lines[start + 1 :], delimiter=separator)
    return [dict(zip(names, row, strict=False)) for row in rows if len(row) >= len(names) - 1]


def number(row: Mapping[str, str], name: str) -> int:
    """A whole number of a row; 0 if it is missing or no number."""
    value = row.get(name, "")
    return int(value) if value.isdecimal() else 0
