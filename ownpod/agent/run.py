"""The agent as a process: it chooses the engine, finds this installation's id, and ends at a signal."""

import contextlib
import logging
import os
import re
import signal
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ownpod import log
from ownpod.agent.agent import Agent
from ownpod.agent.configured import Configured
from ownpod.agent.devices import Devices
from ownpod.agent.engine import Engine, EngineError
from ownpod.agent.model_orders import FetchSettings, Options
from ownpod.agent.models import HostModels
from ownpod.agent.network_volumes import NetworkVolumeDirectories
from ownpod.agent.outside import Outside, own_ids
from ownpod.agent.processes import ProcessEngine
from ownpod.agent.registry_logins import Logins, StoredLogins, no_logins
from ownpod.agent.steps import Host
from ownpod.agent.volumes import Volumes, in_container
from ownpod.errors import ExtraMissing, StartError
from ownpod.processes import return_memory
from ownpod.rules.images import ALL_IMAGES
from ownpod.rules.placement import pools_of
from ownpod.settings import Settings
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.catalog import Catalog
from ownpod.store.client import connect, schema_version
from ownpod.store.managed import Managed
from ownpod.store.models import Models
from ownpod.store.network_volumes import NetworkVolumes
from ownpod.store.outputs import Outputs
from ownpod.store.schema import Guard
from ownpod.store.secrets import Secrets

logger = logging.getLogger(__name__)

INSTANCE_FILE = "instance"
"""A file in the agent's directory: the id of the installation, so that it outlives a Redis that lost its data."""


INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Pattern of that id, which names a directory."""


def run(config: Settings, *, api_url: str, end_workers: bool) -> None:
    """Runs the agent until SIGTERM or SIGINT.

    Args:
        config: the settings.
        api_url: the API's base URL as the workers reach it.
        end_workers: whether the end of the agent ends its workers.

    Raises:
        StartError: the engine cannot start workers here.
        ConfigurationError: a file with presets cannot be used.
        RedisUnavailable: Redis does not answer at the start.
    """
    log.configure(config.log_level, "agent", config.log_format)
    configured = Configured(config)

    def reload(_signum: int, _frame: FrameType | None) -> None:
        configured.reload()

    # Early, because a SIGHUP ends a process that has no handler, and `ownpod up` sends one at any time.
    signal.signal(signal.SIGHUP, reload)
    client = connect(config.broker_url(), client_name="ownpod-agent")
    Guard(lambda: schema_version(client)).wait()
    managed = Managed(client)
    directory = config.data_dir.resolve() / "agent"
    network = NetworkVolumeDirectories(
        (config.volumes_dir or config.data_dir / "volumes").resolve(),
        config.agent_host,
        NetworkVolumes(client),
    )
    volumes = Volumes(config.volumes, network=network)
    secrets = Secrets(client, config.secrets_key_path())
    logins = StoredLogins(Catalog(client), secrets)
    instance = _instance(managed, directory)
    engine = make_engine(config, directory, instance, volumes, logins, images=configured.images)
    devices = Devices(
        config.devices,
        config.labels,
        pools_of=pools_of,
        own_pids=engine.pids,
        difficulties=configured.difficulties,
    )
    limited = engine.name == "docker" and ALL_IMAGES not in config.images
    host = Host(
        config.agent_host,
        api_url,
        config.labels,
        images=configured.images if limited else None,
    )
    agent = Agent(
        host,
        engine,
        devices,
        managed=managed,
        agents=Agents(client),
        outputs=Outputs(client),
        wakeups=Wakeups(client),
        environ=dict(os.environ),
        secrets=secrets,
        volumes=volumes,
        models=_models(config, engine, Models(client)),
    )

    def stop(_signum: int, _frame: FrameType | None) -> None:
        agent.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    found = ", ".join(device.id for device in devices.read()) or "none"
    logger.info("agent of host %s ready: engine %s, devices %s", host.name, engine.name, found)
    return_memory()
    agent.run()
    if end_workers:
        agent.end_workers(config.shutdown_grace_s)
    agent.leave()


def _models(config: Settings, engine: Engine, stored: Models) -> HostModels:
    directory = (config.models_dir or config.data_dir / "models").resolve()
    return HostModels(
        directory,
        config.agent_host,
        stored,
        container=engine.name != "process",
        fetching=FetchSettings(
            config.models_quota,
            config.fetch_models,
            Options(
                service_url=config.file_service_url or "",
                service_key=config.file_service_key or "",
                service_bucket=config.file_service_bucket,
            ),
        ),
        environ=dict(os.environ),
        outside=_outside(config, engine, str(directory)),
    )


def _outside(config: Settings, engine: Engine, directory: str) -> Outside:
    """Where the engine's host has the directory of models."""
    mounts = _own_mounts() if engine.name == "docker" and in_container() else None
    found = Outside(directory, config.models_host_dir, mounts)
    try:
        found.of(directory)
    except ValueError as error:
        logger.warning("workers cannot have models: OWNPOD_MODELS_DIR: %s", error)
    return found


def _own_mounts() -> tuple[Mapping[str, Any], ...] | None:
    """The mounts of this agent's container; None: the engine does not know it."""
    from ownpod.agent.docker_api import DockerApi, NotThere

    with contextlib.closing(DockerApi()) as api:
        for name in own_ids(Path("/proc/self/mountinfo").read_text(), socket.gethostname()):
            try:
                own = api.call(lambda client, name=name: client.inspect_container(name))  # type: ignore[misc]
            except NotThere:
                continue
            except EngineError as error:
                logger.warning("the mounts of this agent's container are not known: %s", error)
                return None
            return tuple(own.get("Mounts") or ())
    logger.info(
        "the Docker engine does not know this agent's container, so its host must have OWNPOD_MODELS_DIR at the same path, "
        "or OWNPOD_MODELS_HOST_DIR must name its path there"
    )
    return None


def make_engine(
    config: Settings,
    directory: Path,
    instance: str,
    volumes: Volumes | None = None,
    logins: Logins = no_logins,
    *,
    images: Iterable[str] | None = None,
) -> Engine:
    """The engine of the settings. ``auto`` is Docker where its engine answers, otherwise processes.

    ``images``: patterns of the images that it may start, read at each start; None: those of the settings.

    Raises:
        StartError: it cannot start workers here.
    """
    if config.engine == "process":
        return _checked(ProcessEngine(directory, instance, volumes))
    # Imported late, because a host whose engine is `process` needs no HTTP client, which takes megabytes.
    from ownpod.agent.containers import ContainerEngine

    def containers() -> ContainerEngine:
        allow = config.images if images is None else images
        return ContainerEngine(instance, allow=allow, volumes=volumes, logins=logins)

    if config.engine == "docker":
        return _checked(containers())
    try:
        docker = containers()
        docker.check()
    except (EngineError, ExtraMissing) as error:
        logger.info("workers are processes, because there is no Docker engine: %s", error)
        return _checked(ProcessEngine(directory, instance, volumes))
    return docker


def _checked(engine: Engine) -> Engine:
    try:
        engine.check()
    except EngineError as error:
        raise StartError(f"OWNPOD_ENGINE={engine.name}: {error}") from None
    return engine


def _instance(managed: Managed, directory: Path) -> str:
    """The id of this installation: Redis's, or the one that this host remembers if Redis has none. Raises: StartError."""
    file = directory / INSTANCE_FILE
    try:
        text = file.read_text().strip() if file.exists() else ""
        # A file that was being written when the host lost its power may be empty.
        remembered = text if INSTANCE.fullmatch(text) else None
        instance = managed.instance(remembered).id
        if not INSTANCE.fullmatch(instance):
            raise StartError(f"{keys.INSTANCE} in Redis is {instance[:80]!r}, which is no id")
        if instance != remembered:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = directory / f"{INSTANCE_FILE}.new"
            new.write_text(f"{instance}\n")
            new.replace(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise StartError(f"OWNPOD_DATA_DIR: {file} cannot be used: {reason}") from None
    return instance
