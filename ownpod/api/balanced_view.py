"""What the API knows of a load-balanced endpoint."""

from ownpod.api.services import Services
from ownpod.api.workers.managed import view_of
from ownpod.rules.balanced_states import BalancedView
from ownpod.rules.balancing import RouteReading
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fronts import summed


def balanced_view(svc: Services, endpoint: Endpoint) -> BalancedView:
    """What is known of a load-balanced endpoint. Raises: RedisUnavailable."""
    fronts, readings = svc.fronts.living()
    return BalancedView(
        fronts=len(fronts),
        reading=summed(readings.values()).get(endpoint.id, RouteReading()),
        statuses=svc.registry.fleet.statuses(endpoint.workers),
        managed=view_of(svc.managed, endpoint),
    )
