"""Jobs that wait for one worker: what happens to them when it has left."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from ownpod import log
from ownpod.errors import WorkerRecordBroken
from ownpod.registry import Registry
from ownpod.rules.affinity import Affinity, gone, is_coming, may_resume
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.jobs import JobStatus
from ownpod.store.managed import Managed
from ownpod.store.queue import Queue

logger = logging.getLogger(__name__)


class LeftPins:
    """Ends jobs whose worker has left, with ``affinity_worker_gone``; RunPod answers a request so, too. Workers that are to
    be started again for such jobs are reported to the scaler instead.

    Args:
        registry: the endpoints and workers.
        queue: the queues.
        managed: the records of managed workers.
        patience_s: seconds without the worker until it counts as gone, because its entry may be late, and its node may
            restart.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        registry: Registry,
        queue: Queue,
        managed: Managed,
        *,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._queue = queue
        self._managed = managed
        self._patience_s = patience_s
        self._clock = clock
        self._missing: dict[tuple[str, str], float] = {}
        """Since when a worker is missing, by endpoint and id."""

    def once(self) -> None:
        """One round: some counts for each endpoint while no job is pinned. Raises: RedisUnavailable."""
        endpoints = self._registry.endpoints
        pinned = self._queue.pinned(endpoints)
        resumes = self._queue.resumes(endpoints)
        missing: dict[tuple[str, str], float] = {}
        for name in pinned.keys() | resumes.keys():
            before = resumes.get(name, set())
            try:
                wanted = self._check(endpoints[name], pinned.get(name, {}), missing)
            except WorkerRecordBroken as error:
                # A worker's record that cannot be read must not stop the other endpoints' jobs.
                logger.warning("endpoint %s: its pinned jobs are not checked: %s", name, error)
                continue
            for worker_id in wanted - before:
                self._queue.resume(name, worker_id)
            if ended := before - wanted:
                self._queue.unresume(name, ended)
        self._missing = missing

    def _check(
        self,
        endpoint: Endpoint,
        waiting: Mapping[str, Sequence[str]],
        missing: dict[tuple[str, str], float],
    ) -> set[str]:
        """Ends the jobs of workers that are gone. Returns the workers that are to be started again.

        Args:
            endpoint: the endpoint.
            waiting: ids of the jobs that wait for a worker, by its id.
            missing: gets the workers that are missing.
        """
        wanted = set()
        for worker_id, job_ids in waiting.items():
            if self._is_there(endpoint, worker_id):
                continue
            record = self._managed.get(worker_id)
            if record is not None and record.is_private:
                # Its jobs are settled by ownpod.housekeeping.sessions.
                continue
            able = may_resume(record, endpoint.id, self._release(endpoint))
            asks = {
                job_id
                for job_id, affinity in zip(job_ids, self._queue.affinities(job_ids), strict=True)
                if affinity == Affinity.STRICT_RESUME
            }
            if asks and (able or is_coming(record, endpoint.id)):
                wanted.add(worker_id)
            if is_coming(record, endpoint.id):
                continue
            place = endpoint.id, worker_id
            missing[place] = self._missing.get(place, self._clock())
            if self._clock() - missing[place] >= self._patience_s:
                left = [job_id for job_id in job_ids if not (able and job_id in asks)]
                self._end(endpoint.id, worker_id, left)
        return wanted

    def _is_there(self, endpoint: Endpoint, worker_id: str) -> bool:
        worker = next((w for w in endpoint.workers if w.id == worker_id), None)
        if worker is not None:
            return True
        # Another host may have a file with this worker.
        return self._registry.fleet.node_of(worker_id) is not None

    def _release(self, endpoint: Endpoint) -> str | None:
        if endpoint.managed is None:
            return None
        current = self._managed.rolled_out(endpoint.id).rollout.current
        return current.id if current else endpoint.managed.release

    def _end(self, endpoint: str, worker_id: str, job_ids: Sequence[str]) -> None:
        queue = self._queue.own(endpoint, worker_id)
        for job_id in job_ids:
            if self._queue.abandon(job_id, queue, reason=gone(worker_id)):
                log.moved(job_id, JobStatus.FAILED, reason=gone(worker_id))
