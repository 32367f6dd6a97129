"""What the commands of hosts and devices share: the Redis of this host's settings, and its hosts."""

import contextlib
from collections.abc import Iterator

import click
import redis

from ownpod import settings
from ownpod.errors import BadRequest
from ownpod.rules import devices
from ownpod.rules.managed import AgentInfo, Device
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed


@contextlib.contextmanager
def connected() -> Iterator[redis.Redis]:
    """The Redis that the settings name. Raises: ConfigurationError."""
    with connect(settings.current().broker_url(), client_name="ownpod-cli") as client:
        yield client


@contextlib.contextmanager
def opened() -> Iterator[tuple[Agents, Managed]]:
    """Hosts and managed workers, in the Redis that the settings name. Raises: ConfigurationError."""
    with connected() as client:
        yield Agents(client), Managed(client)


def known(hosts: Agents, host: str) -> AgentInfo:
    """The host with this name. Raises: BadRequest."""
    agents = {agent.host: agent for agent in hosts.agents()}
    if host not in agents:
        raise BadRequest(f"host {host!r} not found; known hosts: {', '.join(agents) or 'none'}")
    return agents[host]


def device(hosts: Agents, name: str) -> tuple[str, Device]:
    """The host and the device that a name means. Raises: BadRequest."""
    try:
        return devices.find(name, hosts.agents())
    except ValueError as error:
        raise BadRequest(str(error)) from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
