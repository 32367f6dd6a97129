"""RunPod's GraphQL API, ``POST /graphql``."""

from flask import Blueprint, Response

from ownpod.api.managing import as_json, endpoint_workers, json_body, this_caller
from ownpod.api.services import services
from ownpod.management.graphql.api import run
from ownpod.management.graphql.context import Context
from ownpod.rules.catalog import Door
from ownpod.rules.managed import Phase

blueprint = Blueprint("graphql", __name__)


@blueprint.post("/graphql")
def graphql() -> Response:
    """Runs the operations of a request. Errors are in the answer, whose status is 200, as all of RunPod's clients expect."""
    svc = services()
    context = Context(
        management=svc.management,
        caller=this_caller(Door.GRAPHQL),
        agents=svc.agents.agents,
        workers=endpoint_workers,
        stop_worker=_stop_worker,
    )
    return as_json(run(json_body(), context))


def _stop_worker(worker_id: str) -> bool:
    """Drains a managed worker, which the scaler replaces if it is needed: RunPod's users recycle workers so."""
    svc = services()
    worker = next((w for w in svc.managed.list() if w.id == worker_id), None)
    if worker is None:
        return False
    if this_caller(Door.GRAPHQL).dry_run:
        return True
    reason = "it was stopped through the management API"
    if worker.phase is Phase.WANTED:
        return svc.managed.discard(worker_id, reason)
    return svc.managed.drain(worker_id, reason) or worker.phase in {Phase.DRAINING, Phase.STOPPING}
