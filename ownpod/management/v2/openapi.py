"""The OpenAPI document of REST v2, whose requests are the schemas that OwnPod checks."""

from collections.abc import Mapping
from typing import Any

from ownpod.management.openapi import STATUSES, Api, Operation, document, listed, ref, shown
from ownpod.management.v2 import schemas
from ownpod.management.v2.catalog import BILLS
from ownpod.management.workers import WorkerWord

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_TRUTH: Schema = {"type": "boolean"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_ENV: Schema = {"type": "object", "additionalProperties": _TEXT}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


_CONTAINER: Mapping[str, Schema] = {
    "image": _TEXT,
    "args": _TEXT,
    "disk": _NUMBER,
    "env": _ENV,
    "ports": _TEXTS,
    "registry": _or_null("string"),
    "cmd": _TEXTS,
    "entrypoint": _TEXTS,
}
_ENDPOINT: Mapping[str, Schema] = {
    **_CONTAINER,
    "id": _TEXT,
    "name": _TEXT,
    "type": {"enum": ["QUEUE", "LOAD_BALANCER"]},
    "requestUrls": _ENV,
    "gpu": _or_null("object"),
    "cpu": listed({"type": "object"}),
    "workers": shown(
        {"min": _NUMBER, "max": _NUMBER, "idleTimeout": {"type": "number"}},
        optional=["idleTimeout"],
    ),
    "scaling": shown({"type": {"enum": ["QUEUE_DELAY", "REQUEST_COUNT"]}}),
    "dataCenterIds": _TEXTS,
    "networkVolumes": _TEXTS,
    "timeout": _NUMBER,
    "flashboot": _TEXT,
    "createdAt": _TEXT,
    "expires": _or_null("string"),
}
_TEMPLATE: Mapping[str, Schema] = {
    **_CONTAINER,
    "id": _TEXT,
    "name": _TEXT,
    "mounts": {"type": "object"},
    "serverless": _TRUTH,
    "public": _TRUTH,
    "category": _TEXT,
    "startSsh": _TRUTH,
    "startJupyter": _TRUTH,
    "allowedCudaVersions": _TEXTS,
}
_WORKER: Mapping[str, Schema] = {
    "id": _TEXT,
    "status": {"enum": list(WorkerWord)},
    "isStale": _TRUTH,
    "gpuCount": _NUMBER,
    "version": _or_null("integer"),
    "image": _or_null("string"),
    "uptimeSeconds": _or_null("integer"),
    "gpuTypeId": _or_null("string"),
    "dataCenterId": _or_null("string"),
    "startedAt": _or_null("string"),
    "reason": _TEXT,
}
_RELEASE: Mapping[str, Schema] = {
    "id": _TEXT,
    "version": _NUMBER,
    "source": {"enum": ["GIT_BUILD", "MANUAL"]},
    "workerCount": _NUMBER,
    "createdAt": _TEXT,
    "diff": listed(shown({"field": _TEXT, "old": _TEXT, "new": _TEXT})),
}
_VOLUME: Mapping[str, Schema] = {
    "id": _TEXT,
    "name": _TEXT,
    "size": _NUMBER,
    "dataCenter": _TEXT,
    "type": _TEXT,
}
_AVAILABILITY = ("availability", "dataCenters", "cudaVersions")
_GPU_TYPE: Mapping[str, Schema] = {
    "id": _TEXT,
    "name": _TEXT,
    "pool": _or_null("string"),
    "manufacturer": _TEXT,
    "memory": _NUMBER,
    "secure": _TRUTH,
    "community": _TRUTH,
    "price": {"type": "object"},
    "maxCount": {"type": "object"},
    "availability": {"enum": ["NONE", "LOW", "MEDIUM", "HIGH"]},
    "dataCenters": listed({"type": "object"}),
    "cudaVersions": listed({"type": "object"}),
}
_DATA_CENTER: Mapping[str, Schema] = {
    "id": _TEXT,
    "name": _TEXT,
    "region": _TEXT,
    "globalNetwork": _TRUTH,
    "networkVolumeTypes": _TEXTS,
    "compliance": _TEXTS,
    "gpuAvailability": listed({"type": "object"}),
    "cpuAvailability": listed({"type": "object"}),
}


def _body(schema: Schema, *, strict: bool) -> Schema:
    return schema if strict else {**schema, "additionalProperties": True}


def _components(*, strict: bool) -> dict[str, Schema]:
    summary = {word.lower(): _NUMBER for word in WorkerWord} | {"total": _NUMBER}
    rollout = {
        "inProgress": _TRUTH,
        "workersOnLatest": _NUMBER,
        "workersTotal": _NUMBER,
        "percentOnLatest": _NUMBER,
    }
    words = ("cmd", "entrypoint")
    return {
        "NewEndpoint": _body(schemas.CREATE_ENDPOINT, strict=strict),
        "ChangedEndpoint": _body(schemas.UPDATE_ENDPOINT, strict=strict),
        "NewTemplate": _body(schemas.CREATE_TEMPLATE, strict=strict),
        "ChangedTemplate": _body(schemas.UPDATE_TEMPLATE, strict=strict),
        "NewNetworkVolume": _body(schemas.CREATE_VOLUME, strict=strict),
        "ChangedNetworkVolume": _body(schemas.UPDATE_VOLUME, strict=strict),
        "NewRegistry": _body(schemas.CREATE_REGISTRY, strict=strict),
        "NewSecret": _body(schemas.CREATE_SECRET, strict=strict),
        "ChangedSecret": _body(schemas.UPDATE_SECRET, strict=strict),
        "Endpoint": shown(_ENDPOINT, optional=(*words, "cpu", "expires")),
        "Endpoints": shown({"endpoints": listed(ref("Endpoint"))}),
        "Workers": shown(
            {
                "workers": listed(shown(_WORKER)),
                "summary": shown(summary),
                "endpointVersion": _NUMBER,
            }
        ),
        "Releases": shown(
            {
                "releases": listed(shown(_RELEASE)),
                "rollout": shown(rollout),
                "endpointVersion": _NUMBER,
            }
        ),
        "Template": shown(_TEMPLATE, optional=words),
        "Templates": shown({"templates": listed(ref("Template"))}),
        "NetworkVolume": shown(_VOLUME),
        "NetworkVolumes": shown({"networkVolumes": listed(ref("NetworkVolume"))}),
        "Registry": shown({"id": _TEXT, "name": _TEXT}),
        "Registries": shown({"registries": listed(ref("Registry"))}),
        "Delegations": shown({"delegations": listed({"type": "object"})}),
        "Secret": shown({"id": _TEXT, "name": _TEXT, "description": _TEXT, "createdAt": _TEXT}),
        "Secrets": shown({"secrets": listed(ref("Secret"))}),
        "Keys": shown({"keys": listed(_TEXT)}),
        "GpuType": shown(_GPU_TYPE, optional=_AVAILABILITY),
        "GpuTypes": shown({"gpus": listed(ref("GpuType"))}),
        "CpuTypes": shown({"cpus": listed({"type": "object"})}),
        "DataCenter": shown(_DATA_CENTER),
        "DataCenters": shown({"dataCenters": listed(ref("DataCenter"))}),
        "Bill": shown({"records": listed({"type": "object"}), "metadata": {"type": "object"}}),
        "Pods": shown({"pods": listed({"type": "object"})}),
        "Clusters": shown({"clusters": listed({"type": "object"})}),
        "Problem": shown(
            {"title": _TEXT, "status": _NUMBER, "detail": _TEXT, "errors": _TEXTS},
            optional=["errors"],
        ),
    }


_KINDS = (
    ("serverless", "Endpoint", "Endpoints", "an endpoint"),
    ("templates", "Template", "Templates", "a template"),
    ("network-volumes", "NetworkVolume", "NetworkVolumes", "a network volume"),
    ("registries", "Registry", "Registries", "credentials of a registry"),
    ("account/secrets", "Secret", "Secrets", "a secret"),
)
_LISTS = (
    ("pods", "There are no pods", "Pods"),
    ("clusters", "There are no clusters", "Clusters"),
    ("registries/delegations", "There are none", "Delegations"),
    ("account/ssh-keys", "There are none", "Keys"),
    ("catalog/gpus", "GPU types, with those of the hosts", "GpuTypes"),
    ("catalog/gpus/{name}", "A GPU type", "GpuType"),
    ("catalog/cpus", "There are none", "CpuTypes"),
    ("catalog/datacenters", "Data centers of the hosts", "DataCenters"),
    ("catalog/datacenters/{id}", "A data center", "DataCenter"),
    ("catalog/templates", "There are no public templates", "Templates"),
    ("billing", "Nothing costs anything", "Bill"),
    *((f"billing/{kind}", "Nothing costs anything", "Bill") for kind in BILLS),
)


def _operations() -> list[Operation]:
    found = []
    for place, name, names, noun in _KINDS:
        many, one = f"/v2/{place}", f"/v2/{place}/{{id}}"
        found += [
            Operation("get", many, f"All of {place}", answer=names),
            Operation("post", many, f"Create {noun}", f"New{name}", name, status=201),
            Operation("get", one, f"Get {noun}", answer=name),
            Operation("delete", one, f"Delete {noun}", status=204),
        ]
        if name != "Registry":
            found.append(Operation("patch", one, f"Change {noun}", f"Changed{name}", name))
    one = "/v2/serverless/{id}"
    return [
        *found,
        Operation("get", f"{one}/workers", "An endpoint's workers", answer="Workers"),
        Operation("get", f"{one}/releases", "An endpoint's releases", answer="Releases"),
        *(Operation("get", f"/v2/{p}", summary, answer=name) for p, summary, name in _LISTS),
    ]


def make_document(*, strict: bool, keys: bool) -> dict[str, Any]:
    """The document.

    Args:
        strict: whether unknown fields are refused.
        keys: whether requests need a key.
    """
    errors = {status: "Problem" for status in STATUSES if status != 500}
    api = Api(
        "OwnPod, RunPod's REST v2",
        "2.0.0",
        _operations(),
        _components(strict=strict),
        errors,
        "application/problem+json",
        STATUSES,
    )
    return document(api, keys=keys)
