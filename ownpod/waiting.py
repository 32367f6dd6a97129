"""Why a job waits, in words."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ownpod.endpoints import Endpoint
from ownpod.registry import Registry, WorkerState, WorkerStatus

FRESH_S = 1.0
"""So old may an answer be: many clients may ask about many jobs."""


class RefusedWorker(Protocol):
    """See :class:`ownpod.pull.Refusal`."""

    @property
    def worker_id(self) -> str: ...
    @property
    def reason(self) -> str: ...


class Waiting:
    """Looks at an endpoint's workers.

    Args:
        refusals: workers that came to an endpoint and got no jobs, by the endpoint's id.
    """

    def __init__(
        self,
        registry: Registry,
        refusals: Callable[[str], Sequence[RefusedWorker]] = lambda _: (),
    ) -> None:
        self._registry = registry
        self._refusals = refusals
        self._known: dict[str, tuple[float, str]] = {}

    def reason(self, endpoint_id: str) -> str:
        """Why jobs of the endpoint wait. Raises: EndpointNotFound, RedisUnavailable."""
        until, reason = self._known.get(endpoint_id, (0.0, ""))
        if until < time.monotonic():
            endpoint = self._registry.endpoint(endpoint_id)
            statuses = self._registry.statuses(endpoint.workers)
            reason = explain(endpoint, statuses, self._refusals(endpoint_id))
            self._known[endpoint_id] = time.monotonic() + FRESH_S, reason
        return reason


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
