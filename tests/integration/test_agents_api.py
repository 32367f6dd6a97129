"""GET /agents: the hosts with their devices, as programs and the page read them."""

import pytest

from ownpod.api.openapi.document import make_spec
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed

W = "aaaaaaaaaaaaaa"
GPU = Device("GPU-1", 0, "NVIDIA GeForce RTX 4090", 24_564, metrics={"utilization_percent": 37})


@pytest.fixture
def make_api(new_app):
    return lambda **environ: new_app("endpoints: {ep: {apiKeys: [mine]}}", **environ).test_client()


@pytest.fixture
def api(make_api):
    return make_api(OWNPOD_API_KEYS="all")


def agents(api, key="all"):
    answer = api.get("/agents", headers={"Authorization": key})
    assert answer.status_code == 200, answer.text
    return answer.json["agents"]


def test_without_hosts_the_list_is_empty(api):
    assert agents(api) == []


def test_a_host_is_shown_with_its_devices_and_what_holds_them(api, client):
    hosts, managed = Agents(client), Managed(client)
    hosts.heartbeat(AgentInfo("h", "docker", (GPU,), {"zone": "a"}, problem="GPU 3: lost"), "t")
    spec = ManagedSpec(Template(command=("c",), env={"TOKEN": "secret"}), gpu=GpuNeed())
    assert managed.want(W, "ep", spec=spec)
    assert managed.place(W, "h", "t", ["GPU-1"])
    (found,) = agents(api)
    device = found["devices"].pop()
    assert 0 <= found.pop("silentSeconds") < 60
    assert found == {
        "host": "h",
        "state": "ready",
        "engine": "docker",
        "devices": [],
        "volumes": [],
        "workers": 1,
        "labels": {"zone": "a"},
        "problem": "GPU 3: lost",
    }
    assert (device["id"], device["state"], device["workers"]) == ("GPU-1", "busy", [W])
    assert device["metrics"] == {"utilization_percent": 37}
    hosts.drain_host("h")
    assert agents(api)[0]["state"] == "draining"
    client.hset(keys.AGENTS_SEEN, "h", "1000 t")
    (found,) = agents(api)
    assert (found["state"], found["devices"][0]["state"]) == ("silent", "silent")


def test_a_key_of_one_endpoint_does_not_open_the_hosts(api):
    assert api.get("/agents", headers={"Authorization": "mine"}).status_code == 403
    assert api.get("/agents").status_code == 401


def test_the_answer_has_the_fields_of_its_document(api, client):
    Agents(client).heartbeat(AgentInfo("h", "docker", (GPU,)), "t")
    schemas = make_spec(["ep"], keys=True)["components"]["schemas"]
    (host,) = agents(api)
    assert set(host) == set(schemas["Agent"]["properties"])
    assert set(host["devices"][0]) == set(schemas["Device"]["properties"])
