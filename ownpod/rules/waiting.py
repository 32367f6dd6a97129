"""Why a job waits, in words. Pure."""

from collections.abc import Sequence
from typing import Protocol

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus


class RefusedWorker(Protocol):
    """See :class:`ownpod.store.offers.Refusal`."""

    @property
    def worker_id(self) -> str: ...
    @property
    def reason(self) -> str: ...


def explain(
    endpoint: Endpoint,
    statuses: dict[str, WorkerStatus],
    refused: Sequence[RefusedWorker] = (),
) -> str:
    """The reason, from how the endpoint's workers are, and which were refused."""
    found = [statuses[worker.id] for worker in endpoint.workers]
    able = [s for s in found if s.state in {WorkerState.READY, WorkerState.BUSY}]
    if found and all(status.state is WorkerState.PAUSED for status in found):
        return "the endpoint is paused: all of its workers are"
    if able:
        return f"it waits for a free worker: {len(able)} of {len(found)} are healthy"
    reasons = sorted({s.reason for s in found if s.state is not WorkerState.PAUSED})
    text = f"no healthy worker: {reasons[0]}" if found else "the endpoint has no workers"
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        text += f"; worker {refused[0].worker_id!r} is refused: {refused[0].reason}{more}"
    return text
