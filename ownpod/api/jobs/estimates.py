"""How long a job will probably wait, for its events and its JSON; the rule is :mod:`ownpod.rules.estimates`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ownpod.api.workers.managed import ManagedWorkers
from ownpod.errors import EndpointNotFound
from ownpod.registry import Registry
from ownpod.rules.estimates import Pace, wait_s
from ownpod.rules.jobs import Job
from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker, Phase
from ownpod.rules.residents import Waiting
from ownpod.rules.sharing import free_slots
from ownpod.store.queue import Place

CACHE_TTL_S = 1.0
"""Seconds for which an endpoint's pace is cached, because many streams may show the same queue."""


class Hosts(Protocol):
    """The hosts' records, see :class:`ownpod.store.agents.Agents`. The calls may raise RedisUnavailable."""

    def agents(self) -> Sequence[AgentInfo]: ...
    def all_holds(self) -> Mapping[str, Sequence[Hold]]: ...


class Estimates:
    """Estimates how long jobs wait.

    Args:
        registry: the endpoints.
        pace: function from an endpoint's id to what is known of its speed, and the clock of the records in ms since the epoch.
        managed: the records of managed workers.
        hosts: the hosts' records.
    """

    def __init__(
        self,
        registry: Registry,
        pace: Callable[[str], tuple[Pace, int]],
        managed: ManagedWorkers,
        hosts: Hosts,
    ) -> None:
        self._registry = registry
        self._read = pace
        self._managed = managed
        self._hosts = hosts
        self._cached: dict[str, tuple[float, tuple[Pace, int]]] = {}
        """By the endpoint's id: until when the pace is valid (``time.monotonic``), and the pace."""

    def wait_s(self, job: Job, place: Place, worker: ManagedWorker | None = None) -> int | None:
        """Whole seconds until a waiting job begins; None: not known.

        Args:
            job: the job.
            place: where it waits.
            worker: the managed worker in whose own queue it waits, if it was read already.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        pace, now_ms = self._pace(job.endpoint)
        if place.worker_id is not None:
            worker = worker or self._managed.get(place.worker_id)
            starting = [] if worker is None else self._starting(worker, now_ms)
            running = pace.running.get(place.worker_id, ())
            return wait_s(place.position, pace, running=running, starting=starting)
        try:
            endpoint = self._registry.endpoint(job.endpoint)
        except EndpointNotFound:
            return None
        private = {spec.id for spec in endpoint.workers if spec.private}
        shared = [s for name, of in pace.running.items() if name not in private for s in of]
        starting = []
        if not shared and endpoint.managed is not None:
            workers = [w for w in self._managed.list(endpoint.id) if not w.is_private]
            starting = [s for worker in workers for s in self._starting(worker, now_ms)]
        return wait_s(place.position, pace, running=shared, starting=starting)

    def _pace(self, endpoint_id: str) -> tuple[Pace, int]:
        until, found = self._cached.get(endpoint_id, (0.0, None))
        if found is None or until < time.monotonic():
            found = self._read(endpoint_id)
            self._cached[endpoint_id] = time.monotonic() + CACHE_TTL_S, found
        return found

    def _starting(self, worker: ManagedWorker, now_ms: int) -> list[float]:
        """Seconds since the start of a worker began; empty: it does not start, or how long its start takes is not known."""
        if worker.phase is Phase.STARTING and worker.started_ms is not None:
            return [max(now_ms - worker.started_ms, 0) / 1000]
        # A reason is that its model or image is missing, or that no device is free.
        if worker.phase is not Phase.WANTED or worker.reason:
            return []
        need = Waiting(worker.id, worker.endpoint, worker.pools, worker.gpu_count, worker.volumes)
        if not worker.gpu_count:
            return [0.0]
        free = free_slots(need, self._hosts.agents(), self._hosts.all_holds())
        return [] if free is None else [0.0]
