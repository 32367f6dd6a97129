"""Endpoints of REST v1."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ownpod.management.shown import USER_ID, as_sent, keep_sent, time_of, time_text
from ownpod.management.v1.fields import EXECUTION_TIMEOUT_S, EXPIRES
from ownpod.management.v1.templates import show_template
from ownpod.rules.catalog import (
    Container,
    Cpu,
    Door,
    EndpointRow,
    FlashBoot,
    Gpu,
    TemplateRow,
)
from ownpod.rules.gpu_types import normal, types_of
from ownpod.rules.templates import ScalerType

DEFAULT_CPU = "cpu3g"

_PLAIN = {
    "name": "name",
    "workersMin": "workers_min",
    "workersMax": "workers_max",
    "idleTimeout": "idle_s",
    "executionTimeoutMs": "timeout_ms",
}
_LISTS = {
    "dataCenterIds": "data_centers",
    "networkVolumeIds": "volumes",
    "allowedCudaVersions": "cuda_allowed",
}

_OPTIONAL = ("minCudaVersion", "cpuFlavorIds", "vcpuCount", EXPIRES)
"""Fields that an answer has only where they have a value, or were sent."""


def new_endpoint(endpoint_id: str, values: Mapping[str, Any], template: TemplateRow) -> EndpointRow:
    """An endpoint from the fields of a request, bound to its template."""
    empty = EndpointRow(
        endpoint_id,
        f"{template.name} -{endpoint_id[:4]}",
        template.container,
        template_id=template.id,
        gpu=Gpu(),
    )
    # CPU endpoints have no GPU, whatever else they name.
    first = {"computeType": values.get("computeType", "GPU")}
    return keep_sent(apply_endpoint(empty, {**first, **values}), Door.V1, values)


def changed_endpoint(
    row: EndpointRow, values: Mapping[str, Any], template: TemplateRow | None
) -> EndpointRow:
    """The endpoint with the fields of a request; ``template``: the one that it names, None if it names none."""
    if template is not None:
        row = replace(row, template_id=template.id, container=template.container)
    return keep_sent(apply_endpoint(row, values), Door.V1, values)


def apply_endpoint(row: EndpointRow, values: Mapping[str, Any]) -> EndpointRow:
    """The endpoint with other fields; names of fields are those of v1. The template is not applied.

    Raises:
        BadRequest: ``expires`` is no time.
    """
    changes: dict[str, Any] = {own: values[n] for n, own in _PLAIN.items() if n in values}
    changes |= {own: tuple(values[n]) for n, own in _LISTS.items() if n in values}
    if EXECUTION_TIMEOUT_S in values and "executionTimeoutMs" not in values:
        changes["timeout_ms"] = int(values[EXECUTION_TIMEOUT_S]) * 1000
    # A client that has one volume may send an empty list, too.
    if values.get("networkVolumeId") is not None and not values.get("networkVolumeIds"):
        changes["volumes"] = tuple(filter(None, [values["networkVolumeId"]]))
    if "minCudaVersion" in values:
        changes["cuda_min"] = values["minCudaVersion"] or None
    if "flashboot" in values:
        on = row.flashboot if row.flashboot is not FlashBoot.OFF else FlashBoot.FLASHBOOT
        changes["flashboot"] = on if values["flashboot"] else FlashBoot.OFF
    if "scalerType" in values:
        changes["scaler"] = ScalerType(values["scalerType"])
    if "scalerValue" in values and values["scalerValue"] != math.ceil(row.scaler_value):
        changes["scaler_value"] = float(values["scalerValue"])
    if EXPIRES in values:
        changes["expires_ms"] = time_of(values[EXPIRES])
    return replace(row, **changes, **_hardware(row, values))


def _hardware(row: EndpointRow, values: Mapping[str, Any]) -> dict[str, Any]:
    if values.get("computeType") == "CPU" or (row.gpu is None and "computeType" not in values):
        flavors = values.get("cpuFlavorIds") or [cpu.id for cpu in row.cpus] or [DEFAULT_CPU]
        vcpu = int(values.get("vcpuCount", row.cpus[0].vcpu_count if row.cpus else 2))
        return {"gpu": None, "cpus": tuple(Cpu(flavor, vcpu) for flavor in flavors)}
    gpu = row.gpu or Gpu()
    if "gpuTypeIds" in values and values["gpuTypeIds"] != list(types_of(gpu)):
        gpu = Gpu(types=tuple(map(normal, values["gpuTypeIds"])), count=gpu.count)
    if "gpuCount" in values:
        gpu = replace(gpu, count=int(values["gpuCount"]))
    return {"gpu": gpu, "cpus": ()}


def show_endpoint(
    row: EndpointRow,
    *,
    template: TemplateRow | None = None,
    workers: Sequence[Mapping[str, Any]] | None = None,
    with_template: bool = False,
) -> dict[str, Any]:
    """The endpoint as v1 answers it.

    Args:
        row: the endpoint.
        template: the template that it is bound to; None: it has its own copy.
        workers: its workers in v1's shape; None: they are left out.
        with_template: whether the template is embedded.
    """
    shown: dict[str, Any] = {
        "id": row.id,
        "userId": USER_ID,
        "name": row.name,
        "templateId": row.template_id or "",
        "computeType": "CPU" if row.gpu is None and row.cpus else "GPU",
        "gpuTypeIds": list(types_of(row.gpu)) if row.gpu else [],
        "gpuCount": row.gpu.count if row.gpu else 0,
        "workersMin": row.workers_min,
        "workersMax": row.workers_max,
        "workersStandby": row.workers_max,
        "idleTimeout": row.idle_s,
        "scalerType": row.scaler.value,
        "scalerValue": math.ceil(row.scaler_value),
        "executionTimeoutMs": row.timeout_ms,
        "flashboot": row.flashboot is not FlashBoot.OFF,
        "dataCenterIds": list(row.data_centers),
        "networkVolumeId": row.volumes[0] if row.volumes else "",
        "networkVolumeIds": list(row.volumes),
        "allowedCudaVersions": list(row.cuda_allowed),
        "instanceIds": [cpu.id for cpu in row.cpus],
        "version": row.version,
        "createdAt": time_text(row.created_ms),
        "env": dict(row.container.env),
    }
    if row.cuda_min:
        # runpod-flash refuses an empty text here.
        shown["minCudaVersion"] = row.cuda_min
    if row.cpus:
        shown["cpuFlavorIds"] = [cpu.id for cpu in row.cpus]
        shown["vcpuCount"] = row.cpus[0].vcpu_count
    if row.expires_ms is not None:
        shown[EXPIRES] = time_text(row.expires_ms)
    shown = as_sent(row, Door.V1, shown, apply_endpoint, _OPTIONAL)
    if with_template:
        shown["template"] = show_template(template or own_template(row))
    if workers is not None:
        shown["workers"] = list(workers)
    return shown


def own_template(row: EndpointRow) -> TemplateRow:
    """What an endpoint without a template is made from, as a template."""
    container: Container = row.container
    return TemplateRow(
        row.template_id or "", row.name, container, serverless=True, created_ms=row.created_ms
    )
