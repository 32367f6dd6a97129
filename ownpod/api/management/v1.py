"""RunPod's REST v1 under ``/v1``: endpoints, templates, network volumes, credentials of container registries.

The answers, status codes and the three shapes of errors are RunPod's, because scripts compare them.
"""

import json
from typing import Any

from flask import Blueprint, Response, request

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
from ownpod.errors import CatalogImpossible, CatalogRefused, OwnPodError
from ownpod.management import Management, warnings
from ownpod.management.v1 import endpoints as v1
from ownpod.management.v1 import fields
from ownpod.management.v1 import templates as v1_templates
from ownpod.management.v1.fields import SchemaProblem
from ownpod.management.workers import as_pod
from ownpod.rules.catalog import Door, EndpointRow, TemplateRow
from ownpod.store.catalog import Snapshot

blueprint = Blueprint("rest_v1", __name__, url_prefix="/v1")


def _management() -> Management:
    return services().management


def flag(name: str) -> bool:
    """Whether the query has this flag."""
    return request.args.get(name, "").lower() in {"true", "1"}


def read_body(known: Any, *required: str, place: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body's fields, and the names of those that OwnPod does not know. Raises: SchemaProblem."""
    strict = services().settings.management_strict
    return fields.read(json_body(), known, place=place, required=required, strict=strict)


# Errors.


@blueprint.errorhandler(SchemaProblem)
def schema_problem(error: SchemaProblem) -> Response:
    """RunPod answers a body that does not fit with an array."""
    return as_json(fields.schema_error(error, request.method, request.url), 400)


@blueprint.errorhandler(CatalogRefused)
def refused(error: CatalogRefused) -> Response:
    """RunPod answers a rule that is broken with status 500; scripts match the text and the status."""
    verb = {"POST": "create", "PATCH": "update", "DELETE": "delete"}.get(request.method, "get")
    if request.path.endswith("/update"):
        verb = "update"
    noun = request.path.split("/")[2].removesuffix("s")
    text = f"{verb} {noun}: {verb} {noun}: graphql: {error.message}"
    return as_json({"error": text, "status": 500}, 500)


@blueprint.errorhandler(CatalogImpossible)
@blueprint.errorhandler(OwnPodError)
def own_error(error: OwnPodError) -> Response:
    """The other errors are an object; runpodctl reads ``error`` or ``message``."""
    response = error_answers.own_error(error)
    body = json.loads(response.get_data())
    text = body.get("error") or body.get("detail") or error.message
    response.set_data(json.dumps({"error": text, "message": text, "status": response.status_code}))
    return response


# Endpoints.


@blueprint.get("/endpoints")
def list_endpoints() -> Response:
    """All endpoints, those of ``workers.yaml`` too, as a bare array."""
    snapshot = _management().catalog.read()
    return as_json([_shown(row, snapshot) for row in _management().endpoints.list()])


@blueprint.post("/endpoints")
def create_endpoint() -> Response:
    """A new endpoint, bound to its template."""
    values, ignored = read_body(fields.ENDPOINT_LENIENT, "templateId", place="endpoints")

    def make(snapshot: Snapshot, made_id: str) -> tuple[EndpointRow, None]:
        return v1.new_endpoint(made_id, values, _template_of(snapshot, values["templateId"])), None

    caller = this_caller(Door.V1)
    outcome = _management().endpoints.create(make, caller)
    noted = warnings.of_endpoint(outcome.row, services().agents.agents())
    return answered(outcome, caller, _with_template(outcome.row), ignored=ignored, warnings=noted)


@blueprint.get("/endpoints/<id:row_id>")
def get_endpoint(row_id: str) -> Response:
    """One endpoint, with its template and workers where the query asks for them."""
    row = _management().endpoints.get(row_id)
    return as_json(_shown(row, _management().catalog.read()))


@blueprint.patch("/endpoints/<id:row_id>")
@blueprint.post("/endpoints/<id:row_id>/update")
def update_endpoint(row_id: str) -> Response:
    """Changes an endpoint; what is absent stays."""
    values, ignored = read_body(fields.ENDPOINT_LENIENT, place="endpoints")

    def change(snapshot: Snapshot, row: EndpointRow) -> EndpointRow:
        named = values.get("templateId")
        template = None if named in {None, row.template_id} else _template_of(snapshot, named)
        return v1.changed_endpoint(row, values, template)

    caller = this_caller(Door.V1)
    outcome = _management().endpoints.update(row_id, change, caller)
    noted = warnings.of_endpoint(outcome.row, services().agents.agents())
    response = answered(
        outcome, caller, _with_template(outcome.row), ignored=ignored, warnings=noted
    )
    return await_rollout(response, outcome.row, caller)


@blueprint.delete("/endpoints/<id:row_id>")
def delete_endpoint(row_id: str) -> Response:
    """Deletes an endpoint: its workers stop, its jobs are cancelled."""
    caller = this_caller(Door.V1)
    return deleted(_management().endpoints.delete(row_id, caller), caller)


def _template_of(snapshot: Snapshot, template_id: str) -> TemplateRow:
    template = snapshot.templates.get(template_id)
    if template is None:
        raise CatalogRefused(f"template {template_id!r} not found")
    return template


def _shown(row: EndpointRow, snapshot: Snapshot) -> dict[str, Any]:
    workers = None
    if flag("includeWorkers"):
        workers = [as_pod(row, worker) for worker in endpoint_workers(row, stopped=True)]
    return v1.show_endpoint(
        row,
        template=snapshot.templates.get(row.template_id or ""),
        workers=workers,
        with_template=flag("includeTemplate"),
    )


def _with_template(row: EndpointRow) -> dict[str, Any]:
    template = _management().catalog.read().templates.get(row.template_id or "")
    return v1.show_endpoint(row, template=template, with_template=True)


# Templates.


@blueprint.get("/templates")
def list_templates() -> Response:
    """All templates, as a bare array."""
    return as_json([v1_templates.show_template(row) for row in _management().templates.list()])


@blueprint.post("/templates")
def create_template() -> Response:
    """A new template."""
    known = fields.TEMPLATE_LENIENT
    values, ignored = read_body(known, "name", "imageName", place="templates")
    caller = this_caller(Door.V1)
    outcome = _management().templates.create(
        lambda _snapshot, made_id: v1_templates.new_template(made_id, values), caller
    )
    shown = v1_templates.show_template(outcome.row)
    return answered(outcome, caller, shown, ignored=ignored)


@blueprint.get("/templates/<id:row_id>")
def get_template(row_id: str) -> Response:
    """One template."""
    return as_json(v1_templates.show_template(_management().templates.get(row_id)))


@blueprint.patch("/templates/<id:row_id>")
@blueprint.post("/templates/<id:row_id>/update")
def update_template(row_id: str) -> Response:
    """Changes a template, and the endpoints that are bound to it."""
    values, ignored = read_body(fields.TEMPLATE_LENIENT, place="templates")
    caller = this_caller(Door.V1)
    outcome = _management().templates.update(
        row_id,
        lambda _snapshot, row: v1_templates.changed_template(row, values),
        caller,
        reaches_endpoints=True,
    )
    shown = v1_templates.show_template(outcome.row)
    return answered(outcome, caller, shown, ignored=ignored)


@blueprint.delete("/templates/<id:row_id>")
def delete_template(row_id: str) -> Response:
    """Deletes a template that no endpoint is bound to."""
    caller = this_caller(Door.V1)
    return deleted(_management().templates.delete(row_id, caller), caller)


# Network volumes.


@blueprint.get("/networkvolumes")
def list_volumes() -> Response:
    """All network volumes, as a bare array."""
    return as_json([v1_templates.show_volume(row) for row in _management().volumes.list()])


@blueprint.post("/networkvolumes")
def create_volume() -> Response:
    """A new network volume."""
    required = ("name", "size", "dataCenterId")
    values, ignored = read_body(fields.VOLUME, *required, place="networkvolumes")
    caller = this_caller(Door.V1)
    outcome = _management().volumes.create(
        lambda _snapshot, made_id: v1_templates.new_volume(made_id, values), caller
    )
    noted = warnings.of_volume(outcome.row, services().agents.agents())
    return answered(
        outcome, caller, v1_templates.show_volume(outcome.row), ignored=ignored, warnings=noted
    )


@blueprint.get("/networkvolumes/<id:row_id>")
def get_volume(row_id: str) -> Response:
    """One network volume."""
    return as_json(v1_templates.show_volume(_management().volumes.get(row_id)))


@blueprint.patch("/networkvolumes/<id:row_id>")
@blueprint.post("/networkvolumes/<id:row_id>/update")
def update_volume(row_id: str) -> Response:
    """Another name, or a larger size."""
    values, ignored = read_body(fields.VOLUME, place="networkvolumes")
    caller = this_caller(Door.V1)
    outcome = _management().volumes.update(
        row_id, lambda row: v1_templates.changed_volume(row, values), caller
    )
    shown = v1_templates.show_volume(outcome.row)
    noted = warnings.of_volume(outcome.row, services().agents.agents())
    return answered(outcome, caller, shown, ignored=ignored, warnings=noted)


@blueprint.delete("/networkvolumes/<id:row_id>")
def delete_volume(row_id: str) -> Response:
    """Deletes a network volume that no endpoint has."""
    caller = this_caller(Door.V1)
    return deleted(_management().volumes.delete(row_id, caller), caller)


# What else v1 has.


@blueprint.get("/billing/<any(pods, endpoints, networkvolumes):kind>")
def billing(kind: str) -> Response:  # noqa: ARG001 - the route has it
    """Nothing costs anything here."""
    return as_json([])
