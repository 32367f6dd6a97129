"""The workers that there are, configured or added at run time, and how each of them is now."""

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import redis
from marshmallow import ValidationError

from ownpod.configuration import AddedWorkerSchema, check_unique, make_worker
from ownpod.errors import (
    BadRequest,
    ConfigurationError,
    EndpointNotFound,
    RedisUnavailable,
    WorkerConflict,
    WorkerNotFound,
)
from ownpod.processes import is_dead_here
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import LeftOut, WorkerState, WorkerStatus, merge
from ownpod.settings import Settings
from ownpod.store import keys, schema
from ownpod.store.client import redis_errors, redis_reads, schema_version
from ownpod.validation import first_problem

log = logging.getLogger(__name__)


def _announced(status: WorkerStatus, node: str) -> dict[Any, Any]:
    """The fields of a worker's key."""
    return {
        "state": status.state.value,
        "reason": status.reason,
        "held": status.held,
        "node": node,
    }


@dataclass(frozen=True)
class Heartbeat:
    """What a node hears about its worker. The rest is only known if the worker is the node's."""

    owned: bool
    paused: str | None
    """Why it is to take no jobs."""
    waiting: int


_OWN = """
local owner = redis.call('GET', KEYS[1])
if not owner or owner == ARGV[1] or owner == ARGV[2] then
  if ARGV[3] == '0' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
  end
  return ARGV[1]
end
return owner
"""
"""KEYS owner; ARGV who wants it, whose ownership does not count, ms (0: give it up) -> who has it."""


_ATTEND = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
  return {owner, false, 0}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('HSET', KEYS[2], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local waiting = 0
for i = 4, #KEYS do
  waiting = waiting + redis.call('LLEN', KEYS[i])
end
return {ARGV[1], redis.call('HGET', KEYS[3], ARGV[2]), waiting}
"""
"""KEYS owner, worker, paused workers, lists; ARGV process, worker id, ms to own, ms to remember, and the
fields of the status -> who has the worker; and if that is the process, why it is paused and how many messages wait."""


def _hash(found: Any) -> dict[str, str]:
    """What HGETALL answered; empty where the key is no hash."""
    if isinstance(found, redis.ResponseError) and str(found).startswith("WRONGTYPE"):
        log.error(
            "a key in Redis that lists workers is no hash, so its workers are left out: %s", found
        )
        return {}
    if isinstance(found, Exception):
        raise found
    return dict(found)


def _status(state: str | None, reason: str | None, held: str | None) -> WorkerStatus:
    """The status that a worker's key has; unhealthy where it cannot be read."""
    if not state:
        return WorkerStatus(
            WorkerState.UNHEALTHY, "no node runs for it: is the dispatcher up?", unattended=True
        )
    try:
        return WorkerStatus(WorkerState(state), reason or "", int(held or 0))
    except ValueError:
        return WorkerStatus(WorkerState.UNHEALTHY, f"its node published {state[:40]!r}")


FRESH_S = 1.0
"""So old may be what a process knows of workers that were added at run time."""


class Registry:
    """Looks up endpoints and their workers, and keeps what each worker's node says about it in Redis.

    Workers stand in the configuration, or came at run time. Those stand in Redis: who was added stays
    until it is removed, who pulls while it does. Each process looks again after :data:`FRESH_S`.

    Args:
        endpoints: the configured ones, see :func:`load_endpoints`.
        client: from :func:`ownpod.store.client.connect`.
        settings: what a worker's own values default to.
    """

    def __init__(
        self, endpoints: Mapping[str, Endpoint], client: redis.Redis, settings: Settings
    ) -> None:
        self._configured = endpoints
        self._settings = settings
        self._redis = client
        self._script = client.register_script(schema.lua() + _OWN)
        self._attend = client.register_script(schema.lua() + _ATTEND)
        self._schema = schema.Guard(lambda: schema_version(client))
        self._lock = threading.Lock()
        self._added: dict[str, str] = {}
        self._pulling: dict[str, str] = {}
        self._fresh_until = 0.0
        self._known = dict(endpoints)
        self._left_out: tuple[LeftOut, ...] = ()

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """All endpoints with all their workers; as they were, while Redis is away."""
        if self._fresh_until < time.monotonic():
            self._fresh_until = time.monotonic() + FRESH_S
            try:
                self.refresh()
            except RedisUnavailable as error:
                log.debug("workers not looked up: %s", error)
        return self._known

    @redis_reads
    def refresh(self) -> None:
        """Looks now."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(keys.ADDED)
            pipe.hgetall(keys.PULLING)
            added, pulling = (_hash(found) for found in pipe.execute(raise_on_error=False))
        with self._lock:
            if (added, pulling) != (self._added, self._pulling):
                self._added, self._pulling = added, pulling
                self._merge()

    def reload(self, endpoints: Mapping[str, Endpoint]) -> None:
        """The configuration has changed."""
        with self._lock:
            self._configured = endpoints
            self._merge()

    def _merge(self) -> None:
        before = self._left_out
        self._known, self._left_out = merge(
            self._configured, self._added, self._pulling, self._spec
        )
        for entry in self._left_out:
            if entry not in before:
                log.warning("worker %r, come at run time, is left out: %s", entry.id, entry.reason)

    def left_out(self, endpoint_id: str | None = None) -> list[LeftOut]:
        """Workers that came at run time and cannot be used: all, or an endpoint's and those of no endpoint."""
        return [
            entry
            for entry in self._left_out
            if endpoint_id is None or entry.endpoint in {None, endpoint_id}
        ]

    def _spec(self, values: dict[str, Any]) -> WorkerSpec:
        values = dict(values)
        endpoint_id = values.pop("endpoint")
        loaded = AddedWorkerSchema().load(values)
        return make_worker(endpoint_id, loaded, self._settings, configured=False)

    def add(self, endpoint_id: str, values: dict[str, Any]) -> WorkerSpec:
        """Adds a worker, or changes one that was added.

        Args:
            endpoint_id: an endpoint that there is.
            values: as a worker's in ``workers.yaml``.

        Raises:
            EndpointNotFound: there is no such endpoint.
            BadRequest: a value cannot be used.
            WorkerConflict: its id or URL is another worker's, or stands in the configuration.
        """
        self.refresh()
        self.endpoint(endpoint_id)
        try:
            spec = self._spec({**values, "endpoint": endpoint_id})
        except ValidationError as error:
            place, problem = first_problem(error.normalized_messages())
            raise BadRequest(f"{place}: {problem}") from None
        if any(w.id == spec.id for e in self._configured.values() for w in e.workers):
            raise WorkerConflict(
                f"worker {spec.id!r} stands in the configuration: change it there, then send SIGHUP"
            )
        others = [worker for worker in self.workers() if worker.id != spec.id]
        try:
            check_unique([*others, spec])
        except ConfigurationError as error:
            raise WorkerConflict(error.message) from None
        self._write(spec.id, json.dumps({**values, "endpoint": endpoint_id, "id": spec.id}))
        return spec

    def remove(self, worker_id: str, endpoint_id: str | None = None) -> None:
        """Removes a worker that was added; what it runs, it finishes.

        Raises:
            WorkerNotFound: there is no such worker.
            WorkerConflict: it stands in the configuration.
        """
        self.refresh()
        if worker_id in self._added and any(
            entry.id == worker_id for entry in self.left_out(endpoint_id)
        ):
            self._write(worker_id, None)
            return
        if self.find(worker_id, endpoint_id).pulls:
            raise WorkerConflict(
                f"worker {worker_id!r} pulls: stop it, then it is forgotten; or drain it"
            )
        if worker_id not in self._added:
            raise WorkerConflict(
                f"worker {worker_id!r} stands in the configuration: remove it there, then send SIGHUP; "
                "or drain it"
            )
        self._write(worker_id, None)

    def find(self, worker_id: str, endpoint_id: str | None = None) -> WorkerSpec:
        """A worker, looked up now. Raises: WorkerNotFound, EndpointNotFound."""
        self.refresh()
        known = self.workers() if endpoint_id is None else self.endpoint(endpoint_id).workers
        for worker in known:
            if worker.id == worker_id:
                return worker
        raise WorkerNotFound(worker_id, sorted(worker.id for worker in known))

    @redis_errors
    def _write(self, worker_id: str, text: str | None) -> None:
        self._schema.check()
        if text is None:
            self._redis.hdel(keys.ADDED, worker_id)
            self._redis.hdel(keys.PAUSED, worker_id)
        else:
            self._redis.hset(keys.ADDED, worker_id, text)
        self.refresh()

    @redis_errors
    def pause(self, worker_id: str, reason: str) -> None:
        """The worker is to take no jobs, also after restarts; what it has, it finishes."""
        self._schema.check()
        self._redis.hset(keys.PAUSED, worker_id, reason)

    @redis_errors
    def resume(self, worker_id: str) -> None:
        """The worker is to take jobs again."""
        self._schema.check()
        self._redis.hdel(keys.PAUSED, worker_id)

    @redis_reads
    def paused(self, worker_id: str) -> str | None:
        """Why the worker is to take no jobs; None: it may."""
        reason: Any = self._redis.hget(keys.PAUSED, worker_id)
        return None if reason is None else str(reason)

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """Raises: EndpointNotFound."""
        try:
            return self.endpoints[endpoint_id]
        except KeyError:
            raise EndpointNotFound(endpoint_id, sorted(self.endpoints)) from None

    def workers(self) -> list[WorkerSpec]:
        """All workers of all endpoints."""
        return [worker for endpoint in self.endpoints.values() for worker in endpoint.workers]

    def worker(self, worker_id: str) -> WorkerSpec | None:
        return next((worker for worker in self.workers() if worker.id == worker_id), None)

    @redis_errors
    def publish_status(
        self, worker_id: str, status: WorkerStatus, *, node: str, ttl_s: float
    ) -> None:
        """What a node says about its worker; forgotten if it is not said again within ``ttl_s``."""
        self._schema.check()
        key = keys.worker(worker_id)
        with self._redis.pipeline() as pipe:
            pipe.hset(key, mapping=_announced(status, node))
            pipe.pexpire(key, int(ttl_s * 1000))
            pipe.execute()

    @redis_errors
    def heartbeat(
        self,
        worker_id: str,
        status: WorkerStatus,
        *,
        process: str,
        node: str,
        own_s: float,
        ttl_s: float,
        queues: list[str],
    ) -> Heartbeat:
        """All that a node tells and asks again and again, in one round trip: it keeps its worker
        (:meth:`acquire`) and then announces it (:meth:`publish_status`), hears whether it is paused, and how many
        messages wait in these lists.
        """
        held_keys = [keys.owner(worker_id), keys.worker(worker_id), keys.PAUSED, *queues]
        times = (int(own_s * 1000), int(ttl_s * 1000))
        said = [part for field in _announced(status, node).items() for part in field]
        owner, paused, waiting = self._attend(
            keys=held_keys, args=[process, worker_id, *times, *said]
        )
        return Heartbeat(owner == process, paused, waiting)

    @redis_reads
    def owner(self, worker_id: str) -> str | None:
        """The node that runs a worker now, as ``<host>:<pid>``; None: none, or one that is dead."""
        found: Any = self._redis.get(keys.owner(worker_id))
        return None if found is None or is_dead_here(found) else str(found)

    def acquire(self, worker_id: str, node: str, *, ttl_s: float) -> bool:
        """Takes or keeps a worker for a node's process; False: another one has it."""
        return self._own(worker_id, node, int(ttl_s * 1000))

    def release(self, worker_id: str, node: str) -> None:
        """Gives a worker up, if the node has it."""
        self._own(worker_id, node, 0)

    @redis_errors
    def _own(self, worker_id: str, node: str, ttl_ms: int) -> bool:
        key, dead = keys.owner(worker_id), ""
        while True:
            owner = str(self._script(keys=[key], args=[node, dead, ttl_ms]))
            if owner in {node, dead} or not is_dead_here(owner):
                return owner == node
            dead = owner

    @redis_errors
    def remove_status(self, worker_id: str) -> None:
        """The worker's node has ended."""
        self._redis.delete(keys.worker(worker_id))

    @redis_reads
    def node_of(self, worker_id: str) -> str | None:
        """The Celery node that speaks for a worker now."""
        node: Any = self._redis.hget(keys.worker(worker_id), "node")
        return str(node) if node else None

    @redis_reads
    def statuses(self, workers: tuple[WorkerSpec, ...]) -> dict[str, WorkerStatus]:
        """How each worker is, by id. One that no node speaks for is unhealthy."""
        with self._redis.pipeline(transaction=False) as pipe:
            for worker in workers:
                pipe.hmget(keys.worker(worker.id), "state", "reason", "held")
            found = pipe.execute()
        return {worker.id: _status(*values) for worker, values in zip(workers, found, strict=True)}
