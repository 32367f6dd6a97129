"""OpenAPI documents of OwnPod's management APIs, from tables of operations. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

DRY_RUN: Schema = {
    "type": "object",
    "required": ["dryRun", "diff", "restarts", "warnings", "result"],
    "properties": {
        "dryRun": {"const": True},
        "diff": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "old", "new"],
                "properties": {name: {"type": "string"} for name in ("field", "old", "new")},
            },
        },
        "restarts": {"type": "boolean"},
        "warnings": {"type": "array", "items": {"type": "string"}},
        "result": {"type": ["object", "null"]},
    },
}
"""The answer to a request that only asks what it would do."""

_DRY_RUN_HEADER = {
    "name": "X-OwnPod-Dry-Run",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`1`: nothing is changed, and the answer has what would change",
}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}

_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}


@dataclass(frozen=True)
class Operation:
    """One operation of an API.

    Attributes:
        path: with the prefix of the API; ``{id}`` is an object's id, ``{name}`` any text.
        body: the component of the request's body; "": it has none.
        answer: the component of the answer; "": the answer has no body.
        status: of the answer.
        query: names of the query's parameters.
    """

    method: str
    path: str
    summary: str
    body: str = ""
    answer: str = ""
    status: int = 200
    query: Sequence[str] = ()


@dataclass(frozen=True)
class Api:
    """An API: its operations, the schemas that they refer to, and the answers to errors.

    Attributes:
        errors: the component of the answer by status.
        error_type: the content type of errors.
    """

    title: str
    version: str
    operations: Sequence[Operation]
    components: Mapping[str, Schema]
    errors: Mapping[int, str]
    error_type: str = "application/json"
    descriptions: Mapping[int, str] = field(default_factory=dict)


def document(api: Api, *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document of an API; ``keys``: whether requests need a key."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in api.operations:
        item = paths.setdefault(operation.path, {})
        item[operation.method] = _operation(api, operation, keys=keys)
    components: dict[str, Any] = {"schemas": {**api.components, "DryRun": DRY_RUN}}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": api.title, "version": api.version},
        "paths": paths,
        "components": components,
    }


def _operation(api: Api, operation: Operation, *, keys: bool) -> dict[str, Any]:
    changes = operation.method != "get"
    places = {"{id}": _ID, "{name}": _NAME}
    parameters: list[Any] = [found for place, found in places.items() if place in operation.path]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query
    ]
    made: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "parameters": [*parameters, _DRY_RUN_HEADER] if changes else parameters,
        "responses": _responses(api, operation, dry_run=changes),
    }
    if operation.body:
        made["requestBody"] = {"required": True, "content": _content(_ref(operation.body))}
    if keys:
        made["security"] = [{"key": []}]
    return made


def _responses(api: Api, operation: Operation, *, dry_run: bool) -> dict[str, Any]:
    success: dict[str, Any] = {"description": "success"}
    if operation.answer:
        success["content"] = _content(_ref(operation.answer))
    responses = {str(operation.status): success}
    if dry_run and operation.status == 200:
        success["content"] = _content({"anyOf": [_ref(operation.answer), _ref("DryRun")]})
    elif dry_run:
        responses["200"] = {"description": "a dry run", "content": _content(_ref("DryRun"))}
    for status, component in api.errors.items():
        responses[str(status)] = {
            "description": api.descriptions.get(status, "an error"),
            "content": _content(_ref(component), api.error_type),
        }
    return responses


def _ref(component: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{component}"}


def _content(schema: Schema, content_type: str = "application/json") -> dict[str, Any]:
    return {content_type: {"schema": schema}}


def shown(properties: Mapping[str, Schema], *, optional: Sequence[str] = ()) -> Schema:
    """The schema of an object in an answer: its properties, all required but those in ``optional``."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties)}


def listed(item: Schema) -> Schema:
    """The schema of a list."""
    return {"type": "array", "items": item}


def ref(component: str) -> Schema:
    """A reference to a component."""
    return _ref(component)


STATUSES: Mapping[int, str] = {
    400: "the request has an invalid value, or a rule forbids the change",
    401: "the request has no key, or an unknown one",
    403: "the key may not manage",
    404: "the object does not exist",
    409: "the object is in use, or is defined in a file",
    413: "the body is too large",
    415: "the content type is not JSON",
    422: "the body does not fit the schema",
    429: "the rate limit is reached; Retry-After has the seconds to wait",
    500: "a rule forbids the change; RunPod answers this status",
    503: "Redis is unavailable, or refuses to write",
}
"""Descriptions of the errors of both APIs."""
