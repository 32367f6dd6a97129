"""Versions of Redis and Valkey: known security holes, and which server can read which files. Pure."""

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
"""Holes by which a caller's Lua script runs code in the server, and the release that closed each in
each branch. Sources: the CVE records and the release notes of Redis and Valkey.
"""

NEWEST_SHARED_RDB = 11
"""Version of the last RDB format that Redis and Valkey have in common, that of Redis 7.2."""


@dataclass(frozen=True)
class Version:
    """A server: ``kind`` is "Redis" or "Valkey"."""

    kind: str
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {'.'.join(map(str, self.number))}"

    def holes(self) -> list[str]:
        """Known holes. Empty for a branch that is newer than all that the table has.

        A distribution may have closed a hole without changing the version; that cannot be seen.
        """
        return [name for name, fixes in HOLES.items() if self._has(fixes[self.kind])]

    def _has(self, fixes: dict[tuple[int, int], int]) -> bool:
        branch, patch = self.number[:2], self.number[2:3] or (0,)
        if branch in fixes:
            return patch[0] < fixes[branch[0], branch[1]]
        return branch < max(fixes)

    def reads(self, signature: bytes | None, *, parts: bool) -> bool:
        """Whether it can load an existing append-only file.

        Args:
            signature: the first nine bytes of its RDB part, as ``REDIS0011``; None: it has none.
            parts: it is a folder of parts, as servers since 7.0 write it.
        """
        if parts and self.number < (7,):
            # It would begin without any data instead.
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
    """Of what ``redis-server --version`` prints: ``Redis server v=6.2.14 sha=...``."""
    found = re.search(r"\b(Redis|Valkey) server v=(\d+(?:\.\d+)*)", text)
    return Version(found[1], _numbers(found[2])) if found else None


def from_info(info: dict[str, object]) -> Version | None:
    """Of the answer to ``INFO server``. Valkey names itself beside the Redis it is compatible with."""
    if version := info.get("valkey_version"):
        return Version("Valkey", _numbers(str(version)))
    version = info.get("redis_version")
    return Version("Redis", _numbers(str(version))) if version else None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
