"""An agent and its workers of load-balanced endpoints: where they serve, when they are stopped, and real FastAPI workers."""

import sys
import textwrap
import time
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import requests
from fake_engine import FakeEngine
from helpers import wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.engine import Started
from ownpod.agent.processes import ProcessEngine
from ownpod.agent.steps import Host
from ownpod.rules.balancing import Balancing
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import Phase
from ownpod.rules.placement import pools_of
from ownpod.rules.reconcile import FRONT_SILENT_S
from ownpod.rules.templates import ManagedSpec, Protocol, Template
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

pytestmark = pytest.mark.slow

W = "aaaaaaaaaaaaaa"
SPEC = ManagedSpec(
    Template(command=("w",), protocol=Protocol.HTTP, init_timeout_s=480),
    balancing=Balancing(8000, health_path="/ping"),
)


class Rig:
    """An agent that a test turns by hand."""

    def __init__(self, client, engine):
        self.managed, self.agents, self.fleet = Managed(client), Agents(client), Fleet(client)
        self.engine = engine
        self.now_s = time.monotonic()
        self.agent = Agent(
            Host("h", "http://127.0.0.1:8000", {}),
            engine,
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=self.managed,
            agents=self.agents,
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ={},
            clock=lambda: self.now_s,
        )

    def turn_until(self, condition, what="", seconds=20):
        def turned():
            self.agent.turn()
            return condition()

        return wait_until(turned, seconds, what)

    def settle(self):
        for _ in range(3):
            self.agent.turn()
            wait_until(lambda: not self.agent.steps.under_way)

    def started(self, spec=SPEC):
        assert self.managed.want(W, "ep", spec=spec)
        self.turn_until(lambda: self.phase is Phase.STARTING, "the start")
        return self.managed.get(W)

    @property
    def phase(self):
        return self.managed.get(W).phase

    def publish(self, state, reason="", *, open_=0, ttl_s=600):
        """As the front does."""
        status = WorkerStatus(state, reason, lingering=open_)
        self.fleet.publish_status(W, status, node="front@h", ttl_s=ttl_s)


@pytest.fixture
def rig(client):
    found = Rig(client, FakeEngine(Managed(client).instance().id))
    found.engine.addresses[W] = Started("http://10.0.0.2:8000", 8001)
    yield found
    found.agent.leave()


# With an engine that starts nothing.


def test_the_record_has_where_the_worker_serves_also_after_an_adoption(rig, client):
    worker = rig.started()
    assert (worker.url, worker.health_port) == ("http://10.0.0.2:8000", 8001)
    (launch,) = rig.engine.launched
    assert (launch.env["PORT"], launch.balancing.port) == ("8000", 8000)
    # The agent ended before it could record the start.
    client.hset(f"ownpod:managed:{W}", mapping={"phase": "preparing"})
    client.hdel(f"ownpod:managed:{W}", "url", "health_port")
    other = Rig(client, rig.engine)
    rig.agent.leave()
    other.turn_until(lambda: other.phase is Phase.STARTING)
    assert other.managed.get(W).url == "http://10.0.0.2:8000"
    assert other.managed.get(W).health_port == 8001
    assert len(rig.engine.launched) == 1


def test_why_the_health_check_is_not_well_is_in_the_record_and_in_the_failed_start(rig):
    rig.started()
    rig.publish(WorkerState.UNHEALTHY, "nothing listens on port 8000")
    rig.settle()
    assert rig.managed.get(W).reason == "nothing listens on port 8000"
    rig.engine.change(W, age_s=481.0)
    rig.turn_until(lambda: rig.phase is Phase.STOPPED)
    reason = "its health check did not answer 200 within 480 s of its start: nothing listens on port 8000"
    assert rig.managed.get(W).reason == rig.managed.failures("ep").reason == reason


def test_a_draining_worker_is_stopped_when_its_last_request_has_ended(rig):
    rig.started()
    rig.managed.ready(W)
    rig.publish(WorkerState.READY, open_=2)
    rig.managed.drain(W, "it was idle")
    rig.settle()
    assert rig.phase is Phase.DRAINING
    rig.publish(WorkerState.PAUSED, open_=1)
    rig.settle()
    assert rig.phase is Phase.DRAINING
    rig.publish(WorkerState.PAUSED)
    rig.turn_until(lambda: rig.phase is Phase.STOPPED)


def test_a_draining_worker_waits_for_a_front_that_is_away_but_not_for_ever(rig):
    rig.started()
    rig.managed.ready(W)
    rig.managed.drain(W, "it was idle")
    rig.settle()
    rig.now_s += FRONT_SILENT_S - 1
    rig.settle()
    assert rig.phase is Phase.DRAINING
    # The front is back, and its clients still have requests there.
    rig.publish(WorkerState.PAUSED, open_=1)
    rig.now_s += FRONT_SILENT_S
    rig.settle()
    assert rig.phase is Phase.DRAINING
    rig.fleet.remove_status(W)
    rig.settle()
    assert rig.phase is Phase.DRAINING
    rig.now_s += FRONT_SILENT_S
    rig.turn_until(lambda: rig.phase is Phase.STOPPED)


def test_a_worker_that_was_never_ready_is_stopped_at_once(rig):
    rig.started()
    rig.managed.drain(W, "no request waits")
    rig.turn_until(lambda: rig.phase is Phase.STOPPED)


# Real workers.

APP = """
    import os, pathlib
    from fastapi import FastAPI, Response

    app = FastAPI()

    @app.get(os.environ["HEALTH_CHECK_PATH"])
    def ping():
        return Response(status_code=200 if pathlib.Path("READY").exists() else 204)

    @app.get("/loaded")
    def loaded():
        pathlib.Path("READY").touch()
        return {"worker": os.environ["RUNPOD_POD_ID"], "health": os.environ["PORT_HEALTH"]}
"""


def serving(tmp_path, **balancing):
    (tmp_path / "serves.py").write_text(textwrap.dedent(APP))
    line = f'exec "{sys.executable}" -m uvicorn --app-dir "{tmp_path}" serves:app --port "$PORT"'
    template = Template(command=("sh", "-c", line), protocol=Protocol.HTTP, init_timeout_s=480)
    return ManagedSpec(template, balancing=Balancing(**balancing))


@pytest.fixture
def real(client, tmp_path):
    instance = Managed(client).instance().id
    found = Rig(client, ProcessEngine(tmp_path / "data", instance))
    yield found
    found.agent.leave()
    for worker_id in found.engine.list():
        found.engine.stop(worker_id, 0)
        found.engine.remove(worker_id)
    # It waits for the processes that another agent has ended.
    assert not found.engine.pids()


def ping(url, path="/ping"):
    try:
        return requests.get(f"{url}{path}", timeout=60).status_code
    except requests.ConnectionError:
        return None


def test_a_fastapi_worker_listens_on_a_port_of_its_own_and_is_adopted_there(real, client, tmp_path):
    worker = real.started(serving(tmp_path, port=80, health_path="/up"))
    assert urlsplit(worker.url).hostname == "127.0.0.1"
    assert (urlsplit(worker.url).port != 80, worker.health_port) == (True, None)
    wait_until(lambda: ping(worker.url, "/up") == 204, 30, "the worker that loads")
    found = requests.get(f"{worker.url}/loaded", timeout=60).json()
    assert found == {"worker": W, "health": str(urlsplit(worker.url).port)}
    assert ping(worker.url, "/up") == 200
    assert real.managed.ready(W)
    real.agent.leave()
    other = Rig(client, ProcessEngine(tmp_path / "data", real.engine.instance))
    other.settle()
    assert other.engine.address(W) == Started(worker.url)
    assert (other.phase, other.managed.get(W).url) == (Phase.READY, worker.url)
    assert ping(worker.url, "/up") == 200
    other.managed.drain(W, "it was idle")
    other.publish(WorkerState.PAUSED)
    other.turn_until(lambda: other.phase is Phase.STOPPED, "the end", 60)
    assert ping(worker.url) is None
    # By the same id, at another address.
    spec = serving(tmp_path, port=80, health_path="/up")
    assert other.managed.want_again(W, "ep", spec=spec)
    other.turn_until(lambda: other.phase is Phase.STARTING, "the second start")
    again = other.managed.get(W)
    wait_until(lambda: ping(again.url, "/up") == 204, 30, "the worker that loads again")
    other.agent.leave()
    other.engine.stop(W, 0)
    other.engine.remove(W)


def test_a_worker_whose_health_check_has_a_port_of_its_own_gets_two(real, tmp_path):
    spec = serving(tmp_path, port=80, health_port=81)
    line = spec.template.command[2].replace('"$PORT"', '"$PORT_HEALTH"')
    template = replace(spec.template, command=("sh", "-c", line))
    worker = real.started(replace(spec, template=template))
    assert worker.health_port not in {None, 81, urlsplit(worker.url).port}
    url = f"http://127.0.0.1:{worker.health_port}"
    wait_until(lambda: ping(url) == 204, 30, "the worker that loads")
    assert real.engine.address(W) == Started(worker.url, worker.health_port)
