"""Route to list the hosts that start managed workers, with their devices."""

from collections import Counter

from flask import Blueprint, Response

from ownpod.api.services import answer, services
from ownpod.rules.hosts import describe_host

blueprint = Blueprint("agents", __name__)


@blueprint.get("/agents")
def listed() -> Response:
    """Each host by name, also a silent one, with what its devices do and which workers hold them."""
    svc = services()
    holds = svc.agents.all_holds()
    workers = Counter(worker.host for worker in svc.managed.list())
    return answer(
        {
            "agents": [
                describe_host(agent, holds.get(agent.host, ()), workers[agent.host])
                for agent in svc.agents.agents()
            ]
        }
    )
