"""Pods in REST v1: the workers of endpoints, which RunPod's clients list and recycle as pods. OwnPod has no other pods."""

from flask import Response, request

from ownpod.api.management.calls import as_json, dry_run_answer, endpoint_workers, this_caller
from ownpod.api.management.v1 import flag
from ownpod.api.management.v1_registries import blueprint
from ownpod.api.services import services
from ownpod.management.stops import stop_worker
from ownpod.management.workers import as_pod
from ownpod.rules.catalog import Difference, Door

NOT_SERVED = (
    "pods are not served by OwnPod, only serverless endpoints; GET /v1/pods lists their workers"
)


@blueprint.get("/pods")
def list_pods() -> Response:
    """The workers of all endpoints where the query asks for them."""
    if not flag("includeWorkers"):
        return as_json([])
    wanted = request.args.get("endpointId")
    rows = [row for row in services().management.endpoints.list() if wanted in {None, row.id}]
    return as_json(
        [as_pod(row, worker) for row in rows for worker in endpoint_workers(row, stopped=True)]
    )


@blueprint.post("/pods/<id:pod_id>/<any(stop, reset, restart):kind>")
@blueprint.delete("/pods/<id:pod_id>")
def recycle(pod_id: str, kind: str = "") -> Response:
    """Stops a worker after its jobs; the scaler starts another one if it is needed."""
    svc, caller = services(), this_caller(Door.V1)
    worker = stop_worker(svc.managed, pod_id, caller)
    if worker is None:
        return pods()
    if caller.dry_run:
        stops = Difference("desiredStatus", "RUNNING", "EXITED")
        return dry_run_answer([stops], restarts=True, result=None)
    if not kind:
        return Response(status=204)
    return as_json({"id": worker.id, "endpointId": worker.endpoint, "desiredStatus": "EXITED"})


@blueprint.post("/pods")
@blueprint.route("/pods/<id:pod_id>", methods=["GET", "PATCH"])
@blueprint.post("/pods/<id:pod_id>/<any(update, start):kind>")
def pods(pod_id: str = "", kind: str = "") -> Response:  # noqa: ARG001 - the routes have them
    """Pods are not served."""
    return as_json({"error": NOT_SERVED, "message": NOT_SERVED, "status": 501}, 501)


__all__ = ["blueprint"]
