"""The GPU service's routes of tasks and sessions, without agents and nodes: what is created, refused and shown."""

import json

import pytest
import sse
from helpers import job_store

from ownpod.api.services import services_of
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.output import Line
from ownpod.rules.runs import Outcome
from ownpod.rules.sessions import Reason
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.store.outputs import Kept, Outputs, Place

pytestmark = pytest.mark.slow

FILE = """
endpoints:
  plain: {apiKeys: [only-plain]}
models:
  llama-7b:
    inference: {docker_image: "llm-runner:latest", command: [python, inference.py], env_vars: {SECRET_ENV: hidden-value}}
    talk: {docker_image: "llm-runner:latest", oneOff: false}
    print: {docker_image: "llm-runner:latest", protocol: stdout}
  sdxl:
    generate: {docker_image: "diffusion-runner:latest", apiKeys: [only-sdxl]}
"""
OPEN = FILE.replace("{apiKeys: [only-plain]}", "{}").replace(", apiKeys: [only-sdxl]", "")
TASK = {
    "task_type": "session",
    "task_difficulty": "low",
    "model_id": "llama-7b",
    "task_preset": "inference",
    "metadata": {"prompt": "Hello, world!", "max_tokens": 100},
    "timeout_seconds": 300,
}
JSON = {"Accept": "application/json"}
KEYS = {"OWNPOD_API_KEYS": "global-key", "OWNPOD_ADMIN_KEYS": "admin-key"}


@pytest.fixture
def make_api(new_app):
    def make(text=OPEN, *, holds=False, **environ):
        app = new_app(text, **environ)
        if not holds:
            # Streams and requests that wait are answered at once.
            services_of(app).notices.stop()
        return app.test_client()

    return make


@pytest.fixture
def api(make_api):
    return make_api()


@pytest.fixture
def store(client):
    return job_store(client)


def host(client, *pools, devices=1, **metrics):
    found = [
        Device(f"GPU-{n}", n, "RTX", 24_000, pools=pools or ("low",), metrics=metrics)
        for n in range(devices)
    ]
    Agents(client).heartbeat(AgentInfo("box", "docker", tuple(found)), "token")


def submit(api, headers=JSON, path="submit", **changes):
    return api.post(f"/api/tasks/{path}", json={**TASK, **changes}, headers=headers)


def made(api, **changes):
    answer = submit(api, **changes)
    assert answer.status_code == 200, answer.text
    return answer.json


def refused(answer, status, code):
    assert (answer.status_code, answer.json["code"]) == (status, code), answer.text
    assert answer.json["detail"] == answer.json["error"]
    return answer.json["detail"]


def ready(client, session):
    """The host has started the session, and it has requested a job."""
    managed = Managed(client)
    if not Agents(client).agents():
        host(client)
    assert managed.place(session, "box", "token", ["GPU-0"])
    managed.started(session, "box")
    assert managed.ready(session)


# --- submitting


def test_a_task_of_a_session_waits_in_the_sessions_own_queue_and_the_session_is_wanted(api, store):
    task = made(api)
    assert task["status"] == "queued"
    assert task["position"] == 1
    assert task["endpoint"] == "llama-7b-inference"
    record = store.listing.details(task["task_id"])
    assert record["private"] == task["session_id"]
    assert record["input"] == TASK["metadata"]
    assert (record["execution_timeout_ms"], record["max_attempts"]) == (300_000, 1)
    (session,) = api.get("/api/sessions").json["sessions"]
    assert session["session_id"] == task["session_id"]
    assert session["status"] == "initializing"
    assert session["queued_task_ids"] == [task["task_id"]]


def test_the_answer_is_an_event_stream_unless_the_client_asks_for_json(api):
    for headers in (
        {},
        {"Accept": "*/*"},
        {"Accept": "text/event-stream"},
        {"Accept": "application/json, text/plain, */*"},
    ):
        answer = submit(api, headers=headers)
        assert (answer.status_code, answer.mimetype) == (200, "text/event-stream"), headers
        assert answer.headers["X-Task-Id"]
        assert answer.headers["X-Session-Id"]
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.get_data(as_text=True).startswith("retry: 2000\n\n")
    for headers in (JSON, {"Prefer": "wait=1, respond-async"}):
        answer = submit(api, headers=headers)
        assert answer.mimetype == "application/json", headers
        assert answer.headers["X-Task-Id"] == answer.json["task_id"]


def test_the_stream_of_a_task_that_has_ended_is_whole(make_api, store):
    api = make_api(holds=True)
    task = made(api)
    attempt = store.jobs.claim(task["task_id"], worker_id=task["session_id"], claim="c", lease_s=60)
    store.chunks.add(attempt.job_id, attempt.number, ['"Hel"', '"lo"'])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='["Hel", "lo"]'))
    answer = api.get(f"/api/tasks/{task['task_id']}/events")
    events = sse.stream_of(answer.get_data())
    assert [e.data["delta"] for e in events if e.event == "text_delta"] == ["Hel", "lo"]
    assert [e.data["content"] for e in events if e.event == "text"] == ["Hello"]
    assert events[0].data["session_id"] == task["session_id"]
    finish = events[-1].data
    assert (finish["status"], finish["task_id"]) == ("completed", task["task_id"])
    for n, event in enumerate(events):
        rest = api.get(f"/api/tasks/{task['task_id']}/events", headers={"Last-Event-ID": event.id})
        if n == len(events) - 1:
            assert rest.status_code == 204
        else:
            found = list(sse.parsed([rest.get_data()]))
            assert found == events[n + 1 :], event


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"task_type": "both"}, "bad_request", "task_type: must be session or oneoff"),
        ({"task_type": None}, "bad_request", "task_type: is null: must be session or oneoff"),
        ({"model_id": "gpt-9"}, "unknown_model", "llama-7b"),
        ({"model_id": ""}, "bad_request", "model_id: must have 1 to 255 characters"),
        ({"task_preset": "train"}, "unknown_preset", "inference"),
        ({"task_difficulty": "huge"}, "unknown_difficulty", "low"),
        ({"task_difficulty": 1}, "bad_request", "task_difficulty: must be a string"),
        ({"timeout_seconds": 9}, "bad_request", "timeout_seconds: must be a whole number"),
        ({"timeout_seconds": 1801}, "bad_request", "from 10 to 1800, not 1801"),
        ({"timeout_seconds": "300"}, "bad_request", "timeout_seconds: must be a whole number"),
        ({"wait_seconds": -1}, "bad_request", "wait_seconds: must be a whole number"),
        ({"metadata": ["a"]}, "bad_request", "metadata: must be an object"),
        ({"metadata": "a"}, "bad_request", "metadata: must be an object"),
        ({"create_session": "yes"}, "bad_request", "create_session: must be true or false"),
        ({"session_id": "a b"}, "bad_request", "session_id: must be the id of a session"),
        ({"on_disconnect": "stop"}, "bad_request", "on_disconnect: must be continue or cancel"),
        ({"task_type": "oneoff", "session_id": "abc"}, "bad_request", "session_id: must be null"),
        ({"task_type": "oneoff", "task_preset": "talk"}, "bad_request", "has sessions only"),
        ({"task_preset": "print"}, "bad_request", "has one-off tasks only"),
        ({"session_id": "nosuchsession0"}, "session_not_found", "nosuchsession0"),
    ],
)
def test_what_cannot_run_is_refused_before_the_stream_and_nothing_is_left(
    api, client, changes, code, words
):
    for headers in ({}, JSON):
        answer = submit(api, headers=headers, **changes)
        status = 404 if code == "session_not_found" else 400
        assert words in refused(answer, status, code)
    assert api.get("/api/sessions").json == {"sessions": [], "total": 0}
    assert client.keys("ownpod:job:*") == []


def test_bodies_that_are_no_task_are_refused(api):
    for body, status in ((b"", 400), (b"[]", 400), (b'{"task_type"', 400), (b"\xff", 400)):
        answer = api.post("/api/tasks/submit", data=body)
        refused(answer, status, "bad_request")
    refused(api.post("/api/tasks/submit", data=b" " * (11 << 20)), 413, "too_large")
    refused(api.get("/api/tasks/submit"), 404, "not_found")
    refused(api.put("/api/tasks/submit"), 405, "method_not_allowed")
    refused(api.get("/api/nothing"), 404, "not_found")


def test_the_timeout_of_a_task_that_has_none_is_that_of_its_preset(make_api, store):
    api = make_api(DEFAULT_TASK_TIMEOUT=120, MAX_TASK_TIMEOUT=600)
    task = made(api, timeout_seconds=None)
    assert store.listing.details(task["task_id"])["execution_timeout_ms"] == 120_000
    assert "from 10 to 600" in refused(submit(api, timeout_seconds=601), 400, "bad_request")


# --- which session


def test_an_idle_session_is_reused_and_another_is_made_where_the_client_wants_one(api, client):
    host(client)
    first = made(api)["session_id"]
    ready(client, first)
    assert made(api)["session_id"] == first
    assert made(api, create_session=True)["session_id"] != first
    assert made(api, session_id=first)["session_id"] == first


def first_status(api, task_id):
    response = api.get(f"/api/tasks/{task_id}/events", buffered=False)
    parser, pieces, events = sse.Parser(), response.iter_encoded(), []
    while not events:
        events = parser.feed(next(pieces))
    response.close()
    return events[0].data["status"]


def test_a_task_that_waits_for_a_session_which_was_there_has_found_it(make_api, client):
    api = make_api(OPEN.replace("oneOff: false", "oneOff: false, session: {queue: 9}"), holds=True)
    talk = {"task_preset": "talk", "wait_seconds": 50}
    first = made(api, **talk)
    named = made(api, **talk, session_id=first["session_id"])
    reused = made(api, **talk)
    other = made(api, **talk, create_session=True)
    assert first["session_id"] == reused["session_id"] != other["session_id"]
    pin = {"X-Runpod-Worker-Id": f"strict {other['session_id']}"}
    job = api.post("/v2/llama-7b-talk/run", json={"input": {}}, headers=pin).json["id"]
    ids = [task["task_id"] for task in (first, named, reused, other)]
    assert [first_status(api, task_id) for task_id in (*ids, job)] == [
        *("queued", "session_found", "session_found", "queued", "session_found")
    ]
    assert first_status(api, made(api, task_type="oneoff")["task_id"]) == "queued"


def test_tasks_of_other_presets_never_share_a_session(api, client):
    first = made(api)["session_id"]
    ready(client, first)
    assert made(api, task_preset="talk")["session_id"] != first
    assert made(api, task_difficulty="high")["session_id"] != first
    words = refused(submit(api, session_id=first, task_preset="talk"), 400, "bad_request")
    assert "'inference'" in words


def test_a_full_queue_is_refused_with_503_and_its_size(make_api, client):
    api = make_api(SESSION_QUEUE_MAX_SIZE=2)
    session = made(api)["session_id"]
    assert made(api, session_id=session)["position"] == 2
    for headers in ({}, JSON):
        answer = submit(api, headers=headers, session_id=session)
        refused(answer, 503, "queue_full")
        assert (answer.json["queue_size"], answer.json["queue_max"]) == (2, 2)
        assert answer.headers["Retry-After"].isdecimal()
    assert api.get(f"/api/sessions/{session}").json["queue_size"] == 2


@pytest.mark.parametrize("kind", ["session", "oneoff"])
def test_without_a_wait_a_task_is_refused_where_no_device_is_free(make_api, client, kind):
    api = make_api(OWNPOD_GPU_WAIT_S=0)
    for headers in ({}, JSON):
        answer = submit(api, headers=headers, task_type=kind)
        assert "'low'" in refused(answer, 503, "full")
        assert answer.headers["Retry-After"].isdecimal()
    assert Managed(client).list() == []
    assert made(api, task_type=kind, wait_seconds=5)["status"] == "queued"
    host(client, devices=3)
    assert made(api, task_type=kind, create_session=True)["status"] == "queued"


@pytest.mark.parametrize(
    ("environ", "asked", "session_s", "one_off_s"),
    [
        # 0: the worker waits for any time, and the ttl ends its job.
        ({}, None, 60, 0),
        ({}, 5, 5, 5),
        ({"OWNPOD_GPU_WAIT_S": 7}, None, 7, 7),
        ({"OWNPOD_GPU_WAIT_S": 7}, 5, 5, 5),
    ],
)
def test_a_one_off_task_waits_for_a_device_as_long_as_its_job_does(
    make_api, client, environ, asked, session_s, one_off_s
):
    api = make_api(**environ)
    made(api, task_type="session", wait_seconds=asked)
    made(api, task_type="oneoff", wait_seconds=asked)
    prewarm = {"model_id": "llama-7b", "task_preset": "talk", "wait_seconds": asked}
    assert api.post("/api/sessions", json=prewarm).status_code == 200
    waits = sorted((worker.role, worker.wait_s) for worker in Managed(client).list())
    assert waits == [("session", session_s), ("session", session_s), ("task", one_off_s)]


def test_a_session_that_ends_takes_no_more_tasks_and_says_why(api, client):
    session = made(api)["session_id"]
    ready(client, session)
    services_of(api.application).sessions.end(session, Reason.MANUAL, drain=True)
    assert "manual" in refused(submit(api, session_id=session), 404, "session_ended")
    assert made(api)["session_id"] != session


# --- one-off tasks, predefined and custom ones


def test_a_one_off_task_gets_a_worker_of_its_own_from_its_presets_image(api, client, store):
    task = made(api, task_type="oneoff", task_difficulty="high")
    assert task["session_id"] is None
    (worker,) = Managed(client).list()
    assert (worker.role, worker.job, worker.pools) == ("task", task["task_id"], ("high",))
    assert json.loads(worker.about)["output"] == "auto"
    assert store.listing.details(task["task_id"])["private"] == worker.id
    assert api.get("/api/sessions").json["total"] == 0
    assert api.get(f"/api/sessions/{worker.id}").status_code == 404
    answer = submit(api, {}, task_type="oneoff")
    assert "X-Session-Id" not in answer.headers


def test_a_predefined_task_is_named_by_its_preset(api):
    def name(task_name, **more):
        body = {"task_name": task_name, **more}
        return api.post("/api/tasks/predefined", json=body, headers=JSON)

    for task_name in ("inference", "llama-7b/inference", "llama-7b-inference"):
        answer = name(task_name)
        assert (answer.status_code, answer.json["endpoint"]) == (200, "llama-7b-inference")
        assert answer.json["session_id"] is None
    assert name("talk").json["session_id"]
    assert name("inference", create_session=True).json["session_id"]
    assert name("inference", task_type="session").json["session_id"]
    session = name("talk").json["session_id"]
    assert name("talk", session_id=session).json["session_id"] == session
    assert "llama-7b/talk" in refused(name("nothing"), 400, "bad_request")
    assert name("inference", model_id="sdxl").status_code == 400


CUSTOM = {"docker_image": "llm-runner:latest", "command": ["ls"], "env_vars": {"A": "b"}}


def custom(api, headers=JSON, **changes):
    return api.post("/api/tasks/custom", json={**CUSTOM, **changes}, headers=JSON | headers)


def test_custom_tasks_are_off_by_default(make_api):
    refused(custom(make_api()), 403, "custom_tasks_off")
    api = make_api(**KEYS)
    refused(custom(api, {"X-API-Key": "admin-key"}), 403, "custom_tasks_off")
    refused(custom(api, {"X-API-Key": "unknown"}), 401, "unauthorized")


def test_a_page_of_another_site_starts_no_custom_task(make_api):
    api = make_api(OWNPOD_CUSTOM_TASKS="true", OWNPOD_IMAGES="pytorch/*")
    answer = api.post("/api/tasks/custom", data=json.dumps(CUSTOM), content_type="text/plain")
    refused(answer, 415, "unsupported_media_type")


def test_custom_tasks_need_an_admin_key_or_a_key_for_them(make_api, client):
    api = make_api(
        OWNPOD_CUSTOM_TASKS="true",
        OWNPOD_CUSTOM_TASK_KEYS="custom-key",
        OWNPOD_API_KEYS="global-key",
        OWNPOD_ADMIN_KEYS="admin-key",
    )
    refused(custom(api, {"X-API-Key": "global-key"}), 403, "forbidden")
    refused(submit(api, headers=JSON | {"X-API-Key": "custom-key"}), 403, "forbidden")
    for key in ("admin-key", "custom-key"):
        answer = custom(api, {"X-API-Key": key}, task_difficulty="high")
        assert answer.status_code == 200, answer.text
        path = f"/api/tasks/{answer.json['task_id']}"
        assert api.get(path, headers={"X-API-Key": key}).json["task_preset"] == "custom"
    worker = Managed(client).list()[0]
    (_, spec) = next(found for found in Managed(client).wanted() if found[0].id == worker.id)
    assert (spec.template.image, spec.template.command) == ("llm-runner:latest", ("ls",))
    assert (spec.template.env, spec.template.volumes) == ({"A": "b"}, ())
    assert spec.gpu.pools == ("high",)


def test_custom_tasks_are_bound_to_the_images_that_are_allowed(make_api):
    api = make_api(OWNPOD_CUSTOM_TASKS="true")
    assert custom(api).status_code == 200
    refused(submit(api, model_id="custom", task_preset="custom"), 400, "unknown_preset")
    named = api.post("/api/tasks/predefined", json={"task_name": "custom"}, headers=JSON)
    assert "/api/tasks/custom" in refused(named, 400, "bad_request")
    assert "not allowed" in refused(custom(api, docker_image="evil:latest"), 400, "bad_request")
    assert "docker_image" in refused(custom(api, docker_image="UPPER//x"), 400, "bad_request")
    api = make_api(OWNPOD_CUSTOM_TASKS="true", ALLOWED_DOCKER_IMAGES="pytorch/pytorch:*")
    assert custom(api, docker_image="pytorch/pytorch:2.4").status_code == 200
    refused(custom(api, docker_image="ubuntu"), 400, "bad_request")


@pytest.mark.parametrize(
    "env",
    [
        {"NVIDIA_VISIBLE_DEVICES": "all"},
        {"ld_preload": "x"},
        {"PATH": "/"},
        {"A": "{{ RUNPOD_SECRET_key }}"},
        {"A": "{{ SECRET_key"},
        {"A=B": "c"},
        {"A": "x\0"},
    ],
)
def test_custom_variables_are_data_only(make_api, env):
    api = make_api(OWNPOD_CUSTOM_TASKS="true")
    assert "env_vars" in refused(custom(api, env_vars=env), 400, "bad_request")


# --- an idempotency key


def test_the_same_key_and_body_give_the_same_task_and_open_no_second_session(api, client):
    headers = JSON | {"Idempotency-Key": "k-1"}
    first = submit(api, headers=headers, create_session=True).json
    again = submit(api, headers=headers, create_session=True)
    assert again.json["task_id"] == first["task_id"]
    assert again.json["session_id"] == first["session_id"]
    stream = submit(api, headers={"Idempotency-Key": "k-1"}, create_session=True)
    assert stream.headers["X-Task-Id"] == first["task_id"]
    assert len(Managed(client).list()) == 1
    refused(submit(api, headers=headers), 409, "conflict")
    refused(submit(api, headers=JSON | {"Idempotency-Key": "a b"}), 400, "bad_request")
    one_off = JSON | {"Idempotency-Key": "k-2"}
    tasks = {submit(api, headers=one_off, task_type="oneoff").json["task_id"] for _ in range(3)}
    assert len(tasks) == 1


# --- a task


def test_a_task_is_shown_in_the_gpu_services_words(api, client, store):
    task_id = (task := made(api))["task_id"]
    shown = api.get(f"/api/tasks/{task_id}").json
    assert shown["status"] == "pending"
    assert shown["created_at"].endswith("Z")
    assert (shown["started_at"], shown["completed_at"]) == (None, None)
    assert (shown["task_type"], shown["model_id"]) == ("session", "llama-7b")
    assert (shown["task_preset"], shown["task_difficulty"]) == ("inference", "low")
    assert (shown["session_id"], shown["timeout_seconds"]) == (task["session_id"], 300)
    host(client)
    ready(client, task["session_id"])
    attempt = store.jobs.claim(task_id, worker_id=task["session_id"], claim="c", lease_s=60)
    for n in range(12):
        store.journal.add(task_id, "logs", {"log": f"line {n}", "level": "info"})
    shown = api.get(f"/api/tasks/{task_id}").json
    assert (shown["status"], shown["job_status"]) == ("running", "IN_PROGRESS")
    assert shown["container_id"] == f"ownpod-{task['session_id']}"
    assert [line["log"] for line in shown["recent_logs"]] == [f"line {n}" for n in range(2, 12)]
    store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="it broke"))
    shown = api.get(f"/api/tasks/{task_id}").json
    assert (shown["status"], shown["error_message"]) == ("failed", "it broke")
    assert shown["completed_at"].endswith("Z")
    refused(api.get("/api/tasks/none"), 404, "not_found")
    refused(api.get("/api/tasks/none/events"), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/cancel")])
def test_a_task_is_cancelled_once(api, method, path):
    task_id = made(api)["task_id"]
    answer = api.open(f"/api/tasks/{task_id}{path}", method=method)
    assert (answer.json["success"], answer.json["status"]) == (True, "cancelled")
    assert api.get(f"/api/tasks/{task_id}").json["job_status"] == "CANCELLED"
    assert api.open(f"/api/tasks/{task_id}{path}", method=method).json["status"] == "cancelled"
    refused(api.open(f"/api/tasks/none{path}", method=method), 404, "not_found")


# --- sessions


def test_a_session_is_made_before_its_first_task_with_limits_of_its_own(api, client):
    body = {
        "model_id": "llama-7b",
        "task_preset": "talk",
        "task_difficulty": "low",
        "idle_timeout_seconds": 60,
        "max_lifetime_seconds": 900,
        "metadata": {"user": "7"},
    }
    made = api.post("/api/sessions", json=body)
    assert made.status_code == 200
    session = made.json
    assert (session["status"], session["phase"]) == ("initializing", "wanted")
    assert (session["model_id"], session["task_preset"]) == ("llama-7b", "talk")
    assert (session["idle_timeout_seconds"], session["max_lifetime_seconds"]) == (60, 900)
    assert session["labels"] == {"user": "7"}
    assert (session["gpu"], session["gpu_device_id"]) == (None, None)
    host(client)
    ready(client, session["session_id"])
    shown = api.get(f"/api/sessions/{session['session_id']}").json
    assert (shown["status"], shown["gpu_device_id"]) == ("waiting", 0)
    assert shown["gpu"] == {
        "host": "box",
        "index": 0,
        "uuid": "GPU-0",
        "name": "RTX",
        "class": "low",
        "simulated": False,
    }
    assert shown["container_id"] == f"ownpod-{session['session_id']}"
    assert shown["idle_expires_at"].endswith("Z")
    assert shown["expires_at"].endswith("Z")
    assert shown["image"] == "llm-runner:latest"
    for wrong, words in (
        ({"task_preset": "print"}, "one-off tasks only"),
        ({"idle_timeout_seconds": -1}, "idle_timeout_seconds"),
        ({"idle_timeout_seconds": 0}, "idle_timeout_seconds"),
        ({"max_lifetime_seconds": 0}, "max_lifetime_seconds"),
        ({"idle_timeout_seconds": 301}, "idle_timeout_seconds: must be at most 300, the preset's"),
        ({"max_lifetime_seconds": 3601}, "max_lifetime_seconds: must be at most 3600"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"model_id": None}, "model_id"),
        ({"task_difficulty": "x"}, "low"),
    ):
        answer = api.post("/api/sessions", json=body | wrong)
        assert answer.status_code == 400, wrong
        assert words in answer.json["detail"]


def test_only_an_admin_or_the_preset_gives_a_session_longer_limits(make_api):
    text = OPEN.replace(
        "oneOff: false", "oneOff: false, session: {idleTimeout: 0, maxLifetime: 7200}"
    )
    api = make_api(text, **KEYS)

    def answered(key, preset, idle_s, life_s):
        limits = {"idle_timeout_seconds": idle_s, "max_lifetime_seconds": life_s}
        body = {"model_id": "llama-7b", "task_preset": preset, **limits}
        answer = api.post("/api/sessions", json=body, headers=keyed(key))
        return answer.status_code

    for key, may in (("global-key", 400), ("admin-key", 200)):
        assert answered(key, "inference", 300, 3600) == 200
        assert answered(key, "inference", 301, 3600) == may
        assert answered(key, "inference", 300, 3601) == may
        # The preset has no idle time, so its clients may have any.
        assert answered(key, "talk", 86_400, 7200) == 200
        assert answered(key, "talk", 86_400, 7201) == may
        assert answered(key, "talk", 0, 7200) == answered(key, "talk", 1, 0) == 400


def test_sessions_are_listed_by_status_and_model(api, client):
    first, second = made(api)["session_id"], made(api, create_session=True)["session_id"]
    third = made(api, model_id="sdxl", task_preset="generate")["session_id"]
    ready(client, first)

    def ids(query=""):
        body = api.get(f"/api/sessions{query}").json
        assert body["total"] == len(body["sessions"])
        return {session["session_id"] for session in body["sessions"]}

    assert ids() == {first, second, third}
    assert ids("?model_id=sdxl") == {third}
    assert ids("?status=initializing&model_id=llama-7b") == {second}
    assert api.delete(f"/api/sessions/{second}").json["success"]
    assert ids() == {first, third}
    assert ids("?all=true") == {first, second, third}
    assert ids("?status=killed") == {second}
    shown = api.get(f"/api/sessions/{second}").json
    assert (shown["status"], shown["reason"]) == ("killed", "manual")
    for query in ("?status=busy", "?all=1"):
        refused(api.get(f"/api/sessions{query}"), 400, "bad_request")


def test_a_session_is_ended_once_and_again_with_the_same_answer(api, client):
    session = made(api)["session_id"]
    ready(client, session)
    first = api.delete(f"/api/sessions/{session}?drain=true").json
    assert first["success"]
    assert first["session_id"] == session
    answer = api.delete(f"/api/sessions/{session}")
    assert answer.json["message"] == "Session killed successfully"
    assert api.delete(f"/api/sessions/{session}").json["success"]
    refused(api.delete("/api/sessions/nosuchsession0"), 404, "session_not_found")
    refused(api.get("/api/sessions/nosuchsession0"), 404, "session_not_found")
    refused(api.delete(f"/api/sessions/{session}?drain=yes"), 400, "bad_request")


def test_a_session_is_kept_alive(api, client):
    session = made(api, task_preset="talk")["session_id"]
    path = f"/api/sessions/{session}/keepalive"
    kept = api.post(path).json
    assert (kept["success"], kept["session_id"]) == (True, session)
    assert kept["message"] == "Session keepalive updated"
    assert kept["last_activity"].endswith("Z")
    assert api.post(path, json={"seconds": 900}).status_code == 200
    assert "seconds" in refused(api.post(path, json={"seconds": 0}), 400, "bad_request")
    api.delete(f"/api/sessions/{session}")
    refused(api.post(path), 404, "session_ended")
    refused(api.post("/api/sessions/nosuchsession0/keepalive"), 404, "session_not_found")


def test_the_output_of_a_session_is_a_stream_of_its_own(make_api, client):
    api = make_api(holds=True)
    session = made(api, task_preset="talk")["session_id"]
    ready(client, session)
    outputs = Outputs(client)
    lines = [Line("loading", None), Line("ERROR: it broke", "job-1")]
    assert outputs.append(session, lines, "", Place("b1", "1", "")) is Kept.YES
    assert Managed(client).lost(session, "its host is gone")
    answer = api.get(f"/api/sessions/{session}/logs")
    assert (answer.mimetype, answer.headers["X-Session-Id"]) == ("text/event-stream", session)
    events = list(sse.parsed([answer.get_data()]))
    assert [(e.event, e.data["log"], e.data["task_id"]) for e in events] == [
        ("logs", "loading", None),
        ("logs", "ERROR: it broke", "job-1"),
    ]
    assert [event.data["level"] for event in events] == ["info", "error"]
    assert all(event.data["timestamp"].endswith("Z") for event in events)
    rest = api.get(f"/api/sessions/{session}/logs", headers={"Last-Event-ID": events[0].id})
    assert list(sse.parsed([rest.get_data()])) == events[1:]
    refused(api.get(f"/api/sessions/{session}/logs?after=x"), 400, "bad_request")


# --- keys


def keyed(key):
    return {"X-API-Key": key}


def test_a_session_is_seen_used_and_ended_by_its_key_and_by_global_ones_only(make_api):
    text = OPEN.replace(
        'talk: {docker_image: "llm-runner:latest"',
        'talk: {apiKeys: [key-1, key-2], docker_image: "llm-runner:latest"',
    )
    api = make_api(text, **KEYS)
    session = made(api, headers=JSON | keyed("key-1"), task_preset="talk")["session_id"]
    path = f"/api/sessions/{session}"
    for key in ("key-1", "global-key", "admin-key"):
        assert api.get(path, headers=keyed(key)).status_code == 200, key
        assert api.get("/api/sessions", headers=keyed(key)).json["total"] == 1
    refused(api.get(path), 401, "unauthorized")
    refused(api.get(path, headers=keyed("unknown")), 401, "unauthorized")
    other = keyed("key-2")
    assert api.get("/api/sessions", headers=other).json["total"] == 0
    for answer in (
        api.get(path, headers=other),
        api.delete(path, headers=other),
        api.post(f"{path}/keepalive", headers=other),
        api.get(f"{path}/logs", headers=other),
        submit(api, headers=JSON | other, task_preset="talk", session_id=session),
    ):
        refused(answer, 404, "session_not_found")
    assert made(api, headers=JSON | other, task_preset="talk")["session_id"] != session, (
        "an idle session of another key is not reused"
    )
    assert api.delete(path, headers=keyed("key-1")).status_code == 200


def test_a_task_is_seen_and_cancelled_by_its_key_and_by_global_ones_only(make_api):
    text = OPEN.replace(
        'talk: {docker_image: "llm-runner:latest"',
        'talk: {apiKeys: [key-1, key-2], docker_image: "llm-runner:latest"',
    )
    api = make_api(text, **KEYS)
    mine, other = keyed("key-1"), keyed("key-2")
    task = made(api, headers=JSON | mine, task_preset="talk")
    pin = {"X-Runpod-Worker-Id": f"strict {task['session_id']}"}
    job = api.post("/v2/llama-7b-talk/run", json={"input": {}}, headers=mine | pin).json["id"]
    for job_id in (task["task_id"], job):
        path = f"/api/tasks/{job_id}"
        for answer in (
            api.get(path, headers=other),
            api.get(f"{path}/events", headers=other),
            api.post(f"{path}/cancel", headers=other),
            api.delete(path, headers=other),
        ):
            refused(answer, 404, "not_found")
        of_queue = "/v2/llama-7b-talk"
        for view in ("status", "stream", "requests"):
            answer = api.get(f"{of_queue}/{view}/{job_id}", headers=other)
            assert answer.status_code == 404, view
        for view in ("cancel", "retry"):
            answer = api.post(f"{of_queue}/{view}/{job_id}", headers=other)
            assert answer.status_code == 404, view
        for key in ("key-1", "global-key", "admin-key"):
            assert api.get(path, headers=keyed(key)).json["status"] == "pending", key
            details = api.get(f"{of_queue}/requests/{job_id}", headers=keyed(key))
            assert details.status_code == 200
            assert "owner" not in details.json
    plain = api.post("/v2/plain/run", json={"input": {}}, headers=keyed("global-key"))
    assert plain.status_code == 200


def test_the_list_of_an_endpoints_jobs_has_no_tasks_of_other_keys(make_api):
    text = OPEN.replace(
        'talk: {docker_image: "llm-runner:latest"',
        'talk: {apiKeys: [key-1, key-2], workers: {max: 1}, docker_image: "llm-runner:latest"',
    )
    api = make_api(text, **KEYS)
    run = api.post("/v2/llama-7b-talk/run", json={"input": {}}, headers=keyed("key-1"))
    plain = run.json["id"]
    tasks = {
        key: [made(api, headers=JSON | keyed(key), task_preset="talk")["task_id"] for _ in range(2)]
        for key in ("key-1", "key-2", "global-key")
    }

    def listed(key, query=""):
        path = f"/v2/llama-7b-talk/requests?limit=1{query}"
        found, page = [], api.get(path, headers=keyed(key)).json
        while page["requests"]:
            found += [job["id"] for job in page["requests"]]
            if page["next"] is None:
                break
            page = api.get(f"{path}&before={page['next']}", headers=keyed(key)).json
        return found

    for query in ("", "&status=IN_QUEUE"):
        for key in ("key-1", "key-2"):
            assert sorted(listed(key, query)) == sorted([plain, *tasks[key]])
        for key in ("global-key", "admin-key"):
            everyone = [task for of_key in tasks.values() for task in of_key]
            assert sorted(listed(key, query)) == sorted([plain, *everyone])


def test_the_key_of_an_endpoint_opens_its_preset_only(make_api):
    api = make_api(FILE)
    for key, status in (("only-sdxl", 403), ("only-plain", 403)):
        answer = submit(api, headers=JSON | keyed(key))
        assert answer.status_code == status, key
        refused(answer, 403, "forbidden")
    task = made(api, headers=JSON | keyed("only-sdxl"), model_id="sdxl", task_preset="generate")
    path = f"/api/tasks/{task['task_id']}"
    assert api.get(path, headers=keyed("only-sdxl")).status_code == 200
    for more in ("", "/events"):
        refused(api.get(path + more, headers=keyed("only-plain")), 404, "not_found")
    refused(api.delete(path, headers=keyed("only-plain")), 404, "not_found")


# --- health


def test_health_has_the_gpu_services_keys_where_there_are_presets(make_api, client, store):
    api = make_api()
    body = api.get("/health").json
    assert (body["status"], body["gpus"]) == ("unhealthy", [])
    assert (body["active_sessions"], body["active_tasks"]) == (0, 0)
    host(client, devices=2, memory_used_mb=1000.5, temperature_c=40, utilization_percent=7)
    task = made(api)
    ready(client, task["session_id"])
    store.jobs.claim(task["task_id"], worker_id=task["session_id"], claim="c", lease_s=60)
    body = api.get("/health").json
    assert (body["status"], body["service"]) == ("healthy", "GPU Service")
    assert (body["active_sessions"], body["active_tasks"]) == (1, 1)
    first, second = body["gpus"]
    assert first["device_id"] == 0
    assert (first["is_available"], second["is_available"]) == (False, True)
    assert first["current_session_id"] == task["session_id"]
    assert (first["memory_used_mb"], first["memory_total_mb"]) == (1000, 24_000)
    assert (first["temperature_celsius"], first["utilization_percent"]) == (40, 7)
    assert (first["difficulty"], second["current_session_id"]) == ("low", None)
    resources = api.get("/health/resources").json
    assert resources["timestamp"].endswith("Z")
    found = resources["resource_allocation"]
    assert found["gpus"] == body["gpus"]
    assert found["running_tasks"] == {"count": 1, "task_ids": [task["task_id"]]}
    assert (found["sessions"]["count"], found["sessions"]["active"]) == (1, 1)
    assert found["sessions"]["details"][0]["session_id"] == task["session_id"]
    assert resources["capacity"] == {
        "total_gpus": 2,
        "available_gpus": 1,
        "gpus_by_difficulty": {"high": 0, "low": 2},
    }
    plain = make_api("endpoints: {ep: {}}")
    assert plain.get("/health").json == {"status": "ok"}


def test_health_is_open_and_shows_ids_to_callers_with_a_key_only(make_api, client, store):
    api = make_api(**KEYS)
    host(client)
    task = made(api, headers=JSON | keyed("global-key"))
    ready(client, task["session_id"])
    store.jobs.claim(task["task_id"], worker_id=task["session_id"], claim="c", lease_s=60)
    for path in ("/health", "/health/resources"):
        for headers in ({}, keyed("unknown")):
            answer = api.get(path, headers=headers)
            assert answer.status_code == 200
            assert task["session_id"] not in answer.text
            assert task["task_id"] not in answer.text
        assert task["session_id"] in api.get(path, headers=keyed("global-key")).text


def test_no_answer_has_a_value_of_a_presets_environment(api, client):
    host(client)
    task = made(api)
    ready(client, task["session_id"])
    for path in (
        "/health",
        "/health/resources",
        "/api/sessions?all=true",
        f"/api/sessions/{task['session_id']}",
        f"/api/tasks/{task['task_id']}",
    ):
        assert "hidden-value" not in api.get(path).text


# --- a client that goes


@pytest.mark.parametrize(("wish", "ids"), [("cancel", 1), ("continue", 0), (None, 0)])
def test_only_a_task_that_ends_with_its_client_has_readers(api, client, wish, ids):
    more = {} if wish is None else {"on_disconnect": wish}
    answer = submit(api, headers={}, **more)
    assert client.zcard("ownpod:attended") == ids
    answer.close()
    again = api.get(f"/api/tasks/{answer.headers['X-Task-Id']}/events")
    assert client.zcard("ownpod:attended") == ids
    again.close()
    assert len(services_of(api.application).readers._attended.overdue()) == ids


def test_the_pages_of_allowed_origins_may_call_the_routes(make_api):
    api = make_api(OWNPOD_CORS_ORIGINS="https://a.example", **KEYS)
    answer = api.get(
        "/api/sessions", headers={"Origin": "https://a.example", "X-API-Key": "global-key"}
    )
    assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "X-Task-Id" in answer.headers["Access-Control-Expose-Headers"]


def test_submissions_count_towards_the_rate_of_runs(make_api):
    api = make_api(OWNPOD_RATE_LIMITS='{"run": "2/minute"}')
    codes = [submit(api).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    refused(submit(api), 429, "rate_limited")


def test_sessions_and_all_kinds_of_submissions_count_together_as_runs(make_api):
    api = make_api(OWNPOD_RATE_LIMITS='{"run": "3/minute"}')
    session = {"model_id": "llama-7b", "task_preset": "talk"}
    assert api.post("/api/sessions", json=session).status_code == 200
    assert submit(api).status_code == 200
    assert submit(api, path="predefined", task_name="talk").status_code == 200
    refused(api.post("/api/sessions", json=session), 429, "rate_limited")
    refused(submit(api), 429, "rate_limited")
    refused(submit(api, path="predefined", task_name="talk"), 429, "rate_limited")
    refused(submit(api, path="custom"), 429, "rate_limited")
    assert api.get("/api/sessions").status_code == 200
