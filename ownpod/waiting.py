"""Why a job waits, in words."""

import time

from ownpod.endpoints import Endpoint
from ownpod.registry import Registry, WorkerState, WorkerStatus

FRESH_S = 1.0
"""So old may an answer be: many clients may ask about many jobs."""


class Waiting:
    """Looks at an endpoint's workers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, tuple[float, str]] = {}

    def reason(self, endpoint_id: str) -> str:
        """Why jobs of the endpoint wait. Raises: EndpointNotFound, RedisUnavailable."""
        until, reason = self._known.get(endpoint_id, (0.0, ""))
        if until < time.monotonic():
            endpoint = self._registry.endpoint(endpoint_id)
            reason = explain(endpoint, self._registry.statuses(endpoint.workers))
            self._known[endpoint_id] = time.monotonic() + FRESH_S, reason
        return reason


def explain(endpoint: Endpoint, statuses: dict[str, WorkerStatus]) -> str:
    """The reason, from how the endpoint's workers are."""
    found = [statuses[worker.id] for worker in endpoint.workers]
    if not found:
        return "the endpoint has no workers"
    if all(status.state is WorkerState.PAUSED for status in found):
        return "the endpoint is paused: all of its workers are"
    able = [s for s in found if s.state in {WorkerState.READY, WorkerState.BUSY}]
    if able:
        return f"it waits for a free worker: {len(able)} of {len(found)} are healthy"
    reasons = sorted({s.reason for s in found if s.state is not WorkerState.PAUSED})
    return f"no healthy worker: {reasons[0]}"
