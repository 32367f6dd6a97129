"""The agent's turns, with an engine that starts nothing and a real Redis."""

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from helpers import RedisServer, wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.engine import EngineError, Found
from ownpod.agent.steps import Host
from ownpod.errors import RedisUnavailable
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import LOST_GPU, ORPHAN_S, AgentInfo, Phase
from ownpod.rules.placement import pools_of
from ownpod.rules.reconcile import EMPTY_REDIS_S, LOST_S
from ownpod.rules.runs import Outcome
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.client import connect
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers, Result
from ownpod.store.outputs import Outputs

# They take a tenth of the time of all fast tests.
pytestmark = pytest.mark.slow

W, X, Y = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc"
SPEC = ManagedSpec(Template(image="i:1", command=("python", "w.py"), env={"A": "1"}))
ON_GPU = replace(SPEC, gpu=GpuNeed((), 1))


class Rig:
    """An agent that a test turns by hand, with what it works on."""

    def __init__(self, client, engine=None, *, environ=None, images=None):
        self.client = client
        self.managed = Managed(client)
        self.agents = Agents(client)
        self.engine = engine or FakeEngine(self.managed.instance().id)
        self.now_s = time.monotonic()
        self.agent = Agent(
            Host("h", "http://127.0.0.1:8000", {}, images),
            self.engine,
            Devices(DeviceChoice(stand_ins=2), {}, pools_of=pools_of),
            managed=self.managed,
            agents=self.agents,
            outputs=Outputs(client),
            wakeups=Wakeups(client),
            environ=environ or {},
            clock=lambda: self.now_s,
        )

    def want(self, worker_id=W, spec=SPEC):
        assert self.managed.want(worker_id, "ep", spec=spec)

    def turn_until(self, condition, what=""):
        """Turns until the condition is true. Steps are done in other threads."""

        def turned():
            self.agent.turn()
            return condition()

        return wait_until(turned, 10, what)

    def phase(self, worker_id=W):
        return self.managed.get(worker_id).phase

    def started(self, worker_id=W, spec=SPEC):
        self.want(worker_id, spec)
        self.turn_until(lambda: self.phase(worker_id) is Phase.STARTING)
        # Its thread ends a moment later.
        wait_until(lambda: not self.agent.steps.under_way)

    def ready(self, worker_id=W, spec=SPEC):
        self.started(worker_id, spec)
        assert self.managed.ready(worker_id)

    def held(self):
        return {(hold.worker, hold.device) for hold in self.agents.holds("h")}

    def settle(self):
        """Turns some times, and lets all steps end: for what must not happen."""
        for _ in range(3):
            self.agent.turn()
            wait_until(lambda: not self.agent.steps.under_way)

    def end(self):
        self.engine.holding.set()
        self.engine.away = ""
        self.agent.leave()


@pytest.fixture
def make_rig(client):
    made = []

    def make(engine=None, **options):
        found = Rig(client, engine, **options)
        made.append(found)
        return found

    yield make
    for rig in made:
        rig.end()


@pytest.fixture
def rig(make_rig):
    return make_rig()


# Starts.


def test_a_wanted_worker_is_started_with_its_device_its_environment_and_a_key_of_its_own(rig):
    rig.started(spec=ON_GPU)
    (launch,) = rig.engine.launched
    assert (launch.worker_id, launch.endpoint, launch.template) == (W, "ep", SPEC.template)
    assert [device.id for device in launch.devices] == ["cpu-0"]
    assert (launch.env["A"], launch.env["RUNPOD_POD_ID"]) == ("1", W)
    assert launch.env["RUNPOD_AI_API_KEY"] not in repr(rig.client.hgetall(keys.managed(W)))
    assert rig.held() == {(W, "cpu-0")}


def test_workers_beyond_the_devices_wait(rig):
    for worker_id in (W, X, Y):
        rig.want(worker_id, ON_GPU)
    rig.turn_until(lambda: len(rig.engine.launched) == 2)
    rig.settle()
    assert [rig.phase(worker_id) for worker_id in (W, X, Y)].count(Phase.WANTED) == 1
    assert len(rig.held()) == 2


def test_a_worker_that_cannot_be_started_is_a_failed_start_with_the_engines_reason(rig):
    rig.engine.start_error = "there is no such image as i:1"
    rig.want(spec=ON_GPU)
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert (worker.failed, worker.reason) == (True, "there is no such image as i:1")
    assert rig.held() == set()
    failures = rig.managed.failures("ep")
    assert (failures.count, failures.reason) == (1, "there is no such image as i:1")


def test_a_worker_whose_secret_the_host_does_not_have_is_left_to_another_host(rig):
    template = replace(SPEC.template, env={"TOKEN": "{{ RUNPOD_SECRET_hf }}"})
    rig.want(spec=replace(SPEC, template=template))
    rig.turn_until(lambda: "OWNPOD_SECRET_hf" in rig.managed.get(W).reason)
    assert rig.phase() is Phase.WANTED
    assert rig.managed.failures("ep").count == 0
    assert rig.engine.launched == []


def test_a_template_that_this_engine_cannot_run_is_left_to_another_host(rig):
    rig.engine.refused = SPEC.template.image
    rig.want(W)
    rig.want(X, replace(SPEC, template=replace(SPEC.template, image="i:2")))
    rig.turn_until(lambda: rig.phase(X) is Phase.STARTING)
    rig.settle()
    assert rig.phase(W) is Phase.WANTED
    assert rig.managed.failures("ep").count == 0


def test_a_worker_whose_gpu_is_lost_is_ended_and_its_device_is_not_given_to_another(rig):
    rig.ready(spec=ON_GPU)
    devices, lost = rig.agent._devices, "lost: NVML does not find it any more"
    broken = tuple(
        replace(device, problem=lost if device.id == "cpu-0" else "") for device in devices.read()
    )
    rig.agent._devices = SimpleNamespace(read=lambda: broken, problem="")
    rig.settle()
    assert rig.phase() is Phase.READY
    rig.now_s += LOST_S
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert (worker.failed, worker.reason[: len(LOST_GPU)]) == (True, LOST_GPU)
    rig.started(X, ON_GPU)
    assert rig.managed.get(X).devices == ("cpu-1",)


def asks_for_a_restart(rig, worker_id=W):
    offers = Offers(rig.client, gone_s=60)
    offers.take(worker_id, "ep", "t1", limit=1, in_progress=False)
    done = Result(Outcome(JobStatus.COMPLETED, output="1"), stopping=True)
    offers.done(worker_id, "ep", "run", done)


def test_a_worker_that_asks_for_a_restart_is_started_again_with_its_device_and_another_key(rig):
    rig.ready(spec=ON_GPU)
    asks_for_a_restart(rig)
    rig.turn_until(lambda: len(rig.engine.launched) == 2)
    rig.turn_until(lambda: rig.managed.get(W).restart == 2)
    first, second = rig.engine.launched
    assert [device.id for device in second.devices] == ["cpu-0"]
    assert first.env["RUNPOD_AI_API_KEY"] != second.env["RUNPOD_AI_API_KEY"]
    assert (rig.phase(), rig.held()) == (Phase.READY, {(W, "cpu-0")})
    rig.settle()
    assert len(rig.engine.launched) == 2


def test_a_worker_that_cannot_be_started_again_has_failed(rig):
    rig.ready(spec=ON_GPU)
    asks_for_a_restart(rig)
    rig.engine.start_error = "no space left"
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert (worker.failed, worker.reason, rig.held()) == (True, "no space left", set())


def test_a_worker_that_is_drained_during_its_start_is_ended_and_has_not_failed(rig):
    rig.engine.holding.clear()
    rig.want()
    rig.turn_until(lambda: rig.engine.launched)
    assert rig.managed.drain(W, "idle")
    rig.engine.holding.set()
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    wait_until(lambda: rig.engine.workers == {})
    assert not rig.managed.get(W).failed


def test_a_start_that_takes_long_is_made_once(rig):
    rig.engine.holding.clear()
    rig.want()
    rig.turn_until(lambda: rig.engine.launched)
    for _ in range(3):
        rig.agent.turn()
    assert len(rig.engine.launched) == 1
    rig.engine.holding.set()
    rig.turn_until(lambda: rig.phase() is Phase.STARTING)
    assert len(rig.engine.launched) == 1


def test_a_worker_whose_step_ends_during_a_turn_is_not_compared_with_its_old_record(
    rig, monkeypatch
):
    rig.ready()
    go = threading.Event()
    monkeypatch.setattr(rig.engine, "log", lambda _: str(go.wait(60)))
    rig.engine.change(W, running=False, exit_code=1)
    rig.agent.turn()

    def read_and_let_it_end(host):
        found = Managed.of_host(rig.managed, host)
        go.set()
        wait_until(lambda: not rig.agent.steps.under_way)
        return found

    # The turn has read the record as READY, and the engine has nothing of the worker any more.
    monkeypatch.setattr(rig.managed, "of_host", read_and_let_it_end)
    rig.agent.turn()
    rig.settle()
    assert (rig.phase(), rig.engine.removed) == (Phase.STOPPED, [W])


# Restarts of the agent.


def test_the_next_agent_adopts_a_worker_whose_start_was_not_recorded(rig, make_rig):
    rig.agent.turn()
    rig.want(spec=ON_GPU)
    assert rig.managed.place(W, "h", rig.agent._token, ["cpu-0"])
    # The agent before has started it, and was killed before it could say so.
    rig.engine.workers[W] = Found(W, running=True, age_s=1, devices=("cpu-0",))
    rig.agent.leave()
    following = make_rig(rig.engine)
    following.turn_until(lambda: following.phase() is Phase.STARTING)
    assert rig.engine.launched == []
    assert following.held() == {(W, "cpu-0")}


def test_the_next_agent_starts_a_worker_that_the_one_before_only_took(rig, make_rig):
    rig.agent.turn()
    rig.want(spec=ON_GPU)
    assert rig.managed.place(W, "h", rig.agent._token, ["cpu-1"])
    rig.agent.leave()
    following = make_rig(rig.engine)
    following.turn_until(lambda: following.phase() is Phase.STARTING)
    (launch,) = rig.engine.launched
    assert [device.id for device in launch.devices] == ["cpu-1"]


def test_the_next_agent_keeps_workers_that_serve(rig, make_rig):
    rig.ready()
    rig.agent.leave()
    following = make_rig(rig.engine)
    following.settle()
    assert following.phase() is Phase.READY
    assert (len(rig.engine.launched), rig.engine.stopped) == (1, [])


# Ends.


def node_publishes(rig, state, *, held=0, worker_id=W):
    rig.client.hset(keys.worker(worker_id), mapping={"state": state, "held": held})


def test_a_draining_worker_is_stopped_when_its_node_has_paused_and_it_has_no_job(rig):
    rig.ready(spec=ON_GPU)
    node_publishes(rig, "BUSY")
    rig.client.hset(keys.running("ep"), "job-1", W)
    assert rig.managed.drain(W, "it was idle")
    rig.settle()
    # Its node still fetches jobs.
    assert (rig.phase(), rig.engine.stopped) == (Phase.DRAINING, [])
    node_publishes(rig, "PAUSED", held=1)
    rig.settle()
    assert (rig.phase(), rig.engine.stopped) == (Phase.DRAINING, [])
    rig.client.hdel(keys.running("ep"), "job-1")
    rig.settle()
    # The job has ended, its handler has not.
    assert (rig.phase(), rig.engine.stopped) == (Phase.DRAINING, [])
    node_publishes(rig, "PAUSED")
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    wait_until(lambda: rig.engine.removed == [W])
    assert rig.engine.stopped == [W]
    worker = rig.managed.get(W)
    assert (worker.failed, worker.reason, rig.held()) == (False, "it was idle", set())


def test_a_worker_that_ended_by_itself_has_failed_with_its_exit_code_and_its_last_words(rig):
    rig.started(spec=ON_GPU)
    rig.engine.change(W, running=False, exit_code=3)
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert (worker.failed, worker.exit_code, worker.log) == (True, 3, f"last words of {W}")
    assert (rig.managed.failures("ep").count, rig.held()) == (1, set())
    wait_until(lambda: rig.engine.removed == [W])


def test_a_worker_that_does_not_ask_for_a_job_in_time_has_failed(rig):
    spec = replace(SPEC, template=replace(SPEC.template, init_timeout_s=30))
    rig.started(spec=spec)
    rig.engine.change(W, age_s=29.0)
    rig.settle()
    assert rig.engine.stopped == []
    rig.engine.change(W, age_s=31.0)
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert worker.failed
    assert worker.reason == "it did not ask for a job within 30 s of its start"
    assert rig.managed.failures("ep").count == 1


def test_a_ready_worker_may_grow_old(rig):
    rig.ready()
    rig.engine.change(W, age_s=1e6)
    rig.settle()
    assert (rig.phase(), rig.engine.stopped) == (Phase.READY, [])


def test_a_worker_whose_record_was_lost_is_ended_only_after_a_while(rig):
    rig.agent.turn()
    rig.engine.workers[X] = Found(X, running=True, age_s=1000)
    rig.settle()
    rig.now_s += ORPHAN_S - 1
    rig.settle()
    assert rig.engine.stopped == []
    rig.now_s += 1
    rig.turn_until(lambda: rig.engine.removed == [X])
    assert rig.engine.stopped == [X]


def test_no_worker_is_an_orphan_after_redis_lost_its_data(rig, client):
    rig.ready(spec=ON_GPU)
    client.flushall()
    rig.settle()
    rig.now_s += EMPTY_REDIS_S * 10
    rig.settle()
    assert rig.engine.stopped == []
    # Its device is not given to another worker either.
    rig.want(X, ON_GPU)
    rig.want(Y, ON_GPU)
    rig.turn_until(lambda: len(rig.engine.launched) == 2)
    rig.settle()
    assert [d.id for launch in rig.engine.launched for d in launch.devices] == ["cpu-0", "cpu-1"]


def test_a_worker_that_was_lost_is_ended_at_once_when_its_host_is_back(rig):
    rig.ready(spec=ON_GPU)
    assert rig.managed.lost(W, "its host h has been silent")
    assert rig.held() == {(W, "cpu-0")}
    rig.turn_until(lambda: not rig.held())
    wait_until(lambda: (rig.engine.stopped, rig.engine.removed) == ([W], [W]))


def test_a_device_that_is_held_by_nothing_is_freed(rig, client):
    rig.agent.turn()
    client.hset(keys.DEVICES_HELD, "h/cpu-0#0", X)
    client.hset(keys.DEVICES_HELD, "other/cpu-0#0", X)
    rig.turn_until(lambda: not rig.held())
    # Another host's device is its own agent's.
    assert client.hget(keys.DEVICES_HELD, "other/cpu-0#0") == X


# What is away.


def test_an_agent_whose_hosts_name_another_one_owns_stands_by(rig):
    rig.agents.heartbeat(AgentInfo("h", "process"), "another:1")
    rig.want()
    rig.engine.workers[X] = Found(X, running=True, age_s=1000)
    for _ in range(3):
        rig.agent.turn()
        rig.now_s += ORPHAN_S
    assert (rig.phase(), rig.engine.launched, rig.engine.stopped) == (Phase.WANTED, [], [])
    rig.agents.leave("h", "another:1")
    rig.turn_until(lambda: rig.phase() is Phase.STARTING)


def test_a_host_publishes_its_images_and_the_names_of_its_own_secrets_and_no_value(
    make_rig, client
):
    rig = make_rig(environ={"OWNPOD_SECRET_hub": "hunter2", "HUB": "x"}, images=("ghcr.io/team/*",))
    rig.agent.turn()
    (info,) = rig.agents.agents()
    assert (info.images, info.secrets) == (("ghcr.io/team/*",), ("hub",))
    assert "hunter2" not in client.hget(keys.AGENTS, "h")


def test_workers_go_on_while_redis_is_away(tmp_path):
    server = RedisServer(tmp_path)
    with connect(server.url) as client:
        # It has on disk what it has answered, also when it is killed.
        client.config_set("appendfsync", "always")
        rig = Rig(client)
        try:
            rig.ready(spec=ON_GPU)
            server.process.kill()
            for _ in range(2):
                with pytest.raises(RedisUnavailable):
                    rig.agent.turn()
            assert (rig.engine.stopped, rig.engine.removed) == ([], [])
            server.start()
            rig.settle()
            assert (rig.phase(), rig.engine.stopped) == (Phase.READY, [])
            assert rig.held() == {(W, "cpu-0")}
        finally:
            rig.end()
            server.stop()


def test_nothing_is_reported_as_ended_while_the_engine_is_away(rig):
    rig.ready(spec=ON_GPU)
    rig.engine.away = "the Docker engine does not answer"
    for _ in range(3):
        with pytest.raises(EngineError):
            rig.agent.turn()
    assert rig.phase() is Phase.READY
    assert rig.held() == {(W, "cpu-0")}
    # The host lives, so that its workers do not count as lost.
    (info,) = rig.agents.agents()
    assert info.silent_s < 60
    rig.engine.away = ""
    rig.settle()
    assert rig.phase() is Phase.READY


def test_a_start_that_redis_did_not_hear_of_is_found_again(tmp_path):
    server = RedisServer(tmp_path)
    with connect(server.url) as client:
        client.config_set("appendfsync", "always")
        rig = Rig(client)
        try:
            rig.engine.holding.clear()
            rig.want(spec=ON_GPU)
            rig.turn_until(lambda: rig.engine.launched)
            server.process.kill()
            rig.engine.holding.set()
            wait_until(lambda: not rig.agent.steps.under_way, 30)
            server.start()
            rig.turn_until(lambda: rig.phase() is Phase.STARTING)
            assert len(rig.engine.launched) == 1
        finally:
            rig.end()
            server.stop()


# The end.


def test_the_end_of_an_installation_ends_its_workers_and_frees_their_devices(rig):
    rig.ready(W, ON_GPU)
    rig.started(X, ON_GPU)
    rig.agent.end_workers(grace_s=1)
    wait_until(lambda: not rig.held())
    assert sorted(rig.engine.stopped) == [W, X]
    for worker_id in (W, X):
        worker = rig.managed.get(worker_id)
        assert (worker.phase, worker.failed) == (Phase.STOPPED, False)
        assert worker.reason == "OwnPod was stopped"


def test_a_worker_whose_start_is_under_way_at_the_end_of_an_installation_is_ended_too(rig):
    rig.engine.holding.clear()
    rig.want(spec=ON_GPU)
    rig.turn_until(lambda: rig.engine.launched)
    end = threading.Thread(target=rig.agent.end_workers, args=(20,))
    end.start()
    wait_until(lambda: rig.agent.steps._starts.closed)
    rig.engine.holding.set()
    end.join(60)
    assert not any(found.running for found in rig.engine.workers.values())
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    assert (rig.held(), rig.managed.get(W).failed) == (set(), False)


def test_a_worker_that_cannot_be_ended_keeps_no_other_one_at_the_end(rig, monkeypatch):
    rig.ready(W)
    rig.ready(X)
    stop = rig.engine.stop

    def refuse(worker_id, grace_s=0):
        if worker_id == W:
            raise EngineError("it does not end after SIGKILL")
        stop(worker_id, grace_s)

    monkeypatch.setattr(rig.engine, "stop", refuse)
    rig.agent.end_workers(1)
    wait_until(lambda: rig.phase(X) is Phase.STOPPED)
    assert rig.phase(W) is Phase.STOPPING
    rig.engine.away = "the engine does not answer"
    rig.agent.end_workers(1)


def test_no_worker_is_started_any_more_at_the_end_of_an_installation(rig):
    rig.agent.turn()
    rig.agent.end_workers(1)
    rig.want()
    rig.settle()
    assert rig.engine.launched == []


def test_the_loop_starts_what_is_wanted_and_leaves_the_workers_at_its_end(rig):
    thread = threading.Thread(target=rig.agent.run)
    thread.start()
    try:
        rig.want()
        wait_until(lambda: rig.phase() is Phase.STARTING)
        rig.engine.away = "the engine does not answer"
        wait_until(lambda: rig.agent._notes._problem)
        rig.engine.away = ""
        rig.want(X)
        wait_until(lambda: rig.phase(X) is Phase.STARTING)
    finally:
        rig.agent.stop()
        thread.join(60)
        # Ends the thread that listens, before its client is closed.
        rig.managed.notice()
        wait_until(lambda: not any(t.name == "listen" for t in threading.enumerate()))
    assert not thread.is_alive()
    assert rig.engine.stopped == []


# Output.


def test_the_output_of_a_worker_is_kept_and_its_end_is_the_log_of_its_record(make_rig):
    rig = make_rig()
    rig.ready()
    outputs = Outputs(rig.client)
    rig.engine.outputs[W] = [b"one\ntw", b"o\n"]
    rig.turn_until(lambda: [line.text for line in outputs.last(W)] == ["one", "two"])
    rig.engine.outputs[W] += [b"three"]
    rig.engine.change(W, running=False, exit_code=137, out_of_memory=True)
    rig.turn_until(lambda: rig.phase() is Phase.STOPPED)
    worker = rig.managed.get(W)
    assert worker.log == "one\ntwo\nthree"
    assert (worker.out_of_memory, worker.ended_in, worker.exit_code) == (True, Phase.READY, 137)


def test_an_agent_that_finds_an_ended_worker_keeps_its_output_before_it_removes_it(make_rig):
    first = make_rig()
    first.ready()
    first.end()
    first.engine.outputs[W] = [b"the last words\n"]
    first.engine.change(W, running=False, exit_code=1)
    second = make_rig(first.engine)
    second.turn_until(lambda: second.phase() is Phase.STOPPED)
    assert [line.text for line in Outputs(second.client).last(W)] == ["the last words"]
    wait_until(lambda: second.engine.removed == [W])
