"""Workers that pull: what the API, the worker's node and Redis do when something goes wrong."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from helpers import attempt, job_store, load_settings, new_job, now_ms, wait_until, worker_spec

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.api.workers.protocol import result_of
from ownpod.errors import AttemptLost, WorkerUnavailable
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Run, RunCheck
from ownpod.store import keys
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.workers import Exchange, pull
from ownpod.workers.pull import PullWorker


class Listener:
    def __init__(self):
        self.checks = []

    def chunks(self, texts):
        raise AssertionError(texts)

    def set_check(self, check):
        self.checks.append(check)


@pytest.fixture
def pulls(client):
    return Offers(client, gone_s=60)


@pytest.fixture
def worker(client, pulls, monkeypatch):
    # A test takes what is offered within a moment, also on a loaded machine.
    monkeypatch.setattr(pull, "OFFER_S", 20.0)
    monkeypatch.setattr(pull, "CHECK_INTERVAL_S", 0.1)
    notices = Notices(client, keys.pull("w"))
    subscribe = partial(notices.subscribe, end_only=False)
    yield PullWorker(worker_spec("pull:w", id="w"), Exchange(pulls, subscribe), gone_s=60)
    notices.stop()


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def api(redis_server, client, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1', id: pushed}]}, other: {}}")
    settings = load_settings(
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKER_KEYS="k",
        OWNPOD_WORKER_GONE_S=10,
    )
    app = create_app(settings)
    test_client = app.test_client()
    test_client.environ_base["HTTP_AUTHORIZATION"] = "k"
    yield test_client
    services_of(app).notices.stop()


@pytest.fixture
def running(worker, store, pulls):
    """A job of attempt 1 that the worker is waited for; ends with the test."""
    store.jobs.create(new_job())
    found = store.jobs.claim("job-1", worker_id="w", claim="x", lease_s=60)
    with ThreadPoolExecutor(1) as pool:
        run_id = worker.start(found)
        yield pool.submit(worker.wait, run_id, Listener())
        # However the test has ended, so does the run.
        pulls.settle("w", run_id)


def take(pulls, *, limit=1, in_progress=False, token="t"):
    found = pulls.take("w", "ep", token, limit=limit, in_progress=in_progress)
    return [json.loads(job)["id"] for job in found.jobs]


def taken(pulls, **options):
    return wait_until(lambda: take(pulls, **options), 5)


def post(api, path, body):
    return api.post(path, data=json.dumps(body), content_type="application/x-www-form-urlencoded")


def test_a_run_is_recorded_before_the_worker_can_take_it_and_has_the_jobs_id(
    worker, pulls, monkeypatch
):
    monkeypatch.setattr(pull, "OFFER_S", 0.5)
    listener = Listener()
    assert worker.start(attempt()) == "job-1"
    assert worker.start(attempt(number=2)) == "job-1-2"
    assert take(pulls) == []
    with ThreadPoolExecutor(1) as pool, pytest.raises(WorkerUnavailable, match="asked for no job"):
        pool.submit(worker.wait, "job-1", listener).result(60)
    assert listener.checks == [RunCheck.POLL]
    assert take(pulls) == []


def test_a_worker_that_polls_without_running_jobs_has_lost_the_runs_it_took(running, pulls):
    assert taken(pulls) == ["job-1"]
    pulls.ping("w", "ep", ["job-1"])
    assert take(pulls) == []
    with pytest.raises(AttemptLost, match="no longer runs the job"):
        running.result(60)


def test_a_delivery_that_was_never_begun_is_requeued_uncounted(running, pulls):
    assert taken(pulls) == ["job-1"]
    assert take(pulls) == []
    with pytest.raises(WorkerUnavailable, match="did not begin it"):
        running.result(60)


def test_pings_that_stop_listing_a_run_end_it(running, pulls, client, monkeypatch):
    assert taken(pulls) == ["job-1"]
    pulls.ping("w", "ep", ["job-1"])
    # A ping may have been on its way when the job was taken.
    pulls.ping("w", "ep", [])
    client.hset(f"{keys.pull('w')}:run:job-1", "taken_ms", 1)
    pulls.ping("w", "ep", [])
    pulls.ping("w", "ep", ["job-1"])
    pulls.ping("w", "ep", [])
    assert not running.done()
    pulls.ping("w", "ep", [])
    with pytest.raises(AttemptLost):
        running.result(60)


def test_a_worker_that_vanished_loses_its_run(running, pulls, client):
    assert taken(pulls) == ["job-1"]
    pulls.ping("w", "ep", ["job-1"])
    client.zadd(keys.HEARD, {"w": 1})
    client.hset(keys.pull("w"), "ping_ms", 1)
    with pytest.raises(AttemptLost):
        running.result(60)


def test_a_worker_that_pinged_only_before_its_first_request_loses_its_run_when_it_vanishes(
    running, pulls, client
):
    """The SDK begins with a ping; the worker dies while the job is delivered, before the next ping."""
    pulls.ping("w", "ep", [])
    assert client.hget(keys.pull("w"), "ping_ms") is None
    before_ms = time.time() * 1000
    assert taken(pulls) == ["job-1"]
    assert int(client.hget(keys.pull("w"), "ping_ms")) <= before_ms
    assert not running.done()
    client.zadd(keys.HEARD, {"w": 1})
    client.hset(keys.pull("w"), "ping_ms", 1)
    # The request that took the job is the last one: it has not begun.
    with pytest.raises(WorkerUnavailable, match="did not begin it"):
        running.result(60)


def test_a_worker_that_was_refused_for_another_reason_counts_as_one_that_does_not_ping(
    running, pulls, client
):
    pulls.refuse("w", "ep", "a worker needs one of the keys")
    assert taken(pulls) == ["job-1"]
    assert client.hget(keys.pull("w"), "ping_ms") is None


def test_a_worker_that_does_not_ping_keeps_its_run_for_its_whole_time(running, pulls, client):
    assert taken(pulls) == ["job-1"]
    client.zadd(keys.HEARD, {"w": 1})
    threading.Event().wait(0.3)
    assert not running.done()
    client.hset(f"{keys.pull('w')}:run:job-1", "until_ms", 1)
    with pytest.raises(WorkerUnavailable):
        running.result(60)


def test_a_result_ends_the_run_with_or_without_a_node_and_a_later_one_changes_nothing(
    running, pulls, api
):
    assert taken(pulls) == ["job-1"]
    url = "/v2/ep/job-done/w/job-1?gpu=0&isStream=false"
    assert post(api, url, {"output": {"a": 1}}).status_code == 200
    outcome = running.result(60)
    assert (outcome.status, outcome.output) == (JobStatus.COMPLETED, '{"a": 1}')
    assert outcome.execution_ms >= 0
    assert post(api, url, {"output": 2}).status_code == 200
    assert post(api, "/v2/ep/job-done/w/nothing?isStream=false", {"output": 2}).status_code == 200


def test_another_process_goes_on_with_a_run(worker, running, pulls, client, api):
    assert taken(pulls) == ["job-1"]
    notices = Notices(client, keys.pull("w"))
    subscribe = partial(notices.subscribe, end_only=False)
    after = PullWorker(worker_spec("pull:w", id="w"), Exchange(pulls, subscribe), gone_s=60)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(after.wait, "job-1", Listener(), adopted=True)
        post(api, "/v2/ep/job-done/w/job-1?isStream=false", {"output": 1})
        assert "1" in {f.result(60).output for f in (running, again) if not f.exception(60)}
    notices.stop()


def test_a_result_is_there_for_the_next_node_when_this_one_dies_with_it(
    worker, running, pulls, client, api
):
    assert taken(pulls) == ["job-1"]
    post(api, "/v2/ep/job-done/w/job-1?isStream=false", {"output": 1})
    assert running.result(60).output == "1"
    assert worker.wait("job-1", Listener(), adopted=True).output == "1"
    assert client.pttl(f"{keys.pull('w')}:run:job-1") > 60_000


def test_late_progress_changes_nothing(running, pulls, api, store):
    assert taken(pulls) == ["job-1"]
    url = "/v2/ep/job-done/w/job-1?isStream=false"
    post(api, url, {"status": "IN_PROGRESS", "output": {"percent": 10}})
    assert json.loads(store.jobs.get("job-1", "ep").answer_json())["output"] == {"percent": 10}
    post(api, url, {"output": "done"})
    post(api, url, {"status": "IN_PROGRESS", "output": {"percent": 90}})
    assert running.result(60).output == '"done"'
    assert store.jobs.get("job-1", "ep").progress == '{"percent": 10}'
    store.jobs.requeue("job-1", 1, lost=True, reason="x")
    assert store.jobs.get("job-1", "ep").progress is None


def test_chunks_are_the_output_of_a_stream_that_was_not_aggregated(running, pulls, api):
    assert taken(pulls) == ["job-1"]
    for number in range(2):
        post(api, "/v2/ep/job-stream/w/job-1?isStream=false", {"output": number})
    post(api, "/v2/ep/job-done/w/job-1?isStream=true", {"output": []})
    assert running.result(60).output == "[0, 1]"


def test_a_cancelled_run_is_stopped_and_its_slot_is_free_when_the_worker_has_not_got_it(
    worker, running, pulls, api
):
    assert taken(pulls) == ["job-1"]
    assert worker.cancel("job-1")
    assert api.get("/v2/ep/job-stop/w?gpu=0").json == {"jobsToStop": ["job-1"]}
    assert not running.done()
    assert take(pulls) == []
    assert running.result(60).error == "the worker was asked to stop it"


def test_a_run_that_is_cancelled_before_it_is_offered_is_never_taken(worker, pulls):
    run_id = worker.start(attempt())
    assert not worker.cancel(run_id)
    assert worker.wait(run_id, Listener()).status == JobStatus.FAILED
    assert take(pulls) == []


def test_a_cancelled_offer_is_never_taken(worker, running, pulls):
    wait_until(lambda: pulls.run("w", "job-1"), 5)
    worker.cancel("job-1")
    assert running.result(60).status == JobStatus.FAILED
    assert take(pulls) == []


def test_only_the_last_request_of_a_worker_is_given_jobs(pulls, worker):
    assert take(pulls, token="first") == []
    assert take(pulls, token="second") == []
    assert pulls.collect("w", "ep", "first", limit=1) is None
    assert pulls.collect("w", "ep", "second", limit=1).jobs == []


def test_a_batch_has_at_most_as_many_as_asked_for_and_capacity_counts_what_is_out(pulls, client):
    for name in "abc":
        body = json.dumps({"id": name, "input": {}})
        pulls.offer("w", name, job_id=name, attempt=1, body=body, time_s=60)
    assert take(pulls, limit=2) == ["a", "b"]
    assert take(pulls, limit=2, in_progress=True) == ["c"]
    assert json.loads(client.hget(keys.PULLING, "w")) == {"endpoint": "ep", "capacity": 4}


def test_a_worker_that_is_to_be_restarted_gets_nothing_before(running, pulls, api, worker, client):
    assert taken(pulls) == ["job-1"]
    post(api, "/v2/ep/job-done/w/job-1?isStream=false", {"output": 1, "stopPod": True})
    running.result(60)
    with pytest.raises(WorkerUnavailable, match="requested a restart of its container"):
        worker.probe()
    with pytest.raises(WorkerUnavailable):
        worker.start(attempt())
    client.hset(keys.pull("w"), "asked_ms", now_ms())
    assert pulls.take("w", "ep", "t", limit=1, in_progress=False).stopping
    assert api.get("/v2/ep/job-stop/w?gpu=0").status_code == 204
    client.hset(keys.pull("w"), "asked_ms", 1)
    assert not pulls.take("w", "ep", "t", limit=1, in_progress=False).stopping
    worker.probe()


def test_nothing_is_at_a_run_that_was_settled(worker, pulls):
    run = Run(
        job_id="job-1", attempt=1, id="job-1", check=RunCheck.POLL, execution_timeout_ms=60_000
    )
    assert not worker.is_running(run, 1)
    body = json.dumps({"id": "job-1", "input": {}})
    pulls.offer("w", "job-1", job_id="job-1", attempt=1, body=body, time_s=60)
    assert not worker.is_running(run, 1)
    assert take(pulls) == []
    pulls.offer("w", "job-1", job_id="job-1", attempt=1, body=body, time_s=60)
    assert take(pulls) == ["job-1"]
    assert worker.is_running(run, 1)


@pytest.mark.parametrize(
    ("path", "key", "says"),
    [
        ("/v2/ep/job-take/w?gpu=0", "wrong", "OWNPOD_WORKER_KEYS"),
        ("/v2/nobody/job-take/w?gpu=0", "k", "'nobody' not found"),
        ("/v2/ep/job-take/pushed?gpu=0", "k", "is the id of a worker at http://a:1"),
        ("/v2/ep/job-take/a.b?gpu=0", "k", "letters, digits, - and _"),
        ("/v2/ep/job-take-batch/housekeeping?gpu=0&batch_size=2", "k", "is taken"),
        ("/v2/ep/job-stop/w?gpu=0", "wrong", "OWNPOD_WORKER_KEYS"),
    ],
)
def test_who_gets_no_jobs_is_refused_with_429_and_the_reason(api, path, key, says):
    answer = api.get(path, headers={"Authorization": key})
    assert answer.status_code == 429
    assert says in answer.json["error"]


@pytest.mark.slow
def test_one_name_in_two_endpoints_is_refused_while_the_first_is_there(api, pulls, client):
    take(pulls)
    assert api.get("/v2/other/job-take/w?gpu=0").status_code == 429
    client.zadd(keys.HEARD, {"w": 1})
    began = time.monotonic()
    assert api.get("/v2/other/job-take/w?gpu=0").status_code == 204
    assert time.monotonic() - began > 4


def test_results_need_a_key_too(api):
    headers = {"Authorization": "wrong"}
    answer = api.post("/v2/ep/job-done/w/r", data="{}", headers=headers)
    # A 4xx would make the SDK drop the result at once.
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert api.get("/v2/ep/ping/w", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("said", "status", "output", "error"),
    [
        ({"output": None}, "COMPLETED", "null", None),
        ({}, "COMPLETED", "{}", None),
        ({"error": "boom"}, "FAILED", None, "boom"),
        ({"error": {"code": 1}, "output": 2}, "FAILED", "2", '{"code": 1}'),
        ({"error": ""}, "FAILED", None, ""),
        ([1], "FAILED", None, "the worker's result is no JSON object"),
        (None, "FAILED", None, "the worker's result is no JSON object"),
    ],
)
def test_a_result_is_read_as_the_sdk_writes_it(said, status, output, error):
    outcome = result_of(said)
    assert (outcome.status, outcome.output, outcome.error) == (status, output, error)


def test_a_worker_that_is_gone_is_forgotten_but_for_what_it_has(pulls, client):
    take(pulls)
    assert pulls.forget_gone() == []
    pulls.offer("w", "r", job_id="j", attempt=1, body='{"id": "r"}', time_s=60)
    take(pulls)
    client.zadd(keys.HEARD, {"w": 1})
    assert pulls.forget_gone() == []
    pulls.settle("w", "r")
    assert pulls.forget_gone() == ["w"]
    assert client.keys(f"{keys.PULL}*") == []


def test_an_offer_and_its_withdrawal_change_nothing_when_they_are_repeated(pulls, client):
    take(pulls)
    for _ in range(2):
        pulls.offer("w", "r", job_id="job-1", attempt=1, body='{"id": "r"}', time_s=10)
    assert client.llen(f"{keys.pull('w')}:offers") == 1
    assert pulls.withdraw("w", "r")
    assert pulls.withdraw("w", "r")
    assert pulls.run("w", "r") is None
    assert take(pulls, limit=2) == []
