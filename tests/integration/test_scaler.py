"""The scaler's decisions as they come into Redis: what is wanted, drained, recycled, lost, and why it waits."""

import time
from dataclasses import replace

import pytest
from helpers import job_store, load_settings, new_job

from ownpod.errors import RedisUnavailable
from ownpod.housekeeping.scaler import LEAD_S, PATIENCE_S, STUCK_S, Scaler, new_worker_id
from ownpod.registry import Registry
from ownpod.rules.endpoints import HOUSEKEEPING, Endpoint
from ownpod.rules.managed import HOST_SILENT_S, WORKER_ID, AgentInfo, Device, Phase
from ownpod.rules.templates import GpuNeed, Hours, ManagedSpec, ScalerType, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed

# They take a tenth of the time of all fast tests.
pytestmark = pytest.mark.slow

SPEC = ManagedSpec(
    Template(image="i:1", command=("python", "w.py")),
    Scaling(workers_max=2, idle_timeout_s=5, scaler=ScalerType.REQUEST_COUNT, scaler_value=1),
)
ON_GPU = replace(SPEC, gpu=GpuNeed(("low",), 1))


def endpoint(spec=SPEC, name="ep"):
    return Endpoint(name, (), 600_000, 86_400_000, 3, 0, managed=spec)


class Rig:
    """A scaler that decides when a test says so."""

    def __init__(self, client):
        self.client = client
        self.managed = Managed(client)
        self.agents = Agents(client)
        self.jobs = job_store(client).jobs
        self.registry = Registry({"ep": endpoint()}, Fleet(client), load_settings())
        self.now_s = time.monotonic()
        self.scaler = self.make()
        self.beat()

    def make(self, wakeups=None):
        clock = lambda: self.now_s  # noqa: E731
        return Scaler(
            self.registry, self.managed, self.agents, wakeups or Wakeups(self.client), clock=clock
        )

    def beat(self, host="h", *devices):
        self.agents.heartbeat(AgentInfo(host, "process", devices), f"{host}:1")

    def silence(self, host="h", seconds=HOST_SILENT_S + 1):
        """The last heartbeat of the host was so many seconds ago."""
        at, _, token = self.client.hget(keys.AGENTS_SEEN, host).partition(" ")
        self.client.hset(keys.AGENTS_SEEN, host, f"{int(at) - int(seconds * 1000)} {token}")

    def submit(self, job_id="job-1"):
        self.jobs.create(new_job(job_id))

    def workers(self, *phases):
        found = self.managed.list("ep")
        return [w for w in found if not phases or w.phase in phases]

    def start(self, phase=Phase.READY, devices=(), host="h"):
        """A worker of the endpoint in a phase; returns its id."""
        worker_id = new_worker_id()
        spec = self.registry.endpoints["ep"].managed
        assert self.managed.want(worker_id, "ep", spec=spec)
        if phase is not Phase.WANTED:
            assert self.managed.place(worker_id, host, f"{host}:1", devices)
        if phase not in {Phase.WANTED, Phase.PREPARING}:
            assert self.managed.started(worker_id, host)
        if phase is Phase.READY:
            assert self.managed.ready(worker_id)
        return worker_id


@pytest.fixture
def rig(client):
    return Rig(client)


def test_the_id_of_a_new_worker_is_one_as_runpod_has_it():
    ids = {new_worker_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(WORKER_ID.fullmatch(worker_id) for worker_id in ids)


# How many.


def test_a_waiting_job_lets_a_worker_be_wanted_once(rig):
    rig.scaler.once()
    assert rig.workers() == []
    rig.submit()
    for _ in range(3):
        rig.scaler.once()
    (worker,) = rig.workers()
    assert (worker.phase, worker.release) == (Phase.WANTED, SPEC.release)


def test_never_more_workers_than_the_endpoints_most(rig):
    for number in range(9):
        rig.submit(f"job-{number}")
    for _ in range(3):
        rig.scaler.once()
    assert len(rig.workers()) == 2


def test_a_successor_of_the_scaler_wants_nothing_again(rig):
    rig.submit()
    rig.scaler.once()
    rig.make().once()
    assert len(rig.workers()) == 1


def test_an_idle_worker_is_drained_after_its_time(rig):
    worker_id = rig.start()
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY
    # By Redis's clock, so that a restarted scaler knows it.
    since = int(rig.client.hget(keys.MANAGED_IDLE, worker_id))
    rig.client.hset(keys.MANAGED_IDLE, worker_id, since - 5000)
    rig.make().once()
    worker = rig.managed.get(worker_id)
    assert (worker.phase, worker.reason) == (Phase.DRAINING, "it was idle for 5 s")


def test_a_busy_worker_is_not_drained(rig):
    worker_id = rig.start()
    rig.client.hset(keys.MANAGED_IDLE, worker_id, 1)
    rig.client.hset(keys.running("ep"), "job-1", worker_id)
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY


def test_nothing_starts_during_the_pause_after_a_failed_start(rig):
    rig.submit()
    worker_id = rig.start(Phase.STARTING)
    reason = "it ended with exit code 3"
    assert rig.managed.stopped(worker_id, "h", exit_code=3, reason=reason, failed=True)
    rig.scaler.once()
    assert rig.workers() == []
    rig.client.hset(f"{keys.MANAGED_FAILURES}ep", "until_ms", 1)
    rig.scaler.once()
    assert len(rig.workers(Phase.WANTED)) == 1


# Templates that change.


def test_the_workers_of_an_endpoint_without_a_template_leave(rig):
    wanted, ready = rig.start(Phase.WANTED), rig.start()
    rig.registry.reload({"ep": endpoint(None)})
    rig.scaler.once()
    reason = "its endpoint has no template any more"
    for worker_id, phase in ((wanted, Phase.STOPPED), (ready, Phase.DRAINING)):
        worker = rig.managed.get(worker_id)
        assert (worker.phase, worker.reason) == (phase, reason)


def test_the_workers_of_an_endpoint_that_is_gone_leave(rig):
    worker_id = rig.start()
    rig.registry.reload({})
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.DRAINING


def test_an_idle_worker_of_another_release_is_replaced_once_the_new_release_comes_up(rig):
    worker_id = rig.start()
    template = replace(SPEC.template, image="i:2")
    rig.registry.reload({"ep": endpoint(replace(SPEC, template=template))})
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY
    (new,) = rig.workers(Phase.WANTED)
    assert new.release != SPEC.release
    rig.start()
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.DRAINING


# Hosts that are silent.


def test_the_workers_of_a_silent_host_are_lost_and_replaced_and_keep_their_devices(rig):
    rig.registry.reload({"ep": endpoint(ON_GPU)})
    worker_id = rig.start(devices=["cpu-0"])
    rig.submit()
    rig.now_s += PATIENCE_S
    rig.silence()
    rig.scaler.once()
    worker = rig.managed.get(worker_id)
    assert worker.phase is Phase.STOPPED
    assert worker.reason == "its host h has been silent for 60 s"
    assert len(rig.workers(Phase.WANTED)) == 1
    # It may run there still.
    assert [hold.worker for hold in rig.agents.holds("h")] == [worker_id]


def test_the_workers_of_a_host_that_publishes_stay(rig):
    worker_id = rig.start()
    rig.now_s += 1000
    rig.silence(seconds=HOST_SILENT_S - 5)
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY


def test_no_host_is_silent_just_after_the_start_of_the_scaler(rig):
    worker_id = rig.start()
    rig.silence()
    rig.now_s += PATIENCE_S - 1
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY
    rig.now_s += 1
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.STOPPED


class Ended(BaseException):
    """Ends the scaler's loop."""


class Turns:
    """Wakes a scaler so many times, and then ends its loop."""

    def __init__(self, count):
        self._left = count

    def wait(self, _timeout_s):
        self._left -= 1
        if self._left < 0:
            raise Ended


def test_no_host_is_silent_just_after_an_outage_of_redis(rig, monkeypatch):
    worker_id = rig.start()
    rig.now_s += 1000
    rig.silence()
    scaler = rig.make(Turns(2))
    rig.now_s += 1000
    once, errors = scaler.once, [RedisUnavailable("away")]

    def turn():
        if errors:
            raise errors.pop()
        once()

    monkeypatch.setattr(scaler, "once", turn)
    with pytest.raises(Ended):
        scaler.run()
    assert rig.managed.get(worker_id).phase is Phase.READY
    # In steps, because the scaler takes a leap of its clock for one that was set.
    for _ in range(int(PATIENCE_S)):
        rig.now_s += 1
        scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.STOPPED


def test_a_wanted_worker_belongs_to_no_host_and_is_not_lost(rig):
    rig.submit()
    rig.scaler.once()
    rig.now_s += 1000
    rig.silence()
    rig.scaler.once()
    assert len(rig.workers(Phase.WANTED)) == 1


# Handlers that do not end.


def test_a_worker_whose_handler_goes_on_after_its_job_is_stopped(rig):
    worker_id = rig.start()
    rig.client.hset(keys.worker(worker_id), mapping={"state": "BUSY", "held": 1})
    rig.scaler.once()
    rig.now_s += STUCK_S
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY
    rig.now_s += 1
    rig.scaler.once()
    worker = rig.managed.get(worker_id)
    assert worker.phase is Phase.STOPPING
    assert worker.reason == "its executionTimeout has passed, and its handler still runs"


def test_a_handler_that_ends_in_time_costs_no_worker(rig):
    worker_id = rig.start()
    for held in (1, 0, 1):
        rig.client.hset(keys.worker(worker_id), mapping={"state": "BUSY", "held": held})
        rig.scaler.once()
        rig.now_s += STUCK_S - 1
    rig.scaler.once()
    assert rig.managed.get(worker_id).phase is Phase.READY


# Why it waits.


def waits(rig, *devices):
    rig.registry.reload({"ep": endpoint(ON_GPU)})
    if devices:
        rig.beat("h", *devices)
    rig.submit("job-9")
    rig.scaler.once()
    (worker,) = rig.workers(Phase.WANTED)
    # Not at once, because an agent takes most of them within a moment.
    rig.scaler.once()
    assert rig.managed.get(worker.id).reason == ""
    rig.scaler.once()
    return rig.managed.get(worker.id).reason


LOW = Device("cpu-0", 0, "stand-in", pools=("low",), simulated=True)


def test_a_worker_waits_for_a_busy_device(rig):
    rig.client.hset(keys.DEVICES_HELD, "h/cpu-0#0", "x" * 14)
    assert waits(rig, LOW) == "the only device of pool low is busy"


def test_a_worker_waits_for_a_device_that_no_host_has(rig):
    assert waits(rig, replace(LOW, pools=("high",))) == "no host has a device of pool low"


def test_a_worker_waits_for_an_agent(rig):
    rig.client.delete(keys.AGENTS)
    assert waits(rig) == "no agent is running"


def test_a_worker_waits_for_a_host_that_is_not_drained(rig):
    rig.agents.drain_host("h")
    assert waits(rig, LOW) == "host h is drained"


def test_the_reason_is_gone_when_the_worker_has_a_device(rig):
    rig.client.hset(keys.DEVICES_HELD, "h/cpu-0#0", "x" * 14)
    assert waits(rig, LOW)
    rig.client.delete(keys.DEVICES_HELD)
    (worker,) = rig.workers()
    assert rig.managed.place(worker.id, "h", "h:1", ["cpu-0"])
    assert rig.managed.get(worker.id).reason == ""


# What is broken.


def test_an_endpoint_whose_keys_cannot_be_read_stops_no_other_one(rig):
    rig.registry.reload({"ep": endpoint(), "broken": endpoint(name="broken")})
    rig.client.set(keys.running("broken"), "no hash")
    rig.submit()
    rig.scaler.once()
    assert len(rig.workers()) == 1


def test_one_scaler_decides_at_a_time(rig):
    rig.submit()
    rig.registry.fleet.acquire(HOUSEKEEPING, "another:1", ttl_s=LEAD_S)
    with pytest.raises(Ended):
        rig.make(Turns(2)).run()
    assert rig.workers() == []
    rig.registry.fleet.release(HOUSEKEEPING, "another:1")
    with pytest.raises(Ended):
        rig.make(Turns(2)).run()
    assert len(rig.workers()) == 1


def test_an_expired_endpoints_workers_leave_and_its_jobs_stay(rig):
    worker = rig.start()
    rig.submit()
    spec = replace(SPEC, expires_ms=rig.managed.now_ms() - 1)
    rig.registry.reload({"ep": endpoint(spec)})
    rig.scaler.once()
    assert [w.id for w in rig.workers(Phase.DRAINING)] == [worker]
    assert not rig.workers(Phase.WANTED)
    assert rig.jobs.get("job-1", "ep").status == "IN_QUEUE"
    rig.registry.reload({"ep": endpoint()})
    rig.scaler.once()
    assert rig.workers(Phase.WANTED)


def test_hours_decide_the_numbers_of_workers(rig):
    all_day = Hours(tuple(range(7)), 0, 1440, workers_min=2, workers_max=3)
    rig.registry.reload({"ep": endpoint(replace(SPEC, hours=(all_day,)))})
    rig.scaler.once()
    assert len(rig.workers()) == 2
