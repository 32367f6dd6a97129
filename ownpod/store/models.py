"""Models in Redis: the news of each host, the orders to it, and the pinned models.

MODELS_NEWS<host>         hash    key of a model -> its news as JSON; expires when the host's agent is silent
MODELS_ORDERS<host>       hash    key of a model -> what the host is to do with it, as JSON, until that is done
MODELS_FOR<worker>        string  the host that fetches the model of a wanted worker; expires unless that host renews it
MODELS_PINNED             set     ids of models that give way to no other one
MODELS_FETCHES<host>      hash    "ready", "failed" -> how many fetches have ended so; expires :data:`FETCHES_S` after the last one
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import redis

from ownpod.rules.model_news import News, news_in, news_text
from ownpod.rules.models import ModelSource
from ownpod.store import keys
from ownpod.store.client import redis_errors, redis_reads

NEWS_S = 60
"""Seconds for which the news of a host count."""

FOR_S = 30
"""Seconds for which a host alone may fetch the model of a worker, from its last call."""

FETCHES_S = 30 * 24 * 3600
"""Seconds after its last fetch until a host's fetches are forgotten, because hosts may have names that never come again."""

FETCH, REMOVE = "fetch", "remove"
"""What a host may be asked to do."""


@dataclass(frozen=True)
class Order:
    """What a host is to do with a model: :data:`FETCH` or :data:`REMOVE`. ``text`` is the order as Redis has it."""

    do: str
    source: ModelSource
    text: str = ""


class Models:
    """The news and orders of models. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_errors
    def publish(self, host: str, news: Iterable[News]) -> None:
        """Replaces the news of a host. May be repeated."""
        key = f"{keys.MODELS_NEWS}{host}"
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(key)
            values: dict[Any, Any] = {one.key: news_text(one) for one in news}
            if values:
                pipe.hset(key, mapping=values)
                pipe.expire(key, NEWS_S)
            pipe.execute()

    @redis_reads
    def news(self, hosts: Collection[str]) -> dict[str, list[News]]:
        """The news of these hosts, by host. What cannot be read is left out."""
        names = sorted(set(hosts))
        with self._redis.pipeline(transaction=False) as pipe:
            for host in names:
                pipe.hvals(f"{keys.MODELS_NEWS}{host}")
            found = pipe.execute()
        return {
            host: sorted(_readable(values), key=lambda one: one.key)
            for host, values in zip(names, found, strict=True)
        }

    @redis_errors
    def count(self, host: str, results: Mapping[str, int]) -> None:
        """Adds fetches that have ended. ``results``: their number by :class:`ownpod.rules.model_news.State`, READY or FAILED."""
        key = f"{keys.MODELS_FETCHES}{host}"
        with self._redis.pipeline(transaction=True) as pipe:
            for state, number in results.items():
                pipe.hincrby(key, state, number)
            pipe.expire(key, FETCHES_S)
            pipe.execute()

    @redis_reads
    def fetches(self, hosts: Collection[str]) -> dict[str, dict[str, int]]:
        """How many fetches of each host have ended, by state. A host without any is left out."""
        names = sorted(set(hosts))
        with self._redis.pipeline(transaction=False) as pipe:
            for host in names:
                pipe.hgetall(f"{keys.MODELS_FETCHES}{host}")
            found = pipe.execute()
        return {
            host: {state: int(number) for state, number in values.items()}
            for host, values in zip(names, found, strict=True)
            if values
        }

    @redis_errors
    def order(self, host: str, do: str, source: ModelSource) -> None:
        """Writes an order to a host; a later order about the same model replaces an earlier one. May be repeated."""
        text = json.dumps({"do": do, "source": asdict(source)})
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(f"{keys.MODELS_ORDERS}{host}", source.key, text)
            # Wakes the agents.
            pipe.publish(keys.MANAGED_NOTICES, f"model {host}")
            pipe.execute()

    @redis_reads
    def read(self, host: str) -> tuple[dict[str, Order], frozenset[str]]:
        """What a host is to do, by the model's key, and the ids of all pinned models."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(f"{keys.MODELS_ORDERS}{host}")
            pipe.smembers(keys.MODELS_PINNED)
            found, pinned = pipe.execute()
        return dict(_orders(found)), frozenset(pinned)

    @redis_errors
    def done(self, host: str, key: str, order: Order) -> None:
        """Forgets an order, unless another one has replaced it. May be repeated."""
        name = f"{keys.MODELS_ORDERS}{host}"
        current: Any = self._redis.hget(name, key)
        if current == order.text:
            self._redis.hdel(name, key)

    @redis_errors
    def may_fetch(self, worker_id: str, host: str) -> bool:
        """Whether this host is the one that fetches the model of a wanted worker, for :data:`FOR_S`. May be repeated."""
        name = f"{keys.MODELS_FOR}{worker_id}"
        if self._redis.set(name, host, nx=True, ex=FOR_S):
            return True
        if self._redis.get(name) != host:
            return False
        self._redis.expire(name, FOR_S)
        return True

    @redis_errors
    def give_up(self, worker_id: str, host: str) -> None:
        """Lets another host fetch the model of a worker. May be repeated."""
        name = f"{keys.MODELS_FOR}{worker_id}"
        if self._redis.get(name) == host:
            self._redis.delete(name)

    @redis_errors
    def pin(self, model_id: str, *, pinned: bool) -> bool:
        """Keeps a model on all hosts that have it, or no longer. False: nothing changes."""
        change = self._redis.sadd if pinned else self._redis.srem
        return bool(change(keys.MODELS_PINNED, model_id))

    @redis_reads
    def pinned(self) -> frozenset[str]:
        """The ids of all pinned models."""
        found: Any = self._redis.smembers(keys.MODELS_PINNED)
        return frozenset(found)


def _readable(values: Iterable[str]) -> Iterable[News]:
    for text in values:
        try:
            yield news_in(text)
        except ValueError:
            # Of another version.
            continue


def _orders(found: Mapping[str, str]) -> Iterable[tuple[str, Order]]:
    for key, text in found.items():
        try:
            values = json.loads(text)
            source = ModelSource(**values["source"])
            texts = (source.id, source.source, source.revision)
            valid = all(isinstance(t, str) for t in texts) and source.key == key
            valid = valid and values["do"] in (FETCH, REMOVE)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if valid:
            yield key, Order(values["do"], source, text)
