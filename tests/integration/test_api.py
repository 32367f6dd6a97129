"""The routes on a real Redis; jobs are moved on by hand, as a node would."""

import json
import threading

import pytest
from helpers import job_store, load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store.fleet import Fleet

WORKERS = """
endpoints:
  ep:
    workers: [{url: "http://a:1"}, {url: "http://b:2", capacity: 2}]
  other: {maxAttempts: 1, executionTimeout: 7000}
"""


@pytest.fixture
def settings(tmp_path, redis_server):
    path = tmp_path / "workers.yaml"
    path.write_text(WORKERS)
    return load_settings(OWNPOD_WORKERS_FILE=path, REDIS_URL=redis_server.url)


@pytest.fixture
def api(client, settings):
    app = create_app(settings)
    yield app.test_client()
    services_of(app).notices.stop()


@pytest.fixture
def store(client):
    return job_store(client)


def begin(store, job_id):
    return store.jobs.claim(job_id, worker_id="a-1", claim=job_id, lease_s=30)


def complete(store, job_id, output='{"x": 1}'):
    store.jobs.finish(begin(store, job_id), Outcome(JobStatus.COMPLETED, output=output))


def run(api, body=None, endpoint="ep"):
    return api.post(f"/v2/{endpoint}/run", json=body or {"input": {"text": "hi"}})


def test_run_answers_200_with_id_and_in_queue(api):
    answer = run(api)
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json == {"id": answer.json["id"], "status": "IN_QUEUE"}


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "text/plain"])
def test_run_takes_json_whatever_it_is_labelled(api, content_type):
    answer = api.post("/v2/ep/run", data='{"input": {}}', content_type=content_type)
    assert answer.status_code == 200


def test_a_job_gets_its_endpoints_defaults_and_the_clients_policy(api, store):
    default = run(api, endpoint="other").json["id"]
    own = run(api, {"input": {}, "policy": {"executionTimeout": 9000}}, "other").json["id"]
    assert begin(store, default).execution_timeout_ms == 7000
    assert begin(store, own).execution_timeout_ms == 9000


def test_s3_config_is_kept_for_the_worker(api, store):
    job_id = run(api, {"input": {}, "s3Config": {"bucketName": "b"}}).json["id"]
    assert json.loads(begin(store, job_id).s3_config) == {"bucketName": "b"}


@pytest.mark.parametrize("method", ["get", "post"])
def test_status_follows_the_job(api, store, method):
    job_id = run(api).json["id"]

    def status():
        return getattr(api, method)(f"/v2/ep/status/{job_id}").json

    waiting = status()
    assert waiting.pop("waitingReason")
    assert waiting == {"id": job_id, "status": "IN_QUEUE", "queuePosition": 1}
    attempt = begin(store, job_id)
    running = status()
    assert running.pop("delayTime") >= 0
    assert running == {"id": job_id, "status": "IN_PROGRESS", "workerId": "a-1"}
    store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="boom"))
    failed = status()
    assert isinstance(failed.pop("delayTime"), int)
    assert isinstance(failed.pop("executionTime"), int)
    assert failed == {"id": job_id, "status": "FAILED", "workerId": "a-1", "error": "boom"}


@pytest.mark.parametrize("output", ['{"a": [1.5, null, "ü"]}', "[]", "0", '""', "false"])
def test_an_output_comes_through_unchanged(api, store, output):
    job_id = run(api).json["id"]
    complete(store, job_id, output)
    assert api.get(f"/v2/ep/status/{job_id}").json["output"] == json.loads(output)


def test_status_can_shorten_a_results_stay(api, store, client):
    job_id = run(api).json["id"]
    complete(store, job_id)
    api.get(f"/v2/ep/status/{job_id}?ttl=5000")
    assert client.pttl(f"ownpod:job:{job_id}") <= 5000


def test_runsync_answers_as_soon_as_the_job_has_ended(api, store, client):
    def work():
        _, message = client.brpop("ownpod.ep", 10)
        complete(store, json.loads(message)["headers"]["id"])

    node = threading.Thread(target=work)
    node.start()
    answer = api.post("/v2/ep/runsync?wait=20000", json={"input": {}})
    node.join()
    assert answer.json["status"] == "COMPLETED"
    assert answer.json["output"] == {"x": 1}
    assert answer.json["id"].startswith("sync-")


def test_runsync_answers_the_present_state_after_its_wait(api):
    answer = api.post("/v2/ep/runsync?wait=1", json={"input": {}})
    assert (answer.status_code, answer.json["status"]) == (200, "IN_QUEUE")


@pytest.mark.parametrize("method", ["get", "post"])
def test_status_sync_waits_for_the_end(api, store, method):
    job_id = run(api).json["id"]
    timer = threading.Timer(0.2, complete, (store, job_id))
    timer.start()
    answer = getattr(api, method)(f"/v2/ep/status-sync/{job_id}?wait=20000")
    timer.join()
    assert answer.json["status"] == "COMPLETED"
    assert getattr(api, method)(f"/v2/ep/status-sync/{job_id}").json["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "body", [{}, {"data": b"", "content_type": "application/json"}, {"json": {}}]
)
def test_cancel_takes_any_body(api, store, body):
    job_id = run(api).json["id"]
    answer = api.post(f"/v2/ep/cancel/{job_id}", **body)
    assert answer.json == {"id": job_id, "status": "CANCELLED"}
    assert begin(store, job_id) is None


def test_cancel_of_a_running_and_of_an_ended_job(api, store):
    running, ended = run(api).json["id"], run(api).json["id"]
    begin(store, running)
    complete(store, ended)
    assert api.post(f"/v2/ep/cancel/{running}").json["status"] == "CANCELLED"
    assert api.post(f"/v2/ep/cancel/{ended}").json["status"] == "COMPLETED"


@pytest.mark.parametrize("body", [{}, {"json": {}}])
def test_purge_queue_returns_the_number(api, store, body):
    ids = [run(api).json["id"] for _ in range(3)]
    running = begin(store, ids[0])
    elsewhere = run(api, endpoint="other").json["id"]
    answer = api.post("/v2/ep/purge-queue", **body)
    assert answer.json == {"removed": 2, "status": "completed"}
    cancelled = api.get(f"/v2/ep/status/{ids[1]}").json
    assert (cancelled["status"], cancelled["error"]) == (
        "CANCELLED",
        "removed from the queue by purge-queue",
    )
    assert store.jobs.finish(running, Outcome(JobStatus.COMPLETED))
    assert store.jobs.get(elsewhere, "other").status is JobStatus.IN_QUEUE


def test_health_counts_jobs_and_workers(api, store, client, settings):
    registry = Registry(load_endpoints(settings), Fleet(client), settings)
    assert api.get("/v2/ep/health").json["workers"]["unhealthy"] == 2
    registry.fleet.publish_status("a-1", WorkerStatus(WorkerState.READY), node="n", ttl_s=9)
    registry.fleet.publish_status("b-2", WorkerStatus(WorkerState.READY), node="n", ttl_s=9)
    ids = [run(api).json["id"] for _ in range(5)]
    complete(store, ids[0])
    store.jobs.finish(begin(store, ids[1]), Outcome(JobStatus.FAILED, error="x"))
    begin(store, ids[2])
    health = api.get("/v2/ep/health").json
    assert health["jobs"] == {
        "completed": 1,
        "failed": 1,
        "inProgress": 1,
        "inQueue": 2,
        "retried": 0,
    }
    assert health["workers"] == {
        "idle": 1,
        "initializing": 0,
        "ready": 2,
        "running": 1,
        "throttled": 0,
        "unhealthy": 0,
    }
    assert [w["id"] for w in health["ownpod"]["workers"]] == ["a-1", "b-2"]


def test_a_worker_whose_slot_an_ended_job_keeps_is_running(api, client, settings):
    registry = Registry(load_endpoints(settings), Fleet(client), settings)
    registry.fleet.publish_status(
        "a-1", WorkerStatus(WorkerState.READY, lingering=1), node="n", ttl_s=9
    )
    workers = api.get("/v2/ep/health").json["workers"]
    assert (workers["running"], workers["idle"], workers["unhealthy"]) == (1, 0, 1)


ROUTES = [
    ("post", "run"),
    ("post", "runsync"),
    ("get", "status/x"),
    ("get", "status-sync/x"),
    ("post", "cancel/x"),
    ("post", "purge-queue"),
    ("get", "health"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_an_unknown_endpoint_is_a_404_that_names_the_known(api, method, path):
    answer = getattr(api, method)(f"/v2/none/{path}", json={"input": {}})
    assert answer.status_code == 404
    assert answer.json == {"error": "endpoint 'none' not found; known endpoints: ep, other"}


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[1].endswith("/x")])
def test_an_unknown_job_is_a_404(api, method, path):
    answer = getattr(api, method)(f"/v2/ep/{path}")
    assert answer.status_code == 404
    assert "job 'x' not found" in answer.json["error"]


def test_a_wrong_body_is_a_400_that_names_the_field(api):
    answer = api.post("/v2/ep/run", json={"inputs": {}})
    assert (answer.status_code, answer.json) == (
        400,
        {"error": "input: is missing; it is passed to the handler"},
    )


@pytest.mark.parametrize("query", ["wait=1s", "wait="])
def test_a_wrong_wait_is_a_400(api, query):
    answer = api.post(f"/v2/ep/runsync?{query}", json={"input": {}})
    assert answer.status_code == 400
    assert "wait: " in answer.json["error"]


@pytest.mark.parametrize(("path", "megabytes"), [("run", 10), ("runsync", 20)])
def test_a_body_over_the_limit_is_a_413(api, client, path, megabytes):
    body = b'{"input": "' + b"x" * (megabytes * 1024 * 1024) + b'"}'
    answer = api.post(f"/v2/ep/{path}?wait=1000", data=body)
    assert answer.status_code == 413
    assert "error" in answer.json
    assert client.keys("ownpod:job:*") == []


def test_a_body_within_the_limit_is_taken(api, store):
    text = "x" * (10 * 1024 * 1024 - 50)
    job_id = run(api, {"input": {"text": text}}).json["id"]
    assert json.loads(begin(store, job_id).input) == {"text": text}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/v2/ep/run", 405), ("get", "/nowhere", 404), ("put", "/v2/ep/status/x", 405)],
)
def test_every_error_is_json(api, method, path, status):
    answer = getattr(api, method)(path)
    assert (answer.status_code, answer.mimetype) == (status, "application/json")
    assert answer.json["error"]


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("get", "../../health")])
def test_redis_away_is_a_503(tmp_path, settings, method, path):
    away = load_settings(
        OWNPOD_WORKERS_FILE=settings.workers_file, REDIS_URL="redis://127.0.0.1:1/0"
    )
    app = create_app(away)
    api = app.test_client()
    url = "/health" if path.startswith("..") else f"/v2/ep/{path}"
    answer = getattr(api, method)(url, json={"input": {}} if method == "post" else None)
    assert answer.status_code == 503
    # Its address is not for callers.
    assert answer.json == {"error": "Redis cannot be reached; nothing was changed, try again."}
    services_of(app).notices.stop()


def test_redis_away_is_a_503_also_in_front_of_the_routes_and_two_slashes_open_nothing(
    tmp_path, settings
):
    away = load_settings(
        OWNPOD_WORKERS_FILE=settings.workers_file,
        REDIS_URL="redis://127.0.0.1:1/0",
        OWNPOD_API_KEYS="secret",
        OWNPOD_RATE_LIMITS='{"status": "1/minute"}',
    )
    app = create_app(away)
    api, key = app.test_client(), {"Authorization": "Bearer secret"}
    for _ in range(2):
        assert api.get("/v2/ep/status/x", headers=key).status_code == 503
    assert api.get("/v2/ep/status/x").status_code == 401
    assert api.get("/", environ_overrides={"PATH_INFO": "//v2/ep/status/x"}).status_code == 401
    services_of(app).notices.stop()


def test_health_of_the_process(api):
    assert api.get("/health").json == {"status": "ok"}
