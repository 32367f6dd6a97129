"""Credentials of container registries in REST v1."""

from flask import Response

from ownpod.api.management.calls import answered, as_json, deleted, this_caller
from ownpod.api.management.v1 import blueprint, read_body
from ownpod.api.services import services
from ownpod.management.v1 import fields
from ownpod.rules.catalog import Door, RegistryRow


@blueprint.get("/containerregistryauth")
def list_registries() -> Response:
    """All credentials, without passwords, as a bare array."""
    return as_json([_shown(row) for row in services().management.registries.list()])


@blueprint.post("/containerregistryauth")
def create_registry() -> Response:
    """New credentials; the password is encrypted."""
    required = ("name", "username", "password")
    values, ignored = read_body(fields.REGISTRY, *required, place="containerregistryauth")
    caller = this_caller(Door.V1)
    outcome = services().management.registries.save(
        values["name"], values["username"], values["password"], caller
    )
    return answered(outcome, caller, _shown(outcome.row), ignored=ignored)


@blueprint.get("/containerregistryauth/<id:row_id>")
def get_registry(row_id: str) -> Response:
    """One of them."""
    return as_json(_shown(services().management.registries.get(row_id)))


@blueprint.delete("/containerregistryauth/<id:row_id>")
def delete_registry(row_id: str) -> Response:
    """Deletes credentials that no endpoint uses; templates lose them."""
    caller = this_caller(Door.V1)
    outcome = services().management.registries.delete(row_id, caller)
    return deleted(outcome, caller)


def _shown(row: RegistryRow) -> dict[str, str]:
    return {"id": row.id, "name": row.name}


__all__ = ["blueprint"]
