"""Waiting for a Redis that is away."""

import functools
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ownpod.errors import RedisUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_S = 30.0
"""Seconds between two log lines with the same reason, because many threads may wait for a long time."""

RETRY_S = 1.0
"""Seconds between two calls while Redis is away."""


def until_available(call: Callable[[], T], *, longest_s: float | None = None) -> T:
    """Repeats a call until Redis is back.

    A call whose answer is lost may have been executed, so the call must be one that may be executed
    twice: a read, or a command whose fence (attempt, claim, token) is made before this and not within.

    Raises:
        RedisUnavailable: Redis was away for longer than ``longest_s``.
    """
    began, reason, log_at = time.monotonic(), "", 0.0
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            if longest_s is not None and time.monotonic() - began > longest_s:
                raise
            now = time.monotonic()
            if reason != str(error) or log_at <= now:
                reason, log_at = str(error), now + LOG_S
                logger.warning("waiting for Redis: %s", error)
            time.sleep(RETRY_S)


def unrepeatable(method: T) -> T:
    """Marks a method that makes its fence within: a second call is a second change, so :func:`patient`
    does not repeat it.
    """
    method.__dict__["unrepeatable"] = True
    return method


def patient(parts: T, *, longest_s: float | None = None) -> T:
    """The same object, whose methods wait while Redis is away, as by :func:`until_available`.

    Attributes in the object's ``PARTS`` are patient too; all others are as they are. Methods marked
    :func:`unrepeatable` raise RedisUnavailable at once.

    Args:
        parts: a store, or a part of one.
        longest_s: as of :func:`until_available`.
    """
    return cast("T", _Patient(parts, longest_s))


class _Patient:
    def __init__(self, parts: object, longest_s: float | None) -> None:
        self._parts = parts
        self._longest_s = longest_s

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._parts, name)
        if name in getattr(self._parts, "PARTS", ()):
            return _Patient(value, self._longest_s)
        if not inspect.ismethod(value) or getattr(value, "unrepeatable", False):
            return value

        @functools.wraps(value)
        def waiting(*args: Any, **kwargs: Any) -> Any:
            return until_available(lambda: value(*args, **kwargs), longest_s=self._longest_s)

        return waiting
