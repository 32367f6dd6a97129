"""The version of the records and scripts in Redis. A process of another version changes nothing.

:data:`~ownpod.store.keys.SCHEMA` holds the version. Every script compares it first (:func:`lua`), in the same
atomic step as its changes. A Redis without that key holds records from before there were versions;
those are version 2 as well, and the first script that runs sets the key.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from ownpod.errors import RedisUnavailable, SchemaMismatch
from ownpod.store import keys

log = logging.getLogger(__name__)

VERSION = 2
"""Is raised by a change of records or scripts with which processes of the version before cannot work.
A compatible change, like a new field, does not raise it."""

MISMATCH = "OWNPODSCHEMA"
"""First word of a script's error when the versions differ; the version in Redis follows."""

CACHE_TTL_S = 1.0
"""Age in seconds up to which :class:`Guard` does not ask Redis again."""

WAIT_S, REMIND_S = 2.0, 60.0
"""Seconds between two checks of a process that waits for its version, and between its log lines."""


def lua() -> str:
    """Lua for the head of every script: it returns an error if the version in Redis is another."""
    return (
        "do\n"
        f"  local found = redis.call('GET', '{keys.SCHEMA}')\n"
        "  if not found then\n"
        f"    redis.call('SET', '{keys.SCHEMA}', '{VERSION}')\n"
        f"  elseif found ~= '{VERSION}' then\n"
        f"    return redis.error_reply('{MISMATCH} ' .. found)\n"
        "  end\n"
        "end\n"
    )


def check(version: str | None) -> None:
    """Compares the version that was read from Redis, None: there is none.

    Raises:
        SchemaMismatch: it is another one than this process's.
    """
    if version is not None and version != str(VERSION):
        raise SchemaMismatch(version, VERSION)


class Guard:
    """Compares the versions at most once per :data:`CACHE_TTL_S`, for calls that run no script.

    Args:
        read: reads the version from Redis; raises RedisUnavailable.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._version: str | None = None
        self._fresh_until = 0.0

    def check(self) -> None:
        """Raises: SchemaMismatch. While Redis is away the last answer counts."""
        now = time.monotonic()
        if self._fresh_until <= now:
            # Set first, so that one thread asks and the others do not wait for it.
            self._fresh_until = now + CACHE_TTL_S
            try:
                self._version = self._read()
            except RedisUnavailable as error:
                log.debug("schema version not read: %s", error)
        check(self._version)

    def wait(self) -> None:
        """Returns when the versions agree, or when Redis is away. Logs one line, and repeats it each
        :data:`REMIND_S`. A process that ended instead would be restarted again and again.
        """
        remind_at = 0.0
        while True:
            try:
                check(self._read())
            except SchemaMismatch as error:
                if remind_at <= time.monotonic():
                    remind_at = time.monotonic() + REMIND_S
                    log.error("waiting: %s", error)  # noqa: TRY400 - one line
            except RedisUnavailable:
                return
            else:
                return
            time.sleep(WAIT_S)
