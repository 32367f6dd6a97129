"""The part of ``ownpod doctor`` about managed workers: this host's devices, its engine, and the allowed images."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ownpod.agent.devices import Devices
from ownpod.agent.docker_api import PODMAN_CDI, PODMAN_OOM, DockerApi, podman_without_gpus
from ownpod.agent.engine import WITHOUT_PORT
from ownpod.configuration import allowed_images, device_difficulties
from ownpod.errors import OwnPodError
from ownpod.rules import images
from ownpod.rules.devices import gigabytes
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import Device
from ownpod.rules.placement import matches, pools_of
from ownpod.rules.templates import ManagedSpec
from ownpod.settings import Settings
from ownpod.tools.findings import Finding

LINKS = Path("/dev/char")
"""Where links to a GPU's device files keep systemd from taking the GPU away from containers."""


def docker_info() -> Mapping[str, Any]:
    """What the Docker engine reports about itself, with its version as ``Podman`` if it is Podman. Raises: EngineError, ExtraMissing."""
    with contextlib.closing(DockerApi()) as api:
        info: Mapping[str, Any] = api.call(lambda client: client.info())
        return {**info, "Podman": api.podman()}


def examine(
    config: Settings,
    endpoints: Mapping[str, Endpoint],
    *,
    docker: Callable[[], Mapping[str, Any]] = docker_info,
    nvml: Any = None,
    links: Path = LINKS,
) -> Iterator[Finding]:
    """Yields what concerns managed workers: the devices, and where an endpoint has a template, engine and images.

    Args:
        config: the settings.
        endpoints: of the configuration file.
        docker: see :func:`docker_info`.
        nvml: the module ``pynvml``, or what replaces it in tests.
        links: see :data:`LINKS`.
    """
    managed = {name: endpoint.managed for name, endpoint in endpoints.items() if endpoint.managed}
    needs_gpu = sorted(name for name, spec in managed.items() if spec.gpu is not None)
    difficulties = device_difficulties(config, endpoints.values())
    devices = Devices(
        config.devices,
        config.labels,
        pools_of=pools_of,
        nvml=nvml,
        difficulties=lambda: difficulties,
    )
    found = devices.refresh()
    yield from _devices(config, found, devices.problem, needs_gpu)
    yield from _difficulties(found, endpoints.values())
    # The engine may be far away, and is of no interest where nothing is started.
    if not managed and config.engine == "auto":
        return
    info = None
    if config.engine == "process":
        yield Finding("ok", "engine", "process, as OWNPOD_ENGINE has it")
    else:
        try:
            info = docker()
        except OwnPodError as error:
            yield _without_docker(config, str(error))
        else:
            podman, gpus = info.get("Podman"), any(not device.simulated for device in found)
            kind = "Podman" if podman else "Docker"
            version = info.get("ServerVersion", "of unknown version")
            yield Finding("ok", "engine", f"docker: {kind} {version} answers")
            if podman:
                yield from _podman(podman, info, managed, gpus=gpus)
            elif gpus:
                yield from _cgroups(info, links)
    lacking = [
        name
        for name, spec in managed.items()
        if not (spec.template.entrypoint or spec.template.command)
    ]
    if info is not None:
        patterns = allowed_images(config.images, endpoints.values())
        by_endpoint = {name: spec.template.image for name, spec in managed.items()}
        yield from _images(config, by_endpoint, patterns)
    elif lacking:
        listed = ", ".join(sorted(lacking))
        problem = f"{listed}: the engine process needs template.command, because it starts no image"
        yield Finding("bad", "templates", problem)


def _devices(
    config: Settings, found: tuple[Device, ...], problem: str, needs_gpu: list[str]
) -> Iterator[Finding]:
    for device in found:
        yield Finding("note" if device.problem else "ok", "devices", _device(device))
    if problem:
        asked = bool(needs_gpu or config.devices.gpus)
        yield Finding("bad" if asked else "note", "devices", problem)
    elif not found:
        why = "no GPU, because NVML's library is not found"
        if config.devices.stand_ins is not None:
            why = "none, as OWNPOD_DEVICES has it"
        if needs_gpu:
            why += (
                f"; the workers of {', '.join(needs_gpu)} wait for a device of another host. "
                "OWNPOD_DEVICES=cpu:N offers stand-ins"
            )
        yield Finding("note" if needs_gpu else "ok", "devices", why)


def _difficulties(found: Sequence[Device], endpoints: Iterable[Endpoint]) -> Iterator[Finding]:
    """Difficulties that tasks may name, and of which this host has no device."""
    presets = [endpoint.preset for endpoint in endpoints if endpoint.preset is not None]
    for name in presets[0].difficulties if presets and found else ():
        pools = presets[0].pools(name)
        if not any(matches(device, pool) for device in found for pool in pools):
            problem = (
                f"no device of this host is of difficulty {name}: its tasks wait for another host"
            )
            yield Finding("note", "presets", problem)


def _device(device: Device) -> str:
    memory = f", {gigabytes(device.memory_mb)} GB" if device.memory_mb else ""
    kind = ", a stand-in for a GPU" if device.simulated else ""
    pools = f", pools {' '.join(device.pools)}" if device.pools else ""
    problem = f": {device.problem}" if device.problem else ""
    return f"{device.index} {device.name} {device.id}{memory}{kind}{pools}{problem}"


def _without_docker(config: Settings, reason: str) -> Finding:
    if config.engine == "docker":
        return Finding("bad", "engine", f"docker, as OWNPOD_ENGINE has it: {reason}")
    return Finding("ok", "engine", f"process, because Docker cannot be used: {reason}")


def _podman(
    version: tuple[int, ...],
    info: Mapping[str, Any],
    managed: Mapping[str, ManagedSpec],
    *,
    gpus: bool,
) -> Iterator[Finding]:
    """What Podman does not do for workers."""
    if gpus and version < PODMAN_CDI:
        needed = any(spec.gpu is not None for spec in managed.values())
        yield Finding("bad" if needed else "note", "engine", podman_without_gpus(version))
    if info.get("Rootless"):
        if info.get("CgroupVersion") == "1":
            yield Finding(
                "note",
                "engine",
                "Podman without root ignores the limits of workers, because this host has cgroup v1",
            )
        served = [
            name for name, spec in managed.items() if spec.template.protocol not in WITHOUT_PORT
        ]
        if served:
            listed = ", ".join(sorted(served))
            yield Finding(
                "bad",
                "engine",
                f"{listed}: this host cannot reach workers of Podman without root, so only protocol: pull works",
            )
    if version < PODMAN_OOM:
        yield Finding(
            "note",
            "engine",
            "it does not report exhausted memory before version 5.0: such a worker counts as killed by SIGKILL",
        )
    yield Finding(
        "note", "engine", "Podman's bridge does not keep workers from reaching each other"
    )


def _cgroups(info: Mapping[str, Any], links: Path) -> Iterator[Finding]:
    cdi = any("nvidia.com/gpu" in str(device) for device in info.get("DiscoveredDevices") or ())
    if info.get("CgroupDriver") == "systemd" and not cdi and not _are_linked(links):
        yield Finding(
            "note",
            "engine",
            "its cgroup driver is systemd: running containers lose their GPUs at `systemctl daemon-reload`. "
            "Use CDI (`nvidia-ctk cdi generate`), or the cgroup driver cgroupfs",
        )


def _are_linked(links: Path) -> bool:
    try:
        return any(
            "nvidia" in str(link.readlink()) for link in links.iterdir() if link.is_symlink()
        )
    except OSError:
        return False


def _images(
    config: Settings, by_endpoint: Mapping[str, str | None], allowed: Sequence[str]
) -> Iterator[Finding]:
    patterns = ", ".join(config.images)
    if images.ALL_IMAGES in config.images:
        why = "OWNPOD_IMAGES allows all images, and is the only protection against a hostile one"
        yield Finding("note", "images", why)
    else:
        yield Finding("ok", "images", f"OWNPOD_IMAGES allows {patterns}")
    for name, image in by_endpoint.items():
        if image is None:
            yield Finding("bad", "images", f"{name}: the engine docker needs template.image")
            continue
        try:
            reference = images.normalise(image)
        except ValueError as error:
            yield Finding("bad", "images", f"{name}: {error}")
            continue
        if not images.allowed(reference, allowed):
            yield Finding("bad", "images", f"{name}: {reference} is not in OWNPOD_IMAGES")
