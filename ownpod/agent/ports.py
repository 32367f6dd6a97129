"""The loopback ports on which a worker of the engine ``process`` serves, and the variables and arguments with them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ownpod.agent.engine import WITHOUT_PORT, Launch
from ownpod.processes import free_port
from ownpod.rules.launching import PORT, PORT_HEALTH
from ownpod.rules.templates import Protocol

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """A worker's ports; None: it has none.

    Attributes:
        health: of the health check of a load-balanced endpoint's worker, if that is another one.
        arguments: what its command gets in addition.
        env: variables that it gets instead of those of its endpoint.
    """

    serves: int | None = None
    health: int | None = None
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def ports_for(launch: Launch, used: Collection[int | None]) -> Ports:
    """Free ports for a worker that serves. ``used``: those of other workers, which may not listen on them yet."""
    if launch.template.protocol in WITHOUT_PORT:
        return Ports()
    port = _free(used)
    if launch.template.protocol is Protocol.PUSH:
        arguments = ("--rp_serve_api", "--rp_api_host", HOST, "--rp_api_port", str(port))
        return Ports(port, arguments=arguments)
    balancing, health = launch.balancing, None
    if balancing is not None and balancing.health_port not in {None, balancing.port}:
        health = _free({*used, port})
    # Instead of the ports of the endpoint, because all workers of a host share its ports.
    return Ports(port, health, env={PORT: str(port), PORT_HEALTH: str(health or port)})


def _free(used: Collection[int | None]) -> int:
    while (port := free_port()) in used:
        pass
    return port
