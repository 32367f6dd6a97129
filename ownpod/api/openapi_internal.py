"""An OpenAPI document of what machines beside the clients call: the pull protocol, callbacks, probes.

It is not served: RunPod's SDK and OwnPod's own parts are the only callers. It exists to be tested against,
and states the protocol as the SDK has it (its loops decide the answers, see :mod:`ownpod.api.worker_protocol`).
"""

from typing import Any

_TEXT = {"type": "string"}
_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,255}$"}
_ANY: dict[str, Any] = {}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}

_JOB = {
    "type": "object",
    "required": ["id", "input"],
    "properties": {"id": _ID, "input": _ANY},
}
_STOPS = {
    "type": "object",
    "required": ["jobsToStop"],
    "properties": {"jobsToStop": {"type": "array", "items": _ID}},
}
_TAKEN = {"type": "object", "maxProperties": 0}
_STATE = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {"id": _ID, "status": _TEXT},
}
_WHY = {
    204: "nothing now; ask again",
    400: "an id cannot be one, or the body is no result",
    401: "a worker key is needed",
    403: "the key is not for this",
    404: "there is no such endpoint, job or token",
    409: "the worker's id is another's",
    413: "the body is too large",
    429: "the worker gets no jobs now; Retry-After has the s to sleep",
    503: "Redis is away, or refuses to write",
}
_POLL_STATUSES = (204, 400, 401, 403, 404, 429, 503)
_RESULT_STATUSES = (400, 401, 403, 404, 409, 413, 429, 503)
"""A result that the SDK sends is never answered 4xx; an id that is none, or a wrong key, may be."""


def _query(name: str) -> dict[str, Any]:
    """A query of any text: what cannot be used counts as not given, as the SDK would ask again at once."""
    return {"name": name, "in": "query", "schema": _TEXT}


def _path(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(
    summary: str,
    parameters: list[dict[str, Any]],
    success: dict[str, Any],
    statuses: tuple[int, ...],
    *,
    body: bool = False,
    kind: str = "application/json",
) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "200": {"description": "done", "content": {kind: {"schema": success}}}
    }
    for status in statuses:
        response: dict[str, Any] = {"description": _WHY[status]}
        if status >= 400:
            response["content"] = {"application/json": {"schema": _ERROR}}
        responses[str(status)] = response
    found = {"summary": summary, "parameters": parameters, "responses": responses}
    if body:
        # Any JSON is taken, as a result that was refused would be lost.
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ANY}}}
    return found


def make_internal_spec(endpoint_ids: list[str], *, keys: bool) -> dict[str, Any]:
    """The document.

    Args:
        endpoint_ids: the configured endpoints; paths take only these, but those for results take any id.
        keys: whether workers need one.
    """
    endpoint = _path("endpoint_id", {"type": "string", "enum": endpoint_ids})
    # A result of an unknown endpoint changes nothing, and is not refused: that would make the SDK post it again.
    any_endpoint = _path("endpoint_id", _ID)
    worker, run = _path("worker_id", _ID), _path("run_id", _ID)
    in_progress, batch = _query("job_in_progress"), _query("batch_size")
    pulls = {
        "job-take/{worker_id}": (
            "get",
            _operation("A job", [endpoint, worker, in_progress], _JOB, _POLL_STATUSES),
        ),
        "job-take-batch/{worker_id}": (
            "get",
            _operation(
                "Jobs",
                [endpoint, worker, in_progress, batch],
                {"type": "array", "items": _JOB, "minItems": 1},
                _POLL_STATUSES,
            ),
        ),
        "job-stop/{worker_id}": (
            "get",
            _operation("Runs to stop", [endpoint, worker], _STOPS, _POLL_STATUSES),
        ),
        "ping/{worker_id}": (
            "get",
            _operation(
                "A sign of life, with the ids of all runs",
                [endpoint, worker, _query("job_id"), _query("runpod_version")],
                _TAKEN,
                _RESULT_STATUSES,
            ),
        ),
        "job-stream/{worker_id}/{run_id}": (
            "post",
            _operation("A chunk", [any_endpoint, worker, run], _TAKEN, _RESULT_STATUSES, body=True),
        ),
        "job-done/{worker_id}/{run_id}": (
            "post",
            _operation(
                "A result, or progress",
                [any_endpoint, worker, run, _query("isStream")],
                _TAKEN,
                _RESULT_STATUSES,
                body=True,
            ),
        ),
    }
    paths: dict[str, Any] = {
        f"/v2/{{endpoint_id}}/{path}": {method: operation}
        for path, (method, operation) in pulls.items()
    }
    if keys:
        for item in paths.values():
            for operation in item.values():
                operation["security"] = [{"key": []}]
    token = [_path("endpoint_id", _ID), _path("job_id", _ID), _path("token", _ID)]
    paths["/callback/{endpoint_id}/{job_id}/{token}"] = {
        "post": _operation(
            "A pushed worker's result", token, _STATE, (400, 403, 404, 413, 503), body=True
        )
    }
    alive = {"type": "object", "required": ["status"], "properties": {"status": _TEXT}}
    paths["/health"] = {"get": _operation("Whether this process serves", [], alive, (403, 503))}
    paths["/metrics"] = {
        "get": _operation("Prometheus's figures", [], _TEXT, (401, 403, 503), kind="text/plain")
    }
    schemes = {"key": {"type": "apiKey", "in": "header", "name": "Authorization"}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "OwnPod's workers", "version": "v2"},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }
