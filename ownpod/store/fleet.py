"""Endpoints and workers of run time in Redis, and what the nodes publish about workers."""

import logging
from dataclasses import dataclass
from typing import Any

import redis

from ownpod.processes import is_dead_here
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.fleet import Entries, WorkerState, WorkerStatus
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.scripts import Scripts, constants

log = logging.getLogger(__name__)

NO_NODE = "no node runs for it: is the supervisor up?"
NO_FRONT = "no front has checked it: is one running?"
"""Why a worker without a published status is unhealthy: one that gets jobs, and one that gets requests."""


@dataclass(frozen=True)
class Heartbeat:
    """The answer to a node's heartbeat. ``paused`` and ``waiting`` are only known if the node owns the worker."""

    owned: bool
    paused: str | None
    """Why the worker takes no jobs; None: it is not paused."""
    waiting: int
    """Messages in the lists that the node asked about."""


class Fleet:
    """The commands and reads of ``fleet.lua``'s keys.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = Scripts(
            client,
            "fleet.lua",
            constants=constants(
                ENDPOINTS=keys.ENDPOINTS,
                ADDED=keys.ADDED,
                PAUSED=keys.PAUSED,
                WORKER=keys.WORKER,
                MANAGED_ENTRIES=keys.MANAGED_ENTRIES,
            ),
            # A second execution writes the same values.
            repeatable=(
                *("put_endpoint", "remove_endpoint", "put_worker", "remove_worker"),
                *("pause", "resume"),
            ),
        )

    # The fleet.

    @redis_reads
    def entries(self) -> Entries:
        """All entries of run time, in one round trip and of one instant."""
        # A transaction, so that no worker is read without its endpoint.
        with self._redis.pipeline(transaction=True) as pipe:
            for key in (keys.ENDPOINTS, keys.ADDED, keys.PULLING, keys.MANAGED_ENTRIES):
                pipe.hgetall(key)
            found = pipe.execute(raise_on_error=False)
        unreadable = isinstance(found[0], redis.ResponseError)
        endpoints, added, pulling, managed = map(_hash, found)
        return Entries(endpoints, added, pulling, managed, endpoints_unreadable=unreadable)

    def put_endpoint(self, endpoint_id: str, text: str) -> None:
        """Stores an endpoint's entry, a JSON text."""
        self._script("put_endpoint", endpoint_id, text)

    def remove_endpoint(self, endpoint_id: str, worker_ids: list[str]) -> None:
        """Removes an endpoint's entry with its added workers."""
        self._script("remove_endpoint", endpoint_id, *worker_ids)

    def put_worker(self, worker_id: str, text: str) -> None:
        """Stores an added worker's entry, a JSON text."""
        self._script("put_worker", worker_id, text)

    def remove_worker(self, worker_id: str) -> None:
        """Removes an added worker's entry; a later worker of this id is not paused."""
        self._script("remove_worker", worker_id)

    # Pauses of workers, by operators.

    def pause(self, worker_id: str, reason: str) -> None:
        """The worker's node takes no jobs from now on, also after restarts; running jobs are finished."""
        self._script("pause", worker_id, reason)

    def resume(self, worker_id: str) -> None:
        """Ends :meth:`pause`. A managed worker that is to stop stays paused."""
        self._script("resume", worker_id)

    @redis_reads
    def paused(self, worker_id: str) -> str | None:
        """Why the worker takes no jobs; None: it is not paused."""
        reason: Any = self._redis.hget(keys.PAUSED, worker_id)
        return None if reason is None else str(reason)

    # What a worker's node publishes.

    def publish_status(
        self, worker_id: str, status: WorkerStatus, *, node: str, ttl_s: float
    ) -> None:
        """Publishes a worker's status, which expires after ``ttl_s``."""
        self._script("publish_status", worker_id, int(ttl_s * 1000), *_fields(status, node))

    def remove_status(self, worker_id: str) -> None:
        """Removes the status when the worker's node ends."""
        self._script("remove_status", worker_id)

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
        """Everything that a node repeats, in one round trip: it renews its ownership (:meth:`acquire`), publishes
        the status (:meth:`publish_status`), and reads the pause and the number of messages in ``queues``, which
        are lists. Writes nothing if another process owns the worker.
        """
        arguments: tuple[str | int, ...] = (
            process,
            int(own_s * 1000),
            int(ttl_s * 1000),
            len(queues),
            *queues,
        )
        owner, paused, waiting = self._script(
            "heartbeat", worker_id, *arguments, *_fields(status, node)
        )
        return Heartbeat(owner == process, paused, waiting)

    @redis_reads
    def statuses(self, workers: tuple[WorkerSpec, ...]) -> dict[str, WorkerStatus]:
        """Each worker's status, by id. One without a node, or without a front, is unhealthy."""
        with self._redis.pipeline(transaction=False) as pipe:
            for worker in workers:
                pipe.hmget(keys.worker(worker.id), "state", "reason", "held")
            found = pipe.execute()
        return {
            worker.id: _status(*values, missing=NO_NODE if worker.has_node else NO_FRONT)
            for worker, values in zip(workers, found, strict=True)
        }

    @redis_reads
    def node_of(self, worker_id: str) -> str | None:
        """The name of the Celery node that publishes a worker's status now; None: there is none."""
        node: Any = self._redis.hget(keys.worker(worker_id), "node")
        return str(node) if node else None

    # Ownership: one process runs a worker at a time.

    @redis_reads
    def owner(self, worker_id: str) -> str | None:
        """The process that runs a worker now, as ``<host>:<pid>``; None: no living one."""
        found: Any = self._redis.get(keys.owner(worker_id))
        return None if found is None or is_dead_here(found) else str(found)

    def acquire(self, worker_id: str, process: str, *, ttl_s: float) -> bool:
        """Acquires or renews a worker for a node's process; False: another process owns it."""
        return self._own(worker_id, process, int(ttl_s * 1000))

    def release(self, worker_id: str, process: str) -> None:
        """Ends a process's ownership; does nothing if another process owns the worker."""
        self._own(worker_id, process, 0)

    def _own(self, worker_id: str, process: str, ttl_ms: int) -> bool:
        dead = ""
        while True:
            owner = str(self._script("acquire", worker_id, process, dead, ttl_ms))
            if owner in {process, dead} or not is_dead_here(owner):
                return owner == process
            dead = owner


def _hash(found: Any) -> dict[str, str]:
    """The answer to HGETALL; empty where the key is no hash."""
    if isinstance(found, redis.ResponseError) and str(found).startswith("WRONGTYPE"):
        log.error(
            "a key in Redis that lists endpoints or workers is no hash, so its entries are left out: %s",
            found,
        )
        return {}
    if isinstance(found, Exception):
        raise found
    return dict(found)


def _fields(status: WorkerStatus, node: str) -> tuple[str | int, ...]:
    """Names and values of a worker's status."""
    described = ("state", status.state.value, "reason", status.reason)
    return (*described, "held", status.lingering, "node", node)


def _status(
    state: str | None, reason: str | None, held: str | None, *, missing: str
) -> WorkerStatus:
    """The status in a worker's key; unhealthy where it cannot be read."""
    if not state:
        return WorkerStatus(WorkerState.UNHEALTHY, missing, has_no_node=True)
    try:
        return WorkerStatus(WorkerState(state), reason or "", int(held or 0))
    except ValueError:
        return WorkerStatus(WorkerState.UNHEALTHY, f"its node published {state[:40]!r}")
