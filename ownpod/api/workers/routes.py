"""Routes to list, add, drain, resume and remove an endpoint's workers, and to list the endpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, request
from marshmallow import ValidationError

from ownpod.api import schemas
from ownpod.api.auth import opened_endpoints
from ownpod.api.balanced_view import balanced_view
from ownpod.api.services import answer, services
from ownpod.api.workers.managed import describe_crashes, describe_managed, view_of
from ownpod.configuration import WorkerSchema
from ownpod.errors import BadRequest, UnsupportedMediaType
from ownpod.rules.balanced_states import describe_balanced
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.fleet import WorkerStatus
from ownpod.rules.managed_states import ManagedView, shown
from ownpod.validation import first_problem

blueprint = Blueprint("workers", __name__, url_prefix="/v2/<id:endpoint_id>/workers")
endpoints = Blueprint("endpoints", __name__)


class NewWorkerSchema(WorkerSchema):
    """A worker that is added over HTTP. It has no fields with a path on the server, because a client could find out
    with them which files exist there.
    """

    class Meta(WorkerSchema.Meta):
        exclude = ("ca_bundle",)


@endpoints.get("/v2/")
def all_endpoints() -> Response:
    """The ids of the endpoints that the key opens, and their types; all of them without keys. Also the presets that have
    sessions, if there are any.
    """
    ids, known = opened_endpoints(), services().registry.endpoints
    found = [known[name] for name in ids if name in known]
    presets = {
        endpoint.id: {"model_id": endpoint.preset.model_id, "task_preset": endpoint.preset.name}
        for endpoint in found
        if endpoint.preset is not None and endpoint.preset.session is not None
    }
    types = {endpoint.id: endpoint.type for endpoint in found}
    return answer({"endpoints": ids, "types": types} | ({"presets": presets} if presets else {}))


@blueprint.get("")
def listed(endpoint_id: str) -> Response:
    """Each worker with its state and jobs; the workers that OwnPod starts, with those that no agent has taken yet, and
    the last that ended badly; and the workers that are left out, with the reason.
    """
    svc = services()
    endpoint = svc.registry.endpoint(endpoint_id)
    if endpoint.is_balanced:
        found = balanced_view(svc, endpoint)
        view, rows = found.managed, describe_balanced(endpoint.workers, found)
    else:
        running = svc.store.figures.counts(endpoint_id)[1]
        statuses = svc.registry.fleet.statuses(endpoint.workers)
        view = view_of(svc.managed, endpoint)
        rows = described(endpoint.workers, statuses, running, view)
    return answer(
        {
            "workers": rows,
            "managed": describe_managed(view) | {"ended": describe_crashes(svc.managed, endpoint)},
            "leftOut": left_out(endpoint_id),
        }
    )


def left_out(endpoint_id: str) -> list[dict[str, str]]:
    """Workers whose entries in Redis cannot be used, with the reason, as the API shows them."""
    entries = services().registry.left_out(endpoint_id)
    return [{"id": entry.id, "reason": entry.reason} for entry in entries]


def described(
    workers: Sequence[WorkerSpec],
    statuses: Mapping[str, WorkerStatus],
    running: dict[str, str],
    view: ManagedView,
) -> list[dict[str, Any]]:
    """The workers as the API shows them; ``running`` as of :func:`describe`."""
    records = view.by_id()
    return [describe(w, shown(statuses[w.id], records.get(w.id), view), running) for w in workers]


def describe(worker: WorkerSpec, status: WorkerStatus, running: dict[str, str]) -> dict[str, Any]:
    """A worker as the API shows it; ``running`` has the worker's id by the id of each running job."""
    return {
        "id": worker.id,
        "url": worker.url,
        "capacity": worker.capacity,
        "state": status.state,
        "reason": status.reason,
        "running": sum(worker_id == worker.id for worker_id in running.values()),
        "jobs": sorted(job for job, worker_id in running.items() if worker_id == worker.id),
        "held": status.lingering,
    }


@blueprint.post("")
def add(endpoint_id: str) -> Response:
    """Adds a worker, or changes one that was added; the supervisor starts its node within two seconds."""
    if not request.is_json:
        # With another type, a page of another site could add a worker: browsers send that without a preflight request.
        raise UnsupportedMediaType
    values = schemas.parse_json(request.get_data(cache=False))
    if not isinstance(values, dict):
        raise BadRequest('the body must be a JSON object like {"url": "http://10.0.0.12:8000"}')
    try:
        NewWorkerSchema().load(values)
    except ValidationError as error:
        place, problem = first_problem(error.normalized_messages())
        raise BadRequest(f"{place}: {problem}") from None
    spec = services().registry.add(endpoint_id, values)
    return answer({"id": spec.id, "url": spec.url, "capacity": spec.capacity or None})


@blueprint.delete("/<id:worker_id>")
def remove(endpoint_id: str, worker_id: str) -> Response:
    """Removes a worker that was added; its running jobs end normally."""
    services().registry.remove(worker_id, endpoint_id)
    return answer({"id": worker_id, "removed": True})


@blueprint.post("/<id:worker_id>/drain")
def drain(endpoint_id: str, worker_id: str) -> Response:
    """Pauses a worker: it gets no new jobs, and its running jobs end normally."""
    registry = services().registry
    registry.fleet.pause(registry.find(worker_id, endpoint_id).id, "drained")
    return answer({"id": worker_id, "drained": True})


@blueprint.post("/<id:worker_id>/resume")
def resume(endpoint_id: str, worker_id: str) -> Response:
    """Ends a worker's pause: it gets jobs again."""
    registry = services().registry
    registry.fleet.resume(registry.find(worker_id, endpoint_id).id)
    return answer({"id": worker_id, "drained": False})
