"""``/openapi.json``, made from the schemas of requests and responses, and ``/docs``, a page to try the API."""

from collections.abc import Callable
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Flask, Response

from ownpod.api import responses, schemas
from ownpod.api.openapi.models import add_models
from ownpod.api.openapi.openai import add_openai
from ownpod.api.openapi.tasks import TaskChoices, add_tasks, narrow
from ownpod.api.services import answer, services
from ownpod.api.workers import agents_responses
from ownpod.api.workers.routes import NewWorkerSchema
from ownpod.errors import ExtraMissing
from ownpod.management.v1 import openapi as v1
from ownpod.management.v2 import openapi as v2
from ownpod.rules.affinity import HEADER, PATTERN
from ownpod.rules.events import CURSOR
from ownpod.rules.jobs import JobStatus
from ownpod.validation import HEADER_NAME

try:
    from flask_swagger_ui import get_swaggerui_blueprint
except ImportError:
    get_swaggerui_blueprint = None

blueprint = Blueprint("openapi", __name__)

DOCS = "/docs"
COMPONENTS = {
    "Submitted": responses.SubmittedSchema,
    "Status": responses.StatusSchema,
    "Stream": responses.StreamSchema,
    "Purged": responses.PurgedSchema,
    "Requests": responses.RequestsSchema,
    "Health": responses.HealthSchema,
    "Details": responses.DetailsSchema,
    "Endpoints": responses.EndpointsSchema,
    "History": responses.HistorySchema,
    "Workers": responses.WorkersSchema,
    "WorkerAdded": responses.WorkerAddedSchema,
    "WorkerChanged": responses.WorkerChangedSchema,
    "Agents": agents_responses.AgentsSchema,
    "Output": responses.OutputSchema,
    "Paused": responses.PausedSchema,
    "WorkerGone": responses.WorkerGoneSchema,
    "Error": responses.ErrorSchema,
}
"""The schemas of responses by their names in the document; operations refer to these names."""


def _number(name: str, description: str) -> dict[str, Any]:
    """A parameter of the query that is a whole number."""
    limits = {"minimum": -schemas.LARGEST, "maximum": schemas.LARGEST}
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "integer", **limits},
        "description": description,
    }


_WAIT = _number(
    "wait", "longest wait in ms; set to the nearest of 1000 and 300000 if it is outside"
)
_TTL = _number("ttl", "ms until a finished job's record expires; ignored if it expires earlier")
_FROM = _number("from", "return all chunks from this index on, and do not move the cursor")
_EVENTS = {
    "name": "events",
    "in": "query",
    "schema": {"type": "string", "enum": ["typed"]},
    "description": "typed: server-sent events of the job's connection, worker, text, output, logs and end",
}
_AFTER = {
    "name": "after",
    "in": "query",
    "schema": {"type": "string", "pattern": f"^{CURSOR.pattern}$"},
    "description": "with typed events: those after the event with this id, as with Last-Event-ID",
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "a request with the same key and body returns the same job",
}
_PIN = {
    "name": HEADER,
    "in": "header",
    "schema": {"type": "string", "maxLength": 270, "pattern": PATTERN},
    "description": "the worker that is to run the job: its id, if it has a free slot; or `strict <id>`, only this worker; "
    "or `strict-resume <id>`, which OwnPod starts again if it has stopped it",
}
_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string", "pattern": '^"[!#-~]+"$'},
    "description": "the ETag of an earlier response; 304 if the job has not changed since",
}
_LISTING: list[dict[str, Any]] = [
    {
        "name": "status",
        "in": "query",
        "schema": {"type": "string", "enum": [status.value for status in JobStatus]},
    },
    _number("limit", "largest number of jobs in the response, from 1 to 1000"),
    {
        "name": "before",
        "in": "query",
        "schema": {"type": "string", "pattern": f"^{schemas.PLACE}$"},
        "description": "the `next` of an earlier response",
    },
]
_LINES: list[dict[str, Any]] = [
    {
        "name": "after",
        "in": "query",
        "schema": {"type": "string", "pattern": "^[0-9]{1,15}(-[0-9]{1,15})?$"},
        "description": "only the lines after the line with this id: the `next` of an earlier response",
    },
    {
        "name": "job",
        "in": "query",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,255}$"},
        "description": "only the lines of this job",
    },
]
_ERRORS = {
    400: "the request has an invalid value, or the endpoint is load-balanced and has no queue",
    401: "the request has no key, or an unknown one",
    403: "the key does not open this; or, without keys, the request may come from a page of another site",
    404: "the endpoint or the job does not exist",
    429: "the rate limit is reached, or the queue is full; Retry-After has the seconds to wait",
    503: "Redis is unavailable, or refuses to write",
}

_CONFLICT = {
    "oneOf": [{"$ref": f"#/components/schemas/{component}"} for component in ("Error", "Paused")]
}
"""The schema of a 409 where the endpoint may be paused."""


_GONE = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Error", "WorkerGone")]}
"""The schema of a 404 where the request may name a worker."""


def _operations() -> list[tuple[str, list[str], str, str, dict[str, Any]]]:
    """Path below ``/v2/{endpoint_id}``, methods, summary, component of the response, and further properties."""
    body = {
        "required": True,
        "content": {"application/json": {"schema": schemas.RunSchema}},
    }
    too_large = {413: "the body is too large"}
    conflict = {409: "the Idempotency-Key was used with another body, or the endpoint is paused"}
    no_json = {415: "the content type is not JSON"}
    taken = {409: "the worker is in workers.yaml, or another worker has its id or URL"}
    submit = {"requestBody": body, "errors": too_large | conflict, "paused": True, "pinned": True}
    return [
        ("run", ["post"], "Queue a job", "Submitted", {**submit, "parameters": [_KEY, _PIN]}),
        (
            "runsync",
            ["post"],
            "Queue a job and wait for its end",
            "Status",
            {**submit, "parameters": [_KEY, _PIN, _WAIT]},
        ),
        (
            "status/{job_id}",
            ["get", "post"],
            "A job's state and output",
            "Status",
            {"parameters": [_TTL, _MATCH], "not_modified": True},
        ),
        (
            "status-sync/{job_id}",
            ["get", "post"],
            "A job's state and output, after its end",
            "Status",
            {"parameters": [_WAIT]},
        ),
        (
            "stream/{job_id}",
            ["get", "post"],
            "The chunks that a generator handler has yielded since the last call",
            "Stream",
            {"parameters": [_WAIT, _FROM, _EVENTS, _AFTER], "events": True},
        ),
        ("cancel/{job_id}", ["post"], "Cancel a job", "Submitted", {}),
        (
            "retry/{job_id}",
            ["post"],
            "Submit a FAILED or TIMED_OUT job again",
            "Submitted",
            {
                "errors": {409: "the job is in another state, or the endpoint is paused"},
                "paused": True,
            },
        ),
        ("purge-queue", ["post"], "Cancel all waiting jobs", "Purged", {}),
        ("requests", ["get"], "Recent jobs", "Requests", {"parameters": _LISTING}),
        ("requests/{job_id}", ["get"], "A job's record", "Details", {}),
        ("history", ["get"], "Waiting and running jobs over the last hour", "History", {}),
        ("health", ["get"], "Jobs and workers by state", "Health", {}),
        ("workers", ["get"], "Workers and their states", "Workers", {}),
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
        ("workers/{worker_id}/drain", ["post"], "Drain a worker: no new jobs", "WorkerChanged", {}),
        ("workers/{worker_id}/resume", ["post"], "Resume a drained worker", "WorkerChanged", {}),
    ]


def make_spec(
    endpoint_ids: list[str], *, keys: bool, tasks: TaskChoices | None = None
) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        endpoint_ids: the endpoints that exist; paths take only these.
        keys: whether requests need a key.
        tasks: what tasks may name; None: anything.
    """
    spec = APISpec(
        title="OwnPod",
        version="v2",
        openapi_version="3.1.0",
        info={"description": "The RunPod v2 API, served by your own workers."},
        plugins=[MarshmallowPlugin()],
    )
    for name, schema in COMPONENTS.items():
        spec.components.schema(name, schema=schema)
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
    for path, methods, summary, component, more in _operations():
        operation: dict[str, Any] = {
            "summary": summary,
            "tags": ["v2"],
            "parameters": [
                endpoint,
                *([job] if "{job_id}" in path else []),
                *([worker] if "{worker_id}" in path else []),
                *more.get("parameters", []),
            ],
            "responses": _responses(component, more),
        }
        if "requestBody" in more:
            operation["requestBody"] = more["requestBody"]
        if keys:
            operation["security"] = [{"key": []}]
        spec.path(f"/v2/{{endpoint_id}}/{path}", operations=dict.fromkeys(methods, operation))
    logs = {"parameters": [worker, *_LINES]}
    for path, summary, component, more in (
        ("/v2/", "All endpoints", "Endpoints", {}),
        ("/agents", "Hosts that start workers, and their devices", "Agents", {}),
        ("/workers/{worker_id}/logs", "Output of a worker that OwnPod starts", "Output", logs),
    ):
        operation = {
            "summary": summary,
            "tags": ["v2"],
            **more,
            "responses": _responses(component, {}),
            **({"security": [{"key": []}]} if keys else {}),
        }
        spec.path(path, operations={"get": operation})
    add_openai(spec, endpoint, [_KEY, _PIN], keys=keys)
    add_tasks(spec, keys=keys)
    add_models(spec, keys=keys)
    document: dict[str, Any] = spec.to_dict()
    narrow(document, tasks or TaskChoices())
    # marshmallow's plugin documents the values of a mapping, but not its keys.
    added = document["components"]["schemas"]["NewWorker"]["properties"]
    added["headers"]["propertyNames"] = {"pattern": f"^{HEADER_NAME}$"}
    return document


def _responses(component: str, more: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": component}}
    if "events" in more:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    by_status: dict[str, Any] = {"200": {"description": "success", "content": content}}
    if component == "Status":
        by_status["200"]["headers"] = {
            HEADER: {
                "schema": {"type": "string"},
                "description": "the worker that runs or ran the job",
            }
        }
    if "events" in more:
        by_status["204"] = {"description": "the client has the whole stream"}
    if "not_modified" in more:
        by_status["304"] = {"description": "the response has not changed since the given ETag"}
    for status, description in sorted((_ERRORS | more.get("errors", {})).items()):
        schema: Any = "Error"
        if status == 409 and "paused" in more:
            schema = _CONFLICT
        elif status == 404 and "pinned" in more:
            schema = _GONE
        by_status[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": schema}},
        }
    return by_status


@blueprint.get("/openapi.json")
def document() -> Response:
    """The OpenAPI document of this API, with its endpoints."""
    svc = services()
    presets = [e.preset for e in svc.registry.presets() if e.preset is not None]
    tasks = TaskChoices(presets, svc.settings.max_task_timeout_s)
    return answer(make_spec(sorted(svc.registry.endpoints), keys=svc.keys_needed, tasks=tasks))


@blueprint.get("/v1/openapi.json")
def document_of_v1() -> Response:
    """The OpenAPI document of RunPod's REST v1."""
    return _managing(v1.make_document)


@blueprint.get("/v2/openapi.json")
def document_of_v2() -> Response:
    """The OpenAPI document of RunPod's REST v2."""
    return _managing(v2.make_document)


def _managing(make: Callable[..., dict[str, Any]]) -> Response:
    svc = services()
    keys = svc.keys_needed or bool(svc.settings.admin_keys)
    return answer(make(strict=svc.settings.management_strict, keys=keys))


def add_docs(app: Flask) -> None:
    """Adds the routes of the document and of ``/docs``; the page needs the extra ``docs``."""
    app.register_blueprint(blueprint)
    if get_swaggerui_blueprint is None:
        page = Blueprint("swagger_ui", __name__)
        page.add_url_rule("/", view_func=_docs_missing)
    else:
        page = get_swaggerui_blueprint(DOCS, "/openapi.json", config={"app_name": "OwnPod"})
    app.register_blueprint(page, url_prefix=DOCS)


def _docs_missing() -> Response:
    raise ExtraMissing("the page at /docs", "docs")
