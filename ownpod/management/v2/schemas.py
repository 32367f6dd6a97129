"""The bodies of REST v2's requests as JSON Schemas, and their check with RunPod's words."""

from collections.abc import Mapping
from typing import Any, cast

import jsonschema

from ownpod.errors import OwnPodError
from ownpod.management.v2.older import has_older_type, translated

Schema = Mapping[str, Any]

_STRINGS = {"type": "array", "items": {"type": "string"}}
_CUDA = {"type": "string", "pattern": r"^\d+\.\d+$"}
_NAME = {"type": "string", "minLength": 1, "maxLength": 191}

CONTAINER: Schema = {
    "image": {"type": "string", "minLength": 1},
    "args": {"type": "string"},
    "cmd": _STRINGS,
    "entrypoint": _STRINGS,
    "disk": {"type": "integer", "minimum": 1},
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "ports": _STRINGS,
    "registry": {"type": ["string", "null"]},
}

GPU: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "pools": {**_STRINGS, "minItems": 1},
        "excludedTypes": _STRINGS,
        "count": {"type": "integer", "minimum": 1, "maximum": 64},
        "allowedCudaVersions": {"type": "array", "items": _CUDA},
        # null, because answers have it, and clients send back what they have read.
        "minCudaVersion": {"type": ["string", "null"], "pattern": r"^$|^\d+\.\d+$"},
    },
}

SCALING: Schema = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["QUEUE_DELAY", "REQUEST_COUNT"]},
        "queueDelay": {"type": "number", "minimum": 0.5, "maximum": 100_000},
        "requestCount": {"type": "integer", "minimum": 1, "maximum": 100_000},
    },
    "if": {"properties": {"type": {"const": "QUEUE_DELAY"}}},
    "then": {"required": ["queueDelay"], "not": {"required": ["requestCount"]}},
    "else": {"required": ["requestCount"], "not": {"required": ["queueDelay"]}},
    "additionalProperties": False,
}

WORKERS: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "min": {"type": "integer", "minimum": 0, "maximum": 10_000},
        "max": {"type": "integer", "minimum": 0, "maximum": 10_000},
        "idleTimeout": {"type": "integer", "minimum": 1, "maximum": 3600},
    },
}

CPU: Schema = {
    "type": "array",
    "minItems": 1,
    "uniqueItems": True,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "vcpuCount"],
        "properties": {
            "id": {"type": "string", "minLength": 1},
            "vcpuCount": {"type": "integer", "minimum": 2, "maximum": 1024},
            # It has no effect. Answers have it, and clients send back what they have read.
            "memory": {"type": "integer"},
        },
    },
}

_ENDPOINT: Schema = {
    **CONTAINER,
    "name": _NAME,
    "scaling": SCALING,
    "gpu": GPU,
    "cpu": CPU,
    "dataCenterIds": _STRINGS,
    "flashboot": {"enum": ["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]},
    "networkVolumes": _STRINGS,
    "templateId": {"type": "string", "minLength": 1},
    "timeout": {"type": "integer", "minimum": 0, "maximum": 7 * 86_400_000},
    "workers": WORKERS,
    # OwnPod's own.
    "expires": {"type": ["string", "null"]},
}

CREATE_ENDPOINT: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "type", "scaling"],
    "properties": {
        **_ENDPOINT,
        "gpu": {**GPU, "required": ["pools"]},
        "type": {"enum": ["QUEUE", "LOAD_BALANCER"]},
    },
    "if": {"not": {"required": ["templateId"]}},
    "then": {"required": ["image"]},
}

UPDATE_ENDPOINT: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": _ENDPOINT,
}

TOLERANT_UPDATE: Schema = {
    **UPDATE_ENDPOINT,
    "properties": {**_ENDPOINT, "type": {"type": "string"}},
}
"""Of a server that ignores unknown fields: clients send back what they have read, and another ``type`` is no such field."""

_TEMPLATE: Schema = {
    **CONTAINER,
    "name": _NAME,
    "allowedCudaVersions": {"type": "array", "items": _CUDA},
    "category": {"enum": ["NVIDIA", "AMD", "CPU"]},
    "mounts": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "persistent": {
                "type": "object",
                "additionalProperties": False,
                "required": ["size", "path"],
                "properties": {
                    "size": {"type": "integer", "minimum": 10},
                    "path": {"type": "string"},
                },
            }
        },
    },
    "public": {"type": "boolean"},
    "serverless": {"type": "boolean"},
    "startSsh": {"type": "boolean"},
    "startJupyter": {"type": "boolean"},
}

UPDATE_TEMPLATE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": _TEMPLATE,
}
CREATE_TEMPLATE: Schema = {**UPDATE_TEMPLATE, "required": ["name", "image"]}

_SIZE = {"type": "integer", "minimum": 10, "maximum": 4096}

CREATE_VOLUME: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "size", "dataCenter"],
    "properties": {
        "name": _NAME,
        "size": _SIZE,
        "dataCenter": {"type": "string", "minLength": 1, "maxLength": 191},
        "type": {"enum": ["STANDARD", "HIGH_PERFORMANCE"]},
    },
}
UPDATE_VOLUME: Schema = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {"name": _NAME, "size": _SIZE},
}

_TEXT = {"type": "string", "minLength": 1, "maxLength": 100_000}

CREATE_REGISTRY: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "username", "password"],
    "properties": {"name": _NAME, "username": _TEXT, "password": _TEXT},
}

CREATE_SECRET: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "value"],
    "properties": {
        "name": _NAME,
        "value": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
    },
}
UPDATE_SECRET: Schema = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "value": {"type": "string", "minLength": 1},
        "description": {"type": "string"},
    },
}


class Unprocessable(OwnPodError):
    """The body does not fit the schema. ``problems``: one line each, in RunPod's words."""

    http_status = 422

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def check(body: Any, schema: Schema, *, strict: bool) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body without fields that the schema does not know, and their names.

    Args:
        body: what the client sent, parsed from JSON.
        schema: one of this module's.
        strict: whether an unknown field is an error, as in RunPod's service.

    Raises:
        Unprocessable: a field has another type, is out of its limits, or is missing.
    """
    ignored: tuple[str, ...] = ()
    if isinstance(body, dict) and not strict:
        known = schema["properties"]
        body = translated(body, known)
        ignored = tuple(n for n in body if n not in known or has_older_type(n, body[n]))
        body = {name: value for name, value in body.items() if name not in ignored}
    problems = [
        problem
        for error in jsonschema.Draft202012Validator(schema).iter_errors(body)
        for problem in _problems(error)
    ]
    if problems:
        raise Unprocessable(problems[:20])
    return body, ignored


def _problems(error: jsonschema.ValidationError) -> list[str]:
    """The lines of one error. They have no values, because these may be secrets."""
    place, instance = error.json_path, error.instance
    keyword, wanted = str(error.validator), cast("Any", error.validator_value)
    if keyword == "additionalProperties" and isinstance(instance, dict):
        known = cast("Any", error.schema).get("properties", {})
        names = sorted(str(name)[:80] for name in instance if name not in known)
        return [f"{place}: additional properties '{name}' not allowed" for name in names[:5]]
    if keyword == "required":
        missing = [name for name in wanted if name not in cast("Any", instance)]
        return [f"{place}: missing property '{name}'" for name in missing[:5]]
    if keyword == "type":
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        text = f"got {_type(instance)}, want {kinds}"
    elif keyword == "enum":
        text = f"value must be one of {', '.join(map(repr, wanted))}"
    elif keyword == "not":
        text = "has a property that its type does not allow"
    else:
        text = f"{keyword}: must be {wanted}"
    return [f"{place}: {text}"]


def _type(value: Any) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    names |= {list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "value")
