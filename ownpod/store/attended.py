"""Tasks that are cancelled when no client reads their events any more: which of them have a reader."""

from collections.abc import Collection, Sequence
from typing import Any

import redis

from ownpod.store import keys
from ownpod.store.client import clock_ms, redis_errors, redis_reads

RENEW_S = 5.0
"""Seconds between two renewals of a reader."""

LEASE_S = 15.0
"""Seconds after its last renewal until a reader counts as gone, because its process may have ended."""

MOST_OVERDUE = 1000
"""Number of tasks that one read returns."""


class Attended:
    """The readers of tasks. Any call may raise RedisUnavailable.

    The key is a zset: ids of jobs, by the ms until which each has a reader.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_errors
    def renew(self, job_ids: Collection[str]) -> None:
        """These tasks have a reader."""
        if job_ids:
            until_ms = clock_ms(self._redis) + int(LEASE_S * 1000)
            self._redis.zadd(keys.ATTENDED, dict.fromkeys(job_ids, until_ms))

    @redis_errors
    def join(self, job_id: str) -> bool:
        """The task has one more reader, if it has had any. Returns whether it has."""
        until_ms = clock_ms(self._redis) + int(LEASE_S * 1000)
        self._redis.zadd(keys.ATTENDED, {job_id: until_ms}, xx=True)
        return self._redis.zscore(keys.ATTENDED, job_id) is not None

    @redis_errors
    def leave(self, job_id: str) -> None:
        """A reader of a task has gone. Another one of the same task renews it soon."""
        self._redis.zadd(keys.ATTENDED, {job_id: clock_ms(self._redis)}, xx=True)

    @redis_errors
    def forget(self, *job_ids: str) -> None:
        """These tasks have ended."""
        if job_ids:
            self._redis.zrem(keys.ATTENDED, *job_ids)

    @redis_reads
    def overdue(self) -> Sequence[str]:
        """Ids of tasks that have no reader now."""
        now_ms = clock_ms(self._redis)
        found: Any = self._redis.zrangebyscore(
            keys.ATTENDED, "-inf", now_ms, start=0, num=MOST_OVERDUE
        )
        return list(found)
