"""The networks of workers that are containers: one that leads out of the host, and an internal one, from which nothing does."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from ownpod.agent.container_options import HOST_GATEWAY, INTERNAL_NETWORK, NETWORK, OURS
from ownpod.agent.docker_api import Conflict, DockerApi
from ownpod.agent.engine import EngineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """A network. ``host``: the address of the engine's host, as its containers reach it."""

    id: str
    host: str = HOST_GATEWAY


class Networks:
    """Finds or creates the networks of an engine's workers.

    Args:
        api: of the engine.
    """

    def __init__(self, api: DockerApi) -> None:
        self._api = api
        self._lock = threading.Lock()

    def get(self, *, egress: bool) -> Network:
        """A network, which is created if there is none.

        Args:
            egress: whether it leads out of the host.

        Raises:
            EngineError: a network of this name is another program's, and does not keep workers from going out.
        """
        name = NETWORK if egress else INTERNAL_NETWORK
        with self._lock:
            if not (found := self._named(name)):
                try:
                    self._api.call(lambda client: _create(client, name, internal=not egress))
                except Conflict:
                    logger.debug("another agent has created the network %s", name)
                found = self._named(name)
            if not found:
                raise EngineError(f"another program removes the network {name}")
            # Engines before Docker 25 allow several networks of one name, so two agents of a host may both create one;
            # and no container starts while there are two. All agents keep the oldest one.
            for other in found[1:]:
                if (other["Labels"] or {}).get(OURS) == "1":
                    self._remove(other["Id"])
        if egress:
            return Network(str(found[0]["Id"]))
        if not found[0].get("Internal"):
            raise EngineError(
                f"the network {name} is not internal, so `egress: false` would have no effect: remove it"
            )
        return Network(str(found[0]["Id"]), _gateway(found[0], name))

    def _named(self, name: str) -> Sequence[Mapping[str, Any]]:
        """The networks with a name, the oldest first."""
        listed = self._api.call(lambda client: client.networks(names=[name]))
        exact = [network for network in listed if network["Name"] == name]
        return sorted(exact, key=lambda network: (network["Created"], network["Id"]))

    def _remove(self, network_id: str) -> None:
        try:
            self._api.call(lambda client: client.remove_network(network_id))
        except EngineError as error:
            logger.debug("network %s was not removed: %s", network_id[:12], error)


def _create(client: Any, name: str, *, internal: bool) -> None:
    client.create_network(
        name,
        driver="bridge",
        options={"com.docker.network.bridge.enable_icc": "false"},
        labels={OURS: "1"},
        internal=internal,
    )


def _gateway(network: Mapping[str, Any], name: str) -> str:
    """The host's own address on an internal network, which is the only one of the host that its containers reach."""
    for pool in (network.get("IPAM") or {}).get("Config") or ():
        if gateway := pool.get("Gateway"):
            return str(gateway).partition("/")[0]
        if subnet := pool.get("Subnet"):
            # An engine names no gateway that it has chosen itself: it is the first address.
            return str(next(ip_network(subnet).hosts()))
    raise EngineError(f"the network {name} has no addresses")
