"""An OpenAPI document of the routes for other machines: the workers' protocol, callbacks, probes.

The fuzz tests use this document. The API does not serve the document, because RunPod's SDK and OwnPod's own processes
are the only callers of these routes. The loops of RunPod's SDK determine the statuses, see
:mod:`ownpod.api.workers.protocol`.
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
    204: "there is no job or run now; poll again",
    400: "an id is invalid, or the body is not a result",
    401: "the request needs a worker key",
    403: "the key is bound to another endpoint or worker",
    404: "the endpoint, job or token does not exist",
    409: "another worker has this id",
    413: "the body is too large",
    429: "the worker gets no jobs now; Retry-After is the time to sleep, in seconds",
    503: "Redis is unavailable, or refuses to write",
}
_POLL_STATUSES = (204, 400, 401, 403, 404, 429, 503)
_RESULT_STATUSES = (400, 401, 403, 404, 409, 413, 429, 503)
"""Statuses of results and pings. RunPod's SDK never gets a 4xx for a valid id and its own key, because the SDK would
drop the result."""


def _query(name: str) -> dict[str, Any]:
    """A query parameter of any text. The API ignores an invalid value, because the SDK would poll again at once after
    an error.
    """
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
    operation = {"summary": summary, "parameters": parameters, "responses": responses}
    if body:
        # The API accepts any JSON, because the SDK drops a result that is refused.
        content = {"application/json": {"schema": _ANY}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def make_internal_spec(endpoint_ids: list[str], *, keys: bool) -> dict[str, Any]:
    """Makes the document.

    Args:
        endpoint_ids: ids of the endpoints; the paths for results accept any other id, too.
        keys: whether workers need a key.
    """
    endpoint = _path("endpoint_id", {"type": "string", "enum": endpoint_ids})
    # A result for an unknown endpoint changes nothing. The API does not refuse it, because the SDK would post it again.
    any_endpoint = _path("endpoint_id", _ID)
    worker, run = _path("worker_id", _ID), _path("run_id", _ID)
    in_progress, batch = _query("job_in_progress"), _query("batch_size")
    polls = {
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
                "A heartbeat with the ids of all running runs",
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
        for path, (method, operation) in polls.items()
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
    paths["/health"] = {"get": _operation("Health of this process", [], alive, (403, 503))}
    paths["/metrics"] = {
        "get": _operation("Metrics for Prometheus", [], _TEXT, (401, 403, 503), kind="text/plain")
    }
    schemes = {"key": {"type": "apiKey", "in": "header", "name": "Authorization"}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "OwnPod's workers", "version": "v2"},
        "paths": paths,
        "components": {"securitySchemes": schemes},
    }
