"""Devices that go from one managed worker to another: each step in Redis, and what makes it fail."""

from dataclasses import replace

import pytest
from helpers import job_store, new_job

from ownpod.rules.managed import AgentInfo, Phase
from ownpod.rules.sharing import Evict, Victim
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed

W, X, Y, Z = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc", "dddddddddddddd"
SPEC = ManagedSpec(Template(command=("python", "w.py")), gpu=GpuNeed((), 1))
ON_TWO = replace(SPEC, gpu=GpuNeed((), 2))


class World:
    """Two hosts, workers of the endpoints a and c on devices, and a wanted one of b."""

    def __init__(self, client):
        self.client = client
        self.managed = Managed(client)
        self.agents = Agents(client)
        self.jobs = job_store(client).jobs
        for host in ("h", "g"):
            self.agents.heartbeat(AgentInfo(host, "process"), "t")

    def want(self, worker=W, endpoint="b", spec=SPEC):
        assert self.managed.want(worker, endpoint, spec=spec)

    def ready(self, worker=X, endpoint="a", device="gpu-0", host="h"):
        self.want(worker, endpoint)
        assert self.managed.place(worker, host, "t", [device])
        assert self.managed.started(worker, host)
        assert self.managed.ready(worker)

    def evict(self, *victims, slots=("gpu-0#0",), busy=False, host="h", beneficiary=W):
        names = victims or (X,)
        chosen = tuple(Victim(name, "a", f"its device goes to b: {name}", busy) for name in names)
        return self.managed.evict(Evict(host, chosen, tuple(slots), ""), beneficiary)

    def phase(self, worker):
        return self.managed.get(worker).phase

    def stop(self, worker=X, host="h"):
        return self.managed.stopped(worker, host, exit_code=0, reason="done", failed=False)

    def next(self):
        return {
            (host, hold.device, hold.slot): hold.next
            for host, holds in self.agents.all_holds().items()
            for hold in holds
            if hold.next
        }


@pytest.fixture
def world(client):
    found = World(client)
    found.want()
    found.ready()
    return found


def test_a_victim_gets_no_more_jobs_and_its_device_is_kept_for_the_wanted_worker(world):
    assert world.evict()
    victim = world.managed.get(X)
    assert (victim.phase, victim.reason) == (Phase.DRAINING, f"its device goes to b: {X}")
    assert world.client.hget(keys.PAUSED, X) == victim.reason
    (hold,) = world.agents.holds("h")
    assert (hold.worker, hold.next, hold.is_reservation) == (X, W, False)
    assert world.stop()
    (hold,) = world.agents.holds("h")
    assert (hold.worker, hold.next, hold.is_reservation) == (None, W, False)
    world.want(Y, "c")
    assert not world.managed.place(Y, "h", "t", ["gpu-0"])
    assert world.managed.place(W, "h", "t", ["gpu-0"])
    assert world.next() == {}
    assert world.client.hgetall(keys.of_endpoint("a", "swaps")) == {"b": "1"}


def test_a_repeated_call_changes_nothing(world):
    assert world.evict()
    before = world.client.hgetall(keys.managed(X)), world.next()
    assert world.evict()
    assert (world.client.hgetall(keys.managed(X)), world.next()) == before
    assert world.client.hgetall(keys.of_endpoint("a", "swaps")) == {"b": "1"}


def job_waits(world):
    world.jobs.create(new_job("job-1", endpoint="a"))


def job_runs(world):
    world.client.hset(keys.running("a"), "job-1", X)


def handler_goes_on(world):
    world.client.hset(keys.worker(X), "held", "1")


def job_is_pinned_to_it(world):
    world.client.hset(keys.of_endpoint("a", "queues"), f"ownpod.jobs.a.{X}", 1)


WORKS = [job_waits, job_runs, handler_goes_on, job_is_pinned_to_it]


@pytest.mark.parametrize("happens", WORKS)
def test_a_job_that_comes_in_between_makes_the_step_fail(world, happens):
    happens(world)
    before = world.client.hgetall(keys.managed(X))
    assert not world.evict()
    assert world.client.hgetall(keys.managed(X)) == before
    assert world.next() == {}
    assert not world.client.exists(keys.of_endpoint("a", "swaps"))


@pytest.mark.parametrize("happens", WORKS)
def test_a_worker_whose_time_is_over_drains_while_it_works(world, happens):
    happens(world)
    assert world.evict(busy=True)
    assert world.phase(X) is Phase.DRAINING


def test_jobs_of_other_workers_do_not_keep_a_victim(world):
    world.client.hset(keys.running("a"), "job-1", Z)
    world.client.hset(keys.of_endpoint("a", "queues"), mapping={f"q.a.{Z}": 1, f"q.a.{X}": 0})
    world.client.zadd(keys.queued("a"), {"job-2": 1})
    world.client.zadd(keys.of_endpoint("a", "pinned"), {"job-2": 1})
    assert world.evict()


CHANGES = {
    "the victim drains": lambda w: w.managed.drain(X, "idle"),
    "the victim has ended": lambda w: w.stop(),
    "the wanted worker is discarded": lambda w: w.managed.discard(W, "no job"),
    "the wanted worker has a place": lambda w: w.managed.place(W, "g", "t", ["gpu-9"]),
    "the host is drained": lambda w: w.agents.drain_host("h"),
    "the device is reserved": lambda w: w.agents.reserve("h", "gpu-0", "a test"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_since_the_choice_makes_the_step_fail(world, change):
    CHANGES[change](world)
    phase = world.phase(X)
    assert not world.evict()
    assert world.phase(X) is phase
    assert world.next() == {}


def test_a_worker_of_another_host_or_of_the_same_endpoint_is_no_victim(world):
    assert not world.evict(host="g")
    world.ready(Y, endpoint="b", device="gpu-1")
    assert not world.evict(Y, slots=["gpu-1#0"])
    assert not world.evict("eeeeeeeeeeeeee")


def test_all_victims_give_way_or_none(world):
    world.ready(Y, "c", "gpu-1")
    world.want(Z, "d", ON_TWO)
    world.client.hset(keys.running("c"), "job-1", Y)
    both = {"slots": ["gpu-0#0", "gpu-1#0"], "beneficiary": Z}
    assert not world.evict(X, Y, **both)
    assert (world.phase(X), world.phase(Y)) == (Phase.READY, Phase.READY)
    world.client.delete(keys.running("c"))
    assert not world.evict(X, Y, slots=["gpu-0#0"], beneficiary=Z)
    assert world.evict(X, Y, **both)
    assert (world.phase(X), world.phase(Y)) == (Phase.DRAINING, Phase.DRAINING)
    assert world.next() == {("h", "gpu-0", 0): Z, ("h", "gpu-1", 0): Z}


def test_what_is_free_already_is_kept_too(world):
    world.want(Z, "d", ON_TWO)
    assert world.evict(X, slots=["gpu-0#0", "gpu-1#0"], beneficiary=Z)
    world.want(Y, "c")
    assert not world.managed.place(Y, "h", "t", ["gpu-1"])
    assert world.managed.place(Y, "h", "t", ["gpu-2"])
    world.stop()
    assert world.managed.place(Z, "h", "t", ["gpu-0", "gpu-1"])


def test_a_slot_that_is_kept_or_held_goes_to_no_second_worker(world):
    world.ready(Y, "c", "gpu-1")
    world.want(Z, "d")
    assert not world.evict(X, slots=["gpu-1#0"])
    assert world.evict()
    assert not world.evict(Y, slots=["gpu-0#0"], beneficiary=Z)
    assert world.phase(Y) is Phase.READY


def test_a_better_choice_replaces_what_was_kept(world):
    world.ready(Y, "c", "gpu-1")
    assert world.evict(busy=True)
    assert world.evict(Y, slots=["gpu-1#0"])
    assert world.next() == {("h", "gpu-1", 0): W}


def test_what_is_kept_for_a_worker_that_is_not_wanted_any_more_is_free(world):
    world.want(Y, "c")
    assert world.evict()
    world.stop()
    world.managed.discard(W, "no waiting job needs it")
    assert world.next() == {}
    assert world.managed.place(Y, "h", "t", ["gpu-0"])


def test_a_note_of_a_worker_without_a_record_is_void(world):
    world.want(Y, "c")
    world.stop()
    world.client.hset(keys.DEVICES_NEXT, "h/gpu-0#0", Z)
    assert world.next() == {}
    assert world.managed.place(Y, "h", "t", ["gpu-0"])
    assert not world.client.exists(keys.DEVICES_NEXT)


def test_a_worker_that_finds_another_place_leaves_what_was_kept(world):
    assert world.evict()
    assert world.managed.place(W, "g", "t", ["gpu-9"])
    assert world.next() == {}


def test_kept_devices_can_be_given_up(world):
    assert world.evict()
    world.managed.unkeep(W)
    assert world.next() == {}
    world.managed.unkeep(W)


def test_of_a_shared_device_only_the_kept_slot_is_kept(world):
    world.want(Y, "c")
    assert world.evict()
    world.stop()
    assert world.managed.place(Y, "h", "t", {"gpu-0": 2})
    assert world.managed.place(W, "h", "t", {"gpu-0": 2})
    slots = {(hold.worker, hold.slot) for hold in world.agents.holds("h")}
    assert slots == {(Y, 1), (W, 0)}


def test_a_removed_host_keeps_nothing(world):
    assert world.evict()
    world.client.hset(keys.AGENTS_SEEN, "h", "1 t")
    world.managed.lost(X, "silent")
    assert world.agents.remove_agent("h")
    assert world.next() == {}


def test_a_hold_shows_since_when_its_worker_is_idle(world):
    (hold,) = world.agents.holds("h")
    assert hold.idle_s is None
    world.managed.saw([], [X])
    (hold,) = world.agents.holds("h")
    assert 0 <= hold.idle_s < 60


def test_the_last_load_of_an_endpoint_is_remembered(world):
    world.client.hincrby(keys.managed(X), "started_ms", 0)
    assert int(world.client.hget(keys.of_endpoint("a", "starts"), "load_ms")) >= 0
    world.want(Y, "a")
    world.managed.place(Y, "g", "t", ["gpu-0"])
    world.managed.started(Y, "g")
    world.client.hincrby(keys.managed(Y), "started_ms", -7000)
    world.managed.ready(Y)
    load_ms = int(world.client.hget(keys.of_endpoint("a", "starts"), "load_ms"))
    assert 7000 <= load_ms < 60_000
