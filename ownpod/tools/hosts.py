"""What the commands of hosts and devices share: the Redis of this host's settings, and its hosts."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import click

from ownpod import settings
from ownpod.errors import BadRequest
from ownpod.rules import devices
from ownpod.rules.managed import AgentInfo, Device, Hold, ManagedWorker
from ownpod.store.client import connect


class Hosts(Protocol):
    """What the commands use of :mod:`ownpod.store`'s agents."""

    def agents(self) -> list[AgentInfo]: ...
    def remove_agent(self, host: str) -> bool: ...
    def drain_host(self, host: str) -> None: ...
    def resume_host(self, host: str) -> None: ...
    def all_holds(self) -> dict[str, list[Hold]]: ...
    def reserve(self, host: str, device: str, reason: str, for_s: float | None) -> None: ...
    def release(self, host: str, device: str) -> bool: ...


class Workers(Protocol):
    """What the commands use of :mod:`ownpod.store`'s managed workers."""

    def list(self) -> Sequence[ManagedWorker]: ...
    def drain(self, worker_id: str, reason: str) -> bool: ...


@contextlib.contextmanager
def opened() -> Iterator[tuple[Hosts, Workers]]:
    """Hosts and managed workers, in the Redis that the settings name. Raises: ConfigurationError."""
    with connect(settings.current().broker_url(), client_name="ownpod-cli") as client:
        hosts = importlib.import_module("ownpod.store.agents").Agents(client)
        yield hosts, importlib.import_module("ownpod.store.managed").Managed(client)


def known(hosts: Hosts, host: str) -> AgentInfo:
    """The host with this name. Raises: BadRequest."""
    agents = {agent.host: agent for agent in hosts.agents()}
    if host not in agents:
        raise BadRequest(f"host {host!r} not found; known hosts: {', '.join(agents) or 'none'}")
    return agents[host]


def device(hosts: Hosts, name: str) -> tuple[str, Device]:
    """The host and the device that a name means. Raises: BadRequest."""
    try:
        return devices.find(name, hosts.agents())
    except ValueError as error:
        raise BadRequest(str(error)) from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
