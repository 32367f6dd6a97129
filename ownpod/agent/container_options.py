"""What a worker's container is created with, in docker-py's names. Pure."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ownpod.agent.docker_api import PODMAN_CDI, podman_without_gpus
from ownpod.agent.engine import STOP_GRACE_S, WITHOUT_PORT, EngineError, Launch, Started
from ownpod.agent.images import Image
from ownpod.rules.task_input import INPUT_FILE, INPUT_VARIABLE
from ownpod.rules.templates import Protocol, Template, VolumeMount
from ownpod.rules.volumes import DIRECTORY, VolumeSource

NETWORK = "ownpod-workers"
"""The bridge of workers, on which they do not reach each other."""

INTERNAL_NETWORK = "ownpod-workers-internal"
"""The same of workers with ``egress: false``: they reach this host, and nothing beyond it."""

HOST = "host.docker.internal"
"""The name of the engine's host in workers."""

HOST_GATEWAY = "host-gateway"
"""What Docker replaces by an address of the host that a network with a way out reaches."""

PODMAN_HOST = "host.containers.internal"
"""The name that Podman gives its host in each container. Of Docker's ``host-gateway`` it makes a wrong line of
``/etc/hosts`` (4.3), or refuses to start the container (5.0)."""

PORT = 8000
"""Port of RunPod's local API in a worker that is pushed to."""

SERVE = ("--rp_serve_api", "--rp_api_host", "0.0.0.0", "--rp_api_port", str(PORT))  # noqa: S104 - in the container
"""Arguments with which RunPod's SDK serves its local API."""

DEFAULT_PIDS = 4096
DEFAULT_SHM_BYTES = 1024**3
"""PyTorch's data loaders fail with Docker's 64 MiB."""

LOG_BYTES = "10m"
LOG_FILES = "3"
TASK_LOG_BYTES = "50m"
"""Of a one-off task, whose whole output is read from there."""

OURS = "ownpod"
"""Label of all that OwnPod creates."""


@dataclass(frozen=True)
class Options:
    """Arguments of docker-py's ``create_container`` and ``create_host_config``."""

    container: Mapping[str, Any]
    host: Mapping[str, Any]


def name_of(worker_id: str) -> str:
    """The container's name, which makes a second start a conflict instead of a second container."""
    return f"ownpod-{worker_id}"


def labels_of(launch: Launch, image: Image) -> dict[str, str]:
    return {
        OURS: "1",
        f"{OURS}.instance": launch.instance,
        f"{OURS}.worker": launch.worker_id,
        f"{OURS}.endpoint": launch.endpoint,
        f"{OURS}.devices": ",".join(device.id for device in launch.devices),
        f"{OURS}.image": image.reference,
        f"{OURS}.protocol": launch.template.protocol.value,
        **_ports(launch),
    }


def _ports(launch: Launch) -> dict[str, str]:
    """Labels by which an agent that was started later knows where the worker serves."""
    if launch.template.protocol in WITHOUT_PORT:
        return {}
    if launch.template.protocol is Protocol.PUSH or launch.balancing is None:
        return {f"{OURS}.port": str(PORT)}
    health = launch.balancing.health_port
    apart = {} if health is None else {f"{OURS}.health-port": str(health)}
    return {f"{OURS}.port": str(launch.balancing.port), **apart}


def address_of(labels: Mapping[str, str], host: str) -> Started:
    """Where the worker of a container serves, whose address on the workers' network is ``host``."""
    if labels.get(f"{OURS}.protocol") in WITHOUT_PORT:
        return Started()
    # Containers of earlier versions, which are pushed to, have no label of their port.
    port, health = labels.get(f"{OURS}.port") or PORT, labels.get(f"{OURS}.health-port")
    return Started(f"http://{host}:{port}", int(health) if health else None)


def _host_names(address: str, *, podman: bool) -> dict[str, dict[str, str]]:
    """The name of the engine's host in a container. Podman itself knows the address where the network has a way out."""
    if podman:
        return {} if address == HOST_GATEWAY else {"extra_hosts": {PODMAN_HOST: address}}
    return {"extra_hosts": {HOST: address}}


def options(
    launch: Launch,
    image: Image,
    *,
    network: str = NETWORK,
    host_address: str = HOST_GATEWAY,
    podman: tuple[int, ...] | None = None,
    volumes: Sequence[tuple[VolumeMount, VolumeSource]] = (),
) -> Options:
    """What the worker's container is created with.

    Args:
        launch: what to start.
        image: what it is started from.
        network: the network's name or id.
        host_address: of the engine's host, as containers of this network reach it.
        podman: Podman's version, if the engine is Podman.
        volumes: the template's volumes, with their sources on this host.

    Raises:
        EngineError: the engine cannot give the container its devices.
    """
    limits = launch.template.limits
    gpus = [device.id for device in launch.devices if not device.simulated]
    # Images of CUDA ask for all GPUs by this variable, and a host whose default runtime is NVIDIA's obeys.
    visible = ",".join(gpus) or "void"
    container: dict[str, Any] = {
        "image": image.id,
        "name": name_of(launch.worker_id),
        "hostname": launch.worker_id,
        "environment": {**launch.env, **_input(launch), "NVIDIA_VISIBLE_DEVICES": visible},
        "labels": labels_of(launch, image),
        "stop_timeout": int(STOP_GRACE_S),
        # Proxies of this user's Docker settings would also be used for the worker's requests to OwnPod.
        "use_config_proxy": False,
    }
    if launch.template.entrypoint:
        container["entrypoint"] = list(launch.template.entrypoint)
    if command := command_of(launch.template, image):
        container["command"] = command
    host: dict[str, Any] = {
        "network_mode": network,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "auto_remove": False,
        "restart_policy": {"Name": "no"},
        "log_config": {
            "type": "json-file",
            "config": {
                "max-size": LOG_BYTES if launch.input is None else TASK_LOG_BYTES,
                "max-file": LOG_FILES,
            },
        },
        "shm_size": limits.shm_bytes or DEFAULT_SHM_BYTES,
        "pids_limit": limits.pids or DEFAULT_PIDS,
    }
    host |= _host_names(host_address, podman=podman is not None)
    if podman is not None and launch.template.protocol is Protocol.HTTP:
        # RunPod's default of PORT is 80. Docker sets this by itself; with Podman a worker without capabilities could not listen there.
        host["sysctls"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    if limits.memory_bytes is not None:
        host["mem_limit"] = limits.memory_bytes
        # Without this value a container may use as much swap as memory.
        host["memswap_limit"] = limits.memory_bytes
    if limits.cpus is not None:
        host["nano_cpus"] = round(limits.cpus * 10**9)
    if gpus:
        host["device_requests"] = [_request(gpus, podman)]
    if volumes:
        host["mounts"] = [_mount(mount, source) for mount, source in volumes]
    if podman is not None and (gpus or volumes):
        # With SELinux the container could not open the devices, nor the directories of the host.
        host["security_opt"].append("label=disable")
    return Options(container, host)


def _input(launch: Launch) -> dict[str, str]:
    return {} if launch.input is None else {INPUT_VARIABLE: INPUT_FILE}


def input_archive(text: str) -> bytes:
    """The file with a task's input as a tar archive, to be unpacked at the root of its container."""
    data, archive = text.encode(errors="replace"), io.BytesIO()
    path = PurePosixPath(INPUT_FILE)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo(path.parent.name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(folder)
        file = tarfile.TarInfo(str(path).lstrip("/"))
        file.size, file.mode = len(data), 0o444
        tar.addfile(file, io.BytesIO(data))
    return archive.getvalue()


def command_of(template: Template, image: Image) -> list[str]:
    """The command; empty: the image's own. A worker that is pushed to gets the SDK's arguments after its command."""
    command: Sequence[str] = template.command
    if template.protocol is not Protocol.PUSH:
        return list(command)
    # An engine drops the image's command where the entrypoint is replaced.
    if not command and not template.entrypoint:
        command = image.command
    if len(command) == 3 and command[0] in ("/bin/sh", "/bin/bash", "sh", "bash") and command[1] == "-c":  # fmt: skip
        # Further arguments would be the shell's and not the program's.
        return [*command[:2], f"{command[2]} {' '.join(SERVE)}"]
    return [*command, *SERVE]


def model_mounts(launch: Launch) -> list[tuple[VolumeMount, VolumeSource]]:
    """The mounts of a launch's model, as volumes."""
    return [
        (VolumeMount("model", path, read_only=True), VolumeSource("model", DIRECTORY, place))
        for path, place in launch.mounts.items()
    ]


def model_problem(launch: Launch, error: str) -> str:
    """What is to be done when the engine's host does not have a launch's model; "": the error is another one.

    Args:
        launch: what was to be created.
        error: the engine's, see :func:`ownpod.agent.docker_api.words`.
    """
    place = next((p for p in launch.mounts.values() if f"directory {p} of a mount" in error), "")
    return place and (
        f"the Docker engine's host does not have the model's directory {place}: give it OWNPOD_MODELS_DIR of the agent at the "
        "same path, or set OWNPOD_MODELS_HOST_DIR to the path there"
    )


def _mount(mount: VolumeMount, source: VolumeSource) -> dict[str, Any]:
    """A mount as the engine's API has it. Unlike with a ``bind``, the engine makes no directory that does not exist."""
    return {
        "Type": "bind" if source.kind == DIRECTORY else "volume",
        "Source": source.source,
        "Target": mount.path,
        "ReadOnly": mount.read_only,
    }


def _request(gpus: Sequence[str], podman: tuple[int, ...] | None) -> dict[str, Any]:
    """A request for GPUs by UUID, because their order differs between NVML and CUDA."""
    if podman is None:
        return {"device_ids": list(gpus), "capabilities": [["gpu"]]}
    if podman < PODMAN_CDI:
        raise EngineError(podman_without_gpus(podman))
    return {"driver": "cdi", "device_ids": [f"nvidia.com/gpu={gpu}" for gpu in gpus]}
