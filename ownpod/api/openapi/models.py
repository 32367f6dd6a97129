"""The part of ``/openapi.json`` about models."""

from typing import Any

from apispec import APISpec
from marshmallow import Schema, fields, validate

from ownpod.rules.model_news import State


class HostModelSchema(Schema):
    """A model on a host."""

    host = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf([state.value for state in State]))
    done = fields.Integer(required=True, metadata={"description": "bytes that are there"})
    total = fields.Integer(required=True, metadata={"description": "all bytes; 0: not known"})
    source = fields.String(required=True)
    revision = fields.String(required=True)
    error = fields.String(required=True)
    usedMs = fields.Integer(  # noqa: N815
        required=True, metadata={"description": "last use, ms since the epoch; 0: none"}
    )
    workers = fields.List(
        fields.String(), required=True, metadata={"description": "ids of the workers that have it"}
    )


class ModelSchema(Schema):
    """A model of presets or of hosts."""

    id = fields.String(required=True)
    sources = fields.List(fields.String(), required=True)
    pinned = fields.Boolean(required=True)
    hosts = fields.List(fields.Nested(HostModelSchema), required=True)


class ModelsSchema(Schema):
    """The response of ``/api/models``."""

    models = fields.List(fields.Nested(ModelSchema), required=True)
    total = fields.Integer(required=True)


class ModelAskedSchema(Schema):
    """The hosts that were asked for something."""

    success = fields.Boolean(required=True)
    model_id = fields.String(required=True)
    hosts = fields.List(fields.String(), required=True)
    message = fields.String(required=True)


_ERRORS = {
    400: "a value is wrong, a worker has the model, or no host can do it",
    401: "the request has no key, or an unknown one",
    403: "the key does not open this; or, without keys, the request may come from a page of another site",
    404: "there is no such model",
    503: "Redis is unavailable",
}

_MODEL = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:@+-]*$", "maxLength": 200},
}
_HOST = {
    "name": "host",
    "in": "query",
    "schema": {"type": "string"},
    "description": "only this host; without it all",
}


def add_models(spec: APISpec, *, keys: bool) -> None:
    """Adds the paths and components. ``keys``: whether requests need a key."""
    spec.components.schema("Models", schema=ModelsSchema)
    spec.components.schema("ModelAsked", schema=ModelAskedSchema)
    asks = {"post": "Keep a model on its hosts", "delete": "Let a model give way to others"}
    named = "/api/models/{model_id}"
    paths: dict[str, dict[str, tuple[str, str, list[dict[str, Any]]]]] = {
        "/api/models": {"get": ("Models, with the progress of each host", "Models", [])},
        f"{named}/fetch": {"post": ("Fetch a model on hosts", "ModelAsked", [_MODEL, _HOST])},
        named: {"delete": ("Remove a model from hosts", "ModelAsked", [_MODEL, _HOST])},
        f"{named}/pin": {method: (what, "ModelAsked", [_MODEL]) for method, what in asks.items()},
    }
    for path, methods in paths.items():
        operations = {method: _operation(*values) for method, values in methods.items()}
        for operation in operations.values() if keys else ():
            operation["security"] = [{"key": []}]
        spec.path(path, operations=operations)


def _operation(summary: str, component: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    content = {"application/json": {"schema": component}}
    responses: dict[str, Any] = {"200": {"description": "success", "content": content}}
    for status, description in _ERRORS.items():
        responses[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": "TaskError"}},
        }
    return {
        "summary": summary,
        "tags": ["models"],
        "parameters": parameters,
        "responses": responses,
    }
