"""What a change of the catalog means: releases, differences, the quota, and what the rest of OwnPod runs. Pure."""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ownpod.rules.catalog import (
    Container,
    Difference,
    EndpointRow,
    EndpointType,
    Gpu,
    ReleaseRow,
)
from ownpod.rules.templates import VOLUME_PATH, ScalerType
from ownpod.rules.volumes import NETWORK

MOST_RELEASES = 20
"""Releases of an endpoint that its row keeps."""

NO_TIMEOUT_MS = 7 * 86_400_000
"""The ``executionTimeout`` of an endpoint that has none (RunPod's 0): the longest that a job may have."""

SMALLEST_SCALER_VALUE = 1.0
"""The smallest ``scalerValue`` of an entry: seconds of a queue delay, or jobs for each worker."""

SHORTEST_TIMEOUT_MS = 5_000
"""RunPod's shortest ``executionTimeout``."""

STRUCTURAL: Mapping[str, str] = {
    "container.image": "template.imageName",
    "container.args": "template.dockerArgs",
    "container.command": "template.dockerStartCmd",
    "container.entrypoint": "template.dockerEntrypoint",
    "container.env": "template.env",
    "container.ports": "template.ports",
    "container.disk_gb": "template.containerDiskInGb",
    "container.registry": "template.containerRegistryAuthId",
    "gpu": "gpu",
    "cpus": "cpu",
    "cuda_allowed": "allowedCudaVersions",
    "cuda_min": "minCudaVersion",
    "data_centers": "dataCenterIds",
    "volumes": "networkVolumeIds",
    "flashboot": "flashboot",
}
"""Fields whose change makes a release, with RunPod's names in the differences of a release (RunPod's rolling releases)."""

IN_PLACE: Mapping[str, str] = {
    "name": "name",
    "type": "type",
    "workers_min": "workersMin",
    "workers_max": "workersMax",
    "idle_s": "idleTimeout",
    "scaler": "scalerType",
    "scaler_value": "scalerValue",
    "timeout_ms": "executionTimeoutMs",
    "expires_ms": "expires",
    "template_id": "templateId",
}
"""Fields whose change applies to the running workers."""

TEMPLATE = "template."
"""The prefix of an own key of the template."""

NO_RELEASE = frozenset(
    f"{TEMPLATE}{name}" for name in ("initTimeout", "evictable", "pinned", "weight", "residency")
)
"""Own keys of the template that are no part of what workers are started from (:attr:`ownpod.rules.templates.ManagedSpec.release`)."""

RELEASED = frozenset(("port", "healthPort", "healthPath"))
"""Own keys of a load-balanced endpoint that its workers have in their environment."""


def _value(row: EndpointRow, path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _shown(path: str, value: Any) -> str:
    if path == "container.env":
        # Names only, because values may be secrets.
        return ", ".join(sorted(value))
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(str(getattr(part, "id", part)) for part in value)
    if isinstance(value, EndpointType):
        return value.short
    if isinstance(value, Gpu):
        names = (*value.pools, *value.types, *(f"-{name}" for name in value.excluded))
        return f"{value.count} x {', '.join(names) or 'any'}"
    return str(value)


def differences(
    old: EndpointRow, new: EndpointRow, of: Mapping[str, str] = STRUCTURAL
) -> tuple[Difference, ...]:
    """What differs between two states of an endpoint; variables by name only."""
    found = []
    for path, name in of.items():
        before, after = _value(old, path), _value(new, path)
        if before == after:
            continue
        if path == "container.env":
            changed = sorted(k for k in before.keys() & after.keys() if before[k] != after[k])
            told = _shown(path, after) + (f" (changed: {', '.join(changed)})" if changed else "")
            found.append(Difference(name, _shown(path, before), told))
        else:
            found.append(Difference(name, _shown(path, before), _shown(path, after)))
    return (*found, *_own_differences(old, new, structural=of is STRUCTURAL))


def _own_differences(
    old: EndpointRow, new: EndpointRow, *, structural: bool
) -> tuple[Difference, ...]:
    return tuple(
        Difference(name, _own_shown(name, old.own), _own_shown(name, new.own))
        for name in sorted({*old.own, *new.own})
        if old.own.get(name) != new.own.get(name)
        and structural
        is (name in RELEASED or (name.startswith(TEMPLATE) and name not in NO_RELEASE))
    )


def _own_shown(name: str, own: Mapping[str, str]) -> str:
    if name == "apiKeys" and name in own:
        # Digests are no secrets, but nothing is gained by having them in the audit log.
        return f"{len(json.loads(own[name]))} keys"
    return own.get(name, "")


def released(old: EndpointRow | None, new: EndpointRow, now_ms: int) -> EndpointRow:
    """The endpoint with its version: the next one if its workers must be replaced.

    Args:
        old: the endpoint before; None: it is new.
        new: the endpoint as it should be.
        now_ms: ms since the epoch, by Redis's clock.
    """
    if old is None:
        return replace(new, version=1, created_ms=now_ms, releases=(ReleaseRow(1, now_ms),))
    changes = differences(old, new)
    kept = replace(new, version=old.version, releases=old.releases, created_ms=old.created_ms)
    if not changes:
        return kept
    release = ReleaseRow(old.version + 1, now_ms, differences=changes)
    releases = (*old.releases, release)[-MOST_RELEASES:]
    return replace(kept, version=release.version, releases=releases)


def named(row: EndpointRow, release: str) -> EndpointRow:
    """The endpoint whose last release has the name of what its workers are started from."""
    return replace(row, releases=(*row.releases[:-1], replace(row.releases[-1], release=release)))


def version_of(row: EndpointRow, release: str) -> int | None:
    """The version of an endpoint that a worker of this release runs; None: none that is still known."""
    return max((r.version for r in row.releases if r.release == release), default=None)


def time_text(ms: int) -> str:
    """A time in ms since the epoch, as RunPod's APIs write it."""
    moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def entry_of(row: EndpointRow) -> dict[str, Any]:
    """The endpoint as an entry of run time, whose keys are those of ``workers.yaml``.

    Raises:
        ValueError: the quotes of its command do not match.
    """
    template = _template_of(row.container)
    entry: dict[str, Any] = {
        **({"type": row.type.short} if row.is_balanced else {}),
        "template": template,
        "workersMin": min(row.workers_min, row.workers_max),
        "workersMax": row.workers_max,
        "idleTimeout": row.idle_s,
        "scalerType": scaler_of(row).value,
        # RunPod allows a queue delay of half a second.
        "scalerValue": max(row.scaler_value, SMALLEST_SCALER_VALUE),
    }
    if not row.is_balanced or timeout_of(row) != NO_TIMEOUT_MS:
        entry["executionTimeout"] = timeout_of(row)
    if row.expires_ms is not None:
        entry["expires"] = time_text(row.expires_ms)
    if row.gpu is not None:
        entry["gpu"] = {"count": row.gpu.count}
        if names := gpu_names(row.gpu):
            entry["gpu"]["pools"] = list(names)
    for name, text in row.own.items():
        target = template if name.startswith(TEMPLATE) else entry
        target[name.removeprefix(TEMPLATE)] = json.loads(text)
    if row.volumes:
        # RunPod mounts the one of the worker's data center; here a worker has the first one.
        network = {"name": f"{NETWORK}{row.volumes[0]}", "path": VOLUME_PATH}
        template["volumes"] = [network, *template.get("volumes", ())]
    return entry


def _template_of(container: Container) -> dict[str, Any]:
    template: dict[str, Any] = {"env": dict(container.env)}
    if container.image:
        template["image"] = container.image
    if container.words:
        template["command"] = list(container.words)
    if container.entrypoint:
        template["entrypoint"] = list(container.entrypoint)
    if container.registry:
        template["registry"] = container.registry
    return template


def scaler_of(row: EndpointRow) -> ScalerType:
    """What decides on the number of workers: RunPod's GraphQL accepts QUEUE_DELAY for endpoints without a queue, too."""
    return ScalerType.REQUEST_COUNT if row.is_balanced else row.scaler


def type_problem(old: EndpointRow, new: EndpointRow) -> str:
    """Why an endpoint cannot become the new one, whose type is another; "": it has the same type, which is fixed at
    creation, as in RunPod's.
    """
    if old.type is new.type:
        return ""
    return f"type: an endpoint's type is fixed at its creation, and this one has {old.type.short}: create another endpoint"


def timeout_of(row: EndpointRow) -> int:
    """The ``executionTimeout`` of an endpoint in ms, as ``workers.yaml`` has it."""
    return max(row.timeout_ms, SHORTEST_TIMEOUT_MS) if row.timeout_ms else NO_TIMEOUT_MS


def gpu_names(gpu: Gpu) -> tuple[str, ...]:
    """The pools and types of a need in order of preference, ``-`` before what is excluded; empty: any GPU."""
    wanted = (*gpu.types, *(pool for pool in gpu.pools if pool not in gpu.types))
    return (*wanted, *(f"-{name}" for name in gpu.excluded)) if wanted else ()


def quota_problem(rows: Sequence[EndpointRow], others_max: int, quota: int) -> str:
    """RunPod's text for a sum of ``workersMax`` above the quota, word for word, because scripts parse it; "": it fits.

    Args:
        rows: the changed endpoint first, then the others of the catalog.
        others_max: the sum of ``workersMax`` of the configuration's endpoints.
        quota: the most workers of all endpoints; 0: any.
    """
    used = sum(row.workers_max for row in rows[1:]) + others_max
    if not quota or used + rows[0].workers_max <= quota:
        return ""
    return (
        f"Max workers across all endpoints must not exceed your workers quota ({quota}). Reduce the max workers for "
        f"other endpoints or lower the max worker count for this endpoint to at most {max(quota - used, 0)}."
    )
