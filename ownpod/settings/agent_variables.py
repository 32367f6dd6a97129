"""The environment variables of the agent, see :mod:`ownpod.settings.variables`."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ownpod.rules.devices import DeviceChoice
from ownpod.rules.volumes import VolumeSource
from ownpod.settings import kinds
from ownpod.settings.declare import Alias, variable


@dataclass(frozen=True, kw_only=True)
class Agent:
    """The agent of this host, which starts managed workers."""

    agent_name: str | None = variable(
        "OWNPOD_AGENT_NAME",
        check=kinds.check_host,
        unset="unset: the host's name",
        purpose="name of this host among the agents. It must stay the same after a restart, because the agent finds its "
        "workers again by it",
    )
    engine: str = variable(
        "OWNPOD_ENGINE",
        "auto",
        choices=("auto", "docker", "process"),
        purpose="what runs the managed workers of this host: `docker`, containers; `process`, processes of this user. "
        "`auto`: Docker where its engine answers, otherwise processes",
    )
    devices: DeviceChoice = variable(
        "OWNPOD_DEVICES",
        "auto",
        kind=kinds.Devices,
        alias=Alias(name="GPU_DEVICE_IDS", kind=kinds.DeviceIds),
        purpose="devices that this host offers to managed workers: `auto`, all its NVIDIA GPUs; comma-separated indexes or "
        "UUIDs of GPUs; or `cpu:N`, N stand-ins for GPUs, for tests on a host without one",
    )
    labels: Mapping[str, str] = variable(
        "OWNPOD_LABELS",
        kind=kinds.Labels,
        purpose="comma-separated labels of this host, like `zone=a,pool=low`. `pool` adds all its devices to pools "
        "(`pool=low+fast`), `pool.<index or UUID>` one device. `slots` and `slots.<index or UUID>` have the number of "
        "workers that may share a device, 1 by default",
    )
    workers_on_stop: str = variable(
        "OWNPOD_WORKERS_ON_STOP",
        "stop",
        choices=("stop", "keep"),
        purpose="whether the end of `ownpod up` stops the managed workers of this host, or keeps them for its next start. "
        "The end of `ownpod agent` always keeps them",
    )
    worker_api_url: str | None = variable(
        "OWNPOD_WORKER_API_URL",
        kind=kinds.BaseUrl,
        unset="unset: `http://127.0.0.1:<port>` of `ownpod up`",
        purpose="base URL at which managed workers reach the API, like `http://10.0.0.5:8000`",
    )

    volumes: tuple[VolumeSource, ...] = variable(
        "OWNPOD_VOLUMES",
        kind=kinds.Volumes,
        unset="unset: none",
        purpose="comma-separated volumes of this host for managed workers, each a directory or a volume of the Docker engine, "
        "like `models=/srv/models,cache=docker:cache`",
    )

    volumes_dir: Path | None = variable(
        "OWNPOD_VOLUMES_DIR",
        unset="unset: `volumes` in `OWNPOD_DATA_DIR`",
        purpose="directory of this host with the network volumes of the management APIs, one directory each",
    )

    @property
    def agent_host(self) -> str:
        """The name of this host among the agents."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:253]
        return self.agent_name or name.strip("._-") or "localhost"
