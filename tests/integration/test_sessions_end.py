"""The end of sessions: each task that came before is run or failed or moved, and none is lost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers import load_settings, new_job, wait_until
from test_sessions_store import ENDPOINT, SPEC, Rig

from ownpod.errors import SessionEnded, SessionQueueFull
from ownpod.housekeeping.left_pins import LeftPins
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.scaler import Scaler
from ownpod.housekeeping.sessions import STUCK_S, PrivateWorkers
from ownpod.registry import Registry
from ownpod.rules.about import ANY_SESSION
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Phase, Role, new_worker_id
from ownpod.rules.presets import UNPLACED_S, Preset, SessionLimits
from ownpod.rules.runs import Outcome
from ownpod.rules.sessions import Reason, Status
from ownpod.rules.templates import Scaling
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet


class Ending(Rig):
    """With housekeeping."""

    def __init__(self, client, endpoint=ENDPOINT, **options):
        super().__init__(client, endpoint=endpoint, **options)
        self.registry = Registry({endpoint.id: endpoint}, Fleet(client), load_settings())
        self.private = PrivateWorkers(self.registry, self.sessions)
        self.scaler = Scaler(
            self.registry,
            self.managed,
            Agents(client),
            Wakeups(client),
            sessions=self.private,
        )

    def once(self):
        self.private.once([w for w in self.managed.list() if w.is_private])

    def ready_of(self, session_id):
        self.place(session_id)
        assert self.managed.started(session_id, "h")
        assert self.managed.ready(session_id)

    def idle_out(self, session_id):
        self.set_ms(session_id, "active_ms", 10_000)
        self.set_ms(session_id, "ready_ms", 1000)


@pytest.fixture
def rig(client):
    return Ending(client)


def test_an_idle_session_ends_and_one_that_works_stays(rig):
    idle, queued, running = rig.ready(), rig.ready(owner="a"), None
    rig.submit(queued)
    for session in (idle, queued):
        rig.idle_out(session)
    rig.once()
    assert rig.sessions.get(idle).reason is Reason.IDLE_TIMEOUT
    assert rig.managed.get(idle).phase is Phase.DRAINING
    assert rig.sessions.get(queued).worker.phase is Phase.READY
    running = rig.claim(queued)
    rig.idle_out(queued)
    rig.once()
    assert rig.sessions.get(queued).worker.phase is Phase.READY
    # The end of its work is activity.
    rig.finish(running)
    rig.once()
    assert rig.sessions.get(queued).worker.phase is Phase.READY
    rig.idle_out(queued)
    rig.once()
    assert rig.sessions.get(queued).reason is Reason.IDLE_TIMEOUT


def test_the_idle_end_checks_again_in_its_step(rig):
    session = rig.ready()
    rig.idle_out(session)
    record = rig.managed.get(session)
    rig.submit(session)
    rig.idle_out(session)
    assert not rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")
    attempt = rig.claim(session)
    rig.idle_out(session)
    assert not rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")
    rig.finish(attempt)
    assert not rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")
    rig.idle_out(session)
    rig.sessions.keepalive(session, "me")
    assert not rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")
    rig.idle_out(session)
    assert rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")
    assert not rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")


@pytest.mark.slow
def test_a_thousand_tasks_at_the_moment_of_the_idle_end_are_each_taken_or_refused(client):
    """What is taken waits in a session that does not end; what is refused has no record."""
    rig = Ending(client, devices=1)
    counts = {"taken": 0, "refused": 0}
    with ThreadPoolExecutor(2) as pool:
        for number in range(1000):
            session = rig.ready()
            record = rig.managed.get(session)
            rig.idle_out(session)
            start = threading.Barrier(2)

            def submit(session=session, number=number, start=start):
                start.wait()
                try:
                    return rig.submit(session, f"job-{number}")
                except SessionEnded:
                    return None

            def end(record=record, start=start):
                start.wait()
                return rig.sessions.end_private(record, Reason.IDLE_TIMEOUT, how="idle")

            taken, ended = pool.submit(submit), pool.submit(end)
            job_id, is_ended = taken.result(), ended.result()
            # One of them came first, and the other saw that.
            assert (job_id is None) == is_ended
            counts["taken" if job_id else "refused"] += 1
            if job_id:
                attempt = rig.claim(session, job_id)
                assert rig.finish(attempt)
            else:
                assert client.exists(keys.job(f"job-{number}")) == 0
            rig.managed.stopping(session, "h")
            rig.managed.stopped(session, "h", exit_code=0, reason="", failed=False)
    assert counts["taken"] + counts["refused"] == 1000
    assert min(counts["taken"], counts["refused"]) > 0, counts


def test_tasks_of_a_named_session_fail_when_it_ends_and_others_move(rig, client):
    session = rig.ready()
    rig.submit(session, "named")
    rig.submit(session, "found", movable=True, max_attempts=3)
    rig.set_ms(session, "ready_ms", 4000)
    rig.scaler.once()
    assert rig.sessions.get(session).reason is Reason.MAX_LIFETIME
    job = rig.job("named")
    assert (job.status, job.error) == (
        JobStatus.FAILED,
        f"session {session} ended: max_lifetime",
    )
    assert client.hget(keys.job("named"), "code") == "session_ended"
    (other,) = [s for s in rig.sessions.list() if s.id != session]
    assert other.queued == ("found",)
    assert (other.worker.owner, other.worker.idle_s) == ("me", 300)
    assert rig.claim(session, "found") is None
    attempt = rig.claim(rig.ready(other.id), "found")
    assert attempt.worker_id == other.id
    rig.finish(attempt)
    assert rig.job("found").status is JobStatus.COMPLETED


def test_the_running_task_ends_by_itself_when_the_lifetime_is_over(rig):
    session = rig.ready()
    rig.submit(session)
    attempt = rig.claim(session)
    rig.set_ms(session, "ready_ms", 4000)
    rig.once()
    assert rig.managed.get(session).phase is Phase.DRAINING
    assert rig.job().status is JobStatus.IN_PROGRESS
    assert rig.sessions.get(session).status is Status.WORKING
    rig.finish(attempt)
    assert rig.job().status is JobStatus.COMPLETED


def test_a_hard_lifetime_ends_the_running_task(client):
    preset = Preset("llama", "chat", session=SessionLimits(hard_lifetime=True))
    rig = Ending(client, replace(ENDPOINT, preset=preset))
    session = rig.ready()
    rig.submit(session)
    rig.claim(session)
    rig.set_ms(session, "ready_ms", 4000)
    rig.once()
    assert rig.managed.get(session).phase is Phase.STOPPING
    assert rig.job().error == f"session {session} ended: max_lifetime"


def test_a_lost_task_of_a_session_that_was_found_moves_to_another(rig):
    session = rig.ready()
    rig.submit(session, movable=True, max_attempts=3)
    attempt = rig.claim(session)
    rig.managed.lost(session, "its host h has been silent for 60 s")
    assert rig.sessions.get(session).reason is Reason.HOST_LOST
    rig.store.jobs.requeue("job-1", attempt.number, lost=True, reason="it left", freed=session)
    rig.once()
    (other,) = rig.sessions.list()
    assert other.queued == ("job-1",)
    assert rig.claim("w") is None
    rig.place(other.id)
    assert rig.claim(other.id, token="u").number == 2


def test_a_task_does_not_move_without_an_end(rig):
    session, moved = rig.open(), set()
    rig.submit(session, movable=True, max_attempts=9)
    while rig.job().status is JobStatus.IN_QUEUE:
        assert session not in moved
        moved.add(session)
        rig.sessions.end(session, drain=True)
        rig.once()
        session = next((s.id for s in rig.sessions.list()), "")
    assert len(moved) == 4
    assert rig.job().status is JobStatus.FAILED


def test_tasks_of_a_session_that_cannot_start_fail_with_the_reason(rig, client):
    session = rig.open()
    rig.submit(session, movable=True, max_attempts=3)
    rig.place(session)
    rig.managed.stopped(session, "h", exit_code=3, reason="exit code 3", failed=True)
    rig.once()
    assert rig.job().error == f"session {session} ended: start_failed (exit code 3)"
    assert client.hget(keys.job("job-1"), "code") == "start_failed"
    assert rig.sessions.list() == []


def test_a_session_without_a_device_ends_when_its_client_waits_no_more(client):
    rig = Ending(client, devices=0)
    session = rig.open(wait_s=60)
    rig.submit(session)
    rig.once()
    assert rig.job().status is JobStatus.IN_QUEUE
    rig.set_ms(session, "created_ms", 61)
    rig.once()
    assert rig.sessions.get(session).reason is Reason.NO_DEVICE
    assert client.hget(keys.job("job-1"), "code") == "no_device"


def test_a_session_that_found_a_device_at_once_and_that_no_host_takes_ends_too(client):
    rig = Ending(client)
    session = rig.open(wait_s=0)
    job_id = rig.submit(session)
    rig.managed.waits(session, "host h cannot start it: model llama: its source answers 404")
    rig.once()
    assert rig.managed.get(session).phase is Phase.WANTED
    rig.set_ms(session, "created_ms", UNPLACED_S)
    rig.once()
    assert rig.sessions.get(session).reason is Reason.MODEL_FAILED
    assert rig.job(job_id).status is JobStatus.FAILED


def test_the_worker_of_a_task_leaves_when_its_job_has_ended(rig, client):
    worker_id, lonely = new_worker_id(), new_worker_id()
    for name, job_id in ((worker_id, "job-1"), (lonely, "never")):
        rig.sessions.open_task(name, ENDPOINT.id, spec=SPEC, job_id=job_id, owner="me")
        rig.place(name)
    rig.submit(worker_id)
    wakeups = Wakeups(client)
    wakeups.wait(0.01)
    rig.once()
    assert rig.managed.get(worker_id).phase is Phase.PREPARING
    attempt = rig.claim(worker_id)
    rig.once()
    assert wait_until(lambda: not wakeups.wait(0.01))
    rig.store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="exit code 1"))
    # Its end wakes housekeeping, because its device is wanted.
    assert wakeups.wait(60)
    rig.once()
    assert rig.managed.get(worker_id).phase is Phase.DRAINING
    assert rig.managed.get(lonely).phase is Phase.PREPARING
    rig.set_ms(lonely, "created_ms", 31)
    rig.once()
    assert rig.managed.get(lonely).phase is Phase.DRAINING


def test_a_cancelled_task_that_waited_for_its_worker_lets_it_go(rig):
    worker_id = new_worker_id()
    rig.sessions.open_task(worker_id, ENDPOINT.id, spec=SPEC, job_id="job-1", owner="me")
    rig.submit(worker_id)
    rig.store.jobs.cancel("job-1", ENDPOINT.id, reason="x")
    rig.once()
    assert rig.managed.get(worker_id).phase is Phase.STOPPED


def test_a_task_whose_worker_died_before_the_claim_fails(rig, client):
    worker_id = new_worker_id()
    rig.sessions.open_task(worker_id, ENDPOINT.id, spec=SPEC, job_id="job-1", owner="me")
    rig.submit(worker_id)
    rig.place(worker_id)
    rig.managed.stopped(worker_id, "h", exit_code=None, reason="image x is missing", failed=True)
    rig.once()
    assert rig.job().status is JobStatus.FAILED
    assert client.hget(keys.job("job-1"), "code") == "image_missing"


@pytest.mark.parametrize("one_off", [SPEC, None])
def test_a_task_with_attempts_left_gets_another_worker_when_its_host_is_lost(client, one_off):
    preset = Preset("llama", "chat", one_off=one_off)
    rig = Ending(client, replace(ENDPOINT, preset=preset))
    worker_id = new_worker_id()
    rig.sessions.open_task(
        worker_id, ENDPOINT.id, spec=SPEC, job_id="job-1", owner="me", difficulty="high"
    )
    rig.submit(worker_id, max_attempts=2)
    rig.place(worker_id)
    attempt = rig.claim(worker_id)
    rig.managed.lost(worker_id, "its host h has been silent for 60 s")
    rig.store.jobs.requeue("job-1", attempt.number, lost=True, reason="it left", freed=worker_id)
    rig.once()
    if one_off is None:
        assert client.hget(keys.job("job-1"), "code") == "host_lost"
        return
    (other,) = rig.managed.list()
    assert (other.role, other.job, other.owner) == (Role.TASK, "job-1", "me")
    assert other.pools == ("high",)
    assert rig.claim(worker_id, token="u") is None
    assert rig.claim(other.id, token="v").number == 2


# What the rest of housekeeping does not do to sessions.


def test_a_retry_of_a_one_off_task_gets_a_worker_that_stays_for_it(client):
    rig = Ending(client, replace(ENDPOINT, preset=Preset("llama", "chat", one_off=SPEC)))
    worker_id = new_worker_id()
    rig.sessions.open_task(worker_id, ENDPOINT.id, spec=SPEC, job_id="job-1", owner="me")
    rig.submit(worker_id)
    rig.place(worker_id)
    rig.store.jobs.finish(rig.claim(worker_id), Outcome(JobStatus.FAILED, error="exit code 1"))
    # Before the worker has left.
    rig.store.jobs.retry("job-1", ENDPOINT.id, "job-2")
    for _ in range(3):
        rig.once()
    (other,) = [worker for worker in rig.managed.list() if worker.id != worker_id]
    assert (other.job, other.phase) == ("job-2", Phase.WANTED)
    assert rig.job("job-2").status is JobStatus.IN_QUEUE


def test_the_scaler_neither_counts_nor_ends_sessions(client):
    spec = replace(SPEC, scaling=Scaling(workers_max=1, idle_timeout_s=1), gpu=None)
    rig = Ending(client, replace(ENDPOINT, managed=spec))
    session = rig.open(reuse=False)
    assert rig.managed.place(session, "h", "t")
    rig.managed.started(session, "h")
    rig.managed.ready(session)
    rig.submit(session)
    rig.claim(session)
    for _ in range(3):
        rig.scaler.once()
    assert [w.id for w in rig.managed.list()] == [session]
    assert rig.managed.get(session).phase is Phase.READY


def test_a_preset_that_is_paused_has_sessions(rig):
    """Its ``workersMax`` is 0: jobs without a session are refused, and sessions stay."""
    session = rig.ready()
    for _ in range(2):
        rig.scaler.once()
    assert rig.managed.get(session).phase is Phase.READY


def test_a_lost_message_of_a_sessions_task_comes_again_in_its_own_queue(rig, client):
    session = rig.ready()
    rig.submit(session, created_ms=rig.managed.now_ms() - 60_000)
    own = rig.store.messages.own_queue(ENDPOINT.id, session)
    client.delete(own)
    recovery = Recovery(rig.store, lambda: [ENDPOINT.id], lease_s=15)
    assert [recovery.once() for _ in range(3)] == [0, 1, 0]
    assert (client.llen(own), client.llen(f"ownpod.{ENDPOINT.id}")) == (1, 0)


def test_left_pins_leave_the_tasks_of_sessions_to_their_housekeeping(rig):
    session = rig.ready()
    rig.submit(session, movable=True, max_attempts=3)
    rig.sessions.end(session, drain=True)
    pins = LeftPins(rig.registry, rig.store.queue, rig.managed, patience_s=0)
    for _ in range(2):
        pins.once()
    assert rig.job().status is JobStatus.IN_QUEUE
    rig.once()
    (other,) = [s for s in rig.sessions.list() if s.takes_tasks]
    assert other.queued == ("job-1",)


def test_a_task_that_waits_for_a_device_goes_to_a_session_that_becomes_idle(rig):
    busy = rig.ready()
    rig.submit(busy, "running")
    attempt = rig.claim(busy, "running")
    waits, fresh = rig.open(reuse=False, for_task=ANY_SESSION), rig.open(reuse=False)
    rig.submit(waits, "any", movable=True)
    rig.submit(fresh, "new", movable=True)
    rig.once()
    assert rig.sessions.get(waits).queued == ("any",)
    rig.finish(attempt)
    rig.once()
    assert rig.sessions.get(busy).queued == ("any",)
    assert rig.claim(busy, "any", token="u").number == 1
    # The session that was made for it is not needed; the one that its client wanted stays.
    ended = rig.sessions.get(waits)
    assert (ended.status, ended.reason) == (Status.KILLED, Reason.MANUAL)
    assert ended.worker.reason == f"its task runs on session {busy}"
    assert rig.sessions.get(fresh).queued == ("new",)


def test_a_session_that_got_another_task_meanwhile_is_not_ended_as_empty(rig):
    session = rig.open(reuse=False, for_task=ANY_SESSION)
    worker = rig.sessions.get(session).worker
    rig.submit(session)
    assert not rig.sessions.end_private(worker, Reason.MANUAL, how="empty")
    rig.store.jobs.cancel("job-1", rig.endpoint.id, reason="x")
    assert rig.sessions.end_private(worker, Reason.MANUAL, how="empty")
    placed = rig.open(reuse=False, for_task=ANY_SESSION)
    rig.place(placed)
    assert not rig.sessions.end_private(rig.sessions.get(placed).worker, Reason.MANUAL, how="empty")


def test_a_session_spills_after_its_time_and_is_found_as_before(client):
    preset = Preset("llama", "chat", spill={"low": ("high",)}, spill_after={"low": 30})
    rig = Ending(client, endpoint=replace(ENDPOINT, preset=preset))
    session = rig.open()
    assert rig.managed.get(session).pools == ("low",)
    rig.once()
    assert rig.managed.get(session).pools == ("low",)
    rig.set_ms(session, "created_ms", 31)
    rig.once()
    assert rig.managed.get(session).pools == ("low", "high")
    for _ in range(2):
        assert rig.sessions.spill(session, ("low", "high"))
    rig.ready_of(session)
    assert not rig.sessions.spill(session, ("any",))
    # A task of the same difficulty finds it.
    assert rig.open() == session


def test_a_one_off_task_spills_after_its_time(client):
    preset = Preset("llama", "chat", spill={"low": ("high",)}, spill_after={"low": 30})
    rig = Ending(client, endpoint=replace(ENDPOINT, preset=preset))
    worker = new_worker_id()
    later = preset.later()
    spec = preset.for_difficulty(SPEC, at_once=True)
    assert rig.sessions.open_task(
        worker, "llama-chat", spec=spec, job_id="j", owner="", spill=later
    )
    rig.set_ms(worker, "created_ms", 10)
    rig.once()
    assert rig.managed.get(worker).pools == ("low",)
    rig.set_ms(worker, "created_ms", 31)
    # Its model was fetched meanwhile, and it has waited for a device only since.
    rig.set_ms(worker, "fetched_ms", 5)
    rig.store.jobs.create(new_job("j", "llama-chat", private=worker))
    rig.once()
    assert rig.managed.get(worker).pools == ("low",)
    rig.set_ms(worker, "fetched_ms", 31)
    rig.once()
    assert rig.managed.get(worker).pools == ("low", "high")


def test_a_session_whose_handler_does_not_end_after_its_job_is_started_again(rig):
    now = [0.0]
    rig.private = PrivateWorkers(rig.registry, rig.sessions, clock=lambda: now[0])
    session = rig.ready()

    def after(seconds, held):
        rig.client.hset(keys.worker(session), "held", held)
        now[0] += seconds
        rig.once()
        return rig.managed.get(session).restart

    rig.submit(session)
    attempt = rig.claim(session)
    assert [after(0, 1), after(STUCK_S + 1, 1)] == [0, 0]
    rig.finish(attempt)
    rig.submit(session, "waits")
    # One that ends in time stays; the time begins again with the next.
    assert [after(0, 1), after(STUCK_S - 1, 1), after(2, 0), after(0, 1), after(10, 1)] == [0] * 5
    assert after(6, 1) == 3
    assert rig.sessions.get(session).queued == ("waits",)
    assert rig.managed.restarting(session, "h", "d")
    assert rig.managed.restarted(session, "h")
    # Its next process loads for long, and the node counts the old handler until it asks for a job.
    assert [after(STUCK_S + 1, 1), after(STUCK_S + 1, 1)] == [2, 2]
    assert not rig.managed.restart(session)
    rig.sessions.end(session, drain=True)
    assert not rig.managed.restart(session)


def test_a_task_waits_for_its_session_while_its_queue_is_full(rig):
    session = rig.ready()
    for number in range(5):
        rig.submit(session, f"job-{number}")
    with pytest.raises(SessionQueueFull):
        rig.submit(session, "job-5")
    rig.claim(session, "job-0")
    assert rig.submit(session, "job-5") == "job-5"
    assert rig.sessions.get(session).queued == tuple(f"job-{n}" for n in range(1, 6))
