"""Managed workers as clients see them: RunPod's words for their states, and their phases in words. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.scaling import unhealthy
from ownpod.rules.waiting import FailedStarts, ManagedState, describe

IN_RUNPODS_WORDS = {WorkerState.BUSY: "running", WorkerState.PAUSED: "throttled"}
"""RunPod's word for a worker's state; the states that are not here have the same word in RunPod."""

COUNTS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
"""RunPod's counts of workers in ``/health``."""

LEAVING = (Phase.DRAINING, Phase.STOPPING)


class Failures(FailedStarts, Protocol):
    """An endpoint's failed starts in a row, with the release and the worker of the last one."""

    @property
    def release(self) -> str: ...
    @property
    def worker(self) -> str: ...


@dataclass(frozen=True)
class ManagedView:
    """An endpoint's managed workers that are not STOPPED, and its failed starts; None: there are none.

    ``now_ms``: the time in the clock of the records, ms since the epoch.
    """

    workers: Sequence[ManagedWorker] = ()
    failures: Failures | None = None
    now_ms: int = 0

    @property
    def is_failing(self) -> bool:
        """Whether no start is made now because earlier ones failed, or so many failed that it is unhealthy."""
        failures = self.failures
        return failures is not None and (failures.pause_s > 0 or unhealthy(failures.count))

    @property
    def by_id(self) -> dict[str, ManagedWorker]:
        """The workers by id."""
        return {worker.id: worker for worker in self.workers}

    def state(self, worker: ManagedWorker) -> ManagedState:
        """A worker as it is described in words."""
        since_ms = {
            Phase.WANTED: worker.created_ms,
            Phase.PREPARING: worker.placed_ms,
            Phase.STARTING: worker.started_ms,
            Phase.READY: worker.ready_ms,
        }.get(worker.phase)
        age_s = max(self.now_ms - (since_ms or self.now_ms), 0) / 1000
        return ManagedState(worker.id, worker.phase, worker.reason, age_s)


def shown(status: WorkerStatus, record: ManagedWorker | None, view: ManagedView) -> WorkerStatus:
    """The status of a worker as clients see it. Until a managed worker is ready, and once it drains, its record decides,
    because its node can only report that the worker has asked for no job.
    """
    if record is None or record.phase is Phase.READY:
        return status
    state = WorkerState.PAUSED if record.phase in LEAVING else WorkerState.INITIALIZING
    return WorkerStatus(state, describe(view.state(record)), status.lingering)


def count_workers(
    endpoint: Endpoint,
    statuses: Mapping[str, WorkerStatus],
    jobs: Mapping[str, int],
    view: ManagedView,
) -> dict[str, int]:
    """Numbers of an endpoint's workers by RunPod's words, which are :data:`COUNTS`.

    RunPod counts a ready worker twice: under ready, and under idle or running. A draining worker is idle or running
    until it has stopped, and not ready, because scripts wait for the sum of these to be 0.

    Args:
        endpoint: the endpoint.
        statuses: what the workers' nodes have published, by worker id.
        jobs: numbers of running jobs, by worker id; a worker without one may be absent.
        view: the endpoint's managed workers.
    """
    counts = dict.fromkeys(COUNTS, 0)
    records = view.by_id
    for worker in endpoint.workers:
        status, record = statuses[worker.id], records.pop(worker.id, None)
        busy = bool(jobs.get(worker.id) or status.lingering)
        for word in _words(status, record, busy=busy):
            counts[word] += 1
    # Workers that no agent has taken yet are not in the registry.
    for record in records.values():
        for word in _words(None, record, busy=bool(jobs.get(record.id))):
            counts[word] += 1
    if view.is_failing:
        counts["unhealthy"] += 1
    return counts


def _words(
    status: WorkerStatus | None, record: ManagedWorker | None, *, busy: bool
) -> Iterator[str]:
    phase = None if record is None else record.phase
    if record is not None and phase is Phase.WANTED:
        # A worker has a reason in this phase only if it finds no place.
        yield "throttled" if record.reason else "initializing"
    elif phase in {Phase.PREPARING, Phase.STARTING}:
        yield "initializing"
    elif phase in LEAVING:
        yield "running" if busy else "idle"
    elif status is None:
        # It became ready after the registry was read.
        yield from ("ready", "running" if busy else "idle")
    else:
        yield IN_RUNPODS_WORDS.get(status.state, status.state.value)
        if status.state is WorkerState.READY:
            yield "running" if busy else "idle"
