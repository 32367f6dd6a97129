"""The reason for which a job waits in the queue, in words for clients. Pure."""

from collections.abc import Sequence
from typing import Protocol

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus


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
) -> str:
    """The reason, from the statuses of the endpoint's workers, by worker id, and from refused workers."""
    current = [statuses[worker.id] for worker in endpoint.workers]
    able = [s for s in current if s.state in {WorkerState.READY, WorkerState.BUSY}]
    if current and all(status.state is WorkerState.PAUSED for status in current):
        return "the endpoint is paused: all of its workers are paused"
    if able:
        return f"it waits for a free worker: {len(able)} of {len(current)} are healthy"
    reasons = sorted({s.reason for s in current if s.state is not WorkerState.PAUSED})
    text = f"no healthy worker: {reasons[0]}" if current else "the endpoint has no workers"
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        text += f"; worker {refused[0].worker_id!r} is refused: {refused[0].reason}{more}"
    return text
