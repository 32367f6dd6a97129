"""The fields of REST v1's request bodies, and RunPod's text of an error for a body that does not fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ownpod.errors import BadRequest

_TYPES = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
}


@dataclass(frozen=True)
class Field:
    """One field: its JSON type, its limits, and its allowed values. Arrays and objects have texts in them."""

    kind: str
    least: int | None = None
    most: int | None = None
    allowed: tuple[str, ...] = ()


STRING, INTEGER, BOOLEAN = Field("string"), Field("integer"), Field("boolean")
STRINGS, TEXTS = Field("array"), Field("object")

ENDPOINT: Mapping[str, Field] = {
    "templateId": STRING,
    "name": Field("string", most=191),
    "computeType": Field("string", allowed=("GPU", "CPU")),
    "gpuTypeIds": STRINGS,
    "gpuCount": Field("integer", 1, 64),
    "cpuFlavorIds": STRINGS,
    "vcpuCount": Field("integer", 1, 1024),
    "workersMin": Field("integer", 0, 10_000),
    "workersMax": Field("integer", 0, 10_000),
    "idleTimeout": Field("integer", 1, 3600),
    "scalerType": Field("string", allowed=("QUEUE_DELAY", "REQUEST_COUNT")),
    "scalerValue": Field("integer", 1, 100_000),
    "executionTimeoutMs": Field("integer", 0, 7 * 86_400_000),
    "flashboot": BOOLEAN,
    "dataCenterIds": STRINGS,
    "networkVolumeId": STRING,
    "networkVolumeIds": STRINGS,
    "allowedCudaVersions": STRINGS,
    "minCudaVersion": STRING,
}
"""An endpoint's fields (``EndpointCreateInput``, ``EndpointUpdateInput``)."""

EXECUTION_TIMEOUT_S = "executionTimeout"
"""Not in RunPod's schema, but scripts send it: the limit in seconds."""

EXPIRES = "expires"
"""OwnPod's own: the time from which the endpoint is paused."""

ENDPOINT_LENIENT: Mapping[str, Field] = {
    **ENDPOINT,
    EXECUTION_TIMEOUT_S: Field("integer", 0, 7 * 86_400),
    EXPIRES: STRING,
}

TEMPLATE: Mapping[str, Field] = {
    "name": Field("string", 1, 191),
    "imageName": Field("string", 1, 1000),
    "category": Field("string", allowed=("NVIDIA", "AMD", "CPU")),
    "containerDiskInGb": Field("integer", 0, 100_000),
    "containerRegistryAuthId": STRING,
    "dockerEntrypoint": STRINGS,
    "dockerStartCmd": STRINGS,
    "env": TEXTS,
    "isPublic": BOOLEAN,
    "isServerless": BOOLEAN,
    "ports": STRINGS,
    "readme": STRING,
    "volumeInGb": Field("integer", 0, 100_000),
    "volumeMountPath": STRING,
}
"""A template's fields (``TemplateCreateInput``, ``TemplateUpdateInput``)."""

DOCKER_ARGS = "dockerArgs"
"""Not in RunPod's schema of v1, but scripts send it: the command as one text."""

TEMPLATE_LENIENT: Mapping[str, Field] = {**TEMPLATE, DOCKER_ARGS: STRING}

VOLUME: Mapping[str, Field] = {
    "name": Field("string", 1, 191),
    "size": Field("integer", 0, 4000),
    "dataCenterId": Field("string", 1, 191),
}

REGISTRY: Mapping[str, Field] = {
    "name": Field("string", 1, 191),
    "username": Field("string", 1, 1000),
    "password": Field("string", 1, 100_000),
}


class SchemaProblem(BadRequest):
    """The body does not fit the schema. ``problems``: one line each, in RunPod's words."""

    def __init__(self, place: str, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.place = place
        self.problems = problems


def read(
    body: Any,
    known: Mapping[str, Field],
    *,
    place: str,
    required: tuple[str, ...] = (),
    strict: bool = False,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The known fields of a body, and the names of the others.

    Args:
        body: what the client sent, parsed from JSON.
        known: the fields, by name.
        place: what the body is, in the words of RunPod's paths: ``endpoints``, ``templates`` and so on.
        required: names that must be there.
        strict: whether an unknown field is an error, as in RunPod's service; otherwise it is named and ignored.

    Raises:
        SchemaProblem: a field has another type, is out of its limits, or is missing.
    """
    if not isinstance(body, dict):
        raise SchemaProblem(place, [f"At /{place}: got {_type(body)}, want object"])
    problems = [f"At /{place}: missing property '{n}'" for n in required if body.get(n) is None]
    values, others = {}, []
    for name, value in body.items():
        field = known.get(name)
        if field is None:
            others.append(name)
        elif value is None:
            # Clients send null for what they do not set.
            continue
        elif problem := _problem(field, value):
            problems.append(f"At /{place}/properties/{name}{problem}")
        else:
            values[name] = value
    if strict:
        problems += [f"{name} not in input schema" for name in others]
    if problems:
        raise SchemaProblem(place, problems)
    return values, tuple(others)


def _problem(field: Field, value: Any) -> str:
    """What is wrong with a value, in RunPod's words, from the keyword of its schema on; "": nothing."""
    whole = field.kind == "integer" and isinstance(value, float) and value.is_integer()
    if type(value) is not _TYPES[field.kind] and not whole:
        return f"/type: got {_type(value)}, want {field.kind}"
    if field.allowed and value not in field.allowed:
        return f"/enum: value must be one of {', '.join(field.allowed)}"
    if field.kind in {"array", "object"}:
        parts = value if field.kind == "array" else value.values()
        wrong = [part for part in parts if not isinstance(part, str)]
        return f"/items/type: got {_type(wrong[0])}, want string" if wrong else ""
    if field.kind == "boolean":
        return ""
    size = len(value) if field.kind == "string" else value
    low, high = ("minLength", "maxLength") if field.kind == "string" else ("minimum", "maximum")
    if field.least is not None and size < field.least:
        return f"/{low}: got {size}, want {field.least}"
    return f"/{high}: got {size}, want {field.most}" if size > (field.most or size) else ""


def _type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return next((name for name, kind in _TYPES.items() if isinstance(value, kind)), "null")


def schema_error(problem: SchemaProblem, method: str, url: str) -> list[dict[str, Any]]:
    """RunPod's answer to a body that does not fit, an array. Scripts match its text.

    Args:
        problem: what is wrong.
        method: of the request.
        url: of the request.
    """
    text = (
        f"At #/paths/{problem.place}/{method.lower()} for {method} {url}, The request body is defined as an object. "
        "However, it does not meet the schema requirements of the specification. Suggestion: Ensure that the object "
        "being submitted, matches the schema correctly"
    )
    return [{"error": text, "problems": problem.problems}]
