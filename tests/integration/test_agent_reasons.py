"""Why an agent leaves a wanted worker to others: the reason is in the worker's record, for `/health` and `/status`."""

from contextlib import closing

import pytest
from helpers import load_settings

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.engine import EngineError, Started
from ownpod.agent.steps import Host
from ownpod.housekeeping.scaler import Scaler
from ownpod.registry import Registry
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import Phase
from ownpod.rules.placement import ABOUT_TO_START, pools_of
from ownpod.rules.templates import GpuNeed, ManagedSpec, Scaling, Template
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

W = "aaaaaaaaaaaaaa"
SECRET = "{{ RUNPOD_SECRET_hub }}"
SPEC = ManagedSpec(
    Template(command=("python", "w.py"), env={"TOKEN": SECRET}), Scaling(workers_min=1), GpuNeed()
)
ENDPOINT = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=SPEC)
NO_SECRET = (
    "host h cannot start it: secret 'hub' is not there: use `ownpod secrets set hub`, "
    "or set OWNPOD_SECRET_hub where the agent runs"
)


class NoEngine:
    """An engine that starts nothing, and says which templates it cannot start."""

    name, instance = "none", "i"

    def __init__(self, problem=""):
        self._problem, self.started = problem, []

    def check_template(self, _template):
        if self._problem:
            raise EngineError(self._problem)

    def api_url(self, url):
        return url

    def prepare(self, _template, _progress):
        pass

    def start(self, launch):
        self.started.append(launch)
        return Started()

    def list(self):
        return {}


@pytest.fixture
def managed(client):
    found = Managed(client)
    assert found.want(W, "ep", spec=SPEC)
    return found


@pytest.fixture
def agent(client, managed):
    def make(host="h", engine=None, **environ):
        return Agent(
            Host(host, "http://127.0.0.1:8000", {}),
            engine or NoEngine(),
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=managed,
            agents=Agents(client),
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ=environ,
        )

    return make


def test_a_host_without_a_secret_leaves_the_worker_to_one_that_has_it(managed, agent):
    agent("h").turn()
    found = managed.get(W)
    assert (found.phase, found.reason) == (Phase.WANTED, NO_SECRET)
    assert managed.failures("ep").count == 0
    engine = NoEngine()
    other = agent("i", engine, OWNPOD_SECRET_hub="s3")
    other.turn()
    other.leave()
    assert [launch.env["TOKEN"] for launch in engine.started] == ["s3"]
    assert (managed.get(W).host, managed.get(W).reason) == ("i", "")


def test_the_reason_of_the_engine_is_in_the_workers_record(managed, agent):
    agent("h", NoEngine("the image is not allowed"), OWNPOD_SECRET_hub="s3").turn()
    assert managed.get(W).reason == "host h cannot start it: the image is not allowed"


def test_the_scaler_keeps_the_reason_of_an_agent(client, managed, agent):
    agent("h").turn()
    registry = Registry({"ep": ENDPOINT}, Fleet(client), load_settings())
    with closing(Wakeups(client)) as wakeups:
        scaler = Scaler(registry, managed, Agents(client), wakeups)
        for _ in range(3):
            scaler.once()
    assert managed.get(W).reason == NO_SECRET
    assert managed.get(W).reason != ABOUT_TO_START
