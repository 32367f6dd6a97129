"""Sessions and endpoints on one device: who gives way to whom."""

from dataclasses import replace

import pytest
from helpers import new_job
from test_sessions_end import Ending
from test_sessions_store import ENDPOINT, SPEC

from ownpod.errors import NoDeviceFree
from ownpod.rules.balancing import Balancing
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import Phase, new_worker_id
from ownpod.rules.presets import Preset, SessionLimits
from ownpod.rules.sessions import Reason
from ownpod.rules.templates import GpuNeed, Scaling
from ownpod.store import keys

SHARED = Endpoint(
    "sdxl",
    (),
    600_000,
    86_400_000,
    3,
    0,
    managed=replace(SPEC, scaling=Scaling(workers_max=1, idle_timeout_s=3600), gpu=GpuNeed()),
)


class Sharing(Ending):
    """One device, a preset, and an endpoint whose workers run jobs of anybody."""

    def __init__(self, client, *, evictable=False, devices=1):
        preset = Preset("llama", "chat", session=SessionLimits(evictable=evictable))
        super().__init__(client, replace(ENDPOINT, preset=preset), devices=devices)
        self.endpoints = {ENDPOINT.id: self.endpoint, SHARED.id: SHARED}
        self.registry.reload(self.endpoints)

    def worker(self):
        """A ready worker of the endpoint that is no preset."""
        worker_id = new_worker_id()
        assert self.managed.want(worker_id, SHARED.id, spec=SHARED.managed)
        self.place(worker_id)
        assert self.managed.started(worker_id, "h")
        assert self.managed.ready(worker_id)
        self.age(worker_id)
        return worker_id

    def age(self, worker_id):
        """It has been ready for longer than its residency."""
        for name, ago_s in (("placed_ms", 101), ("started_ms", 101), ("ready_ms", 100)):
            self.set_ms(worker_id, name, ago_s)

    def phase(self, worker_id):
        return self.managed.get(worker_id).phase


@pytest.fixture
def rig(client):
    return Sharing(client)


def test_an_idle_worker_of_another_endpoint_gives_its_device_to_a_session(rig):
    worker = rig.worker()
    rig.scaler.once()
    session = rig.open()
    rig.scaler.once()
    assert rig.phase(worker) is Phase.DRAINING
    assert rig.client.hget(keys.DEVICES_NEXT, "h/cpu-0#0") == session
    rig.managed.stopping(worker, "h")
    rig.managed.stopped(worker, "h", exit_code=0, reason="", failed=False)
    rig.ready(session)
    assert rig.phase(session) is Phase.READY


def test_a_session_keeps_its_device_until_its_idle_time_is_over(rig):
    session = rig.ready()
    rig.age(session)
    rig.set_ms(session, "active_ms", 100)
    rig.store.jobs.create(new_job("job-1", SHARED.id))
    for _ in range(3):
        rig.scaler.once()
    assert rig.phase(session) is Phase.READY
    (wanted,) = rig.managed.list(SHARED.id)
    assert wanted.phase is Phase.WANTED
    rig.idle_out(session)
    rig.scaler.once()
    assert rig.sessions.get(session).reason is Reason.IDLE_TIMEOUT


def test_an_evictable_session_without_work_gives_its_device_to_a_job_that_waits(client):
    rig = Sharing(client, evictable=True)
    session = rig.ready()
    rig.age(session)
    rig.submit(session)
    rig.store.jobs.create(new_job("shared", SHARED.id))
    for _ in range(3):
        rig.scaler.once()
    # It has a task that waits, and then one that runs.
    assert rig.phase(session) is Phase.READY
    attempt = rig.claim(session)
    rig.scaler.once()
    assert rig.phase(session) is Phase.READY
    rig.finish(attempt)
    rig.scaler.once()
    assert rig.phase(session) is Phase.DRAINING
    assert rig.sessions.get(session).reason is Reason.EVICTED


def test_jobs_of_the_preset_without_a_session_do_not_keep_an_evictable_session(client):
    rig = Sharing(client, evictable=True)
    session = rig.ready()
    rig.age(session)
    # It cannot run them.
    rig.store.jobs.create(new_job("other", ENDPOINT.id))
    rig.store.jobs.create(new_job("shared", SHARED.id))
    for _ in range(2):
        rig.scaler.once()
    assert rig.sessions.get(session).reason is Reason.EVICTED


# Free or freeable.


def runs(rig, worker_id, job_id="shared"):
    rig.store.jobs.create(new_job(job_id, SHARED.id))
    return rig.store.jobs.claim(job_id, worker_id=worker_id, claim="t", lease_s=15)


def test_without_a_wait_a_session_is_refused_only_if_no_device_is_freeable(rig):
    worker = rig.worker()
    attempt = runs(rig, worker)
    rig.scaler.once()
    with pytest.raises(NoDeviceFree):
        rig.open(wait_s=0)
    assert not rig.sessions.has_room(ENDPOINT.id, SPEC)
    rig.finish(attempt)
    rig.scaler.once()
    # Two at once get one device: the second one is refused.
    assert rig.sessions.has_room(ENDPOINT.id, SPEC)
    session = rig.open(wait_s=0, reuse=False)
    assert not rig.sessions.has_room(ENDPOINT.id, SPEC)
    with pytest.raises(NoDeviceFree):
        rig.open(wait_s=0, reuse=False)
    rig.scaler.once()
    assert rig.phase(worker) is Phase.DRAINING
    assert rig.client.hget(keys.DEVICES_NEXT, "h/cpu-0#0") == session
    with pytest.raises(NoDeviceFree):
        rig.open(wait_s=0, reuse=False)


def test_a_worker_within_its_residency_is_not_freeable(rig):
    worker = rig.worker()
    rig.set_ms(worker, "ready_ms", 0)
    rig.scaler.once()
    with pytest.raises(NoDeviceFree):
        rig.open(wait_s=0)
    assert rig.phase(worker) is Phase.READY


@pytest.mark.parametrize("evictable", [False, True])
def test_an_idle_session_of_another_preset_is_freeable_if_it_is_evictable(client, evictable):
    rig = Sharing(client, evictable=evictable)
    session = rig.ready()
    rig.age(session)
    rig.set_ms(session, "active_ms", 100)
    rig.scaler.once()
    other = "llama-train"
    assert rig.sessions.has_room(other, SPEC) is evictable
    # Never for its own preset: a task of it uses the session, or another client waits.
    assert not rig.sessions.has_room(ENDPOINT.id, SPEC)
    rig.submit(session)
    assert rig.claim(session)
    assert not rig.sessions.has_room(other, SPEC)


def test_a_task_gets_a_new_session_instead_of_a_busy_one_if_a_device_is_freeable(client):
    rig = Sharing(client, devices=2)
    busy = rig.ready()
    rig.submit(busy)
    assert rig.claim(busy)
    worker = rig.worker()
    attempt = runs(rig, worker)
    assert rig.open() == busy
    rig.finish(attempt)
    rig.forget_picks()
    new = rig.open()
    assert new != busy
    # The device that the first one gets is not freeable for a second one.
    rig.forget_picks()
    assert rig.open() in {new, busy}
    rig.scaler.once()
    assert rig.phase(worker) is Phase.DRAINING


def test_an_idle_worker_of_a_load_balanced_endpoint_is_freeable_once_the_scaler_has_seen_it(rig):
    worker = rig.worker()
    rig.endpoints = rig.endpoints | {SHARED.id: replace(SHARED, balancing=Balancing())}
    assert not rig.sessions.has_room(ENDPOINT.id, SPEC)
    rig.managed.saw([], [worker])
    assert rig.sessions.has_room(ENDPOINT.id, SPEC)
    rig.managed.saw([worker], [])
    assert not rig.sessions.has_room(ENDPOINT.id, SPEC)
    # `has_room` writes nothing into the scaler's own times of idle workers.
    assert rig.client.hgetall(keys.MANAGED_IDLE) == {}
