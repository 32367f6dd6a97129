"""Workers that pull and send what they should not: other keys, other runs, other endpoints, broken bodies."""

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import attempt, load_settings, wait_until, worker_spec

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.errors import TooManyWorkers, WorkerAwaited, WorkerConflict, WorkerUnavailable
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.fleet import Fleet
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.workers import Exchange
from ownpod.workers.prober import Prober
from ownpod.workers.pull import PullWorker


@pytest.fixture
def pulls(client):
    return Offers(client, gone_s=60)


@pytest.fixture
def start_api(redis_server, tmp_path):
    """Makes a client of an API with these worker keys."""
    apps = []
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {maxWorkers: 2}, other: {}}")

    def start(worker_keys="k", **environ):
        settings = load_settings(
            REDIS_URL=redis_server.url,
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_WORKER_KEYS=worker_keys,
            OWNPOD_WORKER_GONE_S=10,
            OWNPOD_MAX_OUTPUT_MB=1,
            **environ,
        )
        apps.append(create_app(settings))
        test_client = apps[-1].test_client()
        test_client.environ_base["HTTP_AUTHORIZATION"] = worker_keys.partition(",")[0]
        return test_client

    yield start
    for app in apps:
        services_of(app).notices.stop()


@pytest.fixture
def api(start_api):
    return start_api()


def offer(pulls, run="r", worker="w"):
    body = json.dumps({"id": run, "input": {}})
    pulls.offer(worker, run, job_id=run, attempt=1, body=body, time_s=60)


def deliver(pulls, api, run="r", worker="w"):
    """The worker takes a run with a request of its own."""
    offer(pulls, run, worker)
    answer = api.get(f"/v2/ep/job-take/{worker}?gpu=0&job_in_progress=1")
    assert answer.json["id"] == run


def post(api, path, body, **options):
    data = body if isinstance(body, bytes) else json.dumps(body)
    return api.post(path, data=data, content_type="application/x-www-form-urlencoded", **options)


def refused(api, endpoint="ep"):
    found = api.get(f"/v2/{endpoint}/health").json["ownpod"]["refused"]
    return {worker["id"]: worker["reason"] for worker in found}


def test_a_result_counts_with_the_key_that_took_the_job_after_that_was_replaced(
    pulls, api, start_api
):
    deliver(pulls, api)
    after = start_api(worker_keys="new")
    old = {"Authorization": "k"}
    assert post(after, "/v2/ep/job-done/w/r?isStream=false", {"output": 1}).status_code == 503
    assert pulls.run("w", "r").state == "delivered"
    assert "this worker received its jobs under another key" in refused(after)["w"]
    assert after.get("/v2/ep/ping/w?job_id=r", headers=old).status_code == 200
    assert pulls.run("w", "r").state == "begun"
    url = "/v2/ep/job-done/w/r?isStream=false"
    assert post(after, url, {"output": 2}, headers=old).status_code == 200
    assert pulls.run("w", "r").outcome.output == "2"
    assert after.get("/v2/ep/job-take/w?gpu=0", headers=old).status_code == 429


def test_a_result_that_is_too_large_ends_the_run_with_the_reason_and_no_4xx(pulls, api):
    deliver(pulls, api)
    body = {"output": "x" * 1_500_000}
    assert post(api, "/v2/ep/job-done/w/r?isStream=false", body).status_code == 200
    outcome = pulls.run("w", "r").outcome
    assert outcome.status is JobStatus.FAILED
    assert outcome.error == ("the worker's answer is larger than 1 MiB, see OWNPOD_MAX_OUTPUT_MB")


def test_a_result_whose_connection_breaks_is_not_taken_for_a_whole_one(pulls, api):
    deliver(pulls, api)
    # As gunicorn gives it: a body that ends early, without an error.
    broken = {"CONTENT_LENGTH": "100", "wsgi.input_terminated": True}
    url = "/v2/ep/job-done/w/r?isStream=false"
    assert post(api, url, b'{"output": 1}', environ_overrides=broken).status_code == 503
    assert pulls.run("w", "r").state == "delivered"


def test_progress_that_is_too_large_ends_nothing(pulls, api):
    deliver(pulls, api)
    body = {"status": "IN_PROGRESS", "output": "x" * 1_500_000}
    assert post(api, "/v2/ep/job-done/w/r?isStream=false", body).status_code == 200
    assert pulls.run("w", "r").state == "delivered"


def test_a_chunk_that_is_too_large_fails_the_job_when_it_ends(pulls, api):
    deliver(pulls, api)
    body = {"output": "x" * 1_500_000}
    assert post(api, "/v2/ep/job-stream/w/r?isStream=false", body).status_code == 200
    assert post(api, "/v2/ep/job-done/w/r?isStream=true", {"output": []}).status_code == 200
    outcome = pulls.run("w", "r").outcome
    assert (outcome.status, outcome.error) == (
        JobStatus.FAILED,
        "a chunk is larger than 1 MiB, see OWNPOD_MAX_OUTPUT_MB",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b'{"error": "\\ud800"}',
        b'{"output": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"output": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "list", "binary", "surrogate", "deep", "digits"],
)
def test_a_result_of_any_shape_ends_the_run_as_failed(pulls, api, body):
    deliver(pulls, api)
    assert post(api, "/v2/ep/job-done/w/r?isStream=false", body).status_code == 200
    assert pulls.run("w", "r").outcome.status is JobStatus.FAILED


@pytest.mark.parametrize(
    "path", ["/v2/other/job-done/w/r", "/v2/ep/job-done/v/r", "/v2/nothing/job-done/w/r"]
)
def test_a_run_is_ended_only_by_the_worker_and_endpoint_that_have_it(pulls, api, path):
    deliver(pulls, api)
    assert post(api, f"{path}?isStream=false", {"output": 1}).status_code == 200
    chunk = path.replace("job-done", "job-stream")
    assert post(api, f"{chunk}?isStream=false", {"output": 1}).status_code == 200
    assert pulls.run("w", "r").state == "delivered"
    endpoint, worker = path.split("/")[2], path.split("/")[4]
    assert pulls.reported(worker, endpoint, "r") is None


def test_a_run_that_was_offered_and_not_taken_cannot_be_ended(pulls, api):
    deliver(pulls, api)
    offer(pulls, "later")
    assert post(api, "/v2/ep/job-done/w/later?isStream=false", {"output": 1}).status_code == 200
    assert pulls.run("w", "later").state == "offered"


@pytest.mark.parametrize("size", ["-5", "0", "1e9", "99999999999999", "²", "9" * 3000, ""])
def test_any_batch_size_is_taken(pulls, api, size):
    offer(pulls)
    answer = api.get("/v2/ep/job-take-batch/w", query_string={"batch_size": size})
    assert [job["id"] for job in answer.json] == ["r"]


def test_with_another_workers_key_nothing_of_a_worker_is_changed(pulls, start_api):
    api = start_api(worker_keys="k,liar")
    deliver(pulls, api)
    pulls.stop("w", "r")
    headers = {"Authorization": "liar"}
    assert api.get("/v2/ep/ping/w?job_id=r", headers=headers).status_code == 401
    assert api.get("/v2/ep/job-stop/w?gpu=0", headers=headers).status_code == 429
    for path in ("job-done", "job-stream"):
        answer = post(api, f"/v2/ep/{path}/w/r?isStream=false", {"output": 1}, headers=headers)
        assert answer.status_code == 503
    stop = {"output": 1, "stopPod": True}
    assert post(api, "/v2/ep/job-done/w/no-run", stop, headers=headers).status_code == 503
    assert not pulls.contact("w").stopping
    assert pulls.run("w", "r").state == "delivered"
    assert api.get("/v2/ep/job-stop/w?gpu=0").json == {"jobsToStop": ["r"]}


def test_a_ping_lists_what_it_will_and_changes_its_own_runs_only(pulls, api, client):
    deliver(pulls, api)
    deliver(pulls, api, "s", "v")
    listed = ",".join(["s", "a:b", "x" * 300, "", "ü", *(str(n) for n in range(3000))])
    assert api.get("/v2/ep/ping/w", query_string={"job_id": listed}).status_code == 200
    assert pulls.run("v", "s").state == "delivered"
    assert not [key for key in client.keys("*") if "a:b" in key]


def test_one_worker_more_than_an_endpoint_may_have_is_refused_and_named(pulls, api):
    deliver(pulls, api, "a", "w1")
    deliver(pulls, api, "b", "w2")
    assert api.get("/v2/ep/job-take/w3?gpu=0").status_code == 429
    assert "2 pulling workers, its maxWorkers" in refused(api)["w3"]
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    waiting = api.get(f"/v2/ep/status/{job}").json["waitingReason"]
    assert "worker 'w3' is refused: the endpoint has 2 pulling workers" in waiting
    with pytest.raises(TooManyWorkers):
        pulls.take("w4", "ep", "t", limit=1, in_progress=False, max_workers=2)
    # Others have room, and these two go on.
    deliver(pulls, api, "c", "w2")
    offer(pulls, "d", "w3")
    assert api.get("/v2/other/job-take/w3?gpu=0").json["id"] == "d"


def test_refused_workers_are_remembered_up_to_a_number(pulls, client):
    for number in range(100):
        pulls.refuse(f"w{number}", "ep", "x")
    assert len(pulls.refusals("ep")) == 32
    assert client.ttl(keys.of_endpoint("ep", "refused")) > 0


def test_a_worker_that_pings_and_never_asks_is_named_and_costs_no_key(api, client):
    assert api.get("/v2/ep/ping/w?job_id=r").status_code == 200
    assert refused(api) == {"w": "it pings, and has not asked for a job"}
    assert client.keys(f"{keys.PULL}*") == []


@pytest.mark.slow
def test_a_worker_at_another_endpoint_is_refused_with_the_reason_and_renews_nothing(
    pulls, api, client
):
    pulls.take("w", "other", "t", limit=1, in_progress=False)
    client.zadd(keys.HEARD, {"w": time.time() * 1000 - 6000})
    assert api.get("/v2/ep/job-take/w?gpu=0").status_code == 429
    assert "a worker of the endpoint 'other' has the id 'w'" in refused(api)["w"]
    pinged = client.hget(keys.pull("w"), "ping_ms")
    before = client.zscore(keys.HEARD, "w")
    assert api.get("/v2/ep/ping/w").status_code == 200
    assert api.get("/v2/ep/job-stop/w?gpu=0").status_code == 204
    post(api, "/v2/ep/job-done/w/r?isStream=false", {"output": 1})
    assert client.zscore(keys.HEARD, "w") == before
    assert client.hget(keys.pull("w"), "ping_ms") == pinged
    offer(pulls)
    # 10 s without a request at the old endpoint: taken, and the old one's offer goes back.
    assert api.get("/v2/ep/job-take/w?gpu=0").status_code == 204
    assert pulls.run("w", "r").state == "unbegun"
    assert json.loads(client.hget(keys.PULLING, "w"))["endpoint"] == "ep"
    assert refused(api) == {}


def test_a_worker_that_has_left_is_taken_at_another_endpoint_at_once(pulls):
    pulls.take("w", "other", "t", limit=1, in_progress=False)
    with pytest.raises(WorkerConflict):
        pulls.take("w", "ep", "u", limit=1, in_progress=False)
    pulls.left("w", "t")
    pulls.take("w", "ep", "u", limit=1, in_progress=False)
    assert pulls.contact("w").left is False


def test_keys_of_a_wrong_type_harm_no_other_worker_and_are_dropped(pulls, api, client):
    deliver(pulls, api, "a", "good")
    client.hset(f"{keys.pull('bad')}:out", "ping_ms", 1)
    offer(pulls, "b", "bad")
    client.hset(f"{keys.pull('bad')}:out", "ping_ms", 1)
    assert api.get("/v2/ep/job-take/bad?gpu=0").json["id"] == "b"
    pulls.settle("good", "a")
    client.delete(f"{keys.pull('bad')}:out")
    client.hset(f"{keys.pull('bad')}:out", "ping_ms", 1)
    client.hset(keys.PULLING, "odd:id", "{")
    client.zadd(keys.HEARD, {"good": 1, "bad": 1, "odd:id": 1})
    assert sorted(pulls.forget_gone()) == ["bad", "good"]
    assert client.zcard(keys.HEARD) == client.hlen(keys.PULLING) == 0


def test_a_broken_offer_does_not_keep_the_next_one(pulls, api, client):
    offer(pulls, "a")
    offer(pulls, "b")
    client.delete(f"{keys.pull('w')}:run:a")
    client.set(f"{keys.pull('w')}:run:a", "x")
    assert api.get("/v2/ep/job-take/w?gpu=0").json["id"] == "b"


@pytest.mark.parametrize("entry", ["{", "[]", '{"endpoint": 1}', '{"endpoint": "ep"}', "1e999"])
def test_an_entry_that_cannot_be_read_is_left_out(pulls, api, client, entry):
    client.hset(keys.PULLING, "bad", entry)
    deliver(pulls, api)
    settings = services_of(api.application).settings
    registry = Registry(load_endpoints(settings), Fleet(client), settings)
    registry.refresh()
    assert [worker.id for worker in registry.workers()] == ["w"]


class SeenBreaker:
    def __init__(self):
        self.closed, self.reason = False, ""

    def open(self, reason):
        self.closed, self.reason = False, reason

    def recheck(self):
        self.closed = True


@pytest.fixture
def worker(client, pulls):
    events = Notices(client, keys.pull("w"))

    @contextlib.contextmanager
    def subscribe(name):
        with events.subscribe(name, end_only=False) as next_notice:

            def wait(timeout_s):
                next_notice(timeout_s)
                if events.stopped:
                    # The thread of follow() never ends; without this it asks Redis without a pause beside all later tests.
                    threading.Event().wait()

            yield wait

    yield PullWorker(worker_spec("pull:w", id="w"), Exchange(pulls, subscribe), gone_s=60)
    events.stop()


def test_the_breaker_opens_when_the_worker_leaves_and_closes_when_it_asks_again(pulls, worker):
    breaker = SeenBreaker()
    pulls.take("w", "ep", "t", limit=1, in_progress=False)
    worker.follow(breaker.open, breaker.recheck)
    wait_until(lambda: breaker.closed, 5)
    pulls.left("w", "an older request")
    pulls.left("w", "t")
    wait_until(lambda: not breaker.closed, 2)
    assert "closed its request" in breaker.reason
    with pytest.raises(WorkerUnavailable, match="closed its request"):
        worker.start(attempt())
    pulls.take("w", "ep", "u", limit=1, in_progress=False)
    wait_until(lambda: breaker.closed, 2)


def test_offered_jobs_are_requeued_when_the_worker_leaves(pulls, worker):
    pulls.take("w", "ep", "t", limit=1, in_progress=False)
    run_id = worker.start(attempt())

    class Quiet:
        def set_check(self, check):
            pass

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.wait, run_id, Quiet())
        wait_until(lambda: pulls.run("w", run_id), 5)
        began = time.monotonic()
        pulls.left("w", "t")
        with pytest.raises(WorkerUnavailable, match="closed its request"):
            waiting.result(60)
    assert time.monotonic() - began < 30


def test_runs_delivered_to_a_request_that_was_closed_were_not_begun(pulls):
    offer(pulls)
    assert pulls.take("w", "ep", "t", limit=1, in_progress=False).jobs
    pulls.left("w", "t")
    assert pulls.run("w", "r").state == "unbegun"


def test_a_node_that_begins_waits_for_the_workers_next_request_before_it_is_ready(pulls, worker):
    pulls.take("w", "ep", "t", limit=1, in_progress=False)
    wait_until(lambda: pulls.contact("w").asked_s > 0.01, 5)
    later = PullWorker(worker_spec("pull:w", id="w"), Exchange(pulls, lambda _: None), gone_s=60)
    seen = []
    prober = Prober(later.probe, seen.append, publish_every_s=1)
    prober.start()
    wait_until(lambda: seen, 5)
    assert prober.status.state is WorkerState.INITIALIZING
    assert "waits for the worker's next request" in prober.status.reason
    with pytest.raises(WorkerAwaited):
        later.probe()
    # The API, which holds the request, answers the node's question.
    pulls.collect("w", "ep", "t", limit=1)
    wait_until(lambda: prober.status.state is WorkerState.READY, 5)
