"""Managed workers in Redis: every move, what refuses one, and that a repeated command changes nothing."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers import job_store, load_settings, new_job, wait_until

from ownpod.errors import BadRequest, WorkerConflict, WorkerRecordBroken
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint, WorkerKind, WorkerSource
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device, Phase
from ownpod.rules.runs import Outcome
from ownpod.rules.templates import GpuNeed, ManagedSpec, Protocol, Template
from ownpod.store import keys
from ownpod.store import managed as managed_module
from ownpod.store.agents import Agents
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers

W, X, Y = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc"
SPEC = ManagedSpec(Template(command=("python", "w.py"), env={"TOKEN": "secret-1"}))
ON_GPU = replace(SPEC, gpu=GpuNeed(("low", "ADA_24"), 1))
ON_TWO = replace(SPEC, gpu=GpuNeed((), 2))


@pytest.fixture
def managed(client):
    return Managed(client)


@pytest.fixture
def agents(client):
    found = Agents(client)
    found.heartbeat(AgentInfo("h", "process"), "t")
    return found


@pytest.fixture
def want(managed):
    def call(worker_id=W, spec=SPEC, endpoint="ep"):
        return managed.want(worker_id, endpoint, spec=spec)

    return call


@pytest.fixture
def dump(client):
    """Everything in Redis, to see that a repeated command changes nothing."""

    def read():
        # Not DUMP: the order of a hash's fields in it may change by itself.
        reads = {
            "hash": client.hgetall,
            "set": client.smembers,
            "string": client.get,
            "list": lambda key: client.lrange(key, 0, -1),
            "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        }
        return {key: reads[client.type(key)](key) for key in client.scan_iter("ownpod:*")}

    return read


def stop(managed, worker_id=W, host="h", **changes):
    values = {"exit_code": 1, "reason": "it ended", "failed": True, "log": "a\nb"} | changes
    return managed.stopped(worker_id, host, **values)


def phase(managed, worker_id=W):
    return managed.get(worker_id).phase


MOVES = {
    "discard": lambda m: m.discard(W, "no job"),
    "place": lambda m: m.place(W, "h", "t"),
    "started": lambda m: m.started(W, "h"),
    "ready": lambda m: m.ready(W),
    "drain": lambda m: m.drain(W, "idle"),
    "stopping": lambda m: m.stopping(W, "h"),
    "stopped": stop,
    "lost": lambda m: m.lost(W, "its host is silent"),
}
TO = {
    Phase.WANTED: (),
    Phase.PREPARING: ("place",),
    Phase.STARTING: ("place", "started"),
    Phase.READY: ("place", "started", "ready"),
    Phase.DRAINING: ("place", "started", "ready", "drain"),
    Phase.STOPPING: ("place", "started", "ready", "drain", "stopping"),
    Phase.STOPPED: ("place", "started", "ready", "drain", "stopping", "stopped"),
}
ALLOWED = {
    Phase.WANTED: {"discard": Phase.STOPPED, "place": Phase.PREPARING},
    Phase.PREPARING: {
        "place": Phase.PREPARING,
        "started": Phase.STARTING,
        "ready": Phase.READY,
        "drain": Phase.DRAINING,
        "stopping": Phase.STOPPING,
        "stopped": Phase.STOPPED,
        "lost": Phase.STOPPED,
    },
    Phase.STARTING: {
        "started": Phase.STARTING,
        "ready": Phase.READY,
        "drain": Phase.DRAINING,
        "stopping": Phase.STOPPING,
        "stopped": Phase.STOPPED,
        "lost": Phase.STOPPED,
    },
    Phase.READY: {
        "started": Phase.READY,
        "drain": Phase.DRAINING,
        "stopping": Phase.STOPPING,
        "stopped": Phase.STOPPED,
        "lost": Phase.STOPPED,
    },
    Phase.DRAINING: {"stopping": Phase.STOPPING, "stopped": Phase.STOPPED, "lost": Phase.STOPPED},
    Phase.STOPPING: {"stopping": Phase.STOPPING, "stopped": Phase.STOPPED, "lost": Phase.STOPPED},
    Phase.STOPPED: {},
}


@pytest.mark.parametrize("before", list(Phase))
@pytest.mark.parametrize("move", MOVES)
def test_a_worker_moves_as_the_phases_allow_and_a_refused_or_repeated_move_changes_nothing(
    managed, agents, want, dump, before, move
):
    assert want()
    for step in TO[before]:
        assert MOVES[step](managed)
    assert phase(managed) is before
    state = dump()
    after = ALLOWED[before].get(move)
    assert MOVES[move](managed) is (after is not None)
    if after is None:
        assert dump() == state
        return
    assert phase(managed) is after
    state = dump()
    MOVES[move](managed)
    assert dump() == state


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.place(W, "other", "t"),
        lambda m: m.started(W, "other"),
        lambda m: m.progress(W, "other", "x"),
        lambda m: m.stopping(W, "other"),
        lambda m: stop(m, host="other"),
        lambda m: m.gone(W, "h"),
    ],
)
def test_a_host_does_not_change_a_worker_of_another(managed, agents, want, dump, call):
    agents.heartbeat(AgentInfo("other", "process"), "t")
    want()
    assert managed.place(W, "h", "t")
    state = dump()
    assert call(managed) is False
    assert dump() == state


def test_a_worker_is_wanted_once(managed, want, dump):
    assert want()
    state = dump()
    assert want()
    assert not want(endpoint="other")
    assert dump() == state
    (worker,) = managed.list()
    assert (worker.id, worker.endpoint, worker.release) == (W, "ep", SPEC.release)
    assert (worker.phase, worker.host, worker.gpu_count) == (Phase.WANTED, None, 0)


def test_a_wanted_worker_has_the_spec_it_was_wanted_with(managed, want):
    want(spec=ON_GPU)
    ((worker, spec),) = managed.wanted()
    assert spec == ON_GPU
    assert (worker.gpu_count, worker.pools) == (1, ("low", "ADA_24"))
    assert "secret-1" not in repr(spec)


def test_a_wanted_worker_has_the_reason_why_it_waits_until_an_agent_takes_it(managed, agents, want):
    want()
    assert managed.waits(W, "all 2 GPUs of pool low are busy")
    assert managed.get(W).reason == "all 2 GPUs of pool low are busy"
    managed.place(W, "h", "t")
    assert managed.get(W).reason == ""
    assert not managed.waits(W, "x")


def test_wanted_workers_are_read_oldest_first_and_so_many_at_a_time(managed, want, client):
    for place, worker_id in enumerate((Y, W, X)):
        want(worker_id)
        client.zadd(keys.MANAGED_WANTED, {worker_id: place})
    assert [worker.id for worker, _ in managed.wanted()] == [Y, W, X]
    assert [worker.id for worker, _ in managed.wanted(limit=2)] == [Y, W]


@pytest.mark.parametrize("worker_id", ["", "short", "A" * 14, "aaaaaaaaaaaaa:", "a" * 15, "wanted"])
def test_an_id_that_would_be_another_key_is_refused(managed, want, dump, worker_id):
    for call in (
        lambda: want(worker_id),
        lambda: managed.ready(worker_id),
        lambda: managed.drain(worker_id, "x"),
    ):
        with pytest.raises(BadRequest):
            call()
    assert managed.get(worker_id) is None
    # The first command of any program writes the version of the keys.
    assert not dump().keys() - {keys.SCHEMA}


def test_a_worker_that_does_not_exist_moves_nowhere(managed, agents, dump):
    state = dump()
    for move in MOVES.values():
        assert not move(managed)
    assert dump().keys() - state.keys() <= {keys.SCHEMA}
    assert managed.get(W) is None


# The life of a worker.


def test_a_worker_keeps_when_it_moved_and_what_it_is(managed, agents, want, client):
    want(spec=ON_GPU)
    assert managed.place(W, "h", "t", ["gpu-0"])
    assert managed.progress(W, "h", "image  pull\n43 %")
    assert managed.get(W).reason == "image pull 43 %"
    managed.started(W, "h")
    managed.ready(W)
    found = managed.of_host("h")
    assert list(found) == [W]
    worker, spec = found[W]
    assert spec == ON_GPU
    assert (worker.host, worker.devices, worker.reason) == ("h", ("gpu-0",), "")
    assert worker.created_ms <= worker.placed_ms <= worker.started_ms <= worker.ready_ms
    assert stop(managed, exit_code=-9, log="x" * 20_000)
    worker = managed.get(W)
    assert (worker.exit_code, worker.failed, worker.reason) == (-9, True, "it ended")
    assert len(worker.log) == managed_module.LONGEST_LOG
    assert managed.list() == []
    assert managed.of_host("h") == {}
    assert managed.recent("ep") == [worker]
    assert managed.recent("other") == []
    assert client.hmget(keys.managed(W), "spec", "key") == [None, None]


def test_a_worker_that_asks_before_its_agent_knows_that_it_runs_is_ready(managed, agents, want):
    want()
    managed.place(W, "h", "t")
    assert managed.ready(W)
    assert managed.started(W, "h")
    assert phase(managed) is Phase.READY
    assert managed.get(W).started_ms is not None


def test_a_worker_that_drains_before_it_runs_does_not_start(managed, agents, want):
    want()
    managed.place(W, "h", "t")
    assert managed.drain(W, "workersMax is 0")
    assert not managed.started(W, "h")
    assert not managed.ready(W)
    assert managed.get(W).reason == "workersMax is 0"


def test_the_reason_of_a_drain_stays_while_the_agent_stops_the_worker(managed, agents, want):
    want()
    managed.place(W, "h", "t")
    managed.drain(W, "idle")
    managed.stopping(W, "h")
    assert managed.get(W).reason == "idle"


# Devices.


@pytest.mark.parametrize(
    ("spec", "devices", "placed"),
    [
        (SPEC, [], True),
        (SPEC, ["gpu-0"], False),
        (ON_GPU, [], False),
        (ON_GPU, ["gpu-0"], True),
        (ON_TWO, ["gpu-0"], False),
        (ON_TWO, ["gpu-0", "gpu-0"], False),
        (ON_TWO, ["gpu-0", "gpu-1"], True),
        (ON_TWO, ["gpu-0", "held"], False),
        (ON_TWO, ["gpu-0", "reserved"], False),
    ],
)
def test_a_worker_gets_its_whole_need_or_nothing(
    managed, agents, want, dump, spec, devices, placed
):
    want(X, ON_GPU)
    assert managed.place(X, "h", "t", ["held"])
    agents.reserve("h", "reserved", "a test")
    want(spec=spec)
    state = dump()
    assert managed.place(W, "h", "t", devices) is placed
    assert (dump() == state) is not placed
    held = [hold.device for hold in agents.holds("h") if hold.worker == W]
    assert held == (devices if placed else [])


def test_a_device_has_as_many_workers_as_slots(managed, agents, want):
    for worker_id in (W, X, Y):
        want(worker_id, ON_GPU)
    assert managed.place(W, "h", "t", {"gpu-0": 2})
    assert managed.place(X, "h", "t", {"gpu-0": 2})
    assert not managed.place(Y, "h", "t", {"gpu-0": 2})
    assert stop(managed)
    assert managed.place(Y, "h", "t", {"gpu-0": 2})
    assert {hold.worker for hold in agents.holds("h")} == {X, Y}


def test_of_agents_that_race_for_one_device_one_gets_it(managed, agents, want, client):
    ids = [f"{number:014d}" for number in range(40)]
    for worker_id in ids:
        want(worker_id, ON_GPU)
    barrier = threading.Barrier(4)

    def place(mine):
        barrier.wait()
        return [worker_id for worker_id in mine if managed.place(worker_id, "h", "t", ["gpu-0"])]

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(place, [ids[number::4] for number in range(4)])
        placed = [worker_id for result in results for worker_id in result]
    assert len(placed) == 1
    assert [hold.worker for hold in agents.holds("h")] == placed
    assert client.zcard(keys.MANAGED_WANTED) == 39


def test_of_hosts_that_race_for_one_worker_one_gets_it(managed, agents, want):
    hosts = [f"h{number}" for number in range(4)]
    for host in hosts:
        agents.heartbeat(AgentInfo(host, "process"), "t")
    barrier = threading.Barrier(4)

    def place(host):
        barrier.wait()
        return sum(managed.place(f"{n:014d}", host, "t", ["gpu-0"]) for n in range(20))

    for number in range(20):
        want(f"{number:014d}", ON_GPU)
    with ThreadPoolExecutor(4) as pool:
        placed = list(pool.map(place, hosts))
    # Each host has one device.
    assert placed == [1, 1, 1, 1]
    assert len({holds[0].worker for holds in agents.all_holds().values()}) == 4


def test_a_reservation_that_has_ended_keeps_no_device(managed, agents, want, client):
    want(spec=ON_GPU)
    agents.reserve("h", "gpu-0", "for a test", for_s=7200)
    (hold,) = agents.holds("h")
    assert (hold.device, hold.worker, hold.reserved) == ("gpu-0", None, "for a test, 2 h left")
    assert not managed.place(W, "h", "t", ["gpu-0"])
    client.hset(keys.DEVICES_RESERVED, "h/gpu-0", "1 for a test")
    assert agents.holds("h") == []
    assert managed.place(W, "h", "t", ["gpu-0"])


def test_a_released_device_is_free(managed, agents, want):
    want(spec=ON_GPU)
    agents.reserve("h", "gpu-0", "")
    assert agents.holds("h")[0].reserved == "without an end"
    assert agents.release("h", "gpu-0")
    assert not agents.release("h", "gpu-0")
    assert managed.place(W, "h", "t", ["gpu-0"])


def test_the_devices_of_a_lost_worker_stay_held_until_its_agent_knows_that_it_is_gone(
    managed, agents, want, dump
):
    want(spec=ON_GPU)
    managed.place(W, "h", "t", ["gpu-0"])
    assert managed.lost(W, "its host is silent")
    assert phase(managed) is Phase.STOPPED
    assert managed.of_host("h") == {}
    want(X, ON_GPU)
    assert not managed.place(X, "h", "t", ["gpu-0"])
    assert managed.gone(W, "h")
    state = dump()
    assert managed.gone(W, "h")
    assert dump() == state
    assert managed.place(X, "h", "t", ["gpu-0"])


def test_a_worker_without_a_record_can_be_gone(managed, agents, want, client):
    want(spec=ON_GPU)
    managed.place(W, "h", "t", ["gpu-0"])
    client.delete(keys.managed(W))
    assert managed.gone(W, "h")
    assert agents.holds("h") == []


# Agents.


def test_a_host_is_listed_as_its_agent_published_it(agents):
    device = Device("GPU-1", 0, "NVIDIA RTX", 24_000, ("ADA_24",), metrics={"power_w": 30.0})
    info = AgentInfo("g", "docker", (device,), {"zone": "a"})
    assert agents.heartbeat(info, "x").owned
    found = {agent.host: agent for agent in agents.agents()}
    assert found.keys() == {"g", "h"}
    assert replace(found["g"], silent_s=0.0) == info
    assert 0 <= found["g"].silent_s < 60


def test_of_two_agents_with_one_host_name_the_second_owns_nothing(managed, agents, want, client):
    want()
    assert not agents.heartbeat(AgentInfo("h", "docker"), "second").owned
    assert not managed.place(W, "h", "second")
    assert agents.agents()[0].engine == "process"
    assert managed.place(W, "h", "t")
    client.hset(keys.AGENTS_SEEN, "h", "1 t")
    assert agents.heartbeat(AgentInfo("h", "docker"), "second").owned
    assert not agents.heartbeat(AgentInfo("h", "process"), "t").owned


def test_an_agent_that_left_is_replaced_at_once(managed, agents, want):
    want()
    agents.leave("h", "another")
    assert not agents.heartbeat(AgentInfo("h", "process"), "next").owned
    agents.leave("h", "t")
    assert not managed.place(W, "h", "t")
    assert agents.heartbeat(AgentInfo("h", "process"), "next").owned
    assert managed.place(W, "h", "next")


def test_a_drained_host_takes_no_workers(managed, agents, want):
    want()
    agents.drain_host("h")
    assert agents.heartbeat(AgentInfo("h", "process"), "t").draining
    assert agents.agents()[0].draining
    assert not managed.place(W, "h", "t")
    agents.resume_host("h")
    assert not agents.heartbeat(AgentInfo("h", "process"), "t").draining
    assert managed.place(W, "h", "t")


def test_a_host_is_removed_when_it_is_silent_and_has_no_workers(managed, agents, want, client):
    want(spec=ON_GPU)
    managed.place(W, "h", "t", ["gpu-0"])
    agents.reserve("h", "gpu-1", "x")
    assert not agents.remove_agent("h")
    client.hset(keys.AGENTS_SEEN, "h", "1 t")
    assert not agents.remove_agent("h")
    managed.lost(W, "silent")
    assert agents.remove_agent("h")
    assert agents.agents() == []
    assert agents.all_holds() == {}


@pytest.mark.parametrize("host", ["", "a/b", "a b", "x" * 256])
def test_a_host_name_that_would_be_part_of_another_key_is_refused(agents, host):
    with pytest.raises(BadRequest):
        agents.heartbeat(AgentInfo(host, "process"), "t")


def test_a_device_that_would_be_part_of_another_key_is_refused(agents):
    with pytest.raises(BadRequest):
        agents.heartbeat(AgentInfo("h", "process", (Device("a#1", 0, "x"),)), "t")
    with pytest.raises(BadRequest):
        agents.reserve("h", "a/b", "x")


# Failed starts.


def fail(managed, want, worker_id, **changes):
    want(worker_id, changes.pop("spec", SPEC))
    assert managed.place(worker_id, "h", "t")
    assert stop(managed, worker_id, **changes)


def test_failed_starts_let_the_next_one_wait_longer_until_a_worker_is_ready(managed, agents, want):
    assert managed.failures("ep").count == 0
    for count, pause_s in enumerate((1, 2, 4, 8, 16, 32, 60, 60), 1):
        before = time.monotonic()
        fail(managed, want, f"{count:014d}", reason=f"crash {count}")
        found = managed.failures("ep")
        took_s = time.monotonic() - before
        assert (found.count, found.release) == (count, SPEC.release)
        assert 0 <= found.pause_s <= pause_s
        assert found.pause_s >= max(0, pause_s - took_s - 0.1)
    assert (found.reason, found.exit_code, found.log) == ("crash 8", 1, "a\nb")
    assert found.worker == f"{8:014d}"
    want(W)
    managed.place(W, "h", "t")
    assert managed.ready(W)
    assert managed.failures("ep").count == 0


def test_only_a_start_that_failed_counts(managed, agents, want):
    fail(managed, want, X, failed=False)
    want(W)
    managed.place(W, "h", "t")
    managed.ready(W)
    stop(managed)
    want(Y)
    managed.place(Y, "h", "t")
    managed.lost(Y, "silent")
    assert managed.failures("ep").count == 0


def test_a_new_release_begins_without_failures_and_an_old_one_does_not_count_again(
    managed, agents, want, client
):
    new = replace(SPEC, template=replace(SPEC.template, command=("new",)))
    want(X)
    client.hset(keys.managed(X), "created_ms", 5)
    managed.place(X, "h", "t")
    fail(managed, want, W)
    fail(managed, want, Y, spec=new)
    found = managed.failures("ep")
    assert (found.release, found.count) == (new.release, 1)
    stop(managed, X)
    assert managed.failures("ep").release == new.release
    views = managed.views({"ep": SPEC.release}, [])
    assert views["ep"].failures.count == 0
    assert managed.views({"ep": new.release}, [])["ep"].failures.count == 1


# What is kept.


def test_stopped_workers_are_kept_for_an_hour_and_the_last_200(managed, want, client):
    ids = [f"{number:014d}" for number in range(managed_module.MOST_STOPPED + 3)]
    for worker_id in ids:
        want(worker_id)
        managed.discard(worker_id, "no job")
        assert client.pttl(keys.managed(worker_id)) > 3_500_000
    found = managed.recent()
    assert len(found) == managed_module.MOST_STOPPED
    assert client.zcard(keys.MANAGED_STOPPED) == managed_module.MOST_STOPPED
    assert len(list(client.scan_iter("ownpod:managed:0*"))) == managed_module.MOST_STOPPED
    client.zadd(keys.MANAGED_STOPPED, {found[0].id: 1})
    assert found[0].id not in {worker.id for worker in managed.recent()}
    want(W)
    managed.discard(W, "no job")
    assert client.zscore(keys.MANAGED_STOPPED, found[0].id) is None


BROKEN = [
    {"phase": "dancing"},
    {"created_ms": "soon"},
    {"devices": "{}"},
    {"pools": "[1]"},
    {"gpu_count": "x"},
    {"failed": ""},
]


@pytest.mark.parametrize("values", BROKEN)
def test_a_record_that_cannot_be_read_is_left_out_and_logged_once(
    managed, agents, want, client, values, caplog
):
    for worker_id in (W, X):
        want(worker_id)
        managed.place(worker_id, "h", "t")
    client.hset(keys.managed(W), mapping=values)
    for _ in range(3):
        assert [worker.id for worker in managed.list()] == [X]
        assert list(managed.of_host("h")) == [X]
    assert len([r for r in caplog.records if W in r.getMessage()]) == 1
    with pytest.raises(WorkerRecordBroken):
        managed.get(W)


SPECS = [
    None,
    "{",
    "[]",
    "{}",
    '{"template": 5}',
    '{"template": {"image": 5}}',
    '{"template": {"later": 1}}',
    '{"template": {"env": {"A": 1}}}',
    '{"template": {"protocol": "smoke"}}',
    '{"template": {"protocol": []}}',
    '{"template": {}, "gpu": {"count": 0}}',
    '{"template": {}, "scaling": {"workers_max": true}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", SPECS)
def test_a_worker_whose_spec_cannot_be_started_is_left_out_of_what_agents_read(
    managed, want, client, text, caplog
):
    want(W)
    want(X)
    client.hdel(keys.managed(W), "spec") if text is None else client.hset(
        keys.managed(W), "spec", text
    )
    assert [worker.id for worker, _ in managed.wanted()] == [X]
    assert W in caplog.text
    assert managed.discard(W, "it cannot be started")


@pytest.mark.parametrize("gone", [True, False])
def test_a_record_that_is_gone_or_no_hash_ends_no_read(managed, want, client, gone, caplog):
    want(W)
    want(X)
    client.delete(keys.managed(W))
    if not gone:
        client.set(keys.managed(W), "text")
        with pytest.raises(WorkerRecordBroken):
            managed.get(W)
        with pytest.raises(WorkerRecordBroken):
            managed.drain(W, "x")
    assert [worker.id for worker in managed.list()] == [X]
    assert [worker.id for worker, _ in managed.wanted()] == [X]
    assert W in caplog.text


def test_an_agent_that_cannot_be_read_is_left_out(agents, client, caplog):
    client.hset(keys.AGENTS, "bad", '{"host": "bad", "engine": 5}')
    client.hset(keys.AGENTS, "later", '{"host": "later", "engine": "docker", "more": 1}')
    for _ in range(2):
        assert [agent.host for agent in agents.agents()] == ["h", "later"]
    assert caplog.text.count("bad") == 1


# What the registry reads.


@pytest.fixture
def registry(client):
    endpoint = Endpoint("ep", (), 600_000, 600_000, 3, 0)
    return Registry({"ep": endpoint}, Fleet(client), load_settings())


def registered(registry):
    registry.refresh()
    return {worker.id: worker for worker in registry.endpoint("ep").workers}


def test_the_registry_has_a_worker_from_the_step_that_places_it_until_it_is_stopped(
    managed, agents, want, registry
):
    want()
    assert registered(registry) == {}
    managed.place(W, "h", "t")
    assert managed.set_key(W, "h", "d1")
    assert not managed.set_key(W, "another", "d2")
    worker = wait_until(lambda: registry.worker(W))
    assert (worker.kind, worker.source, worker.url) == (
        WorkerKind.PULL,
        WorkerSource.MANAGED,
        f"pull:{W}",
    )
    assert (worker.key_digest, worker.draining, worker.capacity) == ("d1", False, 1)
    assert "d1" not in repr(worker)
    managed.drain(W, "idle")
    assert registered(registry)[W].draining
    assert registry.fleet.paused(W) == "idle"
    stop(managed)
    assert registered(registry) == {}
    assert registry.fleet.paused(W) is None
    assert registry.left_out() == []


def test_an_operator_cannot_resume_a_worker_that_is_to_stop(managed, agents, want, registry):
    want()
    managed.place(W, "h", "t")
    registry.fleet.pause(W, "by an operator")
    registry.fleet.resume(W)
    assert registry.fleet.paused(W) is None
    managed.drain(W, "idle")
    registry.fleet.resume(W)
    assert registry.fleet.paused(W) == "idle"


def test_a_lost_worker_that_comes_back_is_not_registered_again(
    managed, agents, want, registry, client
):
    offers = Offers(client, gone_s=60)
    want()
    managed.place(W, "h", "t")
    offers.take(W, "ep", "t", limit=1, in_progress=False)
    managed.lost(W, "silent")
    offers.offer(W, "r1", job_id="r1", attempt=1, body="{}", time_s=60)
    assert offers.collect(W, "ep", "t", limit=1) is None
    with pytest.raises(WorkerConflict, match="has stopped the managed worker"):
        offers.take(W, "ep", "t2", limit=1, in_progress=False)
    assert registered(registry) == {}
    assert not client.hexists(keys.PULLING, W)


def test_a_lost_worker_leaves_the_registry(managed, agents, want, registry):
    want()
    managed.place(W, "h", "t")
    managed.drain(W, "x")
    managed.lost(W, "silent")
    assert registered(registry) == {}
    assert registry.fleet.paused(W) is None


def test_a_worker_that_is_pushed_to_is_in_the_registry_once_it_has_a_url(
    managed, agents, want, registry
):
    want(spec=replace(SPEC, template=replace(SPEC.template, protocol=Protocol.PUSH)))
    managed.place(W, "h", "t")
    assert registered(registry) == {}
    assert registry.left_out() == []
    managed.started(W, "h", url="http://127.0.0.1:9000/")
    worker = registered(registry)[W]
    assert (worker.kind, worker.url) == (WorkerKind.PUSH, "http://127.0.0.1:9000")


def test_a_managed_worker_that_polls_is_listed_once_with_the_capacity_it_asks_for(
    managed, agents, want, registry, client
):
    want()
    managed.place(W, "h", "t")
    Offers(client, gone_s=60).take(W, "ep", "t", limit=3, in_progress=False)
    worker = registered(registry)[W]
    assert (worker.source, worker.capacity) == (WorkerSource.MANAGED, 3)
    assert registry.left_out() == []
    stop(managed)
    assert registered(registry) == {}


@pytest.mark.parametrize(
    "entry",
    [
        "{",
        "[]",
        {},
        {"endpoint": "gone", "kind": "pull"},
        {"endpoint": "ep"},
        {"endpoint": "ep", "kind": []},
        {"endpoint": "ep", "kind": "pull", "capacity": 0},
        {"endpoint": "ep", "kind": "pull", "key": 5},
        {"endpoint": "ep", "kind": "push", "url": "file:///etc"},
        {"endpoint": "ep", "kind": "push", "url": 5},
    ],
)
def test_an_entry_of_a_managed_worker_that_cannot_be_used_is_left_out(
    managed, agents, want, registry, client, entry
):
    want(X)
    managed.place(X, "h", "t")
    text = entry if isinstance(entry, str) else json.dumps(entry)
    client.hset(keys.MANAGED_ENTRIES, W, text)
    assert list(registered(registry)) == [X]
    assert [left.id for left in registry.left_out()] == [W]


# A worker's jobs.


def test_the_request_of_a_draining_worker_is_to_be_answered_now(managed, agents, want, client):
    want()
    managed.place(W, "h", "t")
    with client.pubsub() as events:
        events.subscribe(keys.PULL_EVENTS)
        managed.drain(W, "idle")
        wait_until(
            lambda: (events.get_message(timeout=1) or {}).get("data") == f"take:{W} LOOK",
        )


@pytest.mark.parametrize("end", [stop, lambda m: m.lost(W, "silent")])
def test_the_runs_of_a_worker_that_has_stopped_are_over(managed, agents, want, client, end):
    offers = Offers(client, gone_s=60)
    want()
    managed.place(W, "h", "t")
    for run in ("r1", "r2", "r3"):
        offers.offer(W, run, job_id=run, attempt=1, body="{}", time_s=60)
    offers.take(W, "ep", "token", limit=2, in_progress=False)
    offers.ping(W, "ep", ["r1"])
    end(managed)
    assert offers.run(W, "r1").state == "gone"
    # It may have begun, so it counts as an attempt.
    assert offers.run(W, "r2").state == "gone"
    run = offers.run(W, "r3")
    assert (run.state, run.left) == ("offered", True)
    assert offers.withdraw(W, "r3")


def test_a_stopped_worker_leaves_nothing_but_its_record(managed, agents, want, client):
    before = set(client.keys()) | {keys.SCHEMA}
    offers = Offers(client, gone_s=60)
    want(spec=ON_GPU)
    managed.place(W, "h", "t", ["gpu-0"])
    offers.take(W, "ep", "token", limit=2, in_progress=False)
    managed.ready(W)
    managed.views({"ep": "r"}, managed.list())
    managed.drain(W, "idle")
    managed.stopping(W, "h")
    stop(managed, failed=False)
    assert set(client.keys()) - before == {
        keys.managed(W),
        keys.MANAGED_STOPPED,
        keys.pull(W),
        keys.of_endpoint("ep", "starts"),
    }
    assert client.pttl(keys.pull(W)) <= 60_000


def test_a_view_counts_waiting_and_running_jobs_lingering_slots_and_failures(
    managed, agents, want, client
):
    store = job_store(client)
    for worker_id in (W, X, Y):
        want(worker_id)
        managed.place(worker_id, "h", "t")
        managed.ready(worker_id)
    for number in range(3):
        store.jobs.create(new_job(f"job-{number}"))
    assert store.jobs.claim("job-0", worker_id=W, claim="x", lease_s=60)
    client.hset(keys.worker(X), mapping={"state": "ready", "held": 2})
    client.zadd(keys.queued("ep"), {"job-1": 1000})
    views = managed.views({"ep": SPEC.release, "other": "x"}, managed.list())
    view = views["ep"]
    assert view.queued == 2
    assert view.oldest_wait_s > 1e6
    assert (view.jobs(W), view.jobs(X), view.jobs(Y)) == (1, 2, 0)
    assert view.idle_s == {W: 0.0, X: 0.0, Y: 0.0}
    assert view.failures.count == 0
    other = views["other"]
    assert (other.queued, other.oldest_wait_s, other.idle_s) == (0, 0.0, {})


def test_a_draining_worker_has_jobs_and_is_never_idle(managed, agents, want, client):
    want()
    managed.place(W, "h", "t")
    managed.ready(W)
    managed.drain(W, "its handler cannot be stopped")
    client.hset(keys.worker(W), mapping={"state": "paused", "held": 1})
    view = managed.views({"ep": "r"}, managed.list())["ep"]
    assert (view.jobs(W), view.idle_s) == (1, {})


def test_an_endpoint_whose_keys_cannot_be_read_is_left_out_of_the_views(
    managed, agents, want, client, caplog
):
    want()
    managed.place(W, "h", "t")
    managed.ready(W)
    client.set(keys.running("ep"), "text")
    assert list(managed.views({"ep": "r", "other": "r"}, managed.list())) == ["other"]
    assert "ep" in caplog.text
    assert not client.exists(keys.MANAGED_IDLE)


def test_a_view_of_nothing_is_empty(managed):
    assert managed.views({}, []) == {}


def test_a_worker_is_idle_since_it_was_first_seen_so_also_for_another_scaler(
    managed, agents, want, client
):
    want()
    managed.place(W, "h", "t")
    managed.ready(W)

    def idle_s(scaler):
        return scaler.views({"ep": "r"}, scaler.list())["ep"].idle_s[W]

    assert idle_s(managed) == 0
    at = int(client.hget(keys.MANAGED_IDLE, W))
    client.hset(keys.MANAGED_IDLE, W, at - 90_000)
    assert idle_s(Managed(client)) >= 90
    # A job that begins and ends between two reads.
    store = job_store(client)
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id=W, claim="x", lease_s=60)
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"))
    assert idle_s(managed) < 90
    stop(managed)
    assert not client.exists(keys.MANAGED_IDLE)


def test_the_installation_keeps_its_id_until_redis_comes_back_empty(managed, client):
    first = managed.instance()
    assert first.restored_s == math.inf
    assert len(first.id) == 12
    assert int(first.id, 16) >= 0
    assert Managed(client).instance() == first
    assert managed.instance("another") == first
    client.flushall()
    # An agent remembers it. Every other agent learns that the records are lost.
    assert managed.instance(first.id).restored_s < 60
    assert managed.instance().id == first.id
    assert managed.instance().restored_s < 60
    client.flushall()
    assert managed.instance().id != first.id
