"""Why a job waits, in words."""

import time
from collections.abc import Callable, Sequence

from ownpod.registry import Registry
from ownpod.rules.waiting import RefusedWorker, explain

FRESH_S = 1.0
"""So old may an answer be: many clients may ask about many jobs."""


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
