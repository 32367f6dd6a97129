"""The rest of REST v2: registries, secrets, the catalog of GPUs, billing, the account."""

from typing import Any

from flask import Response, request

from ownpod.api.management.calls import answered, as_json, deleted, this_caller
from ownpod.api.management.v2 import blueprint, problem, read_body
from ownpod.api.services import services
from ownpod.errors import CatalogNotFound
from ownpod.management.shown import time_text
from ownpod.management.v2 import catalog, schemas
from ownpod.rules.catalog import Door, SecretRow

DAY_MS = 86_400_000


# Credentials of container registries.


@blueprint.get("/registries")
def list_registries() -> Response:
    """All credentials, without passwords."""
    rows = services().management.registries.list()
    return as_json({"registries": [{"id": row.id, "name": row.name} for row in rows]})


@blueprint.post("/registries")
def create_registry() -> Response:
    """New credentials; the password is encrypted."""
    values, ignored = read_body(schemas.CREATE_REGISTRY)
    caller = this_caller(Door.V2)
    outcome = services().management.registries.save(
        values["name"], values["username"], values["password"], caller
    )
    shown = {"id": outcome.row.id, "name": outcome.row.name}
    return answered(outcome, caller, shown, status=201, ignored=ignored)


@blueprint.get("/registries/<id:row_id>")
def get_registry(row_id: str) -> Response:
    """One of them."""
    row = services().management.registries.get(row_id)
    return as_json({"id": row.id, "name": row.name})


@blueprint.delete("/registries/<id:row_id>")
def delete_registry(row_id: str) -> Response:
    """Deletes credentials that no endpoint uses; templates lose them."""
    caller = this_caller(Door.V2)
    outcome = services().management.registries.delete(row_id, caller)
    return deleted(outcome, caller)


@blueprint.get("/registries/delegations")
def list_delegations() -> Response:
    """OwnPod has no delegations of Amazon's registry."""
    return as_json({"delegations": []})


@blueprint.post("/registries/delegations")
def no_delegations() -> Response:
    """They cannot be made."""
    return problem(
        501, "OwnPod has no delegations of Amazon's registry; use a registry's credentials"
    )


# Secrets.


@blueprint.get("/account/secrets")
def list_secrets() -> Response:
    """All secrets, without values."""
    return as_json({"secrets": [_secret(row) for row in services().management.secrets.list()]})


@blueprint.post("/account/secrets")
def create_secret() -> Response:
    """A new secret, which templates name as ``{{ RUNPOD_SECRET_name }}``."""
    values, ignored = read_body(schemas.CREATE_SECRET)
    caller = this_caller(Door.V2)
    outcome = services().management.secrets.create(
        values["name"], values["value"], values.get("description", ""), caller
    )
    return answered(outcome, caller, _secret(outcome.row), status=201, ignored=ignored)


@blueprint.get("/account/secrets/<id:row_id>")
def get_secret(row_id: str) -> Response:
    """One secret, without its value."""
    return as_json(_secret(services().management.secrets.get(row_id)))


@blueprint.patch("/account/secrets/<id:row_id>")
def update_secret(row_id: str) -> Response:
    """Another value or description."""
    values, ignored = read_body(schemas.UPDATE_SECRET)
    caller = this_caller(Door.V2)
    outcome = services().management.secrets.update(
        row_id, values.get("value"), values.get("description"), caller
    )
    return answered(outcome, caller, _secret(outcome.row), ignored=ignored)


@blueprint.delete("/account/secrets/<id:row_id>")
def delete_secret(row_id: str) -> Response:
    """Deletes a secret."""
    caller = this_caller(Door.V2)
    outcome = services().management.secrets.delete(row_id, caller)
    return deleted(outcome, caller)


def _secret(row: SecretRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.id,
        "description": row.description,
        "createdAt": time_text(row.created_ms),
    }


@blueprint.route("/account/ssh-keys", methods=["GET", "PUT"])
def ssh_keys() -> Response:
    """OwnPod's workers have no SSH."""
    if request.method == "PUT":
        return problem(501, "OwnPod's workers have no SSH")
    return as_json({"keys": []})


# The catalog.


@blueprint.get("/catalog/gpus")
def list_gpus() -> Response:
    """RunPod's GPU types, with what the hosts really have."""
    return as_json({"gpus": catalog.gpu_types(services().agents.agents())})


@blueprint.get("/catalog/gpus/<path:type_id>")
def get_gpu(type_id: str) -> Response:
    """One GPU type."""
    found = catalog.gpu_types(services().agents.agents())
    return as_json(_one(found, type_id, "GPU type"))


@blueprint.get("/catalog/cpus")
def list_cpus() -> Response:
    """RunPod's CPU flavors mean nothing here: a CPU worker runs on any host."""
    return as_json({"cpus": []})


@blueprint.get("/catalog/cpus/<id:type_id>")
def get_cpu(type_id: str) -> Response:
    """There is none."""
    raise CatalogNotFound("CPU type", type_id)


@blueprint.get("/catalog/datacenters")
def list_data_centers() -> Response:
    """The data centers of the hosts, from their label."""
    return as_json({"dataCenters": catalog.data_centers(services().agents.agents())})


@blueprint.get("/catalog/datacenters/<id:center_id>")
def get_data_center(center_id: str) -> Response:
    """One data center."""
    found = catalog.data_centers(services().agents.agents())
    return as_json(_one(found, center_id, "data center"))


def _one(found: list[dict[str, Any]], wanted: str, kind: str) -> dict[str, Any]:
    for row in found:
        if row["id"] == wanted:
            return row
    raise CatalogNotFound(kind, wanted)


@blueprint.get("/catalog/templates")
def list_public_templates() -> Response:
    """OwnPod has no public templates."""
    return as_json({"templates": []})


# Billing.


@blueprint.get("/billing")
@blueprint.get(f"/billing/<any({', '.join(map(repr, catalog.BILLS))}):kind>")
def billing(kind: str = "") -> Response:
    """Nothing costs anything here."""
    now_ms = services().managed.now_ms()
    return as_json(
        catalog.billing(
            kind,
            request.args.get("bucketSize", "day"),
            request.args.get("startTime", time_text(now_ms - 30 * DAY_MS)),
            request.args.get("endTime", time_text(now_ms)),
        )
    )


__all__ = ["blueprint"]
