"""The OpenAPI document of REST v1, whose requests are the fields that OwnPod checks."""

from collections.abc import Mapping
from typing import Any

from ownpod.management.openapi import STATUSES, Api, Operation, document, listed, ref, shown
from ownpod.management.v1 import fields
from ownpod.management.v1.fields import Field

Schema = Mapping[str, Any]

_FLAGS = ("includeTemplate", "includeWorkers")
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_TRUTH: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_ENV: Schema = {"type": "object", "additionalProperties": _TEXT}


def _field(field: Field) -> Schema:
    """The JSON Schema of a field. null is the same as an absent field."""
    found: dict[str, Any] = {"type": [field.kind, "null"]}
    if field.allowed:
        found["enum"] = [*field.allowed, None]
    if field.kind == "array":
        found["items"] = _TEXT
    elif field.kind == "object":
        found["additionalProperties"] = _TEXT
    limits = ("minLength", "maxLength") if field.kind == "string" else ("minimum", "maximum")
    given = zip(limits, (field.least, field.most), strict=True)
    return found | {name: limit for name, limit in given if limit is not None}


def _body(known: Mapping[str, Field], required: tuple[str, ...] = (), *, strict: bool) -> Schema:
    properties = {name: dict(_field(field)) for name, field in known.items()}
    if fields.EXPIRES in properties:
        properties[fields.EXPIRES]["format"] = "date-time"
    for name in required:
        properties[name]["type"] = known[name].kind
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": not strict,
    }


def _typed(known: Mapping[str, Field]) -> dict[str, Schema]:
    """The fields of an answer, which have types only: an endpoint of workers.yaml has other limits."""
    shapes = {"array": _TEXTS, "object": _ENV}
    return {
        name: shapes.get(field.kind, {"type": field.kind})
        for name, field in known.items()
        if name not in {fields.DOCKER_ARGS, fields.EXECUTION_TIMEOUT_S}
    }


def _components(*, strict: bool) -> dict[str, Schema]:
    endpoint: dict[str, Schema] = {
        **_typed(fields.ENDPOINT_LENIENT),
        "id": _TEXT,
        "userId": _TEXT,
        "workersStandby": _NUMBER,
        "instanceIds": _TEXTS,
        "version": _NUMBER,
        "createdAt": _TEXT,
        "env": _ENV,
        "template": ref("Template"),
        "workers": listed(ref("Worker")),
    }
    absent = ("minCudaVersion", "cpuFlavorIds", "vcpuCount", "expires", "template", "workers")
    template: dict[str, Schema] = {
        **_typed(fields.TEMPLATE),
        "id": _TEXT,
        "isRunpod": _TRUTH,
        "earned": {"type": "number"},
        "runtimeInMin": _NUMBER,
    }
    worker: dict[str, Schema] = {
        "id": _TEXT,
        "desiredStatus": {"enum": ["RUNNING", "EXITED", "TERMINATED"]},
    }
    volume = {"id": _TEXT, "name": _TEXT, "size": _NUMBER, "dataCenterId": _TEXT}
    error = shown(
        {"error": _TEXT, "message": _TEXT, "status": _NUMBER}, optional=("message", "status")
    )
    problems = listed(shown({"error": _TEXT, "problems": _TEXTS}))
    required = ("name", "size", "dataCenterId")
    return {
        "NewEndpoint": _body(fields.ENDPOINT_LENIENT, ("templateId",), strict=strict),
        "ChangedEndpoint": _body(fields.ENDPOINT_LENIENT, strict=strict),
        "NewTemplate": _body(fields.TEMPLATE_LENIENT, ("name", "imageName"), strict=strict),
        "ChangedTemplate": _body(fields.TEMPLATE_LENIENT, strict=strict),
        "NewNetworkVolume": _body(fields.VOLUME, required, strict=strict),
        "ChangedNetworkVolume": _body(fields.VOLUME, strict=strict),
        "NewRegistry": _body(fields.REGISTRY, ("name", "username", "password"), strict=strict),
        "Endpoint": shown(endpoint, optional=absent),
        "Endpoints": listed(ref("Endpoint")),
        "Template": shown(template),
        "Templates": listed(ref("Template")),
        "NetworkVolume": {**shown(volume), "additionalProperties": False},
        "NetworkVolumes": listed(ref("NetworkVolume")),
        "Registry": shown({"id": _TEXT, "name": _TEXT}),
        "Registries": listed(ref("Registry")),
        "Worker": shown(worker),
        "Workers": listed(ref("Worker")),
        "Records": listed({"type": "object"}),
        "Error": error,
        "Problems": {"oneOf": [problems, error]},
    }


_KINDS = (
    ("endpoints", "Endpoint", "an endpoint", _FLAGS),
    ("templates", "Template", "a template", ()),
    ("networkvolumes", "NetworkVolume", "a network volume", ()),
)


def _operations() -> list[Operation]:
    found = []
    for place, name, noun, flags in _KINDS:
        many, one = f"/v1/{place}", f"/v1/{place}/{{id}}"
        found += [
            Operation("get", many, f"All {place}", answer=f"{name}s", query=flags),
            Operation("post", many, f"Create {noun}", f"New{name}", name),
            Operation("get", one, f"Get {noun}", answer=name, query=flags),
            Operation("patch", one, f"Change {noun}", f"Changed{name}", name),
            Operation("post", f"{one}/update", f"Change {noun}", f"Changed{name}", name),
            Operation("delete", one, f"Delete {noun}", status=204),
        ]
    many, noun = "/v1/containerregistryauth", "credentials of a container registry"
    found += [
        Operation("get", many, "All credentials", answer="Registries"),
        Operation("post", many, f"Create {noun}", "NewRegistry", "Registry"),
        Operation("get", f"{many}/{{id}}", f"Get {noun}", answer="Registry"),
        Operation("delete", f"{many}/{{id}}", f"Delete {noun}", status=204),
    ]
    pods = ("includeWorkers", "endpointId")
    found.append(
        Operation("get", "/v1/pods", "The workers of endpoints", answer="Workers", query=pods)
    )
    for kind in ("pods", "endpoints", "networkvolumes"):
        found.append(
            Operation("get", f"/v1/billing/{kind}", "Nothing costs anything", answer="Records")
        )
    return found


def make_document(*, strict: bool, keys: bool) -> dict[str, Any]:
    """The document.

    Args:
        strict: whether unknown fields are refused.
        keys: whether requests need a key.
    """
    errors = {status: "Error" for status in STATUSES if status != 422} | {400: "Problems"}
    api = Api(
        "OwnPod, RunPod's REST v1",
        "v1",
        _operations(),
        _components(strict=strict),
        errors,
        descriptions=STATUSES,
    )
    return document(api, keys=keys)
