"""RunPod's REST v2 below ``/v2``: serverless endpoints, templates, network volumes.

Its paths share the prefix with the job API. A first segment of v2 is never an endpoint's id
(:data:`ownpod.rules.catalog.RESERVED`). Errors are ``application/problem+json``, as in RunPod's.
"""

import json
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from ownpod.api import error_answers
from ownpod.api.management.calls import (
    answered,
    as_json,
    await_rollout,
    deleted,
    endpoint_workers,
    json_body,
    this_caller,
)
from ownpod.api.services import services
from ownpod.errors import OwnPodError
from ownpod.management import Management, warnings
from ownpod.management.v2 import endpoints as v2
from ownpod.management.v2 import schemas
from ownpod.management.v2 import templates as v2_templates
from ownpod.management.v2.schemas import Unprocessable
from ownpod.rules.catalog import RESERVED, Door, EndpointRow
from ownpod.store.catalog import Snapshot

blueprint = Blueprint("rest_v2", __name__, url_prefix="/v2")

PROBLEM = "application/problem+json"

PODS_ARE_NOT_SERVED = "OwnPod serves no pods and no clusters, only serverless endpoints"


def _management() -> Management:
    return services().management


def read_body(schema: schemas.Schema) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body's fields, and the names of those that OwnPod does not know. Raises: Unprocessable."""
    return schemas.check(json_body(), schema, strict=services().settings.management_strict)


# Errors.


def problem(status: int, detail: str, errors: list[str] | None = None) -> Response:
    """An error as RunPod's v2 answers it."""
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(json.dumps(body), status, mimetype=PROBLEM)


@blueprint.errorhandler(OwnPodError)
def own_error(error: OwnPodError) -> Response:
    """The error's status and message as a problem."""
    response = error_answers.own_error(error)
    body = json.loads(response.get_data())
    text = body.get("error") or body.get("detail") or error.message
    errors = error.problems if isinstance(error, Unprocessable) else None
    shaped = problem(response.status_code, text, errors)
    for name in ("Retry-After", "WWW-Authenticate"):
        if name in response.headers:
            shaped.headers[name] = response.headers[name]
    return shaped


@blueprint.errorhandler(HTTPException)
def http_error(error: HTTPException) -> Response:
    """Errors of HTTP itself, with the headers that they need."""
    shaped = problem(error.code or 500, error.description or error.name)
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            shaped.headers.add(name, value)
    return shaped


def is_managing(path: str) -> bool:
    """Whether a path is one of v2's own, not of the job API, which has the same prefix."""
    parts = path.split("/")
    return parts[1:2] == ["v2"] and len(parts) > 2 and parts[2] in RESERVED


# Serverless endpoints.


@blueprint.get("/serverless")
def list_endpoints() -> Response:
    """All endpoints, those of ``workers.yaml`` too, the newest first."""
    return as_json({"endpoints": [_shown(row) for row in _management().endpoints.list()]})


@blueprint.post("/serverless")
def create_endpoint() -> Response:
    """A new endpoint."""
    values, ignored = read_body(schemas.CREATE_ENDPOINT)

    def make(snapshot: Snapshot, made_id: str) -> tuple[EndpointRow, None]:
        template = v2.template_of(snapshot.templates, values)
        return v2.new_endpoint(made_id, values, template), None

    caller = this_caller(Door.V2)
    outcome = _management().endpoints.create(make, caller)
    noted = warnings.of_endpoint(outcome.row, services().agents.agents())
    return answered(
        outcome, caller, _shown(outcome.row), status=201, ignored=ignored, warnings=noted
    )


@blueprint.get("/serverless/<id:row_id>")
def get_endpoint(row_id: str) -> Response:
    """One endpoint."""
    return as_json(_shown(_management().endpoints.get(row_id)))


@blueprint.patch("/serverless/<id:row_id>")
def update_endpoint(row_id: str) -> Response:
    """Changes an endpoint; what is absent stays."""
    strict = services().settings.management_strict
    values, ignored = read_body(schemas.UPDATE_ENDPOINT if strict else schemas.TOLERANT_UPDATE)

    def change(snapshot: Snapshot, row: EndpointRow) -> EndpointRow:
        return v2.changed_endpoint(row, values, v2.template_of(snapshot.templates, values))

    caller = this_caller(Door.V2)
    outcome = _management().endpoints.update(row_id, change, caller)
    noted = warnings.of_endpoint(outcome.row, services().agents.agents())
    response = answered(outcome, caller, _shown(outcome.row), ignored=ignored, warnings=noted)
    return await_rollout(response, outcome.row, caller)


@blueprint.delete("/serverless/<id:row_id>")
def delete_endpoint(row_id: str) -> Response:
    """Deletes an endpoint: its workers stop, its jobs are cancelled."""
    caller = this_caller(Door.V2)
    return deleted(_management().endpoints.delete(row_id, caller), caller)


@blueprint.get("/serverless/<id:row_id>/workers")
def list_workers(row_id: str) -> Response:
    """The endpoint's workers that exist now, with a summary."""
    row = _management().endpoints.get(row_id)
    return as_json(v2.show_workers(row, endpoint_workers(row), services().managed.now_ms()))


@blueprint.get("/serverless/<id:row_id>/releases")
def list_releases(row_id: str) -> Response:
    """The endpoint's releases, and how far the newest one has come."""
    row = _management().endpoints.get(row_id)
    return as_json(v2.show_releases(row, endpoint_workers(row)))


def _shown(row: EndpointRow) -> dict[str, Any]:
    return v2.show_endpoint(row, request.url_root.rstrip("/"), services().settings.lb_domain)


# Templates.


@blueprint.get("/templates")
def list_templates() -> Response:
    """All templates, the newest first."""
    shown = [v2_templates.show_template(row) for row in _management().templates.list()]
    return as_json({"templates": shown})


@blueprint.post("/templates")
def create_template() -> Response:
    """A new template."""
    values, ignored = read_body(schemas.CREATE_TEMPLATE)
    caller = this_caller(Door.V2)
    outcome = _management().templates.create(
        lambda _snapshot, made_id: v2_templates.new_template(made_id, values), caller
    )
    shown = v2_templates.show_template(outcome.row)
    return answered(outcome, caller, shown, status=201, ignored=ignored)


@blueprint.get("/templates/<id:row_id>")
def get_template(row_id: str) -> Response:
    """One template."""
    return as_json(v2_templates.show_template(_management().templates.get(row_id)))


@blueprint.patch("/templates/<id:row_id>")
def update_template(row_id: str) -> Response:
    """Changes a template; endpoints that were made from it stay as they are."""
    values, ignored = read_body(schemas.UPDATE_TEMPLATE)
    caller = this_caller(Door.V2)
    outcome = _management().templates.update(
        row_id,
        lambda _snapshot, row: v2_templates.changed_template(row, values),
        caller,
        reaches_endpoints=False,
    )
    return answered(outcome, caller, v2_templates.show_template(outcome.row), ignored=ignored)


@blueprint.delete("/templates/<id:row_id>")
def delete_template(row_id: str) -> Response:
    """Deletes a template that no endpoint is bound to."""
    caller = this_caller(Door.V2)
    return deleted(_management().templates.delete(row_id, caller), caller)


# Network volumes.


@blueprint.get("/network-volumes")
def list_volumes() -> Response:
    """All network volumes, the newest first."""
    shown = [v2_templates.show_volume(row) for row in _management().volumes.list()]
    return as_json({"networkVolumes": shown})


@blueprint.post("/network-volumes")
def create_volume() -> Response:
    """A new network volume."""
    values, ignored = read_body(schemas.CREATE_VOLUME)
    caller = this_caller(Door.V2)
    outcome = _management().volumes.create(
        lambda _snapshot, made_id: v2_templates.new_volume(made_id, values), caller
    )
    shown = v2_templates.show_volume(outcome.row)
    noted = warnings.of_volume(outcome.row, services().agents.agents())
    return answered(outcome, caller, shown, status=201, ignored=ignored, warnings=noted)


@blueprint.get("/network-volumes/<id:row_id>")
def get_volume(row_id: str) -> Response:
    """One network volume."""
    return as_json(v2_templates.show_volume(_management().volumes.get(row_id)))


@blueprint.patch("/network-volumes/<id:row_id>")
def update_volume(row_id: str) -> Response:
    """Another name, or a larger size."""
    values, ignored = read_body(schemas.UPDATE_VOLUME)
    caller = this_caller(Door.V2)
    outcome = _management().volumes.update(
        row_id, lambda row: v2_templates.changed_volume(row, values), caller
    )
    shown = v2_templates.show_volume(outcome.row)
    noted = warnings.of_volume(outcome.row, services().agents.agents())
    return answered(outcome, caller, shown, ignored=ignored, warnings=noted)


@blueprint.delete("/network-volumes/<id:row_id>")
def delete_volume(row_id: str) -> Response:
    """Deletes a network volume that no endpoint has."""
    caller = this_caller(Door.V2)
    return deleted(_management().volumes.delete(row_id, caller), caller)


# What OwnPod does not serve.


@blueprint.get("/pods")
def list_pods() -> Response:
    """OwnPod has no pods."""
    return as_json({"pods": []})


@blueprint.get("/clusters")
def list_clusters() -> Response:
    """OwnPod has no clusters."""
    return as_json({"clusters": []})


@blueprint.post("/<any(pods, clusters):kind>")
@blueprint.route("/<any(pods, clusters):kind>/<id:pod_id>", methods=["GET", "PATCH", "DELETE"])
def not_served(kind: str, pod_id: str = "") -> Response:  # noqa: ARG001 - the routes have them
    """Pods and clusters cannot be made."""
    return problem(501, PODS_ARE_NOT_SERVED)
