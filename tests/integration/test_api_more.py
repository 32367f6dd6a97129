"""Streams, retries, policies, keys, limits and the rest of the API on a real Redis."""

import gc
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from gunicorn.config import Config
from helpers import job_store, wait_until

from ownpod.api.services import services_of
from ownpod.api.serving import server
from ownpod.api.serving.lane import Lane
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store.deliveries import Deliveries

WORKERS = """
endpoints:
  ep:
    workers: [{url: "http://a:1"}]
    ttl: 60000
  small: {maxQueueDepth: 2}
  other: {}
"""
JSON = {"Accept": "application/json"}


@pytest.fixture
def make_api(new_app):
    return lambda **environ: new_app(WORKERS, **environ).test_client()


@pytest.fixture
def api(make_api):
    return make_api()


@pytest.fixture
def store(client):
    return job_store(client)


def run(api, endpoint="ep", headers=None, **body):
    return api.post(f"/v2/{endpoint}/run", json={"input": {}} | body, headers=headers)


def begin(store, job_id):
    return store.jobs.claim(job_id, worker_id="a-1", claim=job_id, lease_s=30)


@pytest.fixture
def running(api, store):
    """A job that runs: its id and its attempt."""
    job_id = run(api).json["id"]
    return job_id, begin(store, job_id)


def stream(api, job_id, query="", method="get", headers=JSON):
    return getattr(api, method)(f"/v2/ep/stream/{job_id}{query}", headers=headers)


# --- /stream as JSON


@pytest.mark.parametrize("method", ["get", "post"])
def test_each_chunk_comes_once_and_the_last_with_the_terminal_state(api, store, running, method):
    job_id, attempt = running
    store.chunks.add(attempt.job_id, attempt.number, ["1", '{"a": 2}'])
    assert stream(api, job_id, method=method).json == {
        "status": "IN_PROGRESS",
        "stream": [{"output": 1}, {"output": {"a": 2}}],
    }
    store.chunks.add(attempt.job_id, attempt.number, ["3"])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="[]"))
    assert stream(api, job_id, method=method).json == {
        "status": "COMPLETED",
        "stream": [{"output": 3}],
    }
    # Python's client wants one more, empty answer.
    assert stream(api, job_id, method=method).json == {"status": "COMPLETED", "stream": []}


def test_a_stream_is_held_until_there_is_a_chunk(api, store, running):
    job_id, attempt = running
    began = time.monotonic()
    threading.Timer(0.3, store.chunks.add, (job_id, attempt.number, ["1"])).start()
    assert stream(api, job_id).json["stream"] == [{"output": 1}]
    assert 0.2 < time.monotonic() - began < 4.5


def test_a_stream_is_held_no_longer_than_its_wait(api, running):
    began = time.monotonic()
    assert stream(api, running[0], "?wait=1").json == {"status": "IN_PROGRESS", "stream": []}
    assert 0.9 < time.monotonic() - began < 4.5


@pytest.mark.slow
def test_without_a_wait_a_stream_is_held_about_5_s(api, running):
    began = time.monotonic()
    assert stream(api, running[0]).json["stream"] == []
    assert 4.5 < time.monotonic() - began < 30


def test_the_cursor_moves_only_after_the_answer_was_written(api, store, running):
    job_id, attempt = running
    store.chunks.add(attempt.job_id, attempt.number, ["1"])
    response = api.get(f"/v2/ep/stream/{job_id}", headers=JSON, buffered=False)
    body = iter(response.response)
    assert b'"output": 1' in next(body)
    response.close()
    # The client went away in the middle: the chunk is answered again, to its end.
    assert stream(api, job_id).json["stream"] == [{"output": 1}]
    assert stream(api, job_id, "?wait=1").json["stream"] == []


def test_a_client_that_has_the_whole_answer_may_ask_again_at_once(api, store, running):
    job_id, attempt = running
    store.chunks.add(attempt.job_id, attempt.number, ["1"])
    response = api.get(f"/v2/ep/stream/{job_id}", headers=JSON, buffered=False)
    body, received = iter(response.response), 0
    while received < response.content_length:
        received += len(next(body))
    # The route's thread has not come back from writing yet.
    assert stream(api, job_id, "?wait=1").json["stream"] == []
    response.close()


def test_from_replays_without_moving_the_cursor(api, store, running):
    job_id, attempt = running
    store.chunks.add(attempt.job_id, attempt.number, ["1", "2", "3"])
    assert len(stream(api, job_id).json["stream"]) == 3
    assert stream(api, job_id, "?from=0").json["stream"] == [{"output": n} for n in (1, 2, 3)]
    assert stream(api, job_id, "?from=2", headers={}).json["stream"] == [{"output": 3}]
    assert stream(api, job_id, "?wait=1").json["stream"] == []


@pytest.mark.parametrize("query", ["?from=x", "?wait=x"])
def test_a_wrong_stream_query_is_a_400(api, running, query):
    assert stream(api, running[0], query).status_code == 400


# --- /stream as events


def events(response):
    assert response.mimetype == "text/event-stream"
    found = []
    for block in response.get_data(as_text=True).strip().split("\n\n"):
        if not block.startswith(":"):
            fields = dict(line.split(": ", 1) for line in block.splitlines())
            fields["data"] = json.loads(fields["data"])
            found.append(fields)
    return found


@pytest.mark.parametrize("headers", [{"Accept": "text/event-stream"}, {"Accept": "*/*"}, {}])
@pytest.mark.slow
def test_events_tell_states_and_chunks_as_they_come(api, store, headers):
    job_id = run(api).json["id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: events(stream(api, job_id, headers=headers)))
        wait_until(lambda: store.client.hget(f"ownpod:job:{job_id}", "followed"))
        time.sleep(1)
        attempt = begin(store, job_id)
        time.sleep(1)
        store.chunks.add(attempt.job_id, attempt.number, ["1", '"two"'])
        store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="[1]"))
        found = waiting.result(60)
    assert [(e.get("event", "message"), e.get("id")) for e in found] == [
        ("status", None),
        ("status", None),
        ("message", "1-0"),
        ("message", "1-1"),
        ("status", "1-end"),
    ]
    assert [e["data"]["status"] for e in found if "event" in e] == [
        "IN_QUEUE",
        "IN_PROGRESS",
        "COMPLETED",
    ]
    assert [e["data"] for e in found if "event" not in e] == [{"output": 1}, {"output": "two"}]
    assert found[-1]["data"]["output"] == [1]


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "application/json"},
        {"Content-Type": "application/json"},
        {"Authorization": "Bearer x"},
    ],
)
def test_clients_of_runpod_get_json(api, store, running, headers):
    store.chunks.add(running[1].job_id, running[1].number, ["1"])
    assert stream(api, running[0], headers=headers).mimetype == "application/json"


@pytest.mark.parametrize(
    ("last", "rest"), [("1-0", ["1-1", "1-2"]), ("1-2", []), ("0-7", ["1-0", "1-1", "1-2"])]
)
def test_events_go_on_after_the_last_one_seen(api, store, running, last, rest):
    job_id, attempt = running
    store.chunks.add(attempt.job_id, attempt.number, ["1", "2", "3"])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
    assert [e["id"] for e in events(stream(api, job_id, headers=headers))] == [*rest, "1-end"]


def test_a_browser_that_has_received_the_end_is_answered_204(api, store, running):
    store.jobs.finish(running[1], Outcome(JobStatus.COMPLETED))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1-end"}
    assert stream(api, running[0], headers=headers).status_code == 204


def test_a_silent_stream_of_events_gets_comments(api, running, monkeypatch, store):
    monkeypatch.setattr("ownpod.api.jobs.stream.KEEP_ALIVE_S", 0.1)
    response = stream(api, running[0], headers={"Accept": "text/event-stream"})
    comments = 0
    for part in response.iter_encoded():
        comments += part == b": keep-alive\n\n"
        if comments == 3:
            store.jobs.finish(running[1], Outcome(JobStatus.COMPLETED))
    assert comments >= 3


def test_readers_of_events_and_of_json_see_the_same(api, make_api, store, running):
    other = make_api()
    store.chunks.add(running[1].job_id, running[1].number, ["1", "2"])
    store.jobs.finish(running[1], Outcome(JobStatus.COMPLETED))
    assert stream(api, running[0]).json["stream"]
    chunks = events(stream(other, running[0], headers={"Accept": "text/event-stream"}))[:-1]
    assert [e["data"] for e in chunks] == stream(other, running[0], "?from=0").json["stream"]


# --- /retry, policies, /requests


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.TIMED_OUT])
def test_retry_answers_a_new_id(api, store, running, status):
    job_id, attempt = running
    store.jobs.finish(attempt, Outcome(status, error="x"))
    answer = api.post(f"/v2/ep/retry/{job_id}")
    assert answer.json["status"] == "IN_QUEUE"
    assert answer.json["id"] != job_id
    assert begin(store, answer.json["id"]) is not None


def test_retry_can_keep_the_id(make_api, store):
    api = make_api(OWNPOD_RETRY_SAME_ID="true")
    job_id = run(api).json["id"]
    store.jobs.finish(begin(store, job_id), Outcome(JobStatus.FAILED, error="x"))
    assert api.post(f"/v2/ep/retry/{job_id}").json == {"id": job_id, "status": "IN_QUEUE"}
    again = api.get(f"/v2/ep/status/{job_id}").json
    assert (again["status"], again["retries"], "error" in again) == ("IN_QUEUE", 1, False)


def test_retry_of_another_job_is_a_409_with_the_reason(api, running):
    answer = api.post(f"/v2/ep/retry/{running[0]}")
    assert answer.status_code == 409
    assert "is IN_PROGRESS; only FAILED and TIMED_OUT jobs can be retried" in answer.json["error"]


def test_policies_reach_the_job(api, store, client):
    policy = {"executionTimeout": 9000, "ttl": 30000, "lowPriority": True}
    job_id = run(api, policy=policy).json["id"]
    attempt = begin(store, job_id)
    low_priority = client.hget(f"ownpod:job:{job_id}", "low_priority") == "1"
    assert (attempt.execution_timeout_ms, low_priority) == (9000, True)
    assert attempt.expires_ms - attempt.started_ms <= 30000
    default = begin(store, run(api).json["id"])
    assert 50000 < default.expires_ms - default.started_ms <= 60000


def test_requests_lists_jobs_newest_first(api, store, running):
    waiting = run(api).json["id"]
    answer = api.get("/v2/ep/requests").json
    assert [job["id"] for job in answer["requests"]] == [waiting, running[0]]
    assert answer["next"] is None
    assert api.get("/v2/ep/requests?status=IN_QUEUE").json["requests"][0]["id"] == waiting
    page = api.get("/v2/ep/requests?limit=1").json
    assert [job["id"] for job in page["requests"]] == [waiting]
    page = api.get(f"/v2/ep/requests?limit=1&before={page['next']}").json
    assert [job["id"] for job in page["requests"]] == [running[0]]


@pytest.mark.parametrize("query", ["status=RUNNING", "limit=many", "before=x", "before=1"])
def test_a_wrong_listing_is_a_400(api, query):
    answer = api.get(f"/v2/ep/requests?{query}")
    assert answer.status_code == 400
    assert answer.json["error"].startswith(query.partition("=")[0])


def test_a_status_with_a_short_ttl_does_not_cost_the_webhook(api, store, client):
    job_id = run(api, webhook="http://127.0.0.1:1/hook").json["id"]
    store.jobs.finish(begin(store, job_id), Outcome(JobStatus.COMPLETED, output="1"))
    assert api.get(f"/v2/ep/status/{job_id}?ttl=1").json["output"] == 1
    deliveries = Deliveries(client, store.messages)
    made = deliveries.claim(job_id, "t")
    assert made.job.output == "1"
    options = {"again_s": None, "result": "delivered", "result_ttl_s": 60}
    assert deliveries.settle(made, {"try": 1}, **options)
    wait_until(lambda: api.get(f"/v2/ep/status/{job_id}").status_code == 404)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("limit", "/requests"),
        ("wait", "/status-sync/{}"),
        ("wait", "/stream/{}"),
        ("ttl", "/status/{}"),
        ("from", "/stream/{}"),
    ],
)
def test_the_document_has_the_limits_of_numbers_in_a_query(api, running, name, path):
    services_of(api.application).notices.stop()
    operation = api.get("/openapi.json").json["paths"][
        "/v2/{endpoint_id}" + path.format("{job_id}")
    ]
    (schema,) = (
        parameter["schema"]
        for parameter in operation["get"]["parameters"]
        if parameter["name"] == name
    )
    url = f"/v2/ep{path.format(running[0])}"
    for allowed in (schema["minimum"], schema["maximum"], -1, 0):
        assert api.get(url, query_string={name: allowed}, headers=JSON).status_code == 200
    for refused in (schema["minimum"] - 1, schema["maximum"] + 1, 10**40, "1.5", "x"):
        answer = api.get(url, query_string={name: refused}, headers=JSON)
        assert answer.status_code == 400
        assert answer.json["error"].startswith(f"{name}: must be a whole number")


def test_a_page_begins_only_where_the_document_allows(api):
    parameters = api.get("/openapi.json").json["paths"]["/v2/{endpoint_id}/requests"]["get"]
    (pattern,) = (
        parameter["schema"]["pattern"]
        for parameter in parameters["parameters"]
        if parameter["name"] == "before"
    )
    for before in ("1-a", "1-a-b", f"{'9' * 15}-{'a' * 255}", "0-_"):
        assert re.search(pattern, before)
        assert api.get("/v2/ep/requests", query_string={"before": before}).status_code == 200
    for before in ("+1-a", "-1-a", f"{'9' * 16}-a", f"1-{'a' * 256}", "1-", "1-a\n", "1-ä"):
        assert api.get("/v2/ep/requests", query_string={"before": before}).status_code == 400


# --- Idempotency-Key, ETag


def test_the_same_key_is_the_same_job_for_run_and_runsync(api):
    headers = {"Idempotency-Key": "k"}
    first = run(api, headers=headers).json
    assert run(api, headers=headers).json == first
    sync = api.post("/v2/ep/runsync?wait=1", json={"input": {}}, headers=headers).json
    assert sync["id"] == first["id"]
    assert len(api.get("/v2/ep/requests").json["requests"]) == 1


def test_50_requests_that_race_with_a_key_are_one_job(api, client):
    def submit(_):
        return run(api.application.test_client(), headers={"Idempotency-Key": "k"}).json["id"]

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(submit, range(50)))) == 1
    assert client.llen("ownpod.ep") == 1


def test_the_same_key_with_another_body_is_a_409(api):
    headers = {"Idempotency-Key": "k"}
    run(api, headers=headers)
    answer = run(api, headers=headers, input={"other": 1})
    assert answer.status_code == 409
    assert "another body" in answer.json["error"]


def test_a_key_belongs_to_its_endpoint_and_caller(api):
    ids = {
        run(api, headers={"Idempotency-Key": "k"} | more, endpoint=endpoint).json["id"]
        for endpoint in ("ep", "other")
        for more in ({}, {"Authorization": "Bearer a"}, {"Authorization": "b"})
    }
    assert len(ids) == 6


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_wrong_key_is_a_400(api, key):
    assert run(api, headers={"Idempotency-Key": key}).status_code == 400


def test_an_etag_identifies_the_content_of_the_answer(api, store, running):
    url = f"/v2/ep/status/{running[0]}"
    first = api.get(url)
    tag = first.headers["ETag"]
    assert not tag.startswith("W/")
    same = api.get(url, headers={"If-None-Match": tag})
    assert (same.status_code, same.data) == (304, b"")
    store.jobs.finish(running[1], Outcome(JobStatus.COMPLETED, output="1"))
    other = api.get(url, headers={"If-None-Match": tag})
    assert other.status_code == 200
    assert other.headers["ETag"] != tag


# --- keys


@pytest.fixture
def locked(make_api, tmp_path):
    file = tmp_path / "locked.yaml"
    file.write_text("endpoints: {ep: {}, mine: {apiKeys: [only-mine]}}")
    return make_api(OWNPOD_API_KEYS="one,two", OWNPOD_WORKERS_FILE=file)


def code(api, endpoint, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    return run(api, endpoint, headers=headers).status_code


@pytest.mark.parametrize("authorization", ["Bearer one", "one", "bearer two", "Bearer  two "])
def test_a_key_opens_every_endpoint(locked, authorization):
    assert code(locked, "ep", authorization) == code(locked, "mine", authorization) == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer three", "onetwo", "Bearer ü"]
)
def test_without_a_key_that_is_known_it_is_a_401(locked, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = run(locked, headers=headers)
    assert (answer.status_code, answer.mimetype) == (401, "application/json")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "API key" in answer.json["error"]


def test_a_key_of_one_endpoint_opens_no_other(locked):
    assert code(locked, "mine", "Bearer only-mine") == 200
    assert code(locked, "ep", "Bearer only-mine") == 403


@pytest.mark.parametrize(("key", "endpoints"), [("one", ["ep", "mine"]), ("only-mine", ["mine"])])
def test_a_key_lists_the_endpoints_it_is_for(locked, key, endpoints):
    answer = locked.get("/v2/", headers={"Authorization": key})
    assert answer.json == {"endpoints": endpoints, "types": dict.fromkeys(endpoints, "QB")}
    assert locked.get("/v2/").status_code == 401
    metrics = locked.get("/metrics", headers={"Authorization": key})
    assert metrics.status_code == (200 if key == "one" else 403)


def test_the_health_check_of_the_process_needs_no_key(locked):
    assert locked.get("/health").status_code == 200


# --- limits, origins, documents


def test_a_full_queue_is_a_429_with_whole_seconds(api):
    assert [run(api, "small").status_code for _ in range(3)] == [200, 200, 429]
    answer = run(api, "small")
    assert int(answer.headers["Retry-After"]) > 0
    assert "maxQueueDepth" in answer.json["error"]


def test_rates_are_limited_by_operation_endpoint_and_caller(make_api):
    api = make_api(OWNPOD_RATE_LIMITS='{"run": "2/minute", "status": "3/minute"}')
    assert [run(api).status_code for _ in range(3)] == [200, 200, 429]
    answer = run(api)
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "2 per 1 minute" in answer.json["error"]
    # A made-up key is not another caller.
    assert run(api, headers={"Authorization": "x"}).status_code == 429
    assert run(api, "small").status_code == 200
    # Operations count apart; /status and /status-sync are one.
    paths = ["status/x", "status-sync/x", "status/x", "status-sync/x"]
    codes = [api.get(f"/v2/ep/{path}").status_code for path in paths]
    assert codes == [404, 404, 404, 429]
    assert api.get("/v2/ep/health").status_code == 200


def test_rates_are_not_limited_by_default(api):
    assert {api.get("/v2/ep/health").status_code for _ in range(100)} == {200}


def test_named_origins_may_call(make_api):
    api = make_api(OWNPOD_CORS_ORIGINS="https://app.example", OWNPOD_API_KEYS="k")
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    preflight = api.options("/v2/ep/run", headers=ask)
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://app.example"
    answer = run(api, headers={"Origin": "https://app.example", "Authorization": "k"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    other = run(api, headers={"Origin": "https://evil.example", "Authorization": "k"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_no_origin_may_call_by_default(api):
    assert "Access-Control-Allow-Origin" not in run(api, headers={"Origin": "https://a"}).headers


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"input": ' + b'{"a":' * 50000 + b"1" + b"}" * 50000 + b"}",
        b'{"input": {"n": 1' + b"0" * 5000 + b"}}",
        b'{"input": {"s": "\\ud800"}}',
        b'{"input": {}, "input": {"twice": 1}}',
        b"\xef\xbb\xbf{}",
        b"null",
        b'"\x00"',
    ],
)
def test_json_of_any_oddity_is_answered_without_a_500(api, body):
    assert run(api).status_code == 200
    answer = api.post("/v2/ep/run", data=body)
    assert answer.status_code in {200, 400}
    if answer.status_code == 200:
        assert api.get(f"/v2/ep/status/{answer.json['id']}").status_code == 200


def test_a_number_beyond_json_is_a_400(api):
    answer = api.post("/v2/ep/run", data=b'{"input": {"x": 1e999}}')
    assert answer.status_code == 400
    assert "1e999 is too large" in answer.json["error"]


def test_the_openapi_document_shows_what_is_served(api):
    document = api.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in api.application.url_map.iter_rules()
        # Workers' own protocol is the SDK's business.
        if rule.rule.startswith(("/v2/", "/api/", "/health/", "/agents", "/workers/"))
        and rule.rule != "/v2/openapi.json"
        # REST v2 has a document of its own, /v2/openapi.json.
        and not rule.endpoint.startswith(("worker_protocol.", "rest_v2."))
        # It only tells which base URL to set.
        and rule.endpoint != "openai.base"
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    shown = {(path, m) for path, item in document["paths"].items() for m in item}
    assert shown == served


def test_the_page_to_try_it_comes_from_here(api):
    with api.get("/docs/") as page:
        text = page.get_data(as_text=True)
        assert "swagger-ui" in text
        assert "https://" not in text
    with api.get("/docs/swagger-ui-bundle.js") as script:
        assert script.status_code == 200


def test_a_request_that_would_wait_beside_too_many_others_changes_nothing_and_gets_503(api):
    job_id = run(api).json["id"]
    notices = services_of(api.application).notices
    notices.max_waiting = 1
    with notices.subscribe("other", end_only=True):
        for answer in (
            api.post("/v2/ep/runsync", json={"input": {}}),
            api.get(f"/v2/ep/status-sync/{job_id}"),
            api.get(f"/v2/ep/stream/{job_id}", headers=JSON),
            api.get(f"/v2/ep/stream/{job_id}", headers={"Accept": "text/event-stream"}),
        ):
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
            assert "no thread for another waiting request" in answer.json["error"]
        asked = api.get("/v2/ep/job-take/w")
        assert (asked.status_code, asked.headers["Retry-After"]) == (429, "5")
        assert api.get("/v2/ep/health").json["jobs"]["inQueue"] == 1
        assert api.get(f"/v2/ep/status/{job_id}").json["status"] == "IN_QUEUE"
    assert api.post("/v2/ep/runsync?wait=1000", json={"input": {}}).status_code == 200


def test_gunicorns_processes_leave_threads_for_requests_that_do_not_wait(api):
    before = signal.getsignal(signal.SIGTERM)
    cfg = Config()
    cfg.set("threads", server.threads)
    worker = SimpleNamespace(wsgi=api.application, cfg=cfg, leave_lane=lambda finished: None)
    try:
        server.post_worker_init(worker)
        assert isinstance(worker.lane, Lane)
        # So that no full collection stops all streams.
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        signal.signal(signal.SIGTERM, before)
    assert 2000 <= services_of(api.application).notices.max_waiting < server.threads
    assert [server.max_waiting(threads) for threads in (1, 2, 8)] == [1, 1, 7]
