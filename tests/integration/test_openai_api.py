"""Requests of OpenAI's clients without a stream: jobs, responses, errors."""

import io
import json
import socket
import threading
from dataclasses import replace

import pytest
from answering import Answering, answering, error_of
from helpers import job_store, wait_until

from ownpod.api.openai import exchange as openai_exchange
from ownpod.api.services import provide, services_of
from ownpod.errors import AnswerLost, RedisUnavailable, TooManyWaiting
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.attended import Attended

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}], apiKeys: [ep-key]}
  kept: {workers: [{url: "http://127.0.0.1:3", id: w2}], onDisconnect: keep}
  full: {maxQueueDepth: 1}
  paused: {template: {image: x}, workersMax: 0}
  web: {type: LB, workers: [{url: "http://127.0.0.1:2", id: c}]}
"""
QUERIES = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}]}
  proxy: {template: {image: "runpod/worker-v1-vllm:v2.25.2"}}
  old: {template: {image: "runpod/worker-v1-vllm:v2.9.6"}}
  sgl: {template: {image: "runpod/worker-v1-sglang:v2.0.2"}}
"""
URL = "/v2/ep/openai/v1/chat/completions"
KEY = {"Authorization": "Bearer all"}
CHAT = '{"id": "c",  "object": "chat.completion", "choices": []}'
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def app(new_app):
    return new_app(FILE, OWNPOD_API_KEYS="all", OWNPOD_OPENAI_BODY_MB=1)


@pytest.fixture
def api(app):
    return app.test_client()


def post(api, body=BODY, url=URL, **options):
    data = body if isinstance(body, (str, bytes)) else json.dumps(body)
    headers = KEY | options.pop("headers", {})
    return api.post(url, data=data, headers=headers, **options)


# --- jobs and responses


def test_a_request_is_a_job_and_its_output_the_response(api, store):
    def steps(worker):
        got = worker.claim()
        assert got == {"openai_route": "/v1/chat/completions", "openai_input": BODY}
        worker.finish(f"[{CHAT}]")

    with Answering(store, steps) as worker:
        response = post(api)
    assert (response.status_code, response.text) == (200, CHAT)
    assert response.content_type == "application/json"
    assert response.headers["X-Request-ID"] == worker.job_id
    assert response.headers["X-Runpod-Worker-Id"] == "w1"
    assert "x-should-retry" not in response.headers


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_without_a_body_has_an_empty_input(api, store, method):
    def steps(worker):
        assert worker.claim() == {"openai_route": "/v1/responses/r", "openai_input": {}}
        worker.finish({"ok": True})

    with Answering(store, steps):
        response = api.open("/v2/ep/openai//v1//responses/r?a=b", method=method, headers=KEY)
    assert (response.status_code, response.json) == (200, {"ok": True})


def test_the_body_reaches_the_worker_as_it_was_sent(api, store):
    images = "x" * 100_000
    for body in (
        b'\xef\xbb\xbf{"a": 1}',
        '{"a":1.50,  "a": 2, "s": "\\ud800 é"}',
        f'{{"n": 1e1,\n"image": "{images}"}}',
    ):

        def steps(worker, body=body):
            worker.claim()
            sent = '{"a": 1}' if isinstance(body, bytes) else body.replace("\n", " ")
            assert worker.attempt.input.endswith(f'"openai_input": {sent}}}')
            worker.finish({})

        with Answering(store, steps):
            assert post(api, body).status_code == 200


def test_the_chunks_are_the_output_of_a_generator_that_returns_nothing(api, store):
    def steps(worker):
        worker.claim()
        worker.chunk(json.loads(CHAT))
        worker.finish("[]")

    with Answering(store, steps):
        assert post(api).json == json.loads(CHAT)


@pytest.mark.parametrize(
    ("stream", "media"), [("true", "text/event-stream"), ('"yes"', "application/json")]
)
def test_only_json_true_is_a_stream(api, store, stream, media):
    with answering(store, "[1]"):
        response = post(api, f'{{"stream": {stream}, "x": "{"x" * 70_000}"}}')
    assert response.mimetype == media


def test_the_same_idempotency_key_is_the_same_job(api, store, app):
    headers = {"headers": {"Idempotency-Key": "k"}}
    with answering(store, CHAT):
        assert post(api, **headers).text == CHAT
    assert post(api, **headers).text == CHAT
    refused = error_of(post(api, {"other": 1}, **headers))
    assert (refused[0], refused[2]) == (409, "false")


def test_a_request_that_names_a_worker_waits_for_that_worker(api, store, client):
    with Answering(store, lambda worker: worker.claim() and worker.finish(CHAT)) as worker:
        assert post(api, headers={"X-Runpod-Worker-Id": "strict w1"}).text == CHAT
    assert client.hget(keys.job(worker.job_id), "affinity") == "strict"
    gone = post(api, headers={"X-Runpod-Worker-Id": "strict unknown"})
    assert error_of(gone)[0] == 404
    assert gone.json["error"]["code"] == "affinity_worker_gone"
    assert error_of(post(api, headers={"X-Runpod-Worker-Id": "strict"}))[0] == 400


# --- errors


def test_an_error_of_the_worker_has_its_status_and_is_not_repeated(api, store):
    flat = {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400}
    with answering(store, [flat]):
        assert error_of(post(api)) == (400, "too long", "false", None)

    def fail(worker):
        worker.claim()
        inner = '{"error":{"message":"no m","type":"NotFoundError","param":null,"code":404}}'
        told = {"message": f"vLLM returned HTTP 404: {inner}", "type": "worker_error"}
        worker.finish(error=str(told))

    with Answering(store, fail) as worker:
        response = post(api)
    assert error_of(response) == (404, "no m", "false", None)
    assert response.headers["X-Request-ID"] == worker.job_id


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize(
    "body",
    [
        *("[1]", '"x"', "1", "null", "{", "x", '{"a": NaN}', '{"a": 1e999}', b'{"a": "\xff"}'),
        *('{"a": 1}'.encode("utf-16-le"), '{"a": ' + "9" * 5000 + "}", DEEP),
        f'{{"a": NaN, "b": "{"x" * 70_000}"}}',
        f'["{"x" * 70_000}"]',
        b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--b--",
    ],
)
def test_a_body_that_is_no_json_object_is_refused(api, store, body):
    refused = error_of(post(api, body))
    assert (refused[0], refused[2]) == (400, "false")
    assert "body" in refused[1]
    assert store.listing.recent("ep", status=None, before=None, limit=1)[0] == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/ep/openai", 404),
        ("POST", "/v2/ep/openai/", 404),
        ("GET", "/v2/ep/openai//", 404),
        ("POST", "/v2/no/openai", 404),
        ("PUT", "/v2/ep/openai", 405),
        ("POST", "/v2/ep/openai/v1/%2e%2e/x", 400),
        ("POST", "/v2/ep/openai/v1/../x", 400),
        ("POST", "/v2/ep/openai/v1/a%00b", 400),
        ("POST", "/v2/ep/openai/" + "x" * 3000, 400),
        ("POST", "/v2/no/openai/v1/models", 404),
        ("POST", "/v2/a:b/openai/v1/models", 400),
        ("PUT", "/v2/ep/openai/v1/models", 405),
        ("DELETE", "/v2/ep/openai/v1/models", 405),
    ],
)
def test_a_request_that_no_worker_can_get_is_refused(api, method, path, status):
    refused = error_of(api.open(path, method=method, data="{}", headers=KEY))
    assert (refused[0], refused[2]) == (status, "false")


@pytest.mark.parametrize("path", ["/v2/ep/openai", "/v2/ep/openai/", "/v2/ep/openai?a=b"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_error_of_a_wrong_base_url_names_the_right_one(api, store, method, path):
    refused = error_of(api.open(path, method=method, data="{}", headers=KEY))
    assert (refused[0], refused[2]) == (404, "false")
    assert refused[1].endswith("must end in /v2/ep/openai/v1")
    # What an endpoint is called is for its own keys only.
    assert error_of(api.open("/v2/ep/openai", method=method))[0] == 401
    other = {"Authorization": "Bearer ep-key"}
    assert error_of(api.open("/v2/kept/openai", method=method, headers=other))[0] == 403
    assert store.listing.recent("ep", status=None, before=None, limit=1)[0] == []


@pytest.mark.parametrize(
    ("endpoint", "route"),
    [
        ("proxy", "/v1/responses/r?include=a%20b&include%5B%5D=%C3%A9&x=/%22"),
        *((name, "/v1/responses/r") for name in ("ep", "old", "sgl")),
    ],
)
def test_a_query_reaches_workers_that_take_it_as_a_part_of_the_route(
    new_app, store, endpoint, route
):
    api = new_app(QUERIES).test_client()

    def steps(worker):
        assert worker.claim() == {"openai_route": route, "openai_input": {}}
        worker.finish({"ok": True})

    with Answering(store, steps, endpoint=endpoint):
        query = 'include=a%20b&include[]=é&x=/"'
        assert api.get(f"/v2/{endpoint}/openai/v1/responses/r?{query}").json == {"ok": True}


def test_the_list_of_models_has_no_query(new_app, store):
    api = new_app(QUERIES).test_client()
    found = {"object": "list", "data": [{"id": "m", "object": "model"}]}

    def steps(worker):
        assert worker.claim()["openai_route"] == "/v1/models"
        worker.finish([found])

    with Answering(store, steps, endpoint="proxy"):
        assert api.get("/v2/proxy/openai/v1/models?api-version=1").json == found
    assert api.get("/v2/proxy/openai/v1/models").json == found


def test_a_query_that_is_too_long_is_refused_where_it_would_be_sent(new_app, store):
    api = new_app(QUERIES).test_client()
    query = "x" * 2000
    refused = error_of(api.post(f"/v2/proxy/openai/v1/x?{query}", json={}))
    assert (refused[0], refused[2]) == (400, "false")
    assert "2000 characters" in refused[1]
    with answering(store, CHAT):
        assert api.post(f"/v2/ep/openai/v1/x?{query}", json={}).text == CHAT


def test_the_jobs_id_is_in_a_header_of_its_own(api, store):
    with answering(store, CHAT) as worker:
        response = post(api, headers={"X-Request-ID": "mine"})
    assert response.headers["X-OwnPod-Job-Id"] == worker.job_id
    assert response.headers["X-Request-ID"] == "mine"
    with answering(store, CHAT) as worker:
        response = post(api)
    assert response.headers["X-OwnPod-Job-Id"] == worker.job_id == response.headers["X-Request-ID"]


def test_pages_of_other_origins_may_read_the_headers(new_app, store):
    api = new_app(QUERIES, OWNPOD_CORS_ORIGINS="https://page.example").test_client()
    with answering(store, CHAT):
        found = api.post(URL, json=BODY, headers={"Origin": "https://page.example"})
    exposed = found.headers["Access-Control-Expose-Headers"]
    assert {"X-OwnPod-Job-Id", "X-Request-ID", "x-should-retry"} <= set(exposed.split(", "))


def test_a_request_to_a_load_balanced_endpoint_may_be_repeated_at_a_front(api):
    refused = error_of(post(api, url="/v2/web/openai/v1/models"))
    assert (refused[0], *refused[2:]) == (503, "true", "1")


def test_a_long_body_in_chunks_is_refused_by_its_length(api, store):
    long = io.BytesIO(b'{"a": "' + b"x" * (1 << 20) + b'"}')
    environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    refused = api.post(URL, input_stream=long, environ_overrides=environ, headers=KEY)
    assert error_of(refused)[::2] == (413, "false")


def test_an_object_of_the_management_named_openai_has_the_errors_of_rest(api):
    refused = api.get("/v2/serverless/openai", headers=KEY)
    assert refused.mimetype == "application/problem+json"


def test_head_makes_no_job(api, store):
    assert api.head("/v2/ep/openai/v1/models", headers=KEY).status_code == 405
    assert store.listing.recent("ep", status=None, before=None, limit=1)[0] == []


def test_keys_are_checked_in_openais_words(api, store):
    refused = api.post(URL, json=BODY)
    assert error_of(refused)[::2] == (401, "false")
    assert refused.json["error"]["code"] == "invalid_api_key"
    assert refused.json["error"]["type"] == "authentication_error"
    other = api.post("/v2/kept/openai/v1/x", json=BODY, headers={"Authorization": "Bearer ep-key"})
    assert error_of(other)[::2] == (403, "false")
    with answering(store, CHAT):
        own = api.post(URL, json=BODY, headers={"Authorization": "Bearer ep-key"})
    assert own.text == CHAT


def test_what_was_refused_before_a_job_may_be_repeated(api, store, new_app):
    post(api, url="/v2/full/run", body={"input": 1})
    assert error_of(post(api, url="/v2/full/openai/v1/x"))[::2] == (429, "true")
    paused = post(api, url="/v2/paused/openai/v1/x")
    assert error_of(paused)[::2] == (409, "false")
    assert paused.json["error"]["code"] == "endpoint_paused"
    large = post(api, {"x": "x" * 1_100_000})
    assert error_of(large)[::2] == (413, "false")
    assert "the body is above 1 MiB (OWNPOD_OPENAI_BODY_MB)" in large.json["error"]["message"]


def test_requests_are_limited_as_runsync_is(new_app, store):
    api = new_app(
        FILE, OWNPOD_API_KEYS="all", OWNPOD_RATE_LIMITS='{"runsync": "1/hour"}'
    ).test_client()
    with answering(store, CHAT):
        assert post(api).status_code == 200
    status, _, repeat, after = error_of(post(api))
    assert (status, repeat) == (429, "true")
    assert int(after) > 5


def test_without_redis_a_request_may_be_repeated_and_an_unknown_outcome_is_not(app, api, store):
    svc = services_of(app)

    class Losing:
        def __getattr__(self, name):
            return getattr(svc.submissions, name)

        def submit(self, submission):
            svc.submissions.submit(submission)
            raise AnswerLost("Redis did not answer: 10.0.0.9")

    provide(app, replace(svc, submissions=Losing()))
    status, message, repeat, _ = error_of(post(api))
    assert (status, repeat) == (503, "false")
    assert "10.0.0.9" not in message
    (entry,), _ = store.listing.recent("ep", status=None, before=None, limit=5)
    # The sweep cancels it, because it has no reader.
    wait_until(lambda: entry.job.id in Attended(store.client).overdue())


@pytest.fixture
def blind(app, monkeypatch):
    """A context in which Redis fails right after the creation of a job, so that its end cannot be awaited."""
    monkeypatch.setattr(openai_exchange, "AWAY_S", 0.0)

    def away(*_args, **_options):
        raise RedisUnavailable("Redis cannot be reached: 10.0.0.9")

    with monkeypatch.context() as broken:
        broken.setattr(services_of(app).store.jobs, "subscribe", away)
        yield broken


@pytest.mark.parametrize("stream", [False, True])
def test_a_job_that_redis_has_made_before_it_failed_is_not_made_again(blind, api, store, stream):
    refused = error_of(post(api, {**BODY, "stream": stream}))
    assert (refused[0], *refused[2:]) == (503, "false", None)
    assert "10.0.0.9" not in refused[1]
    (entry,), _ = store.listing.recent("ep", status=None, before=None, limit=5)
    assert entry.job.status is JobStatus.CANCELLED


def test_with_a_key_the_request_is_repeated_and_gets_the_job_that_was_made(blind, api, store):
    key = {"headers": {"Idempotency-Key": "k"}}
    status, message, repeat, after = error_of(post(api, **key))
    assert (status, repeat, after) == (503, "true", "2")
    assert "Idempotency-Key" in message
    blind.undo()
    (entry,), _ = store.listing.recent("ep", status=None, before=None, limit=5)
    assert entry.job.status is JobStatus.IN_QUEUE
    attempt = store.jobs.claim(entry.job.id, worker_id="w1", claim="c", lease_s=60)
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output=CHAT))
    assert post(api, **key).text == CHAT
    assert len(store.listing.recent("ep", status=None, before=None, limit=5)[0]) == 1


def test_a_job_whose_process_has_no_room_to_await_it_is_not_made_again(app, api, monkeypatch):
    def full(*_args, **_options):
        raise TooManyWaiting

    monkeypatch.setattr(services_of(app).notices, "subscribe", full)
    refused = error_of(post(api))
    assert (refused[0], refused[2]) == (503, "false")


def test_a_request_survives_a_redis_that_fails_right_after_the_jobs_creation(
    app, api, store, monkeypatch
):
    jobs = services_of(app).store.jobs
    subscribe, calls = jobs.subscribe, []

    def once_away(*args, **options):
        calls.append(args)
        if len(calls) == 1:
            raise RedisUnavailable("Redis cannot be reached: 10.0.0.9")
        subscribe(*args, **options)

    monkeypatch.setattr(jobs, "subscribe", once_away)
    with answering(store, CHAT):
        assert post(api).text == CHAT
    assert len(calls) == 2


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_job_whose_attempts_are_all_lost_has_an_error_of_its_type(new_app, store, attempts):
    file = FILE.replace("}], onDis", f"}}], maxAttempts: {attempts}, onDis")
    api = new_app(file, OWNPOD_API_KEYS="all").test_client()

    def steps(worker):
        for _ in range(attempts):
            worker.claim()
            worker.lose()

    with Answering(store, steps, endpoint="kept", worker="w2"):
        lost = post(api, url="/v2/kept/openai/v1/x")
    assert error_of(lost) == (500, "gone", "false", None)
    assert lost.json["error"]["type"] == "worker_lost"


def test_a_handler_that_fails_after_a_lost_attempt_has_its_own_error(new_app, store):
    file = FILE.replace("}], onDis", "}], maxAttempts: 2, onDis")
    api = new_app(file, OWNPOD_API_KEYS="all").test_client()

    def steps(worker):
        worker.claim()
        worker.lose()
        worker.claim()
        worker.finish(error="broken")

    with Answering(store, steps, endpoint="kept", worker="w2"):
        failed = post(api, url="/v2/kept/openai/v1/x")
    assert failed.json["error"]["type"] == "server_error"


def test_a_request_whose_worker_has_begun_is_not_repeated_because_redis_is_away(
    app, api, store, monkeypatch
):
    monkeypatch.setattr(openai_exchange, "AWAY_S", 0.0)
    svc = services_of(app)

    def away(*_args):
        raise RedisUnavailable("Redis cannot be reached: 10.0.0.9")

    def steps(worker):
        worker.claim()
        wait_until(lambda: worker.store.client.hget(keys.job(worker.job_id), "watched"))
        monkeypatch.setattr(svc.store.jobs, "get", away)
        svc.notices.wake(worker.job_id)

    with Answering(store, steps):
        status, message, repeat, after = error_of(post(api))
    assert (status, repeat, after) == (503, "false", None)
    assert "10.0.0.9" not in message


# --- the client's time, and its connection


@pytest.mark.slow
def test_a_client_that_waits_too_long_gets_504_and_its_job_is_cancelled(new_app, store):
    # In which a worker takes the job, also on a loaded machine.
    api = new_app(FILE, OWNPOD_API_KEYS="all", OWNPOD_OPENAI_TIMEOUT_S=6).test_client()
    with Answering(store, lambda worker: worker.claim()) as worker:
        late = post(api)
    assert error_of(late) == (
        504,
        "no worker answered within 6 s (OWNPOD_OPENAI_TIMEOUT_S)",
        "false",
        None,
    )
    assert worker.job().status is JobStatus.CANCELLED
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


@pytest.fixture
def connection():
    """The client's end of a connection, and the options of its request."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield theirs, {"environ_overrides": {"gunicorn.socket": ours}}


def leaving(store, theirs, endpoint="ep"):
    """A client that goes when its job runs."""

    def steps(worker):
        worker.claim()
        wait_until(lambda: worker.store.client.hget(keys.job(worker.job_id), "watched"))
        theirs.close()

    return Answering(store, steps, endpoint=endpoint, worker="w")


def test_a_client_that_goes_cancels_its_job(api, store, connection):
    theirs, options = connection
    with leaving(store, theirs) as worker:
        post(api, **options)
    assert worker.job().status is JobStatus.CANCELLED
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


def test_a_client_that_goes_while_its_job_waits_cancels_it(api, store, connection):
    theirs, options = connection

    def steps(worker):
        theirs.close()

    with Answering(store, steps) as worker:
        post(api, **options)
    assert worker.job().status is JobStatus.CANCELLED


def test_an_endpoint_may_keep_the_jobs_of_clients_that_go(api, store, connection):
    theirs, options = connection
    with leaving(store, theirs, "kept") as worker:
        post(api, url="/v2/kept/openai/v1/x", **options)
    assert worker.job().status is JobStatus.IN_PROGRESS
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


def test_a_client_that_goes_does_not_cancel_the_job_of_another_request(api, store, connection):
    headers = {"headers": {"Idempotency-Key": "k"}}
    theirs, options = connection
    first = {}

    def steps(worker):
        worker.claim()
        second = threading.Thread(target=post, args=(api,), kwargs=headers | options)
        second.start()
        name = keys.job(worker.job_id)
        wait_until(lambda: len((store.client.hget(name, "watched") or "").split()) >= 1)
        theirs.close()
        second.join(60)
        first["state"] = worker.job().status
        worker.finish(CHAT)

    with Answering(store, steps):
        assert post(api, **headers).text == CHAT
    assert first["state"] is JobStatus.IN_PROGRESS


def test_a_client_that_goes_does_not_cancel_a_job_that_another_one_awaits(api, store, connection):
    headers = {"headers": {"Idempotency-Key": "k"}}
    theirs, options = connection
    texts = []
    second = threading.Thread(target=lambda: texts.append(post(api, **headers).text))

    def steps(worker):
        worker.claim()
        name = keys.job(worker.job_id)
        wait_until(lambda: worker.store.client.hget(name, "watched"))
        theirs.close()
        first.join(60)
        assert not first.is_alive()
        # No client waits for the job. It is cancelled unless one comes within some seconds.
        assert worker.job_id in Attended(store.client).overdue()
        second.start()
        wait_until(lambda: worker.job_id not in Attended(store.client).overdue())
        assert worker.job().status is JobStatus.IN_PROGRESS
        worker.finish(CHAT)

    first = threading.Thread(target=post, args=(api,), kwargs=headers | options)
    with Answering(store, steps) as worker:
        first.start()
    second.join(60)
    assert texts == [CHAT]
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


def test_a_second_client_does_not_end_the_job_of_an_endpoint_that_keeps_it(api, store, connection):
    theirs, options = connection
    url, headers = "/v2/kept/openai/v1/x", {"headers": {"Idempotency-Key": "k"}}
    with leaving(store, theirs, "kept") as worker:
        post(api, url=url, **headers, **options)
    assert not services_of(api.application).readers.enter(worker.job_id, only_attended=True)
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


def test_a_job_is_attended_while_its_client_waits(api, store):
    def steps(worker):
        worker.claim()
        assert wait_until(lambda: store.client.zscore(keys.ATTENDED, worker.job_id))
        worker.finish(CHAT)

    with Answering(store, steps) as worker:
        post(api)
    assert store.client.zscore(keys.ATTENDED, worker.job_id) is None


def test_a_process_that_dies_after_the_creation_of_a_job_leaves_it_to_the_sweep(app, api, store):
    svc = services_of(app)
    seen = []

    class Dying:
        def __getattr__(self, name):
            return getattr(svc.submissions, name)

        def submit(self, submission):
            found = svc.submissions.submit(submission)
            seen.append(store.client.zscore(keys.ATTENDED, found.job_id))
            return found

    provide(app, replace(svc, submissions=Dying()))
    with answering(store, CHAT):
        assert post(api, headers={"Idempotency-Key": "k"}).text == CHAT
    assert post(api, headers={"Idempotency-Key": "k"}).text == CHAT
    refused = post(api, {"other": 1}, headers={"Idempotency-Key": "k"})
    assert refused.status_code == 409
    assert seen[0] is not None
    # Nothing is left of jobs that were not made.
    assert not store.client.zcard(keys.ATTENDED)


def test_a_process_that_ends_gives_its_requests_to_another_one(app, api, store):
    with Answering(store, lambda worker: services_of(app).notices.stop()) as worker:
        status, _, repeat, after = error_of(post(api))
    assert (status, repeat, after) == (503, "true", "1")
    assert worker.job().status is JobStatus.CANCELLED
