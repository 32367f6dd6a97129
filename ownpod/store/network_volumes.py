"""Where network volumes are, and which of them were deleted.

HOMES                     hash    name of a network volume -> the host that has its directory
DELETED                   zset    names of deleted network volumes, by ms of the deletion, until their directories are gone
"""

from collections.abc import Sequence
from typing import Any

import redis

from ownpod.store import keys
from ownpod.store.client import clock_ms, redis_errors, redis_reads


class NetworkVolumes:
    """The places of network volumes. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_reads
    def homes(self) -> dict[str, str]:
        """The host of each network volume that is on one, by the volume's name."""
        found: Any = self._redis.hgetall(keys.VOLUME_HOMES)
        return dict(found)

    @redis_errors
    def settle(self, names: Sequence[str], host: str) -> bool:
        """Makes a host the home of those that are on none. False: one of them is on another host, so none of its workers may
        start here. May be repeated.
        """
        with self._redis.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.hsetnx(keys.VOLUME_HOMES, name, host)
            pipe.hmget(keys.VOLUME_HOMES, list(names))
            homes = pipe.execute()[-1]
        return all(home == host for home in homes)

    @redis_reads
    def deleted(self) -> dict[str, float]:
        """Seconds since the deletion of the volumes whose directories may still be there, by name."""
        found: Any = self._redis.zrange(keys.VOLUMES_DELETED, 0, -1, withscores=True)
        if not found:
            return {}
        now_ms = clock_ms(self._redis)
        return {name: max(0.0, now_ms - deleted_ms) / 1000 for name, deleted_ms in found}

    @redis_errors
    def forget(self, name: str) -> None:
        """The directory of a deleted volume is gone."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrem(keys.VOLUMES_DELETED, name)
            pipe.hdel(keys.VOLUME_HOMES, name)
            pipe.execute()
