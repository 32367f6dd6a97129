"""How fast the replies of OpenAI routes are, by endpoint, of all API processes together.

The key ``ENDPOINT<ep>:openai`` is a hash of two histograms: "<name>:<number of the bucket>" -> replies, "<name>:sum" -> thousandths.
``first`` has the times to the first token in seconds, ``rate`` the output tokens per second.
"""

import bisect
from typing import Any

import redis

from ownpod.store import keys
from ownpod.store.client import redis_errors, redis_reads
from ownpod.store.common import BUCKETS_MS
from ownpod.store.figures import Histogram

_RATES = (
    *(1, 2, 5, 10, 15, 20, 30, 40, 50, 75, 100, 150),
    *(200, 300, 500, 750, 1000, 2000, 5000),
)
RATE_BUCKETS: tuple[int, ...] = tuple(1000 * rate for rate in _RATES)
"""Upper ends of the buckets of ``rate``, in tokens per 1000 s."""

_BUCKETS = {"first": BUCKETS_MS, "rate": RATE_BUCKETS}


class Replies:
    """The histograms of all endpoints.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_errors
    def add(self, endpoint: str, *, first_s: float | None, rate: float | None) -> None:
        """Adds a reply, in one round trip.

        Args:
            endpoint: its endpoint.
            first_s: seconds until its first token; None: not known.
            rate: output tokens per second; None: not known.

        Raises:
            RedisUnavailable: Redis does not answer. The reply may have been added.
        """
        key = keys.of_endpoint(endpoint, "openai")
        with self._redis.pipeline() as pipe:
            for name, value in (("first", first_s), ("rate", rate)):
                if value is not None:
                    scaled = round(value * 1000)
                    pipe.hincrby(key, f"{name}:{_bucket(_BUCKETS[name], scaled)}", 1)
                    pipe.hincrby(key, f"{name}:sum", scaled)
            if len(pipe):
                pipe.execute()

    @redis_reads
    def stats(self, endpoint: str) -> tuple[Histogram, Histogram]:
        """The histograms of an endpoint: the times to the first token, and the output tokens per second."""
        fields: Any = self._redis.hgetall(keys.of_endpoint(endpoint, "openai"))
        counts = {name: int(value) for name, value in fields.items()}
        first, rate = (
            Histogram(
                [counts.get(f"{name}:{number}", 0) for number in range(1, len(ends) + 2)],
                counts.get(f"{name}:sum", 0),
                ends,
            )
            for name, ends in _BUCKETS.items()
        )
        return first, rate


def _bucket(ends: tuple[int, ...], value: int) -> int:
    """The number of the first bucket, from 1 on, whose end is not below the value; one more than the last if there is none."""
    return bisect.bisect_left(ends, value) + 1
