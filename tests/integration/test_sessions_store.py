"""Sessions in Redis: how a task gets one, which tasks it takes, and that its jobs run on no other worker."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from helpers import job_store, load_settings, new_job

from ownpod.errors import NoDeviceFree, SessionEnded, SessionNotFound, SessionQueueFull
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint, WorkerKind
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device, Phase, Role, new_worker_id
from ownpod.rules.presets import Preset, SessionLimits
from ownpod.rules.runs import Outcome
from ownpod.rules.sessions import Reason, Status, wish_for
from ownpod.rules.templates import GpuNeed, ManagedSpec, Protocol, Scaling, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers, Result
from ownpod.store.sessions import PICKED_MS, Sessions

SPEC = ManagedSpec(
    Template(image="llm:1", command=("python", "w.py")),
    Scaling(workers_max=0),
    gpu=GpuNeed(("low",), 1),
)
ENDPOINT = Endpoint(
    "llama-chat", (), 600_000, 86_400_000, 3, 0, managed=SPEC, preset=Preset("llama", "chat")
)


class Rig:
    """Sessions of one endpoint, on a host with some devices of the class ``low``."""

    def __init__(self, client, *, devices=2, endpoint=ENDPOINT):
        self.client = client
        self.endpoint = endpoint
        self.store = job_store(client)
        self.endpoints = {endpoint.id: endpoint}
        self.sessions = Sessions(self.store, result_ttl_s=1800, endpoints=lambda: self.endpoints)
        self.managed = Managed(client)
        self.devices = tuple(Device(f"cpu-{i}", i, "CPU", pools=("low",)) for i in range(devices))
        Agents(client).heartbeat(AgentInfo("h", "process", self.devices), "t")

    def open(self, *, owner="me", reuse=True, wait_s=None, **changes):
        wish = replace(wish_for(self.endpoint, wait_s=wait_s), **changes)
        opened = self.sessions.open(wish, owner=owner, worker_id=new_worker_id(), reuse=reuse)
        return opened.id

    def place(self, session_id):
        busy = set(self.client.hkeys(keys.DEVICES_HELD))
        free = next(d.id for d in self.devices if f"h/{d.id}#0" not in busy)
        assert self.managed.place(session_id, "h", "t", [free])

    def ready(self, session_id=None, **options):
        session_id = session_id or self.open(reuse=False, **options)
        self.place(session_id)
        assert self.managed.started(session_id, "h")
        assert self.managed.ready(session_id)
        return session_id

    def submit(self, session_id, job_id="job-1", **changes):
        queue = self.store.messages.own_queue(self.endpoint.id, session_id)
        values = {"queue": queue, "private": session_id, "affinity": "strict", "max_attempts": 1}
        job = new_job(job_id, self.endpoint.id, **values | changes)
        return self.store.jobs.create(job)

    def claim(self, session_id, job_id="job-1", token="t"):
        return self.store.jobs.claim(job_id, worker_id=session_id, claim=token, lease_s=15)

    def finish(self, attempt):
        return self.store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"))

    def forget_picks(self):
        for session in self.sessions.list():
            self.client.hdel(keys.managed(session.id), "picked_ms")

    def job(self, job_id="job-1"):
        return self.store.jobs.get(job_id, self.endpoint.id)

    def set_ms(self, session_id, name, ago_s):
        """The time in a record was so many seconds ago."""
        value = self.managed.now_ms() - int(ago_s * 1000)
        self.client.hset(keys.managed(session_id), name, value)

    def stays_picked(self, session_id):
        """For a minute, also on a machine that is so slow that PICKED_MS would be over."""
        self.set_ms(session_id, "picked_ms", -60)


@pytest.fixture
def rig(client):
    return Rig(client)


# Which session a task gets.


def test_a_new_session_is_a_wanted_worker_with_the_limits_of_its_preset(rig):
    session = rig.sessions.get(rig.open())
    worker = session.worker
    assert (worker.phase, worker.role, worker.owner) == (Phase.WANTED, Role.SESSION, "me")
    assert (worker.idle_s, worker.life_s, worker.queue_max) == (300, 3600, 5)
    assert (worker.gpu_count, worker.pools) == (1, ("low",))
    assert session.about == {
        "model_id": "llama",
        "preset": "chat",
        "difficulty": "low",
        "labels": {},
    }
    assert session.status is Status.INITIALIZING
    assert [worker.id for worker, _ in rig.managed.wanted()] == [session.id]


def test_an_idle_session_is_used_again_the_last_used_first(rig):
    first, second = rig.ready(), rig.ready()
    rig.set_ms(first, "active_ms", 10)
    rig.set_ms(second, "active_ms", 5)
    assert rig.open() == second
    rig.stays_picked(second)
    # A task comes to that one with the next command, so another task gets the other one.
    assert rig.open() == first


def test_a_session_of_another_key_another_class_or_another_preset_is_not_used(rig):
    mine = rig.ready(owner="me")
    assert rig.open(owner="you") != mine
    other = replace(ENDPOINT, preset=replace(ENDPOINT.preset, difficulty="high"))
    wish = wish_for(other)
    assert rig.sessions.open(wish, owner="me", worker_id=new_worker_id(), reuse=True).created
    wish = replace(wish_for(ENDPOINT), endpoint="llama-train")
    assert rig.sessions.open(wish, owner="me", worker_id=new_worker_id(), reuse=True).created
    assert rig.open(owner="me") == mine


def test_create_session_makes_a_new_one(rig):
    assert rig.open(reuse=False) != rig.ready()


def test_a_busy_session_is_joined_by_a_new_one_while_a_device_is_free(rig):
    busy = rig.ready()
    rig.submit(busy)
    second = rig.open()
    assert second != busy
    rig.submit(rig.ready(second), "job-2")
    # No device is free: the session with the fewest tasks.
    rig.submit(busy, "job-3")
    assert rig.open() == second


def test_a_wanted_worker_counts_as_one_that_takes_a_device(client):
    rig = Rig(client, devices=1)
    first = rig.open()
    assert rig.open(reuse=True) == first
    with pytest.raises(NoDeviceFree) as error:
        rig.open(reuse=False, wait_s=0)
    assert (error.value.http_status, error.value.body["code"]) == (503, "full")


def test_a_session_whose_queue_is_full_gets_no_more_and_a_new_one_waits(client):
    rig = Rig(client, devices=1)
    first = rig.ready()
    for number in range(5):
        rig.submit(first, f"job-{number}")
    assert rig.open() != first
    with pytest.raises(NoDeviceFree):
        rig.open(wait_s=0, owner="somebody-else")


def test_many_tasks_at_once_without_waiting_get_as_many_sessions_as_there_are_devices(client):
    rig = Rig(client, devices=4)

    def one(number):
        try:
            return rig.open(reuse=False, wait_s=0, owner=str(number))
        except NoDeviceFree:
            return None

    with ThreadPoolExecutor(16) as pool:
        found = [session for session in pool.map(one, range(16)) if session]
    # The check and the step are two commands, and another one's command between them is noticed.
    assert 4 <= len(found) <= 5


def test_a_repeated_open_is_the_same_session(rig):
    wish, worker_id = wish_for(ENDPOINT), new_worker_id()
    for _ in range(2):
        opened = rig.sessions.open(wish, owner="me", worker_id=worker_id, reuse=True)
        assert (opened.id, opened.created) == (worker_id, True)
    assert len(rig.sessions.list()) == 1


# Its tasks.


def test_the_tasks_of_a_session_wait_in_its_queue_and_not_in_the_endpoints(rig, client):
    session = rig.ready()
    rig.submit(session)
    own, shared = rig.store.messages.own_queue(ENDPOINT.id, session), f"ownpod.{ENDPOINT.id}"
    assert (client.llen(own), client.llen(shared)) == (1, 0)
    assert client.exists(keys.queued(ENDPOINT.id), keys.of_endpoint(ENDPOINT.id, "pinned")) == 0
    assert rig.store.figures.counts(ENDPOINT.id)[0] == 1
    assert rig.store.queue.place(rig.job()).position == 1
    found = rig.sessions.get(session)
    assert (found.queued, found.running, found.status) == (("job-1",), (), Status.WORKING)
    attempt = rig.claim(session)
    assert rig.sessions.get(session).running == ("job-1",)
    assert rig.finish(attempt)
    done = rig.sessions.get(session)
    assert (done.worker.tasks_done, done.status, done.is_idle) == (1, Status.WAITING, True)
    assert client.exists(keys.private(ENDPOINT.id), keys.waiting(own)) == 0


def test_no_other_worker_claims_a_sessions_task(rig):
    session = rig.ready()
    rig.submit(session)
    assert rig.claim("w") is None
    assert rig.claim(new_worker_id()) is None
    assert rig.claim(session).worker_id == session


def test_the_sixth_waiting_task_is_refused(rig):
    session = rig.open()
    for number in range(5):
        rig.submit(session, f"job-{number}")
    with pytest.raises(SessionQueueFull) as error:
        rig.submit(session, "job-5")
    body = error.value.body
    assert (error.value.http_status, body["code"]) == (503, "queue_full")
    assert (body["queue_size"], body["queue_max"]) == (5, 5)
    # A repetition of one that was taken is no sixth one.
    assert rig.submit(session, "job-4") == "job-4"


def test_twenty_tasks_at_once_are_five_in_order_and_fifteen_refused(rig):
    session = rig.ready()

    def one(number):
        try:
            return rig.submit(session, f"job-{number}")
        except SessionQueueFull:
            return None

    with ThreadPoolExecutor(20) as pool:
        taken = [job for job in pool.map(one, range(20)) if job]
    assert sorted(taken) == sorted(rig.sessions.get(session).queued)
    assert len(taken) == 5


@pytest.mark.parametrize("how", ["discard", "drain", "lost", "stopped"])
def test_a_session_that_ends_takes_no_task(rig, how):
    session = rig.open() if how == "discard" else rig.ready()
    if how == "discard":
        rig.sessions.end(session, drain=True)
    elif how == "drain":
        rig.sessions.end(session, Reason.MAX_LIFETIME, drain=True)
    elif how == "lost":
        rig.managed.lost(session, "silent")
    else:
        rig.managed.stopped(session, "h", exit_code=1, reason="exit code 1", failed=True)
    with pytest.raises(SessionEnded) as error:
        rig.submit(session)
    assert (error.value.http_status, error.value.body["code"]) == (404, "session_ended")
    assert rig.client.exists(keys.job("job-1")) == 0
    with pytest.raises(SessionEnded):
        rig.submit(new_worker_id())


def test_a_claim_after_the_end_leaves_the_task_waiting(rig):
    session = rig.ready()
    rig.submit(session)
    rig.sessions.end(session, drain=True)
    assert rig.claim(session) is None
    assert rig.job().status is JobStatus.IN_QUEUE


def test_a_task_of_an_ended_session_is_not_retried(rig):
    session = rig.ready()
    rig.submit(session)
    attempt = rig.claim(session)
    rig.store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="no"))
    rig.store.jobs.retry("job-1", ENDPOINT.id, "job-2")
    assert rig.sessions.get(session).queued == ("job-2",)
    assert rig.claim("w", "job-2") is None
    rig.finish(rig.claim(session, "job-2", "u"))
    rig.sessions.end(session, drain=True)
    with pytest.raises(SessionEnded):
        rig.store.jobs.retry("job-1", ENDPOINT.id, "job-3")
    assert rig.client.exists(keys.job("job-3")) == 0


def test_a_purge_leaves_the_tasks_of_sessions_alone(rig):
    session = rig.ready()
    rig.submit(session)
    rig.store.jobs.create(new_job("shared", ENDPOINT.id))
    assert rig.store.queue.purge(ENDPOINT.id, reason="x") == 1
    assert rig.job("shared").status is JobStatus.CANCELLED
    assert rig.claim(session) is not None


@pytest.mark.parametrize(("attempts", "status"), [(1, JobStatus.FAILED), (2, JobStatus.IN_QUEUE)])
def test_a_lost_task_of_a_named_session_fails_and_another_waits_for_the_session(
    rig, attempts, status
):
    session = rig.ready()
    rig.submit(session, max_attempts=attempts)
    attempt = rig.claim(session)
    reason = "the worker left"
    found = rig.store.jobs.requeue("job-1", attempt.number, lost=True, reason=reason)
    assert found is status
    assert rig.claim("w", token="u") is None
    if status is JobStatus.FAILED:
        assert rig.client.hget(keys.job("job-1"), "code") == "lost"
    else:
        assert rig.sessions.get(session).queued == ("job-1",)


@pytest.mark.parametrize(("memory", "code"), [(False, "crashed"), (True, "oom")])
def test_a_task_whose_session_crashed_fails_with_the_reason(rig, memory, code):
    session = rig.ready()
    rig.submit(session)
    attempt = rig.claim(session)
    rig.managed.stopped(
        session, "h", exit_code=137, reason="exit code 137", failed=True, out_of_memory=memory
    )
    rig.store.jobs.requeue("job-1", attempt.number, lost=True, reason="it left", freed=session)
    job = rig.job()
    assert job.status is JobStatus.FAILED
    assert rig.client.hget(keys.job("job-1"), "code") == code
    assert job.error == f"session {session} ended: {code} (exit code 137)"
    found = rig.sessions.get(session)
    assert (found.status, found.reason) == (Status.KILLED, Reason(code))


# What clients do with it.


def test_sessions_are_listed_for_their_owner_only(rig):
    mine, other = rig.ready(owner="me"), rig.open(owner="you", reuse=False)
    assert [s.id for s in rig.sessions.list(owner="me")] == [mine]
    assert {s.id for s in rig.sessions.list()} == {mine, other}
    assert rig.sessions.get(mine, "you") is None
    for call in (rig.sessions.keepalive, lambda i, o: rig.sessions.end(i, drain=True, owner=o)):
        with pytest.raises(SessionNotFound):
            call(mine, "you")


def test_an_ended_session_is_shown_for_ten_minutes(rig):
    session = rig.open()
    ended = rig.sessions.end(session, drain=True)
    assert (ended.status, ended.reason) == (Status.KILLED, Reason.MANUAL)
    assert rig.sessions.list() == []
    assert [s.id for s in rig.sessions.list(ended=True)] == [session]
    # Again, as the first time.
    assert rig.sessions.end(session, drain=True).reason is Reason.MANUAL
    rig.set_ms(session, "stopped_ms", 601)
    assert rig.sessions.get(session) is None
    assert rig.sessions.list(ended=True) == []


def test_a_keepalive_restarts_the_idle_time_and_may_hold_the_session_longer(rig):
    session = rig.ready()
    for name in ("active_ms", "ready_ms"):
        rig.set_ms(session, name, 200)
    before = rig.sessions.get(session)
    assert before.idle_expires_ms - before.now_ms < 101_000
    after = rig.sessions.keepalive(session, "me")
    assert 290_000 < after.idle_expires_ms - after.now_ms <= 300_000
    held = rig.sessions.keepalive(session, "me", 100_000)
    assert 1_190_000 < held.idle_expires_ms - held.now_ms <= 1_200_000
    rig.sessions.end(session, drain=True)
    with pytest.raises(SessionEnded):
        rig.sessions.keepalive(session, "me")


def test_a_kill_ends_the_running_task_and_a_drain_lets_it_end(rig):
    for drain, phase, status in (
        (True, Phase.DRAINING, JobStatus.COMPLETED),
        (False, Phase.STOPPING, JobStatus.FAILED),
    ):
        session, job_id = rig.ready(), f"job-{drain}"
        rig.submit(session, job_id)
        attempt = rig.claim(session, job_id)
        ended = rig.sessions.end(session, drain=drain)
        assert (ended.worker.phase, ended.reason) == (phase, Reason.MANUAL)
        rig.finish(attempt)
        job = rig.job(job_id)
        assert job.status is status
        if not drain:
            assert job.error == f"session {session} ended: manual"
            assert rig.client.hget(keys.job(job_id), "code") == "session_ended"


def test_a_draining_session_can_be_killed(rig):
    session = rig.ready()
    rig.submit(session)
    rig.claim(session)
    rig.sessions.end(session, Reason.MAX_LIFETIME, drain=True)
    ended = rig.sessions.end(session, drain=False)
    # The first reason stays.
    assert (ended.worker.phase, ended.reason) == (Phase.STOPPING, Reason.MAX_LIFETIME)
    assert rig.job().status is JobStatus.FAILED


# Its worker.


def test_the_registry_lists_a_session_from_its_place_on_as_private(rig, client):
    registry = Registry({ENDPOINT.id: ENDPOINT}, Fleet(client), load_settings())
    session = rig.open()
    rig.place(session)
    worker = registry.find(session)
    assert (worker.private, worker.kind, worker.is_managed) == (True, WorkerKind.PULL, True)
    rig.managed.started(session, "h")
    rig.sessions.end(session, drain=True)
    assert registry.find(session).draining


def test_a_tasks_worker_is_one_of_containers_and_runs_one_job(rig, client):
    registry = Registry({ENDPOINT.id: ENDPOINT}, Fleet(client), load_settings())
    spec = replace(SPEC, template=replace(SPEC.template, protocol=Protocol.CONTAINER))
    worker_id = new_worker_id()
    for _ in range(2):
        assert rig.sessions.open_task(
            worker_id, ENDPOINT.id, spec=spec, job_id="job-1", owner="me", model_id="llama"
        )
    rig.submit(worker_id)
    rig.place(worker_id)
    worker = registry.find(worker_id)
    assert (worker.kind, worker.private, worker.capacity) == (WorkerKind.CONTAINER, True, 1)
    record = rig.managed.get(worker_id)
    assert (record.role, record.job) == (Role.TASK, "job-1")
    assert json.loads(record.about)["model_id"] == "llama"
    # It is no session.
    assert rig.sessions.get(worker_id) is None
    assert rig.sessions.list() == []


def test_a_failed_start_of_a_session_does_not_delay_the_endpoints_own_workers(rig):
    session = rig.open()
    rig.place(session)
    rig.managed.stopped(session, "h", exit_code=1, reason="exit code 1", failed=True)
    assert rig.managed.failures(ENDPOINT.id).count == 0
    assert rig.sessions.get(session).reason is Reason.START_FAILED


def test_limits_of_the_preset_are_those_of_its_sessions(client):
    limits = SessionLimits(5, 60, 2, hard_lifetime=True, from_created=True)
    preset = Preset("llama", "chat", "high", session=limits, spill={"high": ("low",)})
    rig = Rig(client, endpoint=replace(ENDPOINT, preset=preset))
    session = rig.sessions.get(rig.open())
    worker = session.worker
    assert (worker.idle_s, worker.life_s, worker.queue_max) == (5, 60, 2)
    assert (worker.hard_life, worker.from_created) == (True, True)
    assert worker.pools == ("high", "low")
    assert session.expires_ms == worker.created_ms + 60_000


def test_a_session_that_was_picked_is_idle_again_when_no_task_came(rig):
    session = rig.ready()
    assert rig.open() == session
    rig.stays_picked(session)
    assert rig.open() != session
    rig.set_ms(session, "picked_ms", PICKED_MS / 1000)
    assert rig.open() == session


@pytest.mark.slow
def test_no_task_is_between_two_sessions_while_many_are_opened_and_ended(rig):
    """Each task that was taken waits for a session that takes tasks, or for one that has ended since."""
    stop = threading.Event()
    taken, refused = [], []

    def end():
        while not stop.is_set():
            for session in rig.sessions.list():
                rig.sessions.end(session.id, drain=True)

    def submit(number):
        session = rig.open()
        try:
            taken.append(rig.submit(session, f"job-{number}"))
        except (SessionEnded, SessionQueueFull):
            refused.append(number)

    thread = threading.Thread(target=end)
    thread.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(200)))
    stop.set()
    thread.join()
    assert len(taken) + len(refused) == 200
    waiting = rig.sessions.jobs.waiting([ENDPOINT.id]).get(ENDPOINT.id, [])
    assert sorted(job.id for job in waiting) == sorted(taken)


# What its tasks' clients are told.


def told(rig, job_id="job-1"):
    entries = rig.client.lrange(keys.journal(job_id), 0, -1)
    return [json.loads(entry)[3:] for entry in entries]


def test_the_tasks_of_a_session_are_told_how_it_starts_and_ends(rig):
    session = rig.open()
    rig.submit(session)
    rig.place(session)
    for words in ("pulls the image: 40 %", "pulls the image: 40 %", "pulls the image: 60 %"):
        rig.managed.progress(session, "h", words)
    for _ in range(2):
        rig.managed.started(session, "h")
        rig.managed.ready(session)
    rig.managed.stopped(
        session, "h", exit_code=137, reason="exit code 137", failed=True, out_of_memory=True
    )
    placed, *found = told(rig)
    assert placed == ["connection", {}]
    assert [event for event, _ in found] == ["worker"] * 5
    data = [values for _, values in found]
    assert [values["status"] for values in data] == [
        *("pulling", "pulling", "created", "ready", "error")
    ]
    assert {values["worker_id"] for values in data} == {session}
    assert data[1]["message"] == "pulls the image: 60 %"
    assert 0 <= data[3]["load_seconds"] < 5
    assert (data[4]["exit_code"], data[4]["oom"]) == (137, True)
    assert data[4]["error"] == "exit code 137"


def test_the_tasks_of_a_session_are_told_how_its_model_comes(rig):
    session = rig.open()
    rig.submit(session)
    rig.managed.waits(session, "all devices are busy")
    assert rig.sessions.get(session).worker.fetched_ms is None
    rig.managed.waits(session, "model llama is being fetched: 10 %", fetching=(10, 100))
    assert rig.sessions.get(session).worker.fetched_ms is not None
    ((event, data),) = told(rig)
    assert (event, data["status"]) == ("worker", "fetching")
    assert data["progress"] == {"done": 10, "total": 100, "unit": "bytes"}


def test_other_jobs_are_told_nothing_of_a_session(rig, client):
    rig.store.jobs.create(new_job("shared", ENDPOINT.id))
    rig.submit(rig.open(owner="you"), "theirs")
    rig.ready()
    assert told(rig, "shared") == told(rig, "theirs") == []


def test_a_session_that_asks_for_a_restart_is_started_anew_once_and_keeps_its_queue(rig):
    offers = Offers(rig.client, gone_s=60)
    session, wanted = rig.ready(idle_s=1), {"limit": 1, "in_progress": False}
    assert not rig.managed.restarting(session, "h", "d2")
    offers.take(session, rig.endpoint.id, "t1", **wanted)
    ended = Result(Outcome(JobStatus.COMPLETED, output="1"), stopping=True)
    offers.done(session, rig.endpoint.id, "run", ended)
    rig.submit(session)
    found = rig.sessions.get(session)
    assert (found.worker.restart, found.status) == (1, Status.INITIALIZING)
    assert offers.take(session, rig.endpoint.id, "t2", **wanted).stopping
    assert not rig.managed.restarting(session, "other", "d2")
    for _ in range(2):
        # Repeated, as after a lost answer.
        assert rig.managed.restarting(session, "h", "d2")
    assert rig.client.hget(keys.managed(session), "key") == "d2"
    for _ in range(2):
        assert rig.managed.restarted(session, "h")
    found = rig.sessions.get(session)
    assert (found.worker.restart, found.queued, found.status) == (
        2,
        ("job-1",),
        Status.INITIALIZING,
    )
    rig.set_ms(session, "active_ms", 10)
    rig.store.jobs.cancel("job-1", rig.endpoint.id, reason="x")
    assert not rig.sessions.end_private(found.worker, Reason.IDLE_TIMEOUT, how="idle")
    # Its next process asks for a job.
    assert not offers.take(session, rig.endpoint.id, "t3", **wanted).stopping
    found = rig.sessions.get(session)
    assert (found.worker.restart, found.status) == (0, Status.WAITING)
    assert found.worker.active_ms > found.worker.ready_ms
    assert not rig.managed.restarting(session, "h", "d3")


def test_a_next_process_that_is_fast_may_ask_before_its_agent_reports_it(rig):
    offers, session = Offers(rig.client, gone_s=60), rig.ready()
    offers.take(session, rig.endpoint.id, "t1", limit=1, in_progress=False)
    ended = Result(Outcome(JobStatus.COMPLETED, output="1"), stopping=True)
    offers.done(session, rig.endpoint.id, "run", ended)
    assert rig.managed.restarting(session, "h", "d2")
    offers.take(session, rig.endpoint.id, "t2", limit=1, in_progress=False)
    assert rig.managed.restarted(session, "h")
    assert rig.sessions.get(session).worker.restart == 0


def test_a_session_that_ends_meanwhile_is_not_started_anew(rig):
    offers, session = Offers(rig.client, gone_s=60), rig.ready()
    offers.take(session, rig.endpoint.id, "t1", limit=1, in_progress=False)
    ended = Result(Outcome(JobStatus.COMPLETED, output="1"), stopping=True)
    offers.done(session, rig.endpoint.id, "run", ended)
    rig.sessions.end(session, drain=False)
    assert not rig.managed.restarting(session, "h", "d2")
    assert not rig.managed.restarted(session, "h")


def test_a_session_takes_tasks_of_its_endpoint_and_owner_until_it_ends(rig):
    session = rig.open(owner="me")
    ask = rig.sessions.takes_tasks
    assert ask(session, ENDPOINT.id, "me")
    assert ask(session, ENDPOINT.id)
    rig.ready(session)
    assert ask(session, ENDPOINT.id, "me")
    assert not ask(session, ENDPOINT.id, "you")
    assert not ask(session, ENDPOINT.id, "")
    assert not ask(session, "other", "me")
    assert not ask(new_worker_id(), ENDPOINT.id)
    assert not ask("a session", ENDPOINT.id)
    task = new_worker_id()
    assert rig.sessions.open_task(
        task,
        ENDPOINT.id,
        spec=SPEC,
        job_id="j",
        owner="me",
        model_id="m",
        preset="p",
        difficulty="low",
    )
    assert not ask(task, ENDPOINT.id, "me")
    rig.sessions.end(session, drain=True)
    assert not ask(session, ENDPOINT.id, "me")
