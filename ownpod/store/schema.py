"""The schema version of the records in Redis. A process with another version writes nothing.

:data:`~ownpod.store.keys.SCHEMA` holds the version. Every script compares it first (:func:`lua`), in the same
atomic step as its writes. A Redis without that key has records from before the key existed. Those are version 2
as well, so the first script that runs sets the key.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from ownpod.errors import RedisUnavailable, SchemaMismatch
from ownpod.store import keys

log = logging.getLogger(__name__)

VERSION = 2
"""Incremented by a change of records or scripts that processes of the previous version cannot work with. A
compatible change, like a new field, does not increment it."""

MISMATCH = "OWNPODSCHEMA"
"""The first word of a script's error for different versions. The version in Redis follows it."""

CACHE_TTL_S = 1.0
"""Seconds for which :class:`Guard` caches the version, because requests call it often."""

WAIT_S, LOG_INTERVAL_S = 2.0, 60.0
"""Seconds between two checks by a process that waits for its version, and between its log lines."""


def lua() -> str:
    """Lua code for the head of every script. The code returns an error if the version in Redis differs."""
    return (
        "do\n"
        f"  local version = redis.call('GET', '{keys.SCHEMA}')\n"
        "  if not version then\n"
        f"    redis.call('SET', '{keys.SCHEMA}', '{VERSION}')\n"
        f"  elseif version ~= '{VERSION}' then\n"
        f"    return redis.error_reply('{MISMATCH} ' .. version)\n"
        "  end\n"
        "end\n"
    )


def check(version: str | None) -> None:
    """Compares a version from Redis with this process's. None: Redis has no version yet.

    Raises:
        SchemaMismatch: the versions differ.
    """
    if version is not None and version != str(VERSION):
        raise SchemaMismatch(version, VERSION)


class Guard:
    """Compares the versions for calls that run no script, with a cache of :data:`CACHE_TTL_S`.

    Args:
        read: reads the version from Redis; raises RedisUnavailable.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._version: str | None = None
        self._fresh_until = 0.0

    def check(self) -> None:
        """Raises: SchemaMismatch. While Redis is away, the cached version is used."""
        now = time.monotonic()
        if self._fresh_until <= now:
            # Set before the read, so that one thread reads and the others do not wait for it.
            self._fresh_until = now + CACHE_TTL_S
            try:
                self._version = self._read()
            except RedisUnavailable as error:
                log.debug("schema version not read: %s", error)
        check(self._version)

    def wait(self) -> None:
        """Waits until the versions are equal. Returns at once if Redis is away.

        A process that waits logs a line every :data:`LOG_INTERVAL_S`. Ending is no alternative, because the
        process would be restarted again and again.
        """
        log_at = 0.0
        while True:
            try:
                check(self._read())
            except SchemaMismatch as error:
                if log_at <= time.monotonic():
                    log_at = time.monotonic() + LOG_INTERVAL_S
                    log.error("waiting: %s", error)  # noqa: TRY400 - one line
            except RedisUnavailable:
                return
            else:
                return
            time.sleep(WAIT_S)
