"""One bad datum about managed workers in Redis stops what needs it, and nothing else: no agent, scaler or API."""

import contextlib
import json
import time

import pytest
from helpers import load_settings

from ownpod.agent.agent import Agent
from ownpod.agent.engine import Found, Started
from ownpod.agent.steps import Host
from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.errors import OwnPodError
from ownpod.housekeeping import scaler as scaler_module
from ownpod.housekeeping.scaler import Scaler
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo, Device, Phase
from ownpod.rules.templates import GpuNeed, ManagedSpec, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

A, B, C = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc"
SPEC = ManagedSpec(Template(command=("x",)), Scaling(workers_min=1), gpu=GpuNeed())
HUGE = 10**400


class Devices:
    problem = ""

    def read(self):
        return tuple(Device(f"cpu-{n}", n, "stand-in", simulated=True) for n in range(3))


class Engine:
    """Workers that start at once."""

    name, instance = "process", "i"

    def __init__(self):
        self.workers = {}
        self.stopped = []

    def check_template(self, template):
        pass

    def prepare(self, template, progress):
        pass

    def digest(self, template):
        return ""

    def start(self, launch):
        self.workers[launch.worker_id] = Found(launch.worker_id, running=True, age_s=0)
        return Started()

    def list(self):
        return dict(self.workers)

    def stop(self, worker_id, grace_s=0):
        self.stopped.append(worker_id)

    def remove(self, worker_id):
        self.workers.pop(worker_id, None)

    def log(self, worker_id):
        return ""

    def url(self, worker_id):
        return None

    def api_url(self, base_url):
        return base_url


@pytest.fixture
def managed(client):
    return Managed(client)


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def make_agent(client, managed, engine):
    made = []

    def call():
        made.append(
            Agent(
                Host("h", "http://h:1", {}),
                engine,
                Devices(),
                managed=managed,
                agents=Agents(client),
                outputs=Outputs(client),
                wakeups=Wakeups(client),
                environ={},
            )
        )
        return made[-1]

    yield call
    for agent in made:
        agent.leave()


@pytest.fixture
def make_scaler(client, managed):
    def call(spec=SPEC):
        endpoint = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=spec)
        registry = Registry({"ep": endpoint}, Fleet(client), load_settings())
        return Scaler(registry, managed, Agents(client), Wakeups(client))

    return call


def turn(agent):
    """A turn whose steps have ended."""
    agent.turn()
    agent.steps.wait()


def one_holds_an_unknown_device(client):
    client.hset(keys.DEVICES_HELD, "h/cpu-2#0", "../..")


def one_has_a_record_of_another_type(client):
    client.set(keys.managed(B), "no hash")


def one_has_a_number_that_is_none(client):
    client.hset(keys.managed(B), mapping={"phase": "ready", "created_ms": str(HUGE)})


@pytest.mark.parametrize(
    "break_it",
    [
        one_holds_an_unknown_device,
        one_has_a_record_of_another_type,
        one_has_a_number_that_is_none,
    ],
)
def test_an_agent_serves_the_others_beside_a_broken_one(
    client, managed, engine, make_agent, break_it, caplog
):
    engine.workers[B] = Found(B, running=True, age_s=1)
    managed.want(A, "ep", spec=SPEC)
    managed.want(B, "ep", spec=SPEC)
    break_it(client)
    turn(make_agent())
    assert managed.get(A).phase is Phase.STARTING
    assert not [record for record in caplog.records if record.exc_info]


def test_an_agent_stops_a_drained_worker_beside_one_whose_node_has_a_broken_state(
    client, managed, engine, make_agent
):
    for worker_id in (A, B):
        managed.want(worker_id, "ep", spec=SPEC)
    turn(make_agent())
    for worker_id in (A, B):
        managed.drain(worker_id, "idle")
    client.set(keys.worker(B), "no hash")
    client.set(keys.running("ep"), "no hash")
    turn(make_agent())
    assert sorted(engine.stopped) == [A, B]


def test_an_agent_that_stands_by_ends_no_worker_of_the_one_that_serves(
    client, managed, engine, make_agent
):
    Agents(client).heartbeat(AgentInfo("h", "process"), "another")
    engine.workers[A] = Found(A, running=True, age_s=1)
    agent = make_agent()
    agent.turn()
    agent.end_workers(1)
    assert engine.stopped == []


def test_the_scaler_serves_an_endpoint_beside_broken_records(client, managed, make_scaler):
    managed.want(B, "gone", spec=SPEC)
    managed.want(C, "ep", spec=SPEC)
    one_has_a_number_that_is_none(client)
    client.hset(keys.AGENTS, "h", json.dumps({"host": "h", "engine": "e", "devices": [HUGE]}))
    bad = {"host": "i", "engine": "e", "devices": [{"id": "d", "index": HUGE, "name": "n"}]}
    client.hset(keys.AGENTS, "i", json.dumps(bad))
    client.hset(keys.AGENTS, "j", json.dumps({"host": "j", "engine": "e", "silent_s": HUGE}))
    client.hset(keys.AGENTS_SEEN, "j", f"{HUGE} t")
    client.hset(keys.DEVICES_RESERVED, "h/d", f"{HUGE} x")
    client.hset(keys.DEVICES_HELD, "nothing", "x")
    client.hset(keys.DEVICES_NEXT, mapping={"nothing": "x", "h/d#x": "../..", "h/d#0": ""})
    client.hset(f"{keys.MANAGED_FAILURES}ep", mapping={"exit_code": "--1", "until_ms": str(HUGE)})
    scaler = make_scaler()
    scaler.once()
    scaler.once()
    assert managed.get(C).reason


def test_the_scaler_drains_what_has_no_template_beside_a_broken_record(
    client, managed, make_scaler, monkeypatch
):
    for worker_id in (A, B):
        managed.want(worker_id, "gone", spec=SPEC)
    discard = managed.discard

    def fails(worker_id, reason):
        if worker_id == A:
            raise OwnPodError("broken")
        return discard(worker_id, reason)

    monkeypatch.setattr(managed, "discard", fails)
    make_scaler().once()
    assert managed.get(B).phase is Phase.STOPPED


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_no_host_is_lost_because_a_clock_has_jumped(
    client, managed, make_scaler, monkeypatch, jump_s
):
    # A laptop that was asleep: Redis's clock has moved on, and no heartbeat has come yet.
    agents = Agents(client)
    agents.heartbeat(AgentInfo("h", "process", Devices().read()), "t")
    managed.want(A, "ep", spec=SPEC)
    assert managed.place(A, "h", "t", ["cpu-0"])
    scaler = make_scaler()
    scaler._patient_until = 0
    scaler.once()
    now_ms = managed.now_ms
    monkeypatch.setattr(managed, "now_ms", lambda: now_ms() + jump_s * 1000)
    silent = [AgentInfo("h", "process", Devices().read(), silent_s=3600)]
    monkeypatch.setattr(scaler._agents, "agents", lambda: silent)
    scaler.once()
    scaler.once()
    assert managed.get(A).phase is Phase.PREPARING
    assert scaler._patient_until > time.monotonic() + scaler_module.PATIENCE_S / 2
    scaler._patient_until = 0
    scaler.once()
    assert managed.get(A).phase is Phase.STOPPED


WRONG = {
    "string": lambda client, key: client.set(key, "x"),
    "list": lambda client, key: client.rpush(key, "x"),
    "junk": lambda client, key: client.hset(key, "x", "\0{["),
}
KEYS = [
    *(keys.MANAGED, keys.MANAGED_WANTED, keys.MANAGED_STOPPED, keys.MANAGED_ENTRIES),
    *(keys.MANAGED_IDLE, f"{keys.MANAGED_FAILURES}ep", f"{keys.MANAGED_HOST}h"),
    *(keys.DEVICES_HELD, keys.DEVICES_RESERVED, keys.DEVICES_NEXT, keys.AGENTS, keys.AGENTS_SEEN),
    *(keys.AGENTS_DRAINING, keys.managed(A), keys.INSTANCE),
]


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("key", KEYS)
def test_no_key_of_a_wrong_type_ends_an_agent_a_scaler_or_an_answer(
    redis_server, client, managed, make_agent, make_scaler, tmp_path, key, kind
):
    managed.want(A, "ep", spec=SPEC)
    client.delete(key)
    WRONG[kind](client, key)
    for step in (make_agent().turn, make_scaler().once):
        # Both loops go on after such an error, and log it.
        with contextlib.suppress(OwnPodError):
            step()
    workers = tmp_path / "workers.yaml"
    workers.write_text("endpoints: {ep: {template: {command: [x]}}, other: {}}")
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=workers))
    try:
        api = app.test_client()
        assert api.get("/v2/ep/health").status_code in {200, 503}
        assert api.post("/v2/ep/run", json={"input": {}}).status_code == 200
        assert api.get("/v2/other/health").status_code == 200
        assert api.get("/metrics").status_code in {200, 503}
        assert api.get(f"/v2/ep/ping/{A}").status_code in {200, 401, 503}
    finally:
        services_of(app).notices.stop()
