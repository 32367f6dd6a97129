"""Waiting for a Redis that is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ownpod.errors import RedisUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_S = 30.0
"""Seconds between two log lines with the same reason, because many threads may wait for a long time."""

RETRY_S = 1.0
"""Pause before Redis is asked again after it did not answer."""


def until_available(call: Callable[[], T], *, longest_s: float | None = None) -> T:
    """Repeats a call until Redis is back.

    A call whose answer is lost may have been executed, so the call must be one that may be executed
    twice: a read, or a command whose fence (attempt, claim, token) is made before this and not within.

    Raises:
        RedisUnavailable: not within ``longest_s``.
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
