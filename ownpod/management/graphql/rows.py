"""Rows in the shapes of GraphQL, and its inputs as changes of rows."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ownpod.errors import CatalogRefused
from ownpod.management.shown import USER_ID, time_text
from ownpod.management.v2.endpoints import args_of
from ownpod.management.workers import WorkerShown, as_pod
from ownpod.rules.catalog import (
    Container,
    Cpu,
    EndpointRow,
    EndpointType,
    FlashBoot,
    Gpu,
    TemplateRow,
    VolumeRow,
)
from ownpod.rules.gpu_types import from_gpu_ids, gpu_ids
from ownpod.rules.templates import ScalerType

DEFAULT_IDLE_S = 10
"""RunPod's default of GraphQL."""

SHORTEST_NAME = 3
"""Characters of a new endpoint's name, at least; RunPod's rule of GraphQL."""

_PLAIN = {
    "name": "name",
    "workersMin": "workers_min",
    "workersMax": "workers_max",
    "idleTimeout": "idle_s",
    "executionTimeoutMs": "timeout_ms",
}


def csv(names: Iterable[str]) -> str:
    """A list as GraphQL's text."""
    return ",".join(names)


def parts(text: str | None) -> tuple[str, ...]:
    """GraphQL's text as a list."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


# Templates.


def apply_template(row: TemplateRow, values: Mapping[str, Any]) -> TemplateRow:
    """The template with the fields of ``SaveTemplateInput``; absent ones stay."""
    given = {name: value for name, value in values.items() if value is not None}
    changes: dict[str, Any] = {
        own: given[name]
        for name, own in {
            "name": "name",
            "isServerless": "serverless",
            "isPublic": "public",
            "readme": "readme",
            "category": "category",
            "startSsh": "start_ssh",
            "startJupyter": "start_jupyter",
            "volumeInGb": "volume_gb",
            "volumeMountPath": "volume_path",
        }.items()
        if name in given
    }
    container: dict[str, Any] = {}
    if "imageName" in given:
        container["image"] = given["imageName"]
    if "containerDiskInGb" in given:
        container["disk_gb"] = given["containerDiskInGb"]
    if "dockerArgs" in given and given["dockerArgs"] != args_of(row.container):
        container |= {"args": given["dockerArgs"] or None, "command": ()}
    if "env" in given:
        pairs = (pair for pair in given["env"] if pair and pair.get("key"))
        container["env"] = {pair["key"]: pair.get("value") or "" for pair in pairs}
    if "ports" in given:
        container["ports"] = parts(given["ports"])
    if "containerRegistryAuthId" in given:
        container["registry"] = given["containerRegistryAuthId"] or None
    return replace(row, container=replace(row.container, **container), **changes)


def template(row: TemplateRow) -> dict[str, Any]:
    """``PodTemplate``."""
    container = row.container
    return {
        "id": row.id,
        "name": row.name,
        "imageName": container.image,
        "dockerArgs": args_of(container),
        "containerDiskInGb": container.disk_gb or 0,
        "containerRegistryAuthId": container.registry or "",
        "volumeInGb": row.volume_gb or 0,
        "volumeMountPath": row.volume_path or "",
        "ports": csv(container.ports),
        "portsConfig": [{"port": port, "name": ""} for port in container.ports],
        "env": [{"key": key, "value": value} for key, value in container.env.items()],
        "isServerless": row.serverless,
        "isPublic": row.public,
        "isRunpod": False,
        "readme": row.readme,
        "category": row.category,
        "startSsh": row.start_ssh,
        "startJupyter": row.start_jupyter,
        "userId": USER_ID,
    }


# Endpoints.


def check_new_endpoint(values: Mapping[str, Any]) -> None:
    """RunPod's rules for a new endpoint. Raises: CatalogRefused, with RunPod's text."""
    if len(values.get("name") or "") < SHORTEST_NAME:
        raise CatalogRefused(f"name must have at least {SHORTEST_NAME} characters")
    if not values.get("gpuIds") and not values.get("instanceIds"):
        raise CatalogRefused("gpuId(s) is required for a gpu endpoint")


def new_endpoint(endpoint_id: str, values: Mapping[str, Any], row: TemplateRow) -> EndpointRow:
    """An endpoint from ``EndpointInput``, bound to its template. Raises: CatalogRefused."""
    kind = _type(values) or EndpointType.QUEUE
    balanced = kind is EndpointType.LOAD_BALANCER
    empty = EndpointRow(
        endpoint_id,
        str(values["name"]),
        row.container,
        type=kind,
        template_id=row.id,
        idle_s=DEFAULT_IDLE_S,
        scaler=ScalerType.REQUEST_COUNT if balanced else ScalerType.QUEUE_DELAY,
    )
    return apply_endpoint(empty, values)


def _type(values: Mapping[str, Any]) -> EndpointType | None:
    """The type that a request names; None: it names none. Raises: CatalogRefused."""
    word = values.get("type")
    try:
        return EndpointType.of_short(word) if word else None
    except ValueError as error:
        raise CatalogRefused(str(error)) from None


def apply_endpoint(row: EndpointRow, values: Mapping[str, Any]) -> EndpointRow:
    """The endpoint with the fields of ``EndpointInput``. Absent ones stay; RunPod's service resets some, and no client
    depends on that.

    Raises:
        CatalogRefused: a value is none of RunPod's.
    """
    given = {name: value for name, value in values.items() if value is not None}
    changes: dict[str, Any] = {own: given[name] for name, own in _PLAIN.items() if name in given}
    changes["type"] = _type(given) or row.type
    if "scalerType" in given:
        if given["scalerType"] not in list(ScalerType):
            raise CatalogRefused(f"scalerType must be one of {', '.join(ScalerType)}")
        changes["scaler"] = ScalerType(given["scalerType"])
    if "scalerValue" in given and given["scalerValue"] != math.ceil(row.scaler_value):
        changes["scaler_value"] = float(given["scalerValue"])
    if "locations" in given:
        changes["data_centers"] = parts(given["locations"])
    if "networkVolumeIds" in given:
        ids = (volume.get("networkVolumeId") for volume in given["networkVolumeIds"])
        changes["volumes"] = tuple(filter(None, ids))
    elif "networkVolumeId" in given:
        changes["volumes"] = parts(given["networkVolumeId"])
    if "allowedCudaVersions" in given:
        changes["cuda_allowed"] = parts(given["allowedCudaVersions"])
    if "minCudaVersion" in given:
        changes["cuda_min"] = given["minCudaVersion"] or None
    if "flashBootType" in given:
        changes["flashboot"] = FlashBoot(given["flashBootType"])
    return replace(row, **changes, **_hardware(row, given))


def _hardware(row: EndpointRow, given: Mapping[str, Any]) -> dict[str, Any]:
    if given.get("instanceIds"):
        return {"gpu": None, "cpus": tuple(_cpu(name) for name in given["instanceIds"] if name)}
    count = given.get("gpuCount") or (row.gpu.count if row.gpu else 1)
    if given.get("gpuIds"):
        same = row.gpu is not None and given["gpuIds"] == gpu_ids(row.gpu)
        gpu = row.gpu if same and row.gpu else from_gpu_ids(given["gpuIds"], count)
        return {"gpu": replace(gpu, count=count), "cpus": ()}
    if row.gpu is not None and count != row.gpu.count:
        return {"gpu": replace(row.gpu, count=count)}
    return {}


def _cpu(instance: str) -> Cpu:
    """A CPU flavor of an instance id such as ``cpu3c-4-8``: 4 vCPU, 8 GB."""
    flavor, _, rest = instance.partition("-")
    vcpu = rest.partition("-")[0]
    return Cpu(flavor, int(vcpu) if vcpu.isdecimal() and len(vcpu) < 5 else 2)


def endpoint(
    row: EndpointRow,
    bound: TemplateRow | None,
    volumes: Mapping[str, VolumeRow],
    workers: Callable[[], Iterable[WorkerShown]],
) -> dict[str, Any]:
    """``Endpoint``.

    Args:
        row: the endpoint.
        bound: its template; None: it has its own copy.
        volumes: all network volumes.
        workers: returns its workers that exist now; called only for a request that selects them.
    """
    own = bound or TemplateRow(row.template_id or "", row.name, row.container, serverless=True)
    mine = [volumes[name] for name in row.volumes if name in volumes]
    return {
        "id": row.id,
        "name": row.name,
        "aiKey": None,
        "templateId": row.template_id or "",
        "template": template(own),
        "gpuIds": gpu_ids(row.gpu or Gpu()),
        "gpuCount": row.gpu.count if row.gpu else 0,
        "instanceIds": [f"{cpu.id}-{cpu.vcpu_count}-{cpu.memory_gb}" for cpu in row.cpus],
        "computeType": "CPU" if row.cpus else "GPU",
        "type": row.type.short,
        "userId": USER_ID,
        "version": row.version,
        "createdAt": time_text(row.created_ms),
        "env": [{"key": key, "value": value} for key, value in row.container.env.items()],
        "idleTimeout": row.idle_s,
        "locations": csv(row.data_centers),
        "networkVolumeId": row.volumes[0] if row.volumes else "",
        "networkVolume": volume(mine[0]) if mine else None,
        "networkVolumeIds": [
            {"networkVolumeId": found.id, "dataCenterId": found.data_center} for found in mine
        ],
        "scalerType": row.scaler.value,
        "scalerValue": math.ceil(row.scaler_value),
        "workersMin": row.workers_min,
        "workersMax": row.workers_max,
        "workersStandby": row.workers_max,
        "workersPFBTarget": 0,
        "executionTimeoutMs": row.timeout_ms,
        "flashBootType": row.flashboot.value,
        "allowedCudaVersions": csv(row.cuda_allowed),
        "minCudaVersion": row.cuda_min,
        "compliance": [],
        "modelReferences": [],
        "pods": lambda _info: [
            {**as_pod(row, worker), "gpuCount": worker.gpu_count} for worker in workers()
        ],
    }


def volume(row: VolumeRow) -> dict[str, Any]:
    """``NetworkVolume``."""
    return {
        "id": row.id,
        "name": row.name,
        "size": row.size_gb,
        "dataCenterId": row.data_center,
        "dataCenter": {"id": row.data_center, "name": row.data_center, "storageSupport": True},
    }


def empty_template(template_id: str, values: Mapping[str, Any]) -> TemplateRow:
    """A new template from ``SaveTemplateInput``. Raises: CatalogRefused."""
    if not values.get("imageName"):
        raise CatalogRefused("imageName is required")
    return apply_template(TemplateRow(template_id, values.get("name") or "", Container()), values)
