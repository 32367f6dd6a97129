"""The environment of a managed worker. Pure.

The variables are those that RunPod gives to a serverless worker, as its records show and as its SDK reads them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote_plus

from ownpod.rules.balancing import Balancing
from ownpod.rules.managed import Device
from ownpod.rules.pulling import worker_environment
from ownpod.rules.templates import GIB, Protocol, Template
from ownpod.rules.volumes import variables

PING_INTERVAL_MS = 10_000
"""RunPod's interval of a worker's pings."""

DEFAULT_DATA_CENTER = "LOCAL-1"
DATA_CENTER_LABEL = "datacenter"
"""The label of a host with the name of its data center."""

PORT, PORT_HEALTH, HEALTH_CHECK_PATH = "PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH"
"""RunPod's variables of a load-balanced endpoint's worker."""

WEBHOOK = "RUNPOD_WEBHOOK_"
"""Prefix of the variables with the URLs that a pulling worker calls."""


def environment(
    template: Template,
    *,
    worker_id: str,
    endpoint: str,
    base_url: str,
    key: str,
    devices: Sequence[Device] = (),
    labels: Mapping[str, str] | None = None,
    balancing: Balancing | None = None,
    cpus: float | None = None,
    memory_bytes: int | None = None,
    suggested: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The whole environment that a managed worker gets besides its image's own.

    The template replaces what OwnPod only suggests, and never what the worker needs to get its jobs, or what keeps it
    from devices of other workers.

    Args:
        template: how the endpoint's workers are started.
        worker_id: the worker's id, of letters and digits.
        endpoint: the endpoint's id.
        base_url: the URL of OwnPod as the worker reaches it, for example ``http://10.0.0.5:8000``.
        key: the worker's own key; the container of a one-off task has none.
        devices: the devices that it holds; stand-ins are no GPUs.
        labels: the labels of its host.
        balancing: of a load-balanced endpoint.
        cpus: number of the host's cores, where the template has no limit.
        memory_bytes: the host's memory, where the template has no limit.
        suggested: further variables, which the template may replace: where its model is.
    """
    gpus = [device for device in devices if not device.simulated]
    platform = {
        **_identity(worker_id, key, labels or {}),
        **_resources(template, gpus, cpus, memory_bytes),
    }
    needed = _needed(worker_id, endpoint, key, gpus)
    if template.protocol is Protocol.PULL:
        gpu = quote_plus(gpus[0].name) if gpus else "0"
        needed |= _webhooks(f"{base_url.rstrip('/')}/v2/{endpoint}", worker_id, key, gpu)
    if template.protocol is Protocol.CONTAINER:
        # A one-off task sends no requests.
        del needed["RUNPOD_AI_API_KEY"]
    if template.protocol is Protocol.HTTP:
        needed |= _serves(balancing or Balancing())
    needed |= variables(template.volumes)
    given = {n: v for n, v in template.env.items() if not n.startswith(WEBHOOK)}
    return platform | dict(suggested or {}) | given | needed


def _identity(worker_id: str, key: str, labels: Mapping[str, str]) -> dict[str, str]:
    digest = hashlib.sha256(f"{worker_id} {key}".encode()).hexdigest()
    return {
        "RUNPOD_ENDPOINT_SECRET": digest[:32],
        "RUNPOD_POD_HOSTNAME": f"{worker_id}-{digest[-8:]}",
        "RUNPOD_DC_ID": labels.get(DATA_CENTER_LABEL, DEFAULT_DATA_CENTER),
        # Without this the worker ends where it cannot reach the internet.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }


def _resources(
    template: Template, gpus: Sequence[Device], cpus: float | None, memory_bytes: int | None
) -> dict[str, str]:
    values = {"RUNPOD_GPU_COUNT": str(len(gpus))}
    cores = template.limits.cpus or cpus
    if cores:
        values["RUNPOD_CPU_COUNT"] = str(max(int(cores), 1))
    memory = template.limits.memory_bytes or memory_bytes
    if memory:
        values["RUNPOD_MEM_GB"] = str(max(memory // GIB, 1))
    if gpus:
        values["RUNPOD_GPU_NAME"] = quote_plus(gpus[0].name)
        values["RUNPOD_GPU_TYPE_ID"] = gpus[0].name
        values["RUNPOD_GPU_SIZE"] = ",".join(gpus[0].pools)
        values["NVIDIA_DRIVER_CAPABILITIES"] = "compute,utility"
    else:
        # Without this the worker ends because its test of a GPU fails.
        values["RUNPOD_SKIP_GPU_CHECK"] = "true"
    return values


def _needed(worker_id: str, endpoint: str, key: str, gpus: Sequence[Device]) -> dict[str, str]:
    uuids = ",".join(device.id for device in gpus)
    return {
        "RUNPOD_AI_API_KEY": key,
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_ENDPOINT_ID": endpoint,
        "RUNPOD_AI_API_ID": endpoint,
        "RUNPOD_PING_INTERVAL": str(PING_INTERVAL_MS),
        # An image's own "all" would give it the devices of other workers where NVIDIA's runtime is the default.
        "NVIDIA_VISIBLE_DEVICES": uuids or "void",
        # A copy, because NVIDIA's runtime may replace the other.
        "OWNPOD_GPU_UUIDS": uuids,
    }


def _serves(balancing: Balancing) -> dict[str, str]:
    """Where the worker is to listen. RunPod's worker without ``PORT_HEALTH`` would never count as ready."""
    return {
        PORT: str(balancing.port),
        PORT_HEALTH: str(balancing.health_port or balancing.port),
        HEALTH_CHECK_PATH: balancing.health_path,
    }


def _webhooks(endpoint_url: str, worker_id: str, key: str, gpu: str) -> dict[str, str]:
    """The URLs that the worker calls. Its id is in them as text, because RunPod's are like that, too."""
    found = {}
    for name, value in worker_environment(endpoint_url, worker_id, key=key).items():
        if name.startswith(WEBHOOK):
            url = value.replace("$RUNPOD_POD_ID", worker_id)
            if name == "RUNPOD_WEBHOOK_GET_JOB":
                # Only here $ID is the worker's id; in the others the SDK puts a job's id for it.
                url = url.replace("$ID", worker_id)
            path, _, _ = url.rpartition("?gpu=")
            found[name] = f"{path}?gpu={gpu}"
    return found
