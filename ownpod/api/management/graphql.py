"""RunPod's GraphQL API, ``POST /graphql``."""

from flask import Blueprint, Response

from ownpod.api.management.calls import as_json, endpoint_workers, json_body, this_caller
from ownpod.api.services import services
from ownpod.management.graphql.api import run
from ownpod.management.graphql.context import Context
from ownpod.management.stops import stop_worker
from ownpod.rules.catalog import Door

blueprint = Blueprint("graphql", __name__)


@blueprint.post("/graphql")
def graphql() -> Response:
    """Runs the operations of a request. Errors are in the answer, whose status is 200, as all of RunPod's clients expect."""
    svc = services()
    caller = this_caller(Door.GRAPHQL)
    context = Context(
        management=svc.management,
        caller=caller,
        agents=svc.agents.agents,
        workers=endpoint_workers,
        stop_worker=lambda i: stop_worker(svc.managed, i, caller) is not None,
    )
    return as_json(run(json_body(), context))
