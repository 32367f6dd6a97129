"""An endpoint's workers as RunPod's management APIs show them. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ownpod.management.shown import time_text
from ownpod.rules.catalog import EndpointRow
from ownpod.rules.catalog_changes import version_of
from ownpod.rules.launching import DATA_CENTER_LABEL, DEFAULT_DATA_CENTER
from ownpod.rules.managed import AgentInfo, ManagedWorker, Phase


class WorkerWord(StrEnum):
    """RunPod's states of a worker in REST v2."""

    RUNNING = "RUNNING"
    IDLE = "IDLE"
    INITIALIZING = "INITIALIZING"
    THROTTLED = "THROTTLED"
    UNHEALTHY = "UNHEALTHY"


@dataclass(frozen=True)
class WorkerShown:
    """A managed worker for the management APIs.

    Attributes:
        word: RunPod's word for its state; of a stopped one, that of its end.
        version: the version of the endpoint that it runs; None: not known any more.
        gpu_type: the name of its devices; "": it has none, or is not placed.
        started_ms: when its container started, in ms since the epoch; None: not yet.
    """

    id: str
    word: WorkerWord
    reason: str
    version: int | None
    is_stale: bool
    stopped: bool
    image: str
    gpu_type: str
    gpu_count: int
    host: str
    data_center: str
    created_ms: int
    started_ms: int | None
    stopped_ms: int | None
    exit_code: int | None


def workers_of(
    row: EndpointRow,
    release: str,
    records: Iterable[ManagedWorker],
    busy: Mapping[str, int],
    agents: Sequence[AgentInfo],
    *,
    unhealthy: Mapping[str, str] = MappingProxyType({}),
) -> list[WorkerShown]:
    """The endpoint's managed workers, the oldest first.

    Args:
        row: the endpoint.
        release: the release that its workers should have.
        records: its workers, also stopped ones if these are to be shown.
        busy: the number of running jobs, or of open requests, by worker id.
        agents: the hosts, for the names of devices.
        unhealthy: of a load-balanced endpoint, why a worker's health check fails, by worker id.
    """
    hosts = {agent.host: agent for agent in agents}
    found = [
        _shown(row, release, worker, busy.get(worker.id, 0), hosts.get(worker.host or ""))
        for worker in sorted(records, key=lambda w: (w.created_ms, w.id))
    ]
    return [
        replace(worker, word=WorkerWord.UNHEALTHY, reason=unhealthy[worker.id])
        if worker.id in unhealthy and worker.word in {WorkerWord.IDLE, WorkerWord.RUNNING}
        else worker
        for worker in found
    ]


def _shown(
    row: EndpointRow, release: str, worker: ManagedWorker, jobs: int, host: AgentInfo | None
) -> WorkerShown:
    devices = () if host is None else host.devices
    names = [device.name for device in devices if device.id in worker.devices]
    labels = {} if host is None else host.labels
    # The last version may have the name of an earlier one, to which the configuration has come back.
    earlier = replace(row, releases=row.releases[:-1])
    return WorkerShown(
        id=worker.id,
        word=_word(worker, jobs),
        reason=worker.reason,
        version=row.version if worker.release == release else version_of(earlier, worker.release),
        is_stale=worker.release != release,
        stopped=worker.phase is Phase.STOPPED,
        image=row.container.image if worker.release == release else "",
        gpu_type=names[0] if names else "",
        gpu_count=len(worker.devices) or worker.gpu_count,
        host=worker.host or "",
        data_center=labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER) if worker.host else "",
        created_ms=worker.created_ms,
        started_ms=worker.started_ms,
        stopped_ms=worker.stopped_ms,
        exit_code=worker.exit_code,
    )


def _word(worker: ManagedWorker, jobs: int) -> WorkerWord:
    if worker.phase is Phase.STOPPED:
        return WorkerWord.UNHEALTHY if worker.failed else WorkerWord.IDLE
    if worker.phase is Phase.WANTED and worker.reason:
        # Only a worker that finds no place has a reason in this phase.
        return WorkerWord.THROTTLED
    if worker.phase in {Phase.WANTED, Phase.PREPARING, Phase.STARTING}:
        return WorkerWord.INITIALIZING
    return WorkerWord.RUNNING if jobs else WorkerWord.IDLE


def as_pod(row: EndpointRow, worker: WorkerShown) -> dict[str, Any]:
    """A worker in REST v1's shape, a ``Pod``. Values of variables are left out, because they may be secrets."""
    started = worker.started_ms or worker.created_ms
    state = "EXITED" if worker.stopped else "RUNNING"
    gpu = {
        "id": worker.gpu_type,
        "count": worker.gpu_count,
        "displayName": worker.gpu_type,
    }
    container = row.container
    return {
        "id": worker.id,
        "name": f"{row.name} - {worker.id}",
        "desiredStatus": state,
        "image": worker.image,
        "imageName": worker.image,
        "env": dict.fromkeys(container.env, "***"),
        "endpointId": row.id,
        "aiApiId": row.id,
        "slsVersion": worker.version or 0,
        "gpu": gpu,
        "machineId": worker.host,
        "machine": {"gpuTypeId": worker.gpu_type, "dataCenterId": worker.data_center},
        "lastStartedAt": time_text(started),
        "lastStatusChange": worker.reason or f"{worker.word.lower()} since {time_text(started)}",
        "costPerHr": 0,
        "adjustedCostPerHr": 0,
        "memoryInGb": 0,
        "vcpuCount": 0,
        "containerDiskInGb": container.disk_gb or 0,
        "containerRegistryAuthId": container.registry or "",
        "templateId": row.template_id or "",
        "dockerEntrypoint": list(container.entrypoint),
        "dockerStartCmd": list(container.command),
        "ports": list(container.ports),
        "portMappings": None,
        "publicIp": None,
        "interruptible": False,
        "locked": False,
        "volumeInGb": 0,
        "volumeMountPath": "",
        "volumeEncrypted": False,
        "consumerUserId": "",
    }
