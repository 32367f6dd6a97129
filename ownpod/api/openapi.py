"""``/openapi.json``, made from the schemas that check the requests, and ``/docs`` to try it."""

from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Flask, Response

from ownpod.api import schemas
from ownpod.api.services import answer, services
from ownpod.api.workers import NewWorkerSchema
from ownpod.errors import ExtraMissing
from ownpod.rules.jobs import JobStatus
from ownpod.validation import HEADER_NAME

try:
    from flask_swagger_ui import get_swaggerui_blueprint
except ImportError:
    get_swaggerui_blueprint = None

blueprint = Blueprint("openapi", __name__)

DOCS = "/docs"
WORKERS = ("Details", "Endpoints", "History", "Workers", "WorkerAdded", "WorkerChanged")


def _number(name: str, what: str) -> dict[str, Any]:
    """A query parameter that is a whole number."""
    limits = {"minimum": -schemas.LARGEST, "maximum": schemas.LARGEST}
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "integer", **limits},
        "description": what,
    }


_WAIT = _number("wait", "ms to wait at most; brought into 1000 to 300000")
_TTL = _number("ttl", "ms that a finished job's record stays, if that is shorter")
_FROM = _number("from", "answer all chunks from this index on, and move no cursor")
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "the same key and body again is the same job",
}
_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string", "pattern": '^"[!#-~]+"$'},
    "description": "the ETag of an earlier answer: 304 if nothing has changed",
}
_LISTING: list[dict[str, Any]] = [
    {
        "name": "status",
        "in": "query",
        "schema": {"type": "string", "enum": [status.value for status in JobStatus]},
    },
    _number("limit", "jobs in the answer; brought into 1 to 1000"),
    {
        "name": "before",
        "in": "query",
        "schema": {"type": "string", "pattern": f"^{schemas.PLACE}$"},
        "description": "the `next` of an earlier answer",
    },
]
_ERRORS = {
    400: "the request has a value that cannot be used",
    401: "a key is needed",
    403: "the key is not for this; or, without keys, the request may come from a page of another site",
    404: "no such endpoint, or no such job",
    429: "too many calls, or a full queue; Retry-After says in how many s",
    503: "Redis is away, or refuses to write",
}


def _operations() -> list[tuple[str, list[str], str, str, dict[str, Any]]]:
    """Path below ``/v2/{endpoint_id}``, methods, what it does, its answer's schema, and more."""
    body = {
        "required": True,
        "content": {"application/json": {"schema": schemas.RunSchema}},
    }
    too_large = {413: "the body is too large"}
    conflict = {409: "the key was used for another body"}
    no_json = {415: "the body has no JSON content type"}
    taken = {409: "it is defined in the configuration file, or its id or URL is another worker's"}
    submit = {"requestBody": body, "errors": too_large | conflict}
    return [
        ("run", ["post"], "Queue a job", "Submitted", {**submit, "parameters": [_KEY]}),
        (
            "runsync",
            ["post"],
            "Queue a job and wait for its end",
            "Status",
            {**submit, "parameters": [_KEY, _WAIT]},
        ),
        (
            "status/{job_id}",
            ["get", "post"],
            "How a job is",
            "Status",
            {"parameters": [_TTL, _MATCH], "not_modified": True},
        ),
        (
            "status-sync/{job_id}",
            ["get", "post"],
            "How a job is, when it has ended",
            "Status",
            {"parameters": [_WAIT]},
        ),
        (
            "stream/{job_id}",
            ["get", "post"],
            "What the handler has yielded since the last call",
            "Stream",
            {"parameters": [_WAIT, _FROM], "events": True},
        ),
        ("cancel/{job_id}", ["post"], "Cancel a job", "Submitted", {}),
        (
            "retry/{job_id}",
            ["post"],
            "Submit a FAILED or TIMED_OUT job again",
            "Submitted",
            {"errors": {409: "the job is in another state"}},
        ),
        ("purge-queue", ["post"], "Cancel the jobs that wait", "Purged", {}),
        ("requests", ["get"], "The last jobs", "Requests", {"parameters": _LISTING}),
        ("requests/{job_id}", ["get"], "All that is known of a job", "Details", {}),
        ("history", ["get"], "Waiting and running jobs over the last hour", "History", {}),
        ("health", ["get"], "Jobs and workers by state", "Health", {}),
        ("workers", ["get"], "The workers, and how they are", "Workers", {}),
        (
            "workers",
            ["post"],
            "Add a worker, or change one that was added",
            "WorkerAdded",
            {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": NewWorkerSchema}},
                },
                "errors": taken | no_json,
            },
        ),
        (
            "workers/{worker_id}",
            ["delete"],
            "Remove a worker that was added",
            "WorkerChanged",
            {"errors": taken},
        ),
        ("workers/{worker_id}/drain", ["post"], "Give a worker no more jobs", "WorkerChanged", {}),
        ("workers/{worker_id}/resume", ["post"], "Give it jobs again", "WorkerChanged", {}),
    ]


def make_spec(endpoint_ids: list[str], *, keys: bool) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        endpoint_ids: the endpoints that exist; paths take only these.
        keys: whether calls need one.
    """
    spec = APISpec(
        title="OwnPod",
        version="v2",
        openapi_version="3.1.0",
        info={"description": "The RunPod v2 API, served by your own workers."},
        plugins=[MarshmallowPlugin()],
    )
    for name in (
        "Submitted",
        "Status",
        "Stream",
        "Purged",
        "Requests",
        "Health",
        *WORKERS,
        "Error",
    ):
        spec.components.schema(name, schema=getattr(schemas, f"{name}Schema"))
    if keys:
        spec.components.security_scheme("key", {"type": "http", "scheme": "bearer"})
    endpoint = {
        "name": "endpoint_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "enum": endpoint_ids},
    }
    job = {
        "name": "job_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
    }
    worker = {**job, "name": "worker_id"}
    for path, methods, summary, schema, more in _operations():
        operation: dict[str, Any] = {
            "summary": summary,
            "tags": ["v2"],
            "parameters": [
                endpoint,
                *([job] if "{job_id}" in path else []),
                *([worker] if "{worker_id}" in path else []),
                *more.get("parameters", []),
            ],
            "responses": _responses(schema, more),
        }
        if "requestBody" in more:
            operation["requestBody"] = more["requestBody"]
        if keys:
            operation["security"] = [{"key": []}]
        spec.path(f"/v2/{{endpoint_id}}/{path}", operations=dict.fromkeys(methods, operation))
    spec.path(
        "/v2/",
        operations={
            "get": {
                "summary": "All endpoints",
                "tags": ["v2"],
                "responses": _responses("Endpoints", {}),
                **({"security": [{"key": []}]} if keys else {}),
            }
        },
    )
    document: dict[str, Any] = spec.to_dict()
    added = document["components"]["schemas"]["NewWorker"]["properties"]
    added["headers"]["propertyNames"] = {"pattern": f"^{HEADER_NAME}$"}
    return document


def _responses(schema: str, more: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if "events" in more:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {"200": {"description": "done", "content": content}}
    if "not_modified" in more:
        responses["304"] = {"description": "as the ETag says"}
    for status, what in sorted((_ERRORS | more.get("errors", {})).items()):
        responses[str(status)] = {
            "description": what,
            "content": {"application/json": {"schema": "Error"}},
        }
    return responses


@blueprint.get("/openapi.json")
def document() -> Response:
    """The OpenAPI document of this API, with its endpoints."""
    here = services()
    return answer(make_spec(sorted(here.registry.endpoints), keys=here.keys_needed))


def add_docs(app: Flask) -> None:
    """Adds the document, and a page to try it, which needs the extra ``docs``."""
    app.register_blueprint(blueprint)
    if get_swaggerui_blueprint is None:
        page = Blueprint("swagger_ui", __name__)
        page.add_url_rule("/", view_func=_docs_missing)
    else:
        page = get_swaggerui_blueprint(DOCS, "/openapi.json", config={"app_name": "OwnPod"})
    app.register_blueprint(page, url_prefix=DOCS)


def _docs_missing() -> Response:
    raise ExtraMissing("the page at /docs", "docs")
