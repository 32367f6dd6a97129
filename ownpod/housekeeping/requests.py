"""What the fronts have read of load-balanced endpoints, for the scaler: their requests count as jobs do."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.rules.balancing import RouteReading

log = logging.getLogger(__name__)


class Fronts(Protocol):
    """See :class:`ownpod.store.fronts.Fronts`."""

    def loads(self) -> Mapping[str, RouteReading]:
        """Sums over all living fronts, by the endpoint's id."""


@dataclass(frozen=True)
class Requests:
    """The requests of load-balanced endpoints.

    Attributes:
        readings: by the endpoint's id; None: not known, because no living front has read it.
        used: ids of workers that got a request since the scaler's last decision.
    """

    readings: Mapping[str, RouteReading | None] = field(default_factory=dict)
    used: Collection[str] = frozenset()


class RequestCounts:
    """Reads the fronts' counts for the scaler.

    Args:
        fronts: None: there are none, so nothing is known.
    """

    def __init__(self, fronts: Fronts | None) -> None:
        self._fronts = fronts
        self._totals: Mapping[str, int] = {}

    def read(self, endpoints: Collection[str]) -> Requests:
        """The requests of these load-balanced endpoints. Costs no command of Redis if there are none.

        Raises:
            RedisUnavailable
        """
        if not endpoints:
            return Requests()
        found = self._loads()
        totals = {
            worker: server.total
            for endpoint in endpoints
            for worker, server in (found[endpoint].servers if endpoint in found else {}).items()
        }
        # A request may begin and end between two decisions. After a restart of the front its numbers begin at 0, which is also
        # the number of a worker that HAProxy does not have for a while.
        before = self._totals
        self._totals = {i: total or before.get(i, 0) for i, total in totals.items()}
        used = {i for i, total in totals.items() if total and total != before.get(i, total)}
        return Requests({endpoint: found.get(endpoint) for endpoint in endpoints}, used)

    def _loads(self) -> Mapping[str, RouteReading]:
        try:
            return {} if self._fronts is None else self._fronts.loads()
        except RedisUnavailable:
            raise
        except OwnPodError:
            log.exception("the fronts' counts cannot be read")
            return {}
