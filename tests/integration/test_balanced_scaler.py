"""Managed workers of load-balanced endpoints: how many there are by what the fronts count, and which comes back."""

from dataclasses import replace

import pytest
from helpers import load_settings, wait_until

from ownpod.errors import WorkerConflict
from ownpod.housekeeping.requests import RequestCounts
from ownpod.housekeeping.scaler import STUCK_S, Scaler, new_worker_id
from ownpod.registry import Registry
from ownpod.rules.balancing import Balancing, RouteReading, ServerReading
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.rules.managed import AgentInfo, Device, Phase
from ownpod.rules.scaling import UNHEALTHY_S
from ownpod.rules.templates import GpuNeed, ManagedSpec, Protocol, ScalerType, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers

pytestmark = pytest.mark.slow

FRONT = Front("front-1", None)
SPEC = ManagedSpec(
    Template(command=("w",), protocol=Protocol.HTTP, init_timeout_s=480),
    Scaling(workers_max=3, idle_timeout_s=5, scaler=ScalerType.REQUEST_COUNT, scaler_value=2),
    balancing=Balancing(8000, 8001),
)


class Counts:
    """What living fronts report; unlike in Redis, it does not expire while a slow machine turns."""

    def __init__(self):
        self.found = {}

    def loads(self):
        return self.found


class Rig:
    """A scaler that decides when a test says so, and a front that reports what the test says."""

    def __init__(self, client):
        self.client = client
        self.managed = Managed(client)
        self.agents = Agents(client)
        self.fronts = Counts()
        self.registry = Registry({}, Fleet(client), load_settings())
        self.now_s = 1000.0
        self.set(SPEC)
        self.scaler = self.make()
        self.agents.heartbeat(AgentInfo("h", "process", (Device("cpu-0", 0, "cpu"),)), "h:1")

    def make(self, fronts=None):
        return Scaler(
            *(self.registry, self.managed, self.agents, Wakeups(self.client)),
            fronts=fronts or self.fronts,
            clock=lambda: self.now_s,
        )

    def set(self, spec):
        made = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=spec, balancing=spec.balancing)
        self.registry.reload({"ep": made})

    def reads(self, open_=0, wishes=(), **servers):
        """The front has so many open requests, and these at workers."""
        found = {name: ServerReading(**values) for name, values in servers.items()}
        self.fronts.found = {"ep": RouteReading(open_, found, wishes=tuple(wishes))}

    def workers(self, *phases):
        return [w.id for w in self.managed.list("ep") if not phases or w.phase in phases]

    def start(self, phase=Phase.READY):
        worker_id, spec = new_worker_id(), self.registry.endpoints["ep"].managed
        assert self.managed.want(worker_id, "ep", spec=spec)
        self.move(worker_id, phase)
        return worker_id

    def move(self, worker_id, phase=Phase.READY):
        if phase is not Phase.WANTED:
            devices = ["cpu-0"] if self.registry.endpoints["ep"].managed.gpu else []
            assert self.managed.place(worker_id, "h", "h:1", devices)
            assert self.managed.started(worker_id, "h", url="http://127.0.0.1:1", health_port=2)
        if phase is Phase.READY:
            assert self.managed.ready(worker_id)

    def stop(self, worker_id, **values):
        assert self.managed.drain(worker_id, "it was idle") or values
        ended = {"exit_code": 0, "reason": "it was idle", "failed": False} | values
        assert self.managed.stopped(worker_id, "h", **ended)

    def idle_since(self, worker_id, seconds):
        """The scaler has seen the worker idle for so long."""
        self.scaler.once()
        since = int(self.client.hget(keys.MANAGED_IDLE, worker_id) or self.managed.now_ms())
        self.client.hset(keys.MANAGED_IDLE, worker_id, since - seconds * 1000)


@pytest.fixture
def rig(client):
    return Rig(client)


# The counts of the fronts.


def test_requests_that_wait_start_workers_and_their_end_takes_these_back(rig):
    rig.reads()
    rig.scaler.once()
    assert rig.workers() == []
    rig.reads(5)
    for _ in range(2):
        rig.scaler.once()
    assert len(rig.workers(Phase.WANTED)) == 3
    rig.reads(2)
    rig.scaler.once()
    assert len(rig.workers(Phase.WANTED)) == 1
    rig.reads()
    rig.scaler.once()
    assert rig.workers() == []


def test_a_request_count_has_the_open_requests_of_workers(rig):
    rig.start()
    (worker_id,) = rig.workers()
    rig.reads(3, **{worker_id: {"open": 2}})
    rig.scaler.once()
    assert len(rig.workers()) == 2


def test_an_idle_worker_leaves_and_one_with_an_open_websocket_stays(rig):
    idle, busy = rig.start(), rig.start()
    rig.reads(1, **{idle: {}, busy: {"open": 1}})
    for worker_id in (idle, busy):
        rig.idle_since(worker_id, 900)
    rig.scaler.once()
    assert rig.workers(Phase.DRAINING) == [idle]
    rig.now_s += STUCK_S * 10
    rig.scaler.once()
    assert rig.workers(Phase.READY) == [busy]


def test_a_request_between_two_decisions_counts_as_use(rig):
    worker_id = rig.start()
    rig.reads(**{worker_id: {"total": 1}})
    rig.idle_since(worker_id, 900)
    rig.reads(**{worker_id: {"total": 2}})
    rig.scaler.once()
    assert rig.workers(Phase.READY) == [worker_id]
    rig.idle_since(worker_id, 900)
    rig.scaler.once()
    assert rig.workers(Phase.DRAINING) == [worker_id]


def test_a_worker_that_haproxy_has_no_more_was_not_used_by_that(rig):
    rig.reads(w={"total": 7})
    counts = RequestCounts(rig.fronts)
    absent = {"up": False}
    for values, used in (
        ({"total": 7}, set()),
        (absent, set()),
        (absent, set()),
        ({"total": 7}, set()),
        (absent, set()),
        ({"total": 1}, {"w"}),
    ):
        rig.reads(w=values)
        assert counts.read(["ep"]).used == used


def test_what_a_front_publishes_as_held_keeps_a_worker_and_never_counts_as_stuck(rig, client):
    worker_id = rig.start()
    rig.reads(**{worker_id: {}})
    status = WorkerStatus(WorkerState.READY, lingering=1)
    Fleet(client).publish_status(worker_id, status, node="front@h", ttl_s=600)
    for _ in range(3):
        rig.idle_since(worker_id, 900)
        rig.now_s += STUCK_S * 10
        rig.scaler.once()
    assert rig.workers(Phase.READY) == [worker_id]


def test_a_worker_that_stays_unhealthy_without_a_request_is_replaced(rig, client):
    worker_id = rig.start()

    def turn(state, open_=0, seconds=UNHEALTHY_S + 1):
        status = WorkerStatus(state, "it does not answer", lingering=open_)
        Fleet(client).publish_status(worker_id, status, node="front@h", ttl_s=600)
        rig.reads(1, **{worker_id: {"open": open_}})
        rig.scaler.once()
        rig.now_s += seconds

    turn(WorkerState.UNHEALTHY)
    turn(WorkerState.READY)
    turn(WorkerState.UNHEALTHY, open_=1)
    turn(WorkerState.UNHEALTHY, open_=1)
    turn(WorkerState.UNHEALTHY, seconds=UNHEALTHY_S - 1)
    turn(WorkerState.UNHEALTHY, seconds=2)
    assert rig.workers() == [worker_id]
    turn(WorkerState.UNHEALTHY)
    assert rig.workers(Phase.STOPPING) == [worker_id]
    assert len(rig.workers(Phase.WANTED)) == 1
    assert "has not answered 200" in rig.managed.get(worker_id).reason


def test_without_a_front_no_worker_leaves_and_its_idle_time_begins_again(rig):
    worker_id, wanted = rig.start(), rig.start(Phase.WANTED)
    rig.client.hset(keys.MANAGED_IDLE, worker_id, 1)
    rig.scaler.once()
    assert rig.workers(Phase.READY, Phase.WANTED) == [worker_id, wanted]
    rig.reads(**{worker_id: {}})
    rig.scaler.once()
    assert rig.workers(Phase.READY) == rig.workers() == [worker_id]


def test_without_a_front_the_least_number_of_workers_is_started(rig):
    rig.set(replace(SPEC, scaling=replace(SPEC.scaling, workers_min=1)))
    rig.scaler.once()
    assert len(rig.workers(Phase.WANTED)) == 1


def test_the_counts_are_those_that_fronts_report_in_redis(rig, client):
    fronts = Fronts(client)
    scaler = rig.make(fronts)

    def wanted():
        fronts.beat(FRONT, {"ep": RouteReading(3)})
        scaler.once()
        return len(rig.workers(Phase.WANTED)) == 2

    wait_until(wanted)


def test_the_keys_of_fronts_that_cannot_be_read_count_as_no_front(rig, client):
    worker_id = rig.start()
    client.set(keys.FRONTS, "x")
    client.hset(keys.MANAGED_IDLE, worker_id, 1)
    rig.make(Fronts(client)).once()
    assert rig.workers(Phase.READY) == [worker_id]


def test_a_paused_endpoint_drains_its_workers_whatever_waits(rig):
    worker_id = rig.start()
    rig.set(replace(SPEC, scaling=replace(SPEC.scaling, workers_max=0)))
    rig.reads(4, **{worker_id: {"open": 2}})
    rig.scaler.once()
    assert (rig.workers(Phase.DRAINING), rig.workers(Phase.WANTED)) == ([worker_id], [])


def test_another_port_replaces_the_workers_one_after_the_other(rig):
    old = rig.start()
    rig.reads(1, **{old: {"open": 1}})
    rig.scaler.once()
    rig.set(replace(SPEC, balancing=Balancing(9000)))
    # The image of the release is on the host at once, because it has none.
    for _ in range(3):
        rig.scaler.once()
    (new,) = rig.workers(Phase.WANTED)
    assert rig.workers(Phase.READY) == [old]
    rig.move(new)
    rig.scaler.once()
    assert (rig.workers(Phase.DRAINING), rig.workers(Phase.READY)) == ([old], [new])


def test_another_endpoint_gets_the_device_of_an_idle_worker_and_not_of_one_with_requests(rig):
    on_gpu = replace(SPEC, gpu=GpuNeed((), 1))
    rig.set(on_gpu)
    worker_id = rig.start()
    other = replace(on_gpu, balancing=None, template=Template(command=("q",)))
    endpoints = dict(rig.registry.endpoints)
    endpoints["other"] = Endpoint("other", (), 600_000, 86_400_000, 3, 0, managed=other)
    rig.registry.reload(endpoints)
    client = rig.client
    client.hset(keys.managed(worker_id), "ready_ms", rig.managed.now_ms() - 600_000)
    client.hset(keys.managed(worker_id), "started_ms", rig.managed.now_ms() - 601_000)
    client.zadd(keys.queued("other"), {"job": rig.managed.now_ms()})
    for known in (False, True):
        if known:
            rig.reads(1, **{worker_id: {"open": 1}})
        for _ in range(2):
            rig.scaler.once()
        assert rig.workers(Phase.READY) == [worker_id]
    rig.reads(**{worker_id: {}})
    for _ in range(2):
        rig.scaler.once()
    assert rig.workers(Phase.DRAINING) == [worker_id]


# strict-resume.


def test_a_request_wants_the_very_worker_again_that_was_stopped(rig):
    worker_id = rig.start()
    rig.stop(worker_id, log="old words")
    rig.reads(1, [worker_id])
    for _ in range(3):
        rig.scaler.once()
    assert rig.workers(Phase.WANTED) == [worker_id]
    found = rig.managed.get(worker_id)
    assert (found.host, found.url, found.health_port, found.ready_ms, found.log) == (
        *(None, None, None, None),
        "",
    )
    assert rig.client.pttl(keys.managed(worker_id)) == -1
    assert worker_id not in [w.id for w in rig.managed.recent("ep")]
    rig.move(worker_id)
    assert rig.managed.get(worker_id).url == "http://127.0.0.1:1"


def test_the_worker_comes_back_beside_the_least_number(rig):
    back, stays = rig.start(), rig.start()
    rig.stop(back)
    rig.set(replace(SPEC, scaling=replace(SPEC.scaling, workers_min=1)))
    rig.reads(1, [back], **{stays: {}})
    for _ in range(3):
        rig.scaler.once()
    assert rig.workers(Phase.WANTED) == [back]


def test_the_worker_comes_back_only_within_the_most_workers(rig):
    rig.set(replace(SPEC, scaling=replace(SPEC.scaling, workers_max=1)))
    back = rig.start()
    rig.stop(back)
    stays = rig.start()
    rig.reads(1, [back], **{stays: {}})
    rig.scaler.once()
    assert rig.workers() == [stays]
    # The request that waits for another worker does not keep this one.
    rig.idle_since(stays, 900)
    rig.scaler.once()
    assert rig.workers(Phase.DRAINING) == [stays]
    rig.stop(stays, reason="done")
    rig.scaler.once()
    assert rig.workers() == [back]


@pytest.mark.parametrize("kind", ["failed", "never ready", "other endpoint", "redeployed", "none"])
def test_a_worker_does_not_come_back_that(rig, kind):
    worker_id = rig.start(Phase.STARTING if kind == "never ready" else Phase.READY)
    if kind == "failed":
        rig.stop(worker_id, failed=True)
    elif kind != "none":
        rig.stop(worker_id)
    else:
        rig.client.flushall()
    if kind == "redeployed":
        rig.set(replace(SPEC, balancing=Balancing(9000)))
    release = rig.registry.endpoints["ep"].managed.release
    endpoint = "other" if kind == "other endpoint" else "ep"
    assert rig.managed.resumable(endpoint, release, [worker_id, "x", "a" * 14]) == []
    spec = rig.registry.endpoints["ep"].managed
    assert not rig.managed.want_again(worker_id, endpoint, spec=spec, release=release)
    assert rig.workers(Phase.WANTED) == []


def test_a_worker_that_is_wanted_again_twice_is_wanted_once(rig):
    worker_id = rig.start()
    rig.stop(worker_id)
    assert rig.managed.resumable("ep", SPEC.release, [worker_id]) == [worker_id]
    assert rig.managed.want_again(worker_id, "ep", spec=SPEC)
    assert rig.managed.want_again(worker_id, "ep", spec=SPEC)
    rig.move(worker_id)
    assert not rig.managed.want_again(worker_id, "ep", spec=SPEC)
    assert rig.workers(Phase.READY) == [worker_id]


# What the worker is.


def test_the_registry_has_where_a_started_worker_serves(rig):
    worker_id = rig.start(Phase.STARTING)
    rig.registry.refresh()
    (worker,) = rig.registry.endpoints["ep"].workers
    assert (worker.id, worker.url, worker.health_port) == (worker_id, "http://127.0.0.1:1", 2)


def test_a_worker_of_a_load_balanced_endpoint_is_never_registered_for_jobs(rig, client):
    worker_id, offers = rig.start(), Offers(client, gone_s=60)
    with pytest.raises(WorkerConflict, match="gets requests, and no jobs"):
        offers.take(worker_id, "q", "t", limit=1, in_progress=False)
