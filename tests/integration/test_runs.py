"""What a worker may still be at when its node has ended: gone on with, or waited for."""

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

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.broker import names
from ownpod.node.breaker import Breaker
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Slots
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Run, RunCheck
from ownpod.workers.push import PushWorker

OWN = names.worker_queue("ep", "w")
NO_STREAM = "Stream not supported, handler must be a generator."
GONE = {"id": "r1", "status": "FAILED", "error": "Job ID not found"}


@pytest.fixture
def fake():
    with FakeWorker().serving() as worker:
        worker.routes["POST /run"] = Answer(body={"id": "r1"})
        worker.routes["POST /status"] = Answer(
            body={"id": "r1", "status": "COMPLETED", "output": 1}
        )
        yield worker


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def make_node(store, fake):
    """A node of worker "w", but for Celery."""

    def make(*, lease_s=1, capacity=1, **environ):
        spec = worker_spec(fake.url, id="w", capacity=capacity)
        worker = PushWorker(spec, load_settings(**environ))

        def changed():
            breaker.wake()

        slots = Slots(store, worker, lease_s=lease_s, on_change=changed)
        breaker = Breaker(worker.probe, lambda _: None, publish_every_s=5, slots=slots)
        slots.start()
        callbacks = "OWNPOD_CALLBACK_URL" in environ
        runner = JobRunner(store, worker, slots, breaker, worker_id="w", callbacks=callbacks)
        return SimpleNamespace(runner=runner, slots=slots, worker=worker)

    return make


@pytest.fixture
def node(make_node):
    return make_node()


def left(store, check=RunCheck.STREAM, *, callback=False, lease_s=60, **changes):
    """A job in the worker, of a node that was killed."""
    store.jobs.create(new_job(**changes))
    attempt = store.jobs.claim("job-1", worker_id="w", claim="token", lease_s=lease_s)
    run = Run("job-1", 1, "r1", check, attempt.execution_timeout_ms, callback)
    store.runs.record(run, "w")
    return attempt


def job(store):
    return store.jobs.get("job-1", "ep")


def test_a_run_is_in_redis_before_it_may_begin_and_until_its_slot_is_free(node, store, fake):
    seen = []

    def answer(*_):
        seen.append(store.runs.get("w", "job-1", 1))
        return Answer(body={"status": "COMPLETED", "output": 1})

    fake.routes["POST /status"] = answer
    fake.routes["POST /stream"] = Answer(body={"status": "FAILED", "error": NO_STREAM})
    store.jobs.create(new_job())
    node.runner.run("job-1")
    assert seen == [Run("job-1", 1, "r1", RunCheck.STREAM, 600_000)]
    assert store.runs.orphans("w") == []


def test_a_timed_out_job_keeps_its_run_until_the_worker_is_done(node, store, fake):
    held = Answer(body={"status": "COMPLETED"}, hold=threading.Event())
    fake.routes["POST /status"] = held
    store.jobs.create(new_job(execution_timeout_ms=200))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.runner.run, "job-1")
        wait_until(lambda: job(store).status is JobStatus.TIMED_OUT)
        assert store.runs.orphans("w") == [("job-1", 1)]
        held.hold.set()
        running.result(60)
    assert store.runs.orphans("w") == []


def test_a_run_that_can_be_polled_is_gone_on_with_as_the_same_attempt(node, store, fake, client):
    began = left(store, RunCheck.POLL).started_ms
    node.runner.adopt("ep")
    assert (client.llen(OWN), client.llen("ownpod.ep")) == (1, 1)
    node.runner.run("job-1")
    done = job(store)
    assert (done.status, done.attempt, done.started_ms) == (JobStatus.COMPLETED, 1, began)
    assert fake.paths("POST /run") == []
    assert (store.runs.orphans("w"), done.retries) == ([], 0)


def test_only_the_workers_own_node_goes_on_with_its_run(node, store):
    left(store, RunCheck.POLL)
    node.runner.adopt("ep")
    assert store.jobs.claim("job-1", worker_id="other", claim="x", lease_s=60) is None


def test_a_polled_run_that_the_worker_has_forgotten_is_lost(node, store, fake):
    left(store, RunCheck.POLL)
    fake.routes["POST /status"] = fake.routes["GET /status"] = Answer(404, {})
    node.runner.adopt("ep")
    node.runner.run("job-1")
    assert (job(store).status, job(store).retries) == (JobStatus.IN_QUEUE, 1)


def test_a_run_that_cannot_be_asked_is_waited_for_while_its_job_goes_on(node, store, fake, client):
    left(store)
    client.delete("ownpod.ep")
    answers = iter([NO_STREAM, NO_STREAM, "Job ID not found"])
    fake.routes["POST /stream"] = lambda *_: Answer(
        body={"status": "FAILED", "error": next(answers)}
    )
    node.runner.adopt("ep")
    # The job may run on any other worker at once; this one has a slot less until its run has ended.
    assert (job(store).status, job(store).retries) == (JobStatus.IN_QUEUE, 1)
    assert (client.llen("ownpod.ep"), client.llen(OWN)) == (1, 1)
    node.runner.await_run("job-1", 1)
    assert fake.paths("POST /") == ["POST /stream/r1"] * 3
    assert store.runs.orphans("w") == []


@pytest.mark.parametrize("look", [RunCheck.STREAM, RunCheck.HEALTH])
def test_a_blocked_worker_is_asked_once_and_answers_when_it_is_free(node, store, fake, look):
    left(store, look)
    free = threading.Event()
    fake.routes["POST /stream"] = fake.routes["GET /health"] = Answer(body=GONE, hold=free)
    node.runner.adopt("ep")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.runner.await_run, "job-1", 1)
        wait_until(lambda: fake.seen)
        assert (node.slots.taken, node.slots.lingering) == (1, 1)
        # A message that came twice takes no second slot.
        node.runner.await_run("job-1", 1)
        free.set()
        waiting.result(60)
    assert len(fake.seen) == 1
    assert node.slots.taken == 0


@pytest.mark.parametrize("look", [RunCheck.TIMEOUT, RunCheck.UNKNOWN])
def test_a_run_that_can_never_be_asked_is_waited_for_no_longer_than_its_time(
    node, store, fake, look
):
    left(store, look, execution_timeout_ms=300)
    node.runner.adopt("ep")
    node.runner.await_run("job-1", 1)
    assert fake.paths("GET /health")
    assert store.runs.orphans("w") == []


def test_a_worker_that_was_silent_for_long_and_answers_is_free_whatever_else_is_known_of_it(
    node, store, fake, monkeypatch
):
    monkeypatch.setattr("ownpod.workers.push.LEARN_AFTER_S", 0.05)
    left(store, RunCheck.UNKNOWN)
    free = threading.Event()
    fake.routes["GET /health"] = Answer(404, {}, hold=free)
    node.runner.adopt("ep")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.runner.await_run, "job-1", 1)
        wait_until(lambda: fake.seen)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.1)
        free.set()
        waiting.result(60)
    assert fake.paths("GET /health") == ["GET /health"]
    assert store.runs.orphans("w") == []


def test_a_worker_that_is_not_there_runs_nothing(make_node, store, fake):
    node = make_node()
    left(store, RunCheck.TIMEOUT)
    fake.port = 1
    gone = make_node()
    gone.runner.adopt("ep")
    gone.runner.await_run("job-1", 1)
    assert store.runs.orphans("w") == []
    assert node.slots.taken == 0


def test_what_never_reached_the_worker_is_taken_up_at_once(node, store, client):
    store.jobs.create(new_job())
    store.jobs.claim("job-1", worker_id="w", claim="x", lease_s=60)
    node.runner.adopt("ep")
    assert (job(store).status, client.llen(OWN), store.runs.orphans("w")) == (
        JobStatus.IN_QUEUE,
        0,
        [],
    )


def test_a_job_that_was_cancelled_on_the_way_still_keeps_the_slot(node, store, fake):
    left(store, RunCheck.POLL)
    node.runner.adopt("ep")
    store.jobs.cancel("job-1", "ep", reason="by hand")
    running = iter(["IN_PROGRESS", "COMPLETED"])
    fake.routes["POST /status"] = lambda *_: Answer(body={"status": next(running)})
    node.runner.run("job-1")
    assert len(fake.paths("POST /status")) == 2
    assert (job(store).status, store.runs.orphans("w")) == (JobStatus.CANCELLED, [])


def test_a_node_that_ends_leaves_a_polled_run_to_the_next(make_node, store, fake, client):
    states = iter(["IN_PROGRESS"] * 3)
    polled = threading.Event()

    def status(*_):
        state = next(states, None)
        if state is None:
            polled.wait(60)
        return Answer(body={"status": state or "COMPLETED", "output": 5})

    fake.routes["POST /status"] = status
    store.jobs.create(new_job())
    first, second = make_node(), make_node()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.runner.run, "job-1")
        wait_until(lambda: len(fake.paths("POST /status")) == 4)
        assert first.slots.hand_over("its node was stopped") == 1
        assert job(store).status is JobStatus.IN_PROGRESS
        polled.set()
        second.runner.adopt("ep")
        second.runner.run("job-1")
        running.result(60)
    done = job(store)
    assert (done.status, done.output, done.attempt) == (JobStatus.COMPLETED, "5", 1)
    assert len(fake.paths("POST /run")) == 1


def test_a_worker_cut_off_keeps_its_slot_until_it_is_done(node, store, fake):
    fake.routes["POST /stream"] = Answer(body={"status": "FAILED", "error": NO_STREAM})

    def cut(*_):
        fake.routes["POST /stream"] = lambda *_: Answer(
            body=GONE if len(fake.paths("POST /stream")) > 3 else {"error": NO_STREAM}
        )
        return Answer(hang_up=True)

    fake.routes["POST /status"] = cut
    store.jobs.create(new_job())
    node.runner.run("job-1")
    assert (job(store).status, job(store).retries) == (JobStatus.IN_QUEUE, 1)
    assert len(fake.paths("POST /stream")) == 4
    assert store.runs.orphans("w") == []


def test_two_runs_under_one_id_are_distinguished(make_node, store, fake):
    node = make_node(capacity=2)
    held = Answer(body={"status": "COMPLETED", "output": 1}, hold=threading.Event())
    fake.routes["POST /status"] = held
    store.jobs.create(new_job())
    store.jobs.create(new_job("job-2"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.runner.run, "job-1")
        wait_until(lambda: fake.paths("POST /status"))
        node.runner.run("job-2")
        held.hold.set()
        running.result(60)
    assert job(store).status is JobStatus.COMPLETED
    second = store.jobs.get("job-2", "ep")
    assert (second.status, second.retries) == (JobStatus.IN_QUEUE, 1)


# Results that workers post by themselves.


@pytest.fixture
def api(client, tmp_path, redis_server):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    app = create_app(
        load_settings(
            REDIS_URL=redis_server.url,
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_API_KEYS="secret",
            OWNPOD_CALLBACK_URL="http://10.0.0.5:8000",
        )
    )
    yield app.test_client()
    services_of(app).notices.stop()


def post(api, body, token="token"):
    return api.post(f"/callback/ep/job-1/{token}", json=body)


def test_the_worker_gets_the_url_to_which_it_posts_its_result(make_node, store, fake):
    node = make_node(OWNPOD_CALLBACK_URL="http://10.0.0.5:8000/")
    store.jobs.create(new_job())
    node.runner.run("job-1")
    webhook = fake.seen[0][2]["webhook"]
    assert webhook.startswith("http://10.0.0.5:8000/callback/ep/job-1/")
    assert job(store).status is JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({"output": {"x": 1}}, '{"x": 1}'),
        ([{"output": 1}, {"output": 2}], "[1, 2]"),
        ({"id": "r1", "status": "COMPLETED", "output": None}, "null"),
    ],
)
def test_a_result_that_comes_while_the_job_is_back_in_its_queue_completes_it(
    api, store, node, body, output
):
    left(store, callback=False)
    node.runner.adopt("ep")
    assert post(api, body).json == {"id": "job-1", "status": "COMPLETED"}
    assert (job(store).status, job(store).output) == (JobStatus.COMPLETED, output)
    assert store.jobs.claim("job-1", worker_id="w", claim="y", lease_s=60).id == "r1"


def test_a_result_is_waited_for_while_the_worker_is_at_it(api, make_node, store, fake):
    node = make_node(OWNPOD_CALLBACK_URL="http://10.0.0.5:8000")
    left(store, callback=True)
    free = threading.Event()
    fake.routes["POST /stream"] = Answer(body=GONE, hold=free)
    node.runner.adopt("ep")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(node.runner.run, "job-1")
        wait_until(lambda: fake.paths("POST /stream"))
        assert job(store).status is JobStatus.IN_PROGRESS
        assert post(api, {"output": 7}).json["status"] == "COMPLETED"
        free.set()
        running.result(60)
    done = job(store)
    assert (done.status, done.output, done.attempt, done.retries) == ("COMPLETED", "7", 1, 0)
    assert fake.paths("POST /run") == store.runs.orphans("w") == []


def test_a_result_that_does_not_come_is_another_attempt(make_node, store, fake, monkeypatch):
    monkeypatch.setattr("ownpod.node.runner.CALLBACK_S", 0.2)
    node = make_node()
    left(store, callback=True)
    fake.routes["POST /stream"] = Answer(body=GONE)
    node.runner.adopt("ep")
    node.runner.run("job-1")
    assert (job(store).status, job(store).retries) == (JobStatus.IN_QUEUE, 1)


def test_a_result_that_came_while_its_dead_node_was_not_missed_yet_counts(api, store, node, client):
    left(store, callback=True)
    # Its node may well live: it gets the worker's own answer, with all that this one lacks.
    assert post(api, {"output": 7}).json["status"] == "IN_PROGRESS"
    node.runner.adopt("ep")
    assert (job(store).status, job(store).output) == (JobStatus.COMPLETED, "7")
    node.runner.await_run("job-1", 1)
    assert store.runs.orphans("w") == []


def test_a_result_that_came_counts_when_the_lease_runs_out(api, store):
    left(store, callback=True, lease_s=0.01)
    post(api, {"output": 7})
    store.jobs.requeue("job-1", 1, lost=True, reason="silent")
    assert (job(store).status, job(store).output) == (JobStatus.COMPLETED, "7")


def test_a_result_of_an_attempt_that_was_followed_by_another_changes_nothing(api, store, node):
    left(store, callback=True)
    store.jobs.requeue("job-1", 1, lost=True, reason="silent")
    store.jobs.claim("job-1", worker_id="other", claim="second", lease_s=60)
    assert post(api, {"output": 7}).status_code == 404
    assert job(store).status is JobStatus.IN_PROGRESS


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("ep/job-1/wrong", b'{"output": 7}'),
        ("ep/job-2/token", b'{"output": 7}'),
        ("nothing/job-1/token", b'{"output": 7}'),
        ("ep/job-1/wrong", b"not JSON"),
        ("ep/job-1/wrong", b"x" * 60_000_000),
    ],
    ids=["token", "job", "endpoint", "body-not-looked-at", "length-not-looked-at"],
)
def test_a_callback_without_its_token_is_one_plain_404_before_its_body_is_read(
    api, store, path, body
):
    left(store, callback=True)
    answer = api.post(f"/callback/{path}", data=body)
    unknown = api.post("/nothing/there")
    assert (answer.status_code, answer.json) == (404, unknown.json)
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_PROGRESS


def test_a_callback_is_bounded_and_exists_only_where_its_url_is_set(
    api, store, redis_server, tmp_path
):
    left(store, callback=True)
    assert api.post("/callback/ep/job-1/token", data=b"x" * 60_000_000).status_code == 413
    values = {"REDIS_URL": redis_server.url, "OWNPOD_WORKERS_FILE": tmp_path / "workers.yaml"}
    without = create_app(load_settings(**values))
    assert not [rule for rule in without.url_map.iter_rules() if "callback" in rule.rule]
    services_of(without).notices.stop()


def test_a_result_of_a_cancelled_job_changes_nothing(api, store):
    left(store)
    store.jobs.cancel("job-1", "ep", reason="by hand")
    assert post(api, {"output": 7}).json["status"] == "CANCELLED"
    assert job(store).output is None


@pytest.mark.parametrize(
    "body", [{}, {"output": 1, "error": "x"}, {"status": "FAILED", "output": 1}, 5]
)
def test_what_is_no_result_is_refused(api, store, body):
    left(store)
    assert post(api, body).status_code == 400
    assert post(api, {"output": 1}, token="guessed").status_code == 404
