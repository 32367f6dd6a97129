"""Managed workers as clients see them: RunPod's words for their states, and their phases in words. Pure."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.releases import NO_RELEASES, RolledOut
from ownpod.rules.scaling import unhealthy

IN_RUNPODS_WORDS = {WorkerState.BUSY: "running", WorkerState.PAUSED: "throttled"}
"""RunPod's word for a worker's state; the states that are not here have the same word in RunPod."""

COUNTS = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
"""RunPod's counts of workers in ``/health``."""


class StartFailures(Protocol):
    """An endpoint's starts of workers that have failed since the last one that became ready."""

    @property
    def release(self) -> str: ...
    @property
    def count(self) -> int:
        """How many in a row."""

    @property
    def pause_s(self) -> float:
        """Seconds until the next start; 0: it may be now."""

    @property
    def reason(self) -> str: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def log(self) -> str: ...
    @property
    def worker(self) -> str: ...


@dataclass(frozen=True)
class ManagedView:
    """An endpoint's managed workers that are not STOPPED, and its failed starts; None: there are none.

    ``now_ms``: the time in the clock of the records, ms since the epoch; None: durations are left out of texts.
    ``usual_start_s``: how long a start takes, in s; None: not known.
    ``releases``: where its releases are.
    """

    workers: Sequence[ManagedWorker] = ()
    failures: StartFailures | None = None
    now_ms: int | None = None
    usual_start_s: float | None = None
    releases: RolledOut = NO_RELEASES

    @property
    def failing(self) -> StartFailures | None:
        """The failures, if no start is made now because of them, or if there are so many that the endpoint is unhealthy."""
        failures = self.failures
        if failures is None or not failures.count:
            return None
        return failures if unhealthy(failures.count) or failures.pause_s > 0 else None

    def by_id(self) -> dict[str, ManagedWorker]:
        """The workers by id."""
        return {worker.id: worker for worker in self.workers}


def usual_start_s(workers: Iterable[ManagedWorker]) -> float | None:
    """Median of the seconds from the start of these workers to ready; None: none of them has become ready."""
    took = [
        worker.ready_ms - worker.started_ms
        for worker in workers
        if worker.ready_ms is not None and worker.started_ms is not None
    ]
    return max(statistics.median(took), 0) / 1000 if took else None


def shown(status: WorkerStatus, record: ManagedWorker | None, view: ManagedView) -> WorkerStatus:
    """The status of a worker as clients see it. Until a managed worker is ready, and once it drains, its record decides,
    because its node can only report that the worker has asked for no job.
    """
    if record is None or record.phase is Phase.READY:
        return status
    drains = record.phase in {Phase.DRAINING, Phase.STOPPING}
    state = WorkerState.PAUSED if drains else WorkerState.INITIALIZING
    return WorkerStatus(state, in_words(record, view), status.lingering)


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
    records = view.by_id()
    for worker in endpoint.workers:
        status, record = statuses[worker.id], records.pop(worker.id, None)
        if record is None and worker.is_managed:
            # It has stopped since the registry was read.
            continue
        busy = bool(jobs.get(worker.id) or status.lingering)
        for word in _words(status, record, busy=busy):
            counts[word] += 1
    # Workers that no agent has taken yet are not in the registry.
    for record in records.values():
        for word in _words(None, record, busy=bool(jobs.get(record.id))):
            counts[word] += 1
    if view.failing is not None:
        counts["unhealthy"] += 1
    return counts


def _words(
    status: WorkerStatus | None, record: ManagedWorker | None, *, busy: bool
) -> Iterator[str]:
    phase = None if record is None else record.phase
    if record is not None and phase is Phase.WANTED:
        # Only a worker that finds no place has a reason in this phase.
        yield "throttled" if record.reason else "initializing"
    elif phase in {Phase.PREPARING, Phase.STARTING}:
        yield "initializing"
    elif phase in {Phase.DRAINING, Phase.STOPPING}:
        yield "running" if busy else "idle"
    elif status is None:
        # It became ready after the registry was read.
        yield from ("ready", "running" if busy else "idle")
    elif status.state is WorkerState.STANDBY:
        # It adds no capacity until jobs have waited, so it counts as no worker; one that runs jobs counts as running.
        if busy:
            yield "running"
    else:
        yield IN_RUNPODS_WORDS.get(status.state, status.state.value)
        if status.state is WorkerState.READY:
            yield "running" if busy else "idle"


def in_words(worker: ManagedWorker, view: ManagedView) -> str:
    """A worker's phase in words, after "worker x"; "" for a ready one without a reason."""
    reason = f": {worker.reason}" if worker.reason else ""
    if worker.phase is Phase.WANTED:
        return f"waits for a place{reason}"
    if worker.phase is Phase.PREPARING:
        return f"is prepared{reason}"
    if worker.phase is Phase.STARTING:
        took = ""
        if view.now_ms is not None and worker.started_ms is not None:
            took = f", {max(view.now_ms - worker.started_ms, 0) / 1000:.0f} s"
            if view.usual_start_s is not None:
                took += f" (usually {view.usual_start_s:.0f} s)"
        return f"starts{took}{reason}"
    if worker.phase in {Phase.DRAINING, Phase.STOPPING}:
        return f"{'drains' if worker.phase is Phase.DRAINING else 'stops'}{reason}"
    return worker.reason


def without_unready(workers: Sequence[WorkerSpec], view: ManagedView) -> tuple[WorkerSpec, ...]:
    """The workers whose node's status counts: all but managed ones that are not ready, or that drain."""
    unready = {worker.id for worker in view.workers if worker.phase is not Phase.READY}
    return tuple(worker for worker in workers if worker.id not in unready)


def progress(view: ManagedView) -> str:
    """What the endpoint's next worker waits for, of the worker that is closest to ready; "": none is on its way."""
    for phase in (Phase.STARTING, Phase.PREPARING, Phase.WANTED):
        for worker in view.workers:
            if worker.phase is phase and not worker.is_private:
                return f"worker {worker.id} {in_words(worker, view)}"
    return ""


def failure_in_words(failures: StartFailures) -> str:
    """Why the endpoint's workers do not start."""
    times = "start has" if failures.count == 1 else f"{failures.count} starts in a row have"
    why = with_exit_code(failures.reason, failures.exit_code)
    text = f"its workers do not start, the last {times} failed{f': {why}' if why else ''}"
    if failures.pause_s > 0:
        text += f"; the next start is in {max(failures.pause_s, 1):.0f} s"
    return text


def with_exit_code(reason: str, exit_code: int | None) -> str:
    """Why a worker ended, with its exit code once: most reasons of an agent have it already."""
    code = "" if exit_code is None else f"exit code {exit_code}"
    return reason if code in reason else ", ".join(filter(None, (reason, code)))
