"""The last good answer of each endpoint to ``GET /v1/models``, which OpenAI's clients ask for again and again."""

from dataclasses import dataclass
from typing import Any

import redis

from ownpod.store import keys
from ownpod.store.client import clock_ms, redis_errors, redis_reads

KEPT_S = 7 * 86_400
"""Seconds after which a list is forgotten."""

MOST_BYTES = 1_048_576
"""Bytes of the largest list that is kept."""


@dataclass(frozen=True)
class ModelList:
    """A list. ``body``: the JSON text; ``age_s``: seconds since the worker answered it."""

    body: str
    age_s: float


class ModelLists:
    """The lists by endpoint. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_reads
    def get(self, endpoint_id: str) -> ModelList | None:
        """The endpoint's last list; None: there is none."""
        found: Any = self._redis.hmget(keys.model_list(endpoint_id), "body", "at_ms")
        body, at_ms = found
        if body is None or at_ms is None:
            return None
        return ModelList(body, max(0.0, (clock_ms(self._redis) - int(at_ms)) / 1000))

    @redis_errors
    def put(self, endpoint_id: str, body: str) -> None:
        """Keeps a list. One that is too large is not kept."""
        if len(body.encode()) > MOST_BYTES:
            return
        key = keys.model_list(endpoint_id)
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping={"body": body, "at_ms": clock_ms(self._redis)})
            pipe.expire(key, KEPT_S)
            pipe.execute()

    @redis_errors
    def forget(self, endpoint_id: str) -> None:
        """Drops the endpoint's list."""
        self._redis.delete(keys.model_list(endpoint_id))
