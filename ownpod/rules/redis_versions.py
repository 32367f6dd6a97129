"""Versions of Redis and Valkey: known security holes, and the files that each version can read. Pure."""

import re
from dataclasses import dataclass

HOLES = {
    "CVE-2024-46981": {
        "Redis": {(6, 2): 17, (7, 2): 7, (7, 4): 2},
        "Valkey": {(7, 2): 8, (8, 0): 2},
    },
    "CVE-2025-49844": {
        "Redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
        "Valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
    },
}
"""Security holes with which a client's Lua script can run code in the server, and the release of each branch that
closed the hole. Sources: the CVE records and the release notes of Redis and Valkey.
"""

NEWEST_SHARED_RDB = 11
"""Version of the last RDB format that Redis and Valkey share, which is Redis 7.2's."""


@dataclass(frozen=True)
class Version:
    """A server: ``kind`` is "Redis" or "Valkey"."""

    kind: str
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.number))}"

    def holes(self) -> list[str]:
        """The ids of the known holes; none for a branch that is newer than all branches of the table.

        A distribution may close a hole without a new version. Such a version is reported all the same.
        """
        return [name for name, fixes in HOLES.items() if self._has(fixes[self.kind])]

    def _has(self, fixes: dict[tuple[int, int], int]) -> bool:
        branch, patch = self.number[:2], self.number[2:3] or (0,)
        if branch in fixes:
            return patch[0] < fixes[branch[0], branch[1]]
        return branch < max(fixes)

    def reads(self, signature: bytes | None, *, parts: bool) -> bool:
        """Whether this version can load an existing append-only file.

        Args:
            signature: the first nine bytes of the file's RDB part, like ``REDIS0011``; None: there is no such part.
            parts: the file is a folder of parts, as servers since 7.0 write it.
        """
        if parts and self.number < (7,):
            # An older server does not find the parts, and starts without data.
            return False
        if signature is None:
            return True
        if signature.startswith(b"VALKEY"):
            return self.kind == "Valkey" and self.number >= (9,)
        number = re.fullmatch(rb"REDIS(\d{4})", signature)
        if number is None:
            return True
        if int(number[1]) > NEWEST_SHARED_RDB:
            return self.kind == "Redis" and self.number >= (7, 4)
        return int(number[1]) < NEWEST_SHARED_RDB or self.number >= (7, 2)


def parse(text: str) -> Version | None:
    """The version in the output of ``redis-server --version``: ``Redis server v=6.2.14 sha=...``."""
    match = re.search(r"\b(Redis|Valkey) server v=(\d+(?:\.\d+)*)", text)
    return Version(match[1], _numbers(match[2])) if match else None


def from_info(info: dict[str, object]) -> Version | None:
    """The version in the answer to ``INFO server``. Valkey also reports a version of Redis there, for compatibility."""
    if version := info.get("valkey_version"):
        return Version("Valkey", _numbers(str(version)))
    version = info.get("redis_version")
    return Version("Redis", _numbers(str(version))) if version else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
