"""A job on its way through a node: record in Redis, worker over HTTP; no Celery."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from helpers import (
    Answer,
    FakeWorker,
    job_store,
    load_settings,
    new_job,
    wait_until,
    worker_spec,
)

from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import CLOCK, Sweep
from ownpod.node.breaker import Breaker
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Slots
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.offers import Offers
from ownpod.workers.push import PushWorker

QUEUE = "ownpod.ep"


@pytest.fixture
def fake():
    worker = FakeWorker()
    runs = itertools.count(1)
    worker.routes["POST /run"] = lambda *_: Answer(body={"id": f"r{next(runs)}"})
    worker.routes["POST /status"] = Answer(body={"status": "COMPLETED", "output": 1})
    with worker.serving():
        yield worker


def slots_and_breaker(store, worker, *, lease_s=1, **options):
    def changed():
        breaker.wake()

    slots = Slots(store, worker, lease_s=lease_s, on_change=changed, **options)
    breaker = Breaker(worker.probe, lambda _: None, publish_every_s=5, slots=slots)
    return slots, breaker


@pytest.fixture
def node(client, fake):
    """What a node is made of, but for Celery."""
    settings = load_settings(OWNPOD_WORKER_RUN_READ_TIMEOUT_S=20)
    store = job_store(client)
    worker = PushWorker(worker_spec(fake.url), settings)
    slots, breaker = slots_and_breaker(store, worker)
    slots.start()
    runner = JobRunner(store, worker, slots, breaker, worker_id="w")
    return SimpleNamespace(store=store, breaker=breaker, slots=slots, run=runner.run, worker=worker)


def status_of(node, job_id="job-1"):
    return node.store.jobs.get(job_id, "ep").status


def test_a_job_completes(node):
    node.store.jobs.create(new_job())
    node.run("job-1")
    job = node.store.jobs.get("job-1", "ep")
    assert (job.status, job.output, job.worker_id) == (JobStatus.COMPLETED, "1", "w")
    assert node.slots.taken == 0


def test_a_message_that_comes_twice_runs_the_job_once(node, fake):
    node.store.jobs.create(new_job())
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(node.run, ["job-1", "job-1"]))
    node.run("job-1")
    assert len(fake.paths("POST /run")) == 1


def test_a_message_without_a_record_is_dropped(node, fake):
    node.run("never-was")
    assert fake.seen == []


def test_a_refused_job_fails_with_the_workers_reason(node, fake):
    fake.routes["POST /run"] = Answer(422, {"detail": "input should be an object"})
    node.store.jobs.create(new_job())
    node.run("job-1")
    job = node.store.jobs.get("job-1", "ep")
    assert job.status is JobStatus.FAILED
    assert "input should be an object" in job.error


def test_a_dead_worker_costs_no_attempt_and_opens_the_breaker(node, fake, client, monkeypatch):
    fake.routes["POST /run"] = Answer(503, {})
    node.breaker.start()
    wait_until(lambda: node.breaker.closed)
    node.store.jobs.create(new_job())
    client.delete(QUEUE)
    reasons, note = [], node.breaker.note_failure
    monkeypatch.setattr(node.breaker, "note_failure", lambda why: (note(why), reasons.append(why)))
    node.run("job-1")
    # It may take part again already: its probe finds it well after half a second.
    assert reasons[0].startswith("/run answered HTTP 503")
    assert status_of(node) is JobStatus.IN_QUEUE
    assert node.store.jobs.get("job-1", "ep").retries == 0
    assert client.llen(QUEUE) == 1
    # It takes part again by itself.
    wait_until(lambda: node.breaker.closed, 5)


@pytest.mark.slow
def test_a_worker_that_keeps_refusing_is_asked_less_and_less(node, fake):
    fake.routes["POST /run"] = Answer(404, {})
    node.breaker.start()
    node.store.jobs.create(new_job())
    pauses = []
    for _ in range(4):
        wait_until(lambda: node.breaker.closed, 5)
        node.run("job-1")
        closed = time.monotonic()
        wait_until(lambda: node.breaker.closed, 5)
        pauses.append(time.monotonic() - closed)
    # They double; a loaded machine adds to each.
    assert pauses[0] < pauses[3]


def test_a_job_whose_worker_dies_is_tried_again_and_fails_in_the_end(node, fake):
    fake.routes["POST /status"] = Answer(hang_up=True)
    node.store.jobs.create(new_job(max_attempts=3))
    for lost in (1, 2):
        node.run("job-1")
        job = node.store.jobs.get("job-1", "ep")
        assert (job.status, job.retries) == (JobStatus.IN_QUEUE, lost)
    node.run("job-1")
    job = node.store.jobs.get("job-1", "ep")
    assert (job.status, job.retries, job.attempt) == (JobStatus.FAILED, 2, 3)
    assert "died or was cut off" in job.error
    assert len(fake.paths("POST /run")) == 3


def test_a_timeout_is_written_at_once_and_the_slot_kept_until_the_worker_is_free(node, fake):
    held = Answer(body={"status": "COMPLETED", "output": "late"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    node.store.jobs.create(new_job(execution_timeout_ms=300))
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        running = pool.submit(node.run, "job-1")
        # The worker answers only below.
        wait_until(lambda: status_of(node) is JobStatus.TIMED_OUT)
        assert time.monotonic() - began >= 0.3
        assert not running.done()
        # The record changes first, the slot a moment later.
        wait_until(lambda: (node.slots.taken, node.slots.lingering) == (1, 1))
        assert node.breaker.status.lingering == 1
        wait_until(lambda: fake.paths("POST /cancel"))
        held.hold.set()
        running.result(60)
    assert (node.slots.taken, node.slots.lingering) == (0, 0)
    job = node.store.jobs.get("job-1", "ep")
    assert (job.status, job.output) == (JobStatus.TIMED_OUT, None)
    assert job.error == "executionTimeout: the job ran longer than 300 ms"


def test_a_cancelled_running_job_is_forwarded_and_its_late_answer_dropped(node, fake):
    held = Answer(body={"status": "COMPLETED", "output": "late"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    node.store.jobs.create(new_job())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        node.store.jobs.cancel("job-1", "ep", reason="by hand")
        wait_until(lambda: fake.paths("POST /cancel"), 5)
        assert node.slots.lingering == 1
        held.hold.set()
        running.result(60)
    assert status_of(node) is JobStatus.CANCELLED


@pytest.mark.slow
def test_a_lease_is_renewed_while_the_job_runs(node, fake, client):
    held = Answer(body={"status": "COMPLETED"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    slots, breaker = slots_and_breaker(node.store, node.worker, lease_s=3)
    slots.start()
    runner = JobRunner(node.store, node.worker, slots, breaker, worker_id="w")
    node.store.jobs.create(new_job())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runner.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        first = client.zscore(keys.LEASES, "job-1")
        wait_until(lambda: client.zscore(keys.LEASES, "job-1") > first + 3000)
        held.hold.set()
        running.result(60)
    assert status_of(node) is JobStatus.COMPLETED


def test_a_node_that_ends_hands_its_jobs_back_uncounted(node, fake, client):
    held = Answer(body={"status": "COMPLETED"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    node.store.jobs.create(new_job())
    client.delete(QUEUE)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        assert node.slots.hand_over("stopping") == 1
        assert status_of(node) is JobStatus.IN_QUEUE
        assert client.llen(QUEUE) == 1
        held.hold.set()
        running.result(60)
    job = node.store.jobs.get("job-1", "ep")
    assert (job.status, job.retries) == (JobStatus.IN_QUEUE, 0)


def test_what_fails_at_the_end_of_one_job_ends_no_node(node, fake, client, caplog):
    held = Answer(body={"status": "COMPLETED"}, hold=threading.Event())
    fake.routes["POST /status"] = held

    def read_record(attempt):
        client.hget(keys.of_endpoint(attempt.endpoint, "queued"), "x")

    slots, breaker = slots_and_breaker(node.store, node.worker, on_over=read_record)
    slots.start()
    runner = JobRunner(node.store, node.worker, slots, breaker, worker_id="w")
    node.store.jobs.create(new_job())
    node.store.jobs.create(new_job("waits"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runner.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        node.store.jobs.cancel("job-1", "ep", reason="x")
        slots.check_runs()
        # Its thread would have ended the process.
        wait_until(lambda: "its end was not sent" in caplog.text)
        held.hold.set()
        running.result(60)


@pytest.mark.slow
def test_a_run_that_yields_too_much_is_stopped_at_once(client, fake):
    settings = load_settings(OWNPOD_MAX_OUTPUT_MB=100, OWNPOD_WORKER_RUN_READ_TIMEOUT_S=5)
    store, worker = job_store(client), PushWorker(worker_spec(fake.url), settings)
    # No renewal of a lease finds the end of the job by itself.
    slots, breaker = slots_and_breaker(store, worker, lease_s=600)
    slots.start()
    line = b'{"output": "' + b"x" * (4 * 1024 * 1024) + b'"}\n'
    over = threading.Event()

    def parts():
        yield from [line] * 17
        over.wait(100)

    fake.routes["GET /stream"] = fake.routes["POST /stream"] = lambda *_: Answer(
        kind="application/x-ndjson", parts=parts()
    )
    fake.routes["POST /cancel"] = Answer(body={"status": "CANCELLED"})
    runner = JobRunner(store, worker, slots, breaker, worker_id="w")
    store.jobs.create(new_job())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(runner.run, "job-1")
        wait_until(lambda: fake.paths("POST /cancel"), 20)
        over.set()
        assert running.result(60).status is JobStatus.FAILED
    assert "64 MiB" in store.jobs.get("job-1", "ep").error


def test_the_sweep_takes_up_what_a_silent_node_had(node, client):
    node.store.jobs.create(new_job(max_attempts=2))
    node.store.jobs.claim("job-1", worker_id="gone", claim="x", lease_s=0.01)
    client.delete(QUEUE)
    recovery = Recovery(node.store, lambda: ["ep"], lease_s=1)
    sweep = Sweep(node.store, recovery, Offers(node.store.client, gone_s=60), lease_s=1)
    wait_until(lambda: node.store.queue.expired(limit=1))
    sweep.once()
    assert (status_of(node), client.llen(QUEUE)) == (JobStatus.IN_QUEUE, 1)
    node.run("job-1")
    job = node.store.jobs.get("job-1", "ep")
    assert (job.status, job.attempt, job.retries) == (JobStatus.COMPLETED, 2, 1)


def test_the_sweep_gives_nodes_time_after_an_outage(node, client):
    recovery = Recovery(node.store, lambda: ["ep"], lease_s=30)
    sweep = Sweep(node.store, recovery, Offers(node.store.client, gone_s=60), lease_s=30)
    node.store.jobs.create(new_job())
    node.store.jobs.claim("job-1", worker_id="w", claim="x", lease_s=0.01)
    wait_until(lambda: node.store.queue.expired(limit=1))
    now = time.clock_gettime(CLOCK)
    # It has not looked for long: at its start, or because Redis was away for everybody.
    sweep._have_patience(now)
    sweep.once()
    assert status_of(node) is JobStatus.IN_PROGRESS
    for second in range(31):
        sweep._have_patience(now - 30 + second)
    sweep._patient_until = min(sweep._patient_until, now - 1)
    sweep.once()
    assert status_of(node) is JobStatus.IN_QUEUE


@pytest.mark.slow
def test_a_result_waits_for_redis_to_come_back(node, fake, redis_server):
    held = Answer(body={"status": "COMPLETED", "output": 7}, hold=threading.Event())
    fake.routes["POST /status"] = held
    node.store.jobs.create(new_job())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        redis_server.stop()
        held.hold.set()
        with pytest.raises(TimeoutError):
            running.result(0.5)
        redis_server.start()
        running.result(60)
    assert node.store.jobs.get("job-1", "ep").output == "7"


def test_a_busy_workers_silence_is_not_taken_for_illness(node, fake):
    node.breaker.start()
    wait_until(lambda: node.breaker.closed)
    silent = threading.Event()
    fake.routes["GET /health"] = Answer(hold=silent)
    held = Answer(body={"status": "COMPLETED"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    node.store.jobs.create(new_job())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.run, "job-1")
        wait_until(lambda: node.slots.taken)
        node.breaker._probe_at = 0
        node.breaker.wake()
        wait_until(lambda: node.breaker._probe_at > time.monotonic())
        assert node.breaker.closed
        assert len(fake.paths("GET /health")) == 1
        held.hold.set()
        running.result(60)
    silent.set()
