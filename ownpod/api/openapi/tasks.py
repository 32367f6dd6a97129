"""The part of ``/openapi.json`` about tasks and sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apispec import APISpec

from ownpod.api.tasks import schemas as task_schemas
from ownpod.api.tasks.responses import COMPONENTS
from ownpod.configuration.custom import CUSTOM
from ownpod.rules.events import CURSOR
from ownpod.rules.presets import Preset
from ownpod.rules.sessions import Status
from ownpod.rules.task_views import TaskType

_ERRORS = {
    400: "a value is wrong, or no preset, model or difficulty has this name",
    401: "the request has no key, or an unknown one",
    403: "the key does not open this; or, without keys, the request may come from a page of another site",
    503: "Redis is unavailable; or no device is free, or the session's queue is full: Retry-After has the seconds to wait",
}
_NOT_FOUND = {404: "there is no such task or session, or it is another key's"}
_RATE = {429: "the rate limit is reached; Retry-After has the seconds to wait"}
_SUBMIT = {
    **_NOT_FOUND,
    **_RATE,
    409: "the Idempotency-Key was used with another body",
    413: "the body is too large",
}

_ID = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,255}$"}
_TASK = {"name": "task_id", "in": "path", "required": True, "schema": _ID}
_SESSION = {"name": "session_id", "in": "path", "required": True, "schema": _ID}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "a request with the same key and body returns the same task",
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string", "enum": ["respond-async"]},
    "description": "the answer is JSON, and not an event stream",
}


def _after(pattern: str) -> dict[str, Any]:
    return {
        "name": "after",
        "in": "query",
        "schema": {"type": "string", "pattern": pattern},
        "description": "the id of the last event that the client has; `Last-Event-ID` does the same",
    }


def _flag(name: str, what: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "string", "enum": ["true", "false"]},
        "description": what,
    }


_FILTERS = [
    {
        "name": "status",
        "in": "query",
        "schema": {"type": "string", "enum": [status.value for status in Status]},
    },
    {"name": "model_id", "in": "query", "schema": {"type": "string"}},
    _flag("all", "also sessions that have just ended"),
]


def _operations() -> list[tuple[str, str, str, str, dict[str, Any]]]:
    """Path, method, summary, component of the response, and further properties."""
    submit = {"parameters": [_KEY, _PREFER], "errors": _SUBMIT, "events": True}
    found = {"errors": _NOT_FOUND | _RATE}
    task = found | {"parameters": [_TASK]}
    session = found | {"parameters": [_SESSION]}
    events = found | {"events": True, "no_json": True, "ended": True}
    return [
        (
            "/api/tasks/submit",
            "post",
            "Submit a task of a preset and follow its events",
            "TaskSubmitted",
            {**submit, "body": task_schemas.SubmitSchema},
        ),
        (
            "/api/tasks/predefined",
            "post",
            "Submit a task by the name of its preset",
            "TaskSubmitted",
            {**submit, "body": task_schemas.PredefinedSchema},
        ),
        (
            "/api/tasks/custom",
            "post",
            "Submit a task with an image of the client's",
            "TaskSubmitted",
            {**submit, "body": task_schemas.CustomSchema},
        ),
        ("/api/tasks/{task_id}", "get", "A task's state", "Task", task),
        ("/api/tasks/{task_id}", "delete", "Cancel a task", "TaskCancelled", task),
        ("/api/tasks/{task_id}/cancel", "post", "Cancel a task", "TaskCancelled", task),
        (
            "/api/tasks/{task_id}/events",
            "get",
            "A task's events, from any event on",
            "",
            {
                **events,
                "parameters": [
                    _TASK,
                    _after(f"^{CURSOR.pattern}$"),
                ],
            },
        ),
        ("/api/sessions", "get", "Sessions", "Sessions", {"parameters": _FILTERS}),
        (
            "/api/sessions",
            "post",
            "Make a session before its first task",
            "Session",
            {
                "body": task_schemas.PrewarmSchema,
                "errors": {413: "the body is too large"} | _RATE,
            },
        ),
        ("/api/sessions/{session_id}", "get", "A session", "Session", session),
        (
            "/api/sessions/{session_id}",
            "delete",
            "End a session",
            "SessionEnded",
            {
                **found,
                "parameters": [_SESSION, _flag("drain", "its running task ends by itself")],
            },
        ),
        (
            "/api/sessions/{session_id}/keepalive",
            "post",
            "Begin a session's idle time again",
            "KeptAlive",
            {
                "parameters": [_SESSION],
                "body": task_schemas.KeepaliveSchema,
                "optional": True,
                "errors": _NOT_FOUND | {413: "the body is too large"},
            },
        ),
        (
            "/api/sessions/{session_id}/logs",
            "get",
            "A session's output as events",
            "",
            {**events, "parameters": [_SESSION, _after("^[0-9]{1,15}(-[0-9]{1,15})?$")]},
        ),
        ("/health/resources", "get", "Devices, sessions and tasks", "Resources", {}),
    ]


@dataclass(frozen=True)
class TaskChoices:
    """What requests may name.

    Attributes:
        presets: the presets that exist.
        longest_s: the largest ``timeout_seconds``.
    """

    presets: Sequence[Preset] = ()
    longest_s: int = task_schemas.TIMEOUT_S[1]


def add_tasks(spec: APISpec, *, keys: bool) -> None:
    """Adds the paths and components. ``keys``: whether requests need a key."""
    for name, schema in COMPONENTS.items():
        spec.components.schema(name, schema=schema)
    paths: dict[str, dict[str, Any]] = {}
    for path, method, summary, component, more in _operations():
        operation: dict[str, Any] = {
            "summary": summary,
            "tags": ["tasks"],
            "parameters": more.get("parameters", []),
            "responses": _responses(component, more),
        }
        if "body" in more:
            operation["requestBody"] = {
                "required": "optional" not in more,
                "content": {"application/json": {"schema": more["body"]}},
            }
        if keys and path.startswith("/api/"):
            operation["security"] = [{"key": []}, {"api_key": []}]
        paths.setdefault(path, {})[method] = operation
    if keys:
        spec.components.security_scheme(
            "api_key", {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        )
    for path, operations in paths.items():
        spec.path(path, operations=operations)


def _responses(component: str, more: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if component:
        content["application/json"] = {"schema": component}
    if "events" in more:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {"200": {"description": "success", "content": content}}
    if "ended" in more:
        found["204"] = {"description": "the client has the whole stream"}
    for status, description in sorted((_ERRORS | more.get("errors", {})).items()):
        found[str(status)] = {
            "description": description,
            "content": {"application/json": {"schema": "TaskError"}},
        }
    return found


_SESSION_OR_NONE = {
    "anyOf": [
        {"properties": {"task_type": {"enum": [TaskType.SESSION.value, None]}}},
        {"properties": {"session_id": {"type": "null"}}},
    ]
}
"""A one-off task names no session."""


def narrow(document: dict[str, Any], choices: TaskChoices) -> None:
    """Puts the names that exist into the schemas of requests, so that a valid request finds its preset."""
    schemas = document["components"]["schemas"]
    presets = [preset for preset in choices.presets if preset.model_id != CUSTOM]
    models = sorted({preset.model_id for preset in presets})
    names = sorted({preset.name for preset in presets})
    difficulties = sorted({name for preset in presets for name in preset.difficulties})
    for name in ("Submit", "Predefined", "Prewarm"):
        fields = schemas[name]["properties"]
        if presets:
            _choose(fields, "model_id", models)
            _choose(fields, "task_preset", names)
            _choose(fields, "task_name", sorted(preset.title for preset in presets))
            _choose(fields, "task_difficulty", difficulties)
    for name in ("Submit", "Predefined", "Custom"):
        schemas[name]["properties"]["timeout_seconds"]["maximum"] = choices.longest_s
    for name in ("Submit", "Predefined"):
        schemas[name] |= _SESSION_OR_NONE
    # marshmallow's plugin documents the values of a mapping, but not its keys.
    schemas["Prewarm"]["properties"]["metadata"] |= {
        "maxProperties": task_schemas.MOST_LABELS,
        "propertyNames": {"minLength": 1, "maxLength": task_schemas.LONGEST},
    }
    schemas["Custom"]["properties"]["env_vars"] |= {
        "maxProperties": task_schemas.MOST_VARIABLES,
        "propertyNames": {"pattern": f"^{task_schemas.VARIABLE}$"},
    }


def _choose(fields: dict[str, Any], name: str, values: list[str]) -> None:
    if name in fields:
        field = fields[name]
        may_be_null = "null" in field["type"]
        for key in ("minLength", "maxLength", "pattern"):
            field.pop(key, None)
        field["enum"] = [*values, *([None] if may_be_null else [])]
