"""The part of ``/openapi.json`` about OpenAI's clients."""

from typing import Any

from apispec import APISpec
from marshmallow import Schema, fields


class _ErrorSchema(Schema):
    message = fields.String(required=True)
    type = fields.String(required=True)
    param = fields.Raw(metadata={"description": "null, or what the worker says"})
    code = fields.Raw(metadata={"description": "null, a number or a word"})


class OpenAIErrorSchema(Schema):
    """An error as OpenAI's clients read it."""

    error = fields.Nested(_ErrorSchema, required=True)


_STATUSES = {
    400: "a value is wrong, or the worker reports it",
    401: "the request has no key, or an unknown one",
    403: "the key does not open this; or, without keys, the request may come from a page of another site",
    404: "the endpoint, the worker or the model does not exist, or the endpoint is load-balanced",
    405: "the worker does not take this method",
    409: "the Idempotency-Key was used with another body, or the endpoint is paused",
    413: "the body is too large",
    429: "the rate limit is reached, or the queue is full; Retry-After has the seconds to wait",
    500: "the worker failed",
    503: "Redis is unavailable, or no worker took the request; Retry-After has the seconds to wait",
    504: "the worker did not answer in time",
}


def add_openai(
    spec: APISpec, endpoint: dict[str, Any], headers: list[dict[str, Any]], *, keys: bool
) -> None:
    """Adds the path and its components.

    Args:
        spec: the document.
        endpoint: the parameter of the path that names the endpoint.
        headers: the parameters of requests that make jobs.
        keys: whether requests need a key.
    """
    spec.components.schema("OpenAIError", schema=OpenAIErrorSchema)
    route = {
        "name": "path",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^v1/[a-z_]+(/[a-z_]+)*$", "maxLength": 200},
        "description": "the route, like v1/chat/completions",
    }
    content: dict[str, Any] = {"application/json": {"schema": {}}}
    events = {**content, "text/event-stream": {"schema": {"type": "string"}}}
    get = _operation("A request without a body to the workers of OpenAI clients", content)
    post = _operation("A request to the workers of OpenAI clients; with `stream` events", events)
    post["requestBody"] = {"content": {"application/json": {"schema": {"type": "object"}}}}
    for operation in (get, post):
        operation["parameters"] = [endpoint, route, *headers]
        if keys:
            operation["security"] = [{"key": []}]
    spec.path("/v2/{endpoint_id}/openai/{path}", operations={"get": get, "post": post})


def _operation(summary: str, content: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "what the worker answers", "content": content}
    }
    for status, description in _STATUSES.items():
        responses[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": "OpenAIError"}},
        }
    return {"summary": summary, "tags": ["openai"], "responses": responses}
