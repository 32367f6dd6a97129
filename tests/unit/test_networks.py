"""The two networks of workers that are containers."""

import pytest

from ownpod.agent.container_options import INTERNAL_NETWORK, NETWORK
from ownpod.agent.docker_api import Conflict
from ownpod.agent.engine import EngineError
from ownpod.agent.networks import Network, Networks


class Engine:
    """An engine that has networks, and the calls of docker-py that are made to it."""

    def __init__(self, *networks):
        self.all = list(networks)
        self.pool = {"Subnet": "172.30.0.0/16", "Gateway": "172.30.0.1"}
        self.creates = True

    def call(self, action):
        return action(self)

    def networks(self, names):
        return [network for network in self.all if names[0] in network["Name"]]

    def create_network(self, name, **options):
        if self.creates:
            self.all.append(network(name, "new", options["internal"], self.pool) | options)

    def remove_network(self, network_id):
        self.all = [network for network in self.all if network["Id"] != network_id]


def network(name, network_id="old", internal=False, pool=None, labels=None):
    return {
        "Name": name,
        "Id": network_id,
        "Created": network_id,
        "Internal": internal,
        "Labels": labels,
        "IPAM": {"Config": [pool or {"Subnet": "172.31.0.0/16"}]},
    }


def test_each_network_is_created_once_and_only_one_leads_out():
    engine = Engine()
    networks = Networks(engine)
    assert networks.get(egress=True) == Network("new", "host-gateway")
    assert networks.get(egress=False) == Network("new", "172.30.0.1")
    networks.get(egress=True)
    networks.get(egress=False)
    assert [(n["Name"], n["internal"]) for n in engine.all] == [
        (NETWORK, False),
        (INTERNAL_NETWORK, True),
    ]
    assert all(n["options"]["com.docker.network.bridge.enable_icc"] == "false" for n in engine.all)
    assert (networks.get(egress=True).id, {n["labels"]["ownpod"] for n in engine.all}) == (
        "new",
        {"1"},
    )


@pytest.mark.parametrize(
    ("pool", "address"),
    [
        ({"Subnet": "172.31.0.0/16"}, "172.31.0.1"),
        ({"Subnet": "172.31.0.0/16", "Gateway": "172.31.0.9"}, "172.31.0.9"),
        ({"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1/24"}, "10.0.0.1"),
    ],
)
def test_the_host_has_its_own_address_on_the_internal_network(pool, address):
    engine = Engine(network(INTERNAL_NETWORK, internal=True, pool=pool))
    assert Networks(engine).get(egress=False).host == address


def test_a_network_that_leads_out_is_not_used_as_the_internal_one():
    engine = Engine(network(INTERNAL_NETWORK))
    with pytest.raises(EngineError, match=r"is not internal, so `egress: false` would have no"):
        Networks(engine).get(egress=False)
    engine.all = [network(INTERNAL_NETWORK, internal=True)]
    engine.all[0]["IPAM"] = {"Config": None}
    with pytest.raises(EngineError, match="has no addresses"):
        Networks(engine).get(egress=False)


def test_of_two_networks_of_one_name_the_oldest_stays():
    ours = {"ownpod": "1"}
    engine = Engine(network(NETWORK, "2", labels=ours), network(NETWORK, "1", labels=ours))
    assert Networks(engine).get(egress=True).id == "1"
    assert [n["Id"] for n in engine.all] == ["1"]
    engine = Engine(network(NETWORK, "2"), network(NETWORK, "1"))
    assert Networks(engine).get(egress=True).id == "1"
    assert len(engine.all) == 2


def test_a_network_that_another_program_removes_is_an_error():
    engine = Engine()
    engine.creates = False
    with pytest.raises(EngineError, match="another program removes the network ownpod-workers"):
        Networks(engine).get(egress=True)

    def taken(*_, **__):
        engine.all.append(network(NETWORK))
        raise Conflict("there is one")

    engine.create_network = taken
    assert Networks(engine).get(egress=True).id == "old"
