"""The reason why a job waits, as text for clients."""

import time
from collections.abc import Callable, Sequence

from ownpod.api.workers.managed import ManagedWorkers, NoManagedWorkers, view_of
from ownpod.registry import Registry
from ownpod.rules.waiting import RefusedWorker, explain

CACHE_TTL_S = 1.0
"""Seconds for which an endpoint's reason is cached, because many clients may poll many jobs at once."""


class Waiting:
    """Explains from the states of an endpoint's workers why its jobs wait.

    Args:
        refusals: function from an endpoint's id to its refused workers.
        managed: the records of managed workers.
    """

    def __init__(
        self,
        registry: Registry,
        refusals: Callable[[str], Sequence[RefusedWorker]] = lambda _: (),
        managed: ManagedWorkers | None = None,
    ) -> None:
        self._registry = registry
        self._refusals = refusals
        self._managed: ManagedWorkers = managed or NoManagedWorkers()
        self._cached: dict[str, tuple[float, str]] = {}
        """By the endpoint's id: until when the reason is valid (``time.monotonic``), and the reason."""

    def reason(self, endpoint_id: str) -> str:
        """Why the endpoint's jobs wait.

        Raises:
            EndpointNotFound: the endpoint does not exist.
            RedisUnavailable: Redis does not answer.
        """
        until, reason = self._cached.get(endpoint_id, (0.0, ""))
        if until < time.monotonic():
            endpoint = self._registry.endpoint(endpoint_id)
            statuses = self._registry.fleet.statuses(endpoint.workers)
            view = view_of(self._managed, endpoint)
            reason = explain(endpoint, statuses, self._refusals(endpoint_id), view)
            self._cached[endpoint_id] = time.monotonic() + CACHE_TTL_S, reason
        return reason
