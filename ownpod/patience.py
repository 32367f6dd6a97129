"""Waiting for a Redis that is away."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ownpod.errors import RedisUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 1.0
"""Pause before Redis is asked again after it did not answer."""


def until_redis_answers(call: Callable[[], T], *, longest_s: float | None = None) -> T:
    """Repeats a call that changes nothing when repeated, until Redis is back.

    Raises:
        RedisUnavailable: not within ``longest_s``.
    """
    began = time.monotonic()
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            if longest_s is not None and time.monotonic() - began > longest_s:
                raise
            logger.warning("waiting for Redis: %s", error)
            time.sleep(RETRY_S)
