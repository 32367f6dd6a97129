"""The reason for which a job waits in the queue, in words for clients. Pure."""

from collections.abc import Sequence
from typing import Protocol

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed_states import ManagedView, failure_in_words, progress, without_unready

NO_MANAGED = ManagedView()

FAR = 50
"""A position from which on it is read as rarely as any."""


def look_again_s(position: int, least_s: float, most_s: float) -> float:
    """Seconds until a waiting job's position is read again: soon for a job that is near, because it is of interest then. The next job keeps its
    position until it begins, which is published.

    Args:
        position: from 1.
        least_s: the shortest time.
        most_s: the longest time.
    """
    if position <= 1:
        return most_s
    return min(most_s, max(least_s, most_s * position / FAR))


class RefusedWorker(Protocol):
    """A worker that asked for jobs and was refused; see :class:`ownpod.store.offers.Refusal`."""

    @property
    def worker_id(self) -> str: ...
    @property
    def reason(self) -> str: ...


def explain(
    endpoint: Endpoint,
    statuses: dict[str, WorkerStatus],
    refused: Sequence[RefusedWorker] = (),
    managed: ManagedView = NO_MANAGED,
) -> str:
    """The reason, from the statuses of the endpoint's workers, by worker id, from refused workers, and from the workers
    that OwnPod starts.
    """
    if pause := endpoint.pause_at(managed.now_ms or 0):
        return f"the endpoint is paused: {pause.reason}"
    shared = [worker for worker in endpoint.workers if not worker.private]
    found = [statuses[worker.id] for worker in without_unready(shared, managed)]
    current = [status for status in found if status.state is not WorkerState.STANDBY]
    able = [s for s in current if s.state in {WorkerState.READY, WorkerState.BUSY}]
    coming = _coming(managed)
    if able:
        text = f"it waits for a free worker: {len(able)} of {len(current)} are healthy"
        return f"{text}; {coming}" if coming else text
    if current and all(status.state is WorkerState.PAUSED for status in current):
        text = "the endpoint is paused: all of its workers are paused"
        return f"{text}; {coming}" if coming else text
    reasons = sorted({s.reason for s in current if s.state is not WorkerState.PAUSED})
    parts = [f"no healthy worker: {reasons[0]}"] if current else []
    standby = sorted({s.reason for s in found if s.state is WorkerState.STANDBY})
    if standby and not current:
        parts.append(f"its cloud worker gets no jobs now: {standby[0]}")
    if coming:
        parts.append(coming)
    elif not found:
        parts.append(_none_yet(endpoint))
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        parts.append(f"worker {refused[0].worker_id!r} is refused: {refused[0].reason}{more}")
    return "; ".join(parts)


def _coming(managed: ManagedView) -> str:
    """What the next worker that OwnPod starts waits for; "": none is on its way."""
    parts = [] if managed.failing is None else [failure_in_words(managed.failing)]
    if on_its_way := progress(managed):
        parts.append(on_its_way)
    return "; ".join(parts)


def _none_yet(endpoint: Endpoint) -> str:
    if endpoint.managed is None:
        return "the endpoint has no workers"
    return "no worker of the endpoint runs, and its first one has not been requested yet"
