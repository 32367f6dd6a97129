"""Endpoints of REST v2."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ownpod.errors import CatalogNotFound, CatalogRefused
from ownpod.management.shown import as_sent, keep_sent, time_of, time_text
from ownpod.management.v2.schemas import Unprocessable
from ownpod.management.workers import WorkerShown, WorkerWord
from ownpod.rules import lb_addresses
from ownpod.rules.catalog import (
    Container,
    Cpu,
    Door,
    EndpointRow,
    EndpointType,
    FlashBoot,
    Gpu,
    Kind,
    TemplateRow,
)
from ownpod.rules.catalog_changes import scaler_of
from ownpod.rules.gpu_types import POOLS, normal, pools_of_need
from ownpod.rules.lb_addresses import LOCAL
from ownpod.rules.templates import ScalerType

DEFAULT_IDLE_S, DEFAULT_MAX = 10, 3
"""RunPod's defaults of v2; v1 has others."""

_PLAIN = {"name": "name", "timeout": "timeout_ms"}
_LISTS = {"dataCenterIds": "data_centers", "networkVolumes": "volumes"}
_WORKERS = {"min": "workers_min", "max": "workers_max", "idleTimeout": "idle_s"}

OPTIONAL = ("cmd", "entrypoint", "expires")
"""Fields that an answer has only where they have a value, or were sent."""

OPERATIONS = {
    "run": "run",
    "runSync": "runsync",
    "status": "status/{job_id}",
    "stream": "stream/{job_id}",
    "cancel": "cancel/{job_id}",
    "retry": "retry/{job_id}",
    "purgeQueue": "purge-queue",
    "health": "health",
}


def new_endpoint(
    endpoint_id: str, values: Mapping[str, Any], template: TemplateRow | None
) -> EndpointRow:
    """An endpoint from the fields of a request. A template is a copy: later edits of it have no effect.

    Raises:
        CatalogRefused: values that do not go together, as in RunPod's (400).
        Unprocessable: the same, where RunPod answers 422.
    """
    if ("gpu" in values) == ("cpu" in values):
        raise CatalogRefused("exactly one of gpu and cpu must be given")
    container = Container()
    if template is not None:
        if not template.serverless:
            raise Unprocessable([f"$.templateId: template {template.id!r} is for pods"])
        container = template.container
    row = EndpointRow(
        endpoint_id,
        values["name"],
        container,
        type=EndpointType(values["type"]),
        gpu=Gpu() if "gpu" in values else None,
        cuda_allowed=template.cuda_allowed if template and "gpu" in values else (),
        workers_max=DEFAULT_MAX,
        idle_s=DEFAULT_IDLE_S,
    )
    row = apply_endpoint(row, {**values, "env": {**container.env, **values.get("env", {})}})
    if row.cuda_min and "allowedCudaVersions" not in values.get("gpu", {}):
        row = replace(row, cuda_allowed=())
    check(row, values)
    return keep_sent(row, Door.V2, _without(values, "templateId", "type"))


def changed_endpoint(
    row: EndpointRow, values: Mapping[str, Any], template: TemplateRow | None
) -> EndpointRow:
    """The endpoint with the fields of a request. A template is applied once; ``env`` is replaced as a whole.

    Raises:
        CatalogRefused: a GPU endpoint would become one for CPUs, or the other way; values that do not go together.
        Unprocessable: the same, where RunPod answers 422; another type, which is fixed at creation.
    """
    if values.get("type", row.type) != row.type:
        raise Unprocessable(["$: additional properties 'type' not allowed"])
    if ("cpu" in values and row.gpu is not None) or ("gpu" in values and row.gpu is None):
        raise CatalogRefused("an endpoint with GPUs cannot become one with CPUs, nor the other way")
    if template is not None:
        row = replace(row, container=template.container)
    row = apply_endpoint(row, values)
    check(row, values)
    return keep_sent(row, Door.V2, _without(values, "templateId", "type"))


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def check(row: EndpointRow, values: Mapping[str, Any]) -> None:
    """RunPod's rules about several fields. Raises: CatalogRefused (400), Unprocessable (422)."""
    given = values.get("gpu", {})
    if given.get("excludedTypes") and not (row.gpu and row.gpu.pools):
        raise CatalogRefused("gpu.excludedTypes needs gpu.pools")
    if row.gpu:
        of_pools = {t for pool in row.gpu.pools for t in POOLS.get(pool, ())}
        wrong = [t for t in row.gpu.excluded if of_pools and t not in of_pools]
        if wrong:
            raise CatalogRefused(f"gpu.excludedTypes: {wrong[0]!r} belongs to none of the pools")
    if given.get("allowedCudaVersions") and given.get("minCudaVersion"):
        raise CatalogRefused("gpu: only one of allowedCudaVersions and minCudaVersion may be given")
    scaler = values.get("scaling", {}).get("type", ScalerType.REQUEST_COUNT)
    if row.is_balanced and scaler != ScalerType.REQUEST_COUNT:
        raise Unprocessable(["$.scaling.type: LOAD_BALANCER endpoints need REQUEST_COUNT"])
    queue_by_count = row.type is EndpointType.QUEUE and row.scaler is ScalerType.REQUEST_COUNT
    if queue_by_count and "idleTimeout" in values.get("workers", {}):
        raise Unprocessable(["$.workers.idleTimeout: not allowed with REQUEST_COUNT"])


def apply_endpoint(row: EndpointRow, values: Mapping[str, Any]) -> EndpointRow:
    """The endpoint with other fields; names of fields are those of v2. Raises: BadRequest: ``expires`` is no time."""
    workers = values.get("workers", {})
    changes: dict[str, Any] = {own: values[n] for n, own in _PLAIN.items() if n in values}
    changes |= {own: tuple(values[n]) for n, own in _LISTS.items() if n in values}
    changes |= {own: int(workers[n]) for n, own in _WORKERS.items() if n in workers}
    if "flashboot" in values:
        changes["flashboot"] = FlashBoot(values["flashboot"])
    if "expires" in values:
        changes["expires_ms"] = time_of(values["expires"] or "")
    if "scaling" in values:
        scaling = values["scaling"]
        changes["scaler"] = ScalerType(scaling["type"])
        changes["scaler_value"] = float(scaling.get("queueDelay", scaling.get("requestCount", 1)))
    if "cpu" in values:
        changes["cpus"] = tuple(Cpu(cpu["id"], int(cpu["vcpuCount"])) for cpu in values["cpu"])
    if values.get("gpu") is not None:
        changes |= _gpu(row, values["gpu"])
    return replace(row, container=apply_container(row.container, values), **changes)


def _pools(gpu: Gpu) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The pools and excluded types as v2 shows them; any GPU is all pools, because v2 has no empty list of pools."""
    pools, excluded = pools_of_need(gpu)
    return pools or tuple(POOLS), excluded


def _gpu(row: EndpointRow, given: Mapping[str, Any]) -> dict[str, Any]:
    gpu = row.gpu or Gpu()
    if "pools" in given:
        pools = tuple(given["pools"])
        excluded = tuple(map(normal, given.get("excludedTypes", ())))
        if (pools, excluded) != _pools(gpu):
            known = tuple(pool for pool in pools if pool in POOLS)
            types = tuple(normal(pool) for pool in pools if pool not in POOLS)
            gpu = Gpu(known, types, excluded, gpu.count)
    elif "excludedTypes" in given:
        gpu = replace(gpu, excluded=tuple(map(normal, given["excludedTypes"])))
    if "count" in given:
        gpu = replace(gpu, count=int(given["count"]))
    changes: dict[str, Any] = {"gpu": gpu}
    if "allowedCudaVersions" in given:
        changes["cuda_allowed"] = tuple(given["allowedCudaVersions"])
        if given["allowedCudaVersions"]:
            changes["cuda_min"] = None
    if "minCudaVersion" in given:
        changes["cuda_min"] = given["minCudaVersion"] or None
        if given["minCudaVersion"]:
            changes["cuda_allowed"] = ()
    return changes


def apply_container(container: Container, values: Mapping[str, Any]) -> Container:
    """The container with other settings; endpoints and templates of v2 have the same ones."""
    changes: dict[str, Any] = {}
    for name, own in (("image", "image"), ("disk", "disk_gb"), ("env", "env")):
        if name in values:
            changes[own] = values[name]
    for name, own in (("ports", "ports"), ("entrypoint", "entrypoint")):
        if name in values:
            changes[own] = tuple(values[name])
    if "registry" in values:
        changes["registry"] = values["registry"] or None
    if "cmd" in values:
        changes |= {"command": tuple(values["cmd"]), "args": None}
    if values.get("args") is not None and values["args"] != args_of(container):
        changes |= {"args": values["args"] or None, "command": ()}
    return replace(container, **changes)


def args_of(container: Container) -> str:
    """The command as one text."""
    return container.args if container.args is not None else shlex.join(container.command)


def show_endpoint(row: EndpointRow, base_url: str, domain: str = LOCAL) -> dict[str, Any]:
    """The endpoint as v2 answers it. It has no ``templateId`` and no ``version``: Terraform would see a difference.

    Args:
        row: the endpoint.
        base_url: OwnPod's URL as the client reaches it.
        domain: of the names of load-balanced endpoints.
    """
    container = row.container
    by_count = scaler_of(row) is ScalerType.REQUEST_COUNT
    scaling: dict[str, Any] = {"type": scaler_of(row).value}
    if by_count:
        scaling["requestCount"] = max(int(row.scaler_value), 1)
    else:
        scaling["queueDelay"] = row.scaler_value
    workers = {"min": row.workers_min, "max": row.workers_max}
    if row.is_balanced or not by_count:
        workers["idleTimeout"] = row.idle_s
    shown: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "type": row.type.value,
        "requestUrls": _request_urls(row, base_url, domain),
        "image": container.image,
        "args": args_of(container),
        "disk": container.disk_gb or 20,
        "env": dict(container.env),
        "ports": list(container.ports),
        "registry": container.registry,
        "gpu": _shown_gpu(row),
        "workers": workers,
        "scaling": scaling,
        "dataCenterIds": list(row.data_centers),
        "networkVolumes": list(row.volumes),
        "timeout": row.timeout_ms,
        "flashboot": row.flashboot.value,
        "createdAt": time_text(row.created_ms),
    }
    if container.command:
        shown["cmd"] = list(container.command)
    if container.entrypoint:
        shown["entrypoint"] = list(container.entrypoint)
    if row.expires_ms is not None:
        shown["expires"] = time_text(row.expires_ms)
    if row.cpus:
        shown["cpu"] = [
            {"id": c.id, "vcpuCount": c.vcpu_count, "memory": c.memory_gb} for c in row.cpus
        ]
    # These two have parts that v2 adds to what was sent.
    nested = {name: shown[name] for name in ("gpu", "cpu", "workers") if name in shown}
    return as_sent(row, Door.V2, shown, apply_endpoint, OPTIONAL) | nested


def _request_urls(row: EndpointRow, base_url: str, domain: str) -> dict[str, str]:
    if row.is_balanced:
        base = lb_addresses.base_url(row.id, base_url, domain)
        return {"base": base, "health": f"{base}{lb_addresses.health_path(row)}"}
    return {name: f"{base_url}/v2/{row.id}/{path}" for name, path in OPERATIONS.items()}


def _shown_gpu(row: EndpointRow) -> dict[str, Any] | None:
    if row.gpu is None:
        return None
    pools, excluded = _pools(row.gpu)
    shown = {
        "pools": list(pools),
        "count": row.gpu.count,
        "allowedCudaVersions": list(row.cuda_allowed),
        "minCudaVersion": row.cuda_min,
    }
    return shown | ({"excludedTypes": list(excluded)} if excluded else {})


def show_workers(row: EndpointRow, workers: Sequence[WorkerShown], now_ms: int) -> dict[str, Any]:
    """The workers that exist now, with RunPod's summary, whose numbers add up."""
    words = [worker.word for worker in workers]
    summary = {word.lower(): words.count(word) for word in WorkerWord}
    return {
        "workers": [_shown_worker(worker, now_ms) for worker in workers],
        "summary": {**summary, "total": len(words)},
        "endpointVersion": row.version,
    }


def _shown_worker(worker: WorkerShown, now_ms: int) -> dict[str, Any]:
    started = worker.started_ms
    return {
        "id": worker.id,
        "status": worker.word.value,
        "isStale": worker.is_stale,
        "version": worker.version,
        "gpuCount": worker.gpu_count,
        "image": worker.image or None,
        "uptimeSeconds": None if started is None else max(now_ms - started, 0) // 1000,
        "gpuTypeId": worker.gpu_type or None,
        "dataCenterId": worker.data_center or None,
        "startedAt": None if started is None else time_text(started),
        "reason": worker.reason,
    }


def show_releases(row: EndpointRow, workers: Sequence[WorkerShown]) -> dict[str, Any]:
    """The releases, the newest first, and how far the newest one has come."""
    on_latest = sum(not worker.is_stale for worker in workers)
    total = len(workers)
    return {
        "endpointVersion": row.version,
        "rollout": {
            "inProgress": on_latest < total,
            "workersOnLatest": on_latest,
            "workersTotal": total,
            "percentOnLatest": round(100 * on_latest / total) if total else 0,
        },
        "releases": [
            {
                "id": f"{row.id}-{release.version}",
                "version": release.version,
                "source": "MANUAL",
                "buildId": None,
                "createdByUserId": None,
                "workerCount": sum(worker.version == release.version for worker in workers),
                "createdAt": time_text(release.created_ms),
                "diff": [
                    {"field": d.field, "old": d.old, "new": d.new} for d in release.differences
                ],
            }
            for release in reversed(row.releases)
        ],
    }


def template_of(
    templates: Mapping[str, TemplateRow], values: Mapping[str, Any]
) -> TemplateRow | None:
    """The template that a request names; None: it names none. Raises: CatalogNotFound."""
    named = values.get("templateId")
    if named is None:
        return None
    template = templates.get(named)
    if template is None:
        raise CatalogNotFound(Kind.TEMPLATE, named)
    return template
