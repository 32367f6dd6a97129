"""The scaler lets workers give way: with the real records, and no loop between what it wants and what it drains."""

import re
import time
from dataclasses import replace

import pytest
from helpers import job_store, load_settings, new_job

from ownpod.housekeeping.scaler import Scaler, new_worker_id
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo, Device, Phase
from ownpod.rules.templates import GpuNeed, ManagedSpec, Scaling, Sharing, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed

pytestmark = pytest.mark.slow

SPEC = ManagedSpec(
    Template(command=("python", "w.py")),
    Scaling(workers_max=1, idle_timeout_s=3600),
    gpu=GpuNeed((), 1),
)
CARD = Device("cpu-0", 0, "stand-in", simulated=True)


def sharing(spec=SPEC, **values):
    return replace(spec, template=replace(spec.template, sharing=Sharing(**values)))


class Rig:
    """A scaler that decides when a test says so, one host with one device, and its agent's steps."""

    def __init__(self, client, **specs):
        self.client = client
        self.managed, self.agents = Managed(client), Agents(client)
        self.jobs = job_store(client).jobs
        specs = specs or {"a": SPEC, "b": SPEC}
        self.registry = Registry({}, Fleet(client), load_settings())
        self.configure(**specs)
        self.scaler = Scaler(
            self.registry, self.managed, self.agents, Wakeups(client), clock=time.monotonic
        )
        self.devices = [CARD]
        self.beat()

    def configure(self, **specs):
        self.registry.reload(
            {n: Endpoint(n, (), 600_000, 86_400_000, 3, 0, managed=s) for n, s in specs.items()}
        )

    def beat(self):
        self.agents.heartbeat(AgentInfo("h", "process", tuple(self.devices)), "h:1")

    def submit(self, endpoint, job_id="", waited_s=0):
        job_id = job_id or f"job-{new_worker_id()}"
        self.jobs.create(new_job(job_id, endpoint=endpoint))
        self.client.zincrby(keys.queued(endpoint), -waited_s * 1000, job_id)
        return job_id

    def done(self, endpoint, job_id):
        self.client.zrem(keys.queued(endpoint), job_id)

    def ready(self, endpoint="a", device="cpu-0", ready_s=100, load_s=2, idle_s=41):
        worker = new_worker_id()
        spec = self.registry.endpoints[endpoint].managed
        assert self.managed.want(worker, endpoint, spec=spec)
        self.make_ready(worker, device, ready_s, load_s, idle_s)
        return worker

    def make_ready(self, worker, device="cpu-0", ready_s=0, load_s=2, idle_s=None):
        assert self.managed.place(worker, "h", "h:1", [device])
        assert self.managed.started(worker, "h")
        self.client.hincrby(keys.managed(worker), "started_ms", -load_s * 1000)
        assert self.managed.ready(worker)
        for field in ("started_ms", "ready_ms"):
            self.client.hincrby(keys.managed(worker), field, -ready_s * 1000)
        if idle_s is not None:
            self.client.hset(keys.MANAGED_IDLE, worker, int((time.time() - idle_s) * 1000))

    def wanted(self, endpoint="b"):
        found = [w for w in self.managed.list(endpoint) if w.phase is Phase.WANTED]
        assert len(found) <= 1
        return found[0] if found else None

    def phase(self, worker):
        return self.managed.get(worker).phase

    def stop(self, worker):
        assert self.managed.stopped(worker, "h", exit_code=0, reason="x", failed=False)

    def next(self):
        return [hold.next for hold in self.agents.holds("h") if hold.next]


@pytest.fixture
def rig(client):
    return Rig(client)


def test_a_job_for_another_endpoint_frees_the_device_of_an_idle_one_in_the_same_turn(rig):
    a = rig.ready()
    rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted()
    assert rig.phase(a) is Phase.DRAINING
    assert "its device goes to b, it was idle for 4" in rig.managed.get(a).reason
    assert rig.next() == [wanted.id]
    for _ in range(2):
        rig.scaler.once()
    reason = rig.managed.get(wanted.id).reason
    assert reason.startswith("device 0 is being freed (a, idle 4")
    rig.stop(a)
    rig.make_ready(wanted.id)
    assert rig.next() == []


def test_the_worker_that_gave_way_is_not_wanted_again_without_a_job(rig):
    a = rig.ready()
    job = rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted()
    rig.stop(a)
    rig.make_ready(wanted.id)
    rig.done("b", job)
    for _ in range(5):
        rig.scaler.once()
    assert rig.managed.list("a") == []
    assert [w.id for w in rig.managed.list("b")] == [wanted.id]


def test_jobs_a_b_a_a_run_as_a_a_a_b(rig):
    a = rig.ready(idle_s=None)
    first, _, second = rig.submit("a"), rig.submit("b"), rig.submit("a")
    for left in (first, second):
        for _ in range(2):
            rig.scaler.once()
        assert rig.phase(a) is Phase.READY
        rig.done("a", left)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING


def test_a_worker_that_has_just_come_stays_for_its_residency_and_the_reason_shows_it(rig):
    rig.ready(ready_s=4)
    rig.submit("b")
    for _ in range(3):
        rig.scaler.once()
    assert rig.wanted().reason in {
        f"the only device is busy: a may be swapped in {n} s" for n in range(1, 7)
    }


def test_an_endpoint_with_work_gives_way_after_its_hold(rig):
    a = rig.ready(idle_s=None)
    rig.submit("a")
    job = rig.submit("b", waited_s=20)
    rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    rig.client.zincrby(keys.queued("b"), -15_000, job)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING
    assert re.search(r"whose oldest job has waited for 3\d s", rig.managed.get(a).reason)
    # Its endpoint waits for its turn, and drains nothing meanwhile.
    wanted = rig.wanted()
    rig.stop(a)
    rig.scaler.once()
    assert rig.wanted("a") is not None
    rig.make_ready(wanted.id)
    for _ in range(3):
        rig.scaler.once()
    assert rig.phase(wanted.id) is Phase.READY
    assert "b may be swapped in" in rig.wanted("a").reason


def released(spec=SPEC):
    return replace(spec, template=replace(spec.template, command=("python", "new.py")))


def test_a_job_gets_the_device_before_the_trial_of_a_release_and_no_worker_is_wanted_in_a_circle(
    client,
):
    both = replace(SPEC, scaling=Scaling(workers_max=2, idle_timeout_s=3600))
    rig = Rig(client, a=both, b=SPEC)
    rig.scaler.once()
    a = rig.ready("a")
    rig.configure(a=released(both), b=SPEC)
    rig.scaler.once()
    assert rig.wanted("a") is not None
    job = rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted("b")
    assert rig.phase(a) is Phase.DRAINING
    assert rig.next() == [wanted.id]
    rig.scaler.once()
    assert rig.wanted("a") is None
    rig.stop(a)
    rig.make_ready(wanted.id)
    rig.done("b", job)
    for _ in range(5):
        rig.scaler.once()
    assert [w.id for w in (*rig.managed.list("a"), *rig.managed.list("b"))] == [wanted.id]


def test_a_younger_one_with_a_shorter_hold_does_not_pass_an_older_one(client):
    rig = Rig(client, a=SPEC, b=SPEC, c=SPEC)
    client.hset(keys.of_endpoint("c", "starts"), "load_ms", 20_000)
    a = rig.ready(ready_s=50, idle_s=None)
    rig.submit("a")
    rig.submit("c", waited_s=40)
    rig.scaler.once()
    older = rig.wanted("c")
    rig.submit("b", waited_s=39)
    rig.scaler.once()
    assert rig.wanted("b") is not None
    assert rig.phase(a) is Phase.READY
    for endpoint in ("b", "c"):
        for job in client.zrange(keys.queued(endpoint), 0, -1):
            client.zincrby(keys.queued(endpoint), -40_000, job)
    client.hincrby(keys.managed(a), "ready_ms", -40_000)
    client.hincrby(keys.managed(a), "started_ms", -40_000)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING
    assert rig.next() == [older.id]


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, scaling=replace(SPEC.scaling, workers_min=1)),
        sharing(pinned=True),
        sharing(evictable=False),
        sharing(residency_s=3600),
    ],
)
def test_what_was_promised_stays(client, spec):
    rig = Rig(client, a=spec, b=SPEC)
    a = rig.ready()
    rig.submit("b", waited_s=900)
    for _ in range(4):
        rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    assert rig.next() == []


def test_pinned_workers_do_not_leave_for_being_idle(client):
    rig = Rig(client, a=sharing(pinned=True), b=SPEC)
    a = rig.ready(ready_s=9000, idle_s=9000)
    rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    rig.configure(a=SPEC, b=SPEC)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING


def test_two_that_wait_get_two_victims(client):
    rig = Rig(client, a=SPEC, b=SPEC, c=SPEC, d=SPEC)
    rig.devices.append(replace(CARD, id="cpu-1", index=1))
    rig.beat()
    victims = {rig.ready("a"), rig.ready("c", "cpu-1")}
    rig.submit("b")
    rig.submit("d")
    rig.scaler.once()
    assert {rig.phase(worker) for worker in victims} == {Phase.DRAINING}
    assert sorted(rig.next()) == sorted([rig.wanted("b").id, rig.wanted("d").id])


def test_two_that_wait_do_not_take_both_workers_of_which_one_was_promised(client):
    promises = replace(SPEC, scaling=replace(SPEC.scaling, workers_min=1, workers_max=2))
    rig = Rig(client, a=promises, b=SPEC, d=SPEC)
    rig.devices.append(replace(CARD, id="cpu-1", index=1))
    rig.beat()
    workers = [rig.ready("a"), rig.ready("a", "cpu-1")]
    rig.submit("b")
    rig.submit("d")
    for _ in range(3):
        rig.scaler.once()
        assert sorted(map(rig.phase, workers)) == [Phase.DRAINING, Phase.READY]


def test_one_free_device_for_two_that_wait_frees_one_more(client):
    rig = Rig(client, a=SPEC, b=SPEC, d=SPEC)
    rig.devices.append(replace(CARD, id="cpu-1", index=1))
    rig.beat()
    a = rig.ready("a")
    rig.submit("b")
    rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    rig.submit("d")
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING
    assert rig.next() == [rig.wanted("d").id]


def test_a_wanted_worker_that_no_job_needs_any_more_gives_up_the_device(rig):
    a = rig.ready()
    job = rig.submit("b")
    rig.scaler.once()
    assert rig.next()
    rig.done("b", job)
    rig.scaler.once()
    assert rig.wanted() is None
    assert rig.next() == []
    rig.stop(a)
    rig.submit("a")
    rig.scaler.once()
    rig.make_ready(rig.wanted("a").id)


def test_a_host_that_refuses_the_worker_makes_none_give_way(rig):
    a = rig.ready()
    rig.submit("b")
    rig.client.hset(keys.DEVICES_RESERVED, "h/cpu-0", "0 not yet")
    rig.scaler.once()
    wanted = rig.wanted()
    assert rig.managed.refused(wanted.id, "h", refuses=True)
    rig.client.delete(keys.DEVICES_RESERVED)
    for _ in range(3):
        rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    assert rig.managed.refused(wanted.id, "h", refuses=False)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING


def test_none_gives_way_again_to_the_next_worker_of_a_release_that_the_host_refuses(rig):
    a = rig.ready()
    job = rig.submit("b")
    rig.client.hset(keys.DEVICES_RESERVED, "h/cpu-0", "0 not yet")
    rig.scaler.once()
    assert rig.managed.refused(rig.wanted().id, "h", refuses=True)
    rig.client.delete(keys.DEVICES_RESERVED)
    rig.done("b", job)
    rig.scaler.once()
    assert rig.wanted() is None
    rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted()
    assert wanted.refused_by == ("h",)
    assert rig.phase(a) is Phase.READY
    assert rig.managed.refused(wanted.id, "h", refuses=False)
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING
    # Another release, or one that the host can start again, is not refused.
    assert rig.managed.want("z" * 14, "b", spec=SPEC)
    assert rig.managed.get("z" * 14).refused_by == ()


def test_a_device_that_was_freed_for_a_worker_that_the_host_refuses_is_given_up(rig):
    a = rig.ready()
    rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted()
    rig.stop(a)
    assert rig.next() == [wanted.id]
    rig.managed.refused(wanted.id, "h", refuses=True)
    rig.scaler.once()
    assert rig.next() == []


def test_a_device_that_was_freed_for_a_worker_whose_record_breaks_is_given_up(rig):
    a = rig.ready()
    rig.submit("b")
    rig.scaler.once()
    broken = rig.wanted().id
    rig.client.hset(keys.managed(broken), "gpu_count", "many")
    rig.stop(a)
    rig.scaler.once()
    rig.make_ready(rig.wanted().id)


def test_none_gives_way_to_a_wanted_worker_that_no_agent_reads(rig, monkeypatch):
    monkeypatch.setattr("ownpod.housekeeping.sharing.MOST_WANTED", 1)
    impossible = replace(SPEC, gpu=GpuNeed((), 5))
    rig.configure(a=SPEC, b=SPEC, c=impossible)
    a = rig.ready()
    rig.submit("c")
    rig.scaler.once()
    rig.submit("b")
    rig.scaler.once()
    assert rig.phase(a) is Phase.READY


def test_a_worker_whose_start_was_not_recorded_stays_as_long_as_its_load_may_have_taken(rig):
    a = rig.ready(ready_s=30, load_s=2)
    record = keys.managed(a)
    rig.client.hincrby(record, "placed_ms", -90_000)
    rig.client.hdel(record, "started_ms")
    rig.submit("b")
    rig.scaler.once()
    assert rig.phase(a) is Phase.READY


def test_a_device_that_breaks_while_it_is_freed_is_given_up(rig):
    rig.ready()
    rig.submit("b")
    rig.scaler.once()
    assert rig.next()
    rig.devices = [replace(CARD, problem="lost")]
    rig.beat()
    rig.scaler.once()
    assert rig.next() == []


def test_workers_of_a_drained_host_stay(rig):
    a = rig.ready()
    rig.agents.drain_host("h")
    rig.submit("b")
    for _ in range(2):
        rig.scaler.once()
    assert rig.phase(a) is Phase.READY


def test_a_device_that_was_freed_on_a_host_that_is_drained_then_is_given_up(rig):
    a = rig.ready()
    rig.submit("b")
    rig.scaler.once()
    wanted = rig.wanted()
    assert rig.next() == [wanted.id]
    rig.agents.drain_host("h")
    for _ in range(2):
        rig.scaler.once()
    assert rig.next() == []
    assert rig.managed.get(wanted.id).reason == "host h is drained"
    rig.stop(a)
    rig.agents.resume_host("h")
    rig.scaler.once()
    rig.make_ready(wanted.id)
    assert rig.next() == []


@pytest.mark.parametrize("phase", [Phase.WANTED, Phase.STARTING, Phase.READY])
def test_an_endpoint_that_expires_while_a_release_rolls_out_leaves_the_device_to_others(rig, phase):
    rig.scaler.once()
    a = rig.ready("a")
    two = replace(SPEC, scaling=Scaling(workers_max=2, idle_timeout_s=3600))
    new = replace(two, template=replace(two.template, command=("python", "new.py")))
    rig.devices = [CARD, replace(CARD, id="cpu-1", index=1)]
    rig.beat()
    rig.configure(a=new, b=SPEC)
    rig.scaler.once()
    trial = rig.wanted("a").id
    if phase is not Phase.WANTED:
        assert rig.managed.place(trial, "h", "h:1", ["cpu-1"])
        assert rig.managed.started(trial, "h")
    if phase is Phase.READY:
        assert rig.managed.ready(trial)
    rig.configure(a=replace(new, expires_ms=1), b=SPEC)
    rig.submit("b")
    for _ in range(2):
        rig.scaler.once()
    assert {w.phase for w in rig.managed.list("a")} == {Phase.DRAINING}
    for worker in rig.managed.list("a"):
        rig.stop(worker.id)
    rig.make_ready(rig.wanted("b").id)
    for _ in range(3):
        rig.scaler.once()
    assert (rig.phase(a), rig.managed.list("a")) == (Phase.STOPPED, [])


def test_an_endpoint_whose_starts_fail_makes_none_give_way(rig):
    a = rig.ready()
    release = SPEC.release
    rig.client.hset(
        f"{keys.MANAGED_FAILURES}b",
        mapping={"release": release, "created_ms": 1, "count": 5, "until_ms": 1, "reason": "x"},
    )
    rig.submit("b")
    for _ in range(3):
        rig.scaler.once()
    assert rig.phase(a) is Phase.READY
    assert "its last starts have failed" in rig.wanted().reason


def test_an_old_release_that_is_idle_leaves_for_its_own_successor_first(rig):
    a = rig.ready()
    rig.configure(a=replace(SPEC, template=replace(SPEC.template, env={"NEW": "1"})), b=SPEC)
    rig.submit("b")
    rig.scaler.once()
    assert rig.managed.get(a).reason == "the endpoint has a new release"
    rig.scaler.once()
    assert rig.next() == []
    rig.stop(a)
    rig.make_ready(rig.wanted("b").id)


def test_a_record_that_cannot_be_read_stops_no_swap(rig):
    rig.client.hset(keys.DEVICES_NEXT, mapping={"h/x#y": "?", "": "z", "h/cpu-9#0": "x" * 14})
    a = rig.ready()
    rig.submit("b")
    rig.scaler.once()
    assert rig.phase(a) is Phase.DRAINING
