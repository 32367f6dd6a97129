"""Jobs that name their worker: where they wait, and whether that worker is there."""

from ownpod.api.workers.managed import ManagedWorkers
from ownpod.errors import AffinityWorkerGone
from ownpod.registry import Registry
from ownpod.rules.affinity import Affinity, Pin, is_coming, may_resume
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import WorkerState
from ownpod.store.store import Store


class Pins:
    """Finds the queue of a job that names its worker.

    Args:
        registry: the endpoints and workers.
        store: the job records.
        managed: the records of managed workers.
    """

    def __init__(self, registry: Registry, store: Store, managed: ManagedWorkers) -> None:
        self._registry = registry
        self._store = store
        self._managed = managed

    def queue(self, endpoint: Endpoint, pin: Pin) -> str | None:
        """The own queue of the worker; None: the job is one for any worker.

        Raises:
            AffinityWorkerGone: the job needs this worker, and it is not there.
            RedisUnavailable: Redis does not answer.
        """
        worker = self._worker(endpoint, pin)
        if pin.is_strict:
            if worker is None or worker.draining:
                self._check_coming(endpoint, pin)
        elif worker is None or not self._is_free(worker):
            return None
        return self._store.messages.own_queue(endpoint.id, pin.worker_id)

    def _worker(self, endpoint: Endpoint, pin: Pin) -> WorkerSpec | None:
        def find(endpoint: Endpoint) -> WorkerSpec | None:
            # A private worker runs no job but its client's, see ownpod.api.jobs.session_pins; a cloud worker chooses its jobs.
            named = (w for w in endpoint.workers if w.id == pin.worker_id and not w.own_queue_only)
            return next(named, None)

        found = find(endpoint)
        if found is None and pin.is_strict:
            # It may have come since this process last read the workers.
            found = find(self._registry.newer().get(endpoint.id, endpoint))
        return found

    def _is_free(self, worker: WorkerSpec) -> bool:
        """Whether the worker takes a job now."""
        if worker.draining:
            return False
        status = self._registry.fleet.statuses((worker,))[worker.id]
        if status.state is not WorkerState.READY:
            return False
        return self._store.figures.taken(worker.endpoint, worker.id) < worker.capacity

    def _check_coming(self, endpoint: Endpoint, pin: Pin) -> None:
        """Checks that a worker which is not in the registry, or leaves, comes. Raises: AffinityWorkerGone."""
        record = self._managed.get(pin.worker_id)
        if record is not None and record.is_private:
            raise AffinityWorkerGone(pin.worker_id)
        if is_coming(record, endpoint.id):
            return
        if pin.affinity is not Affinity.STRICT_RESUME or not may_resume(
            record, endpoint.id, self._release(endpoint)
        ):
            raise AffinityWorkerGone(pin.worker_id)
        self._store.queue.resume(endpoint.id, pin.worker_id)

    def _release(self, endpoint: Endpoint) -> str | None:
        if endpoint.managed is None:
            return None
        current = self._managed.rolled_out(endpoint.id).rollout.current
        return current.id if current else endpoint.managed.release
