"""Workers at run time: added, changed, drained, removed; and why jobs wait."""

import pytest
from helpers import job_store, load_settings, new_job

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.errors import BadRequest, EndpointNotFound, WorkerConflict, WorkerNotFound
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.waiting import explain
from ownpod.store.fleet import Fleet

URL = "http://10.0.0.12:8000"


@pytest.fixture
def settings(tmp_path, redis_server):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1', id: w}]}, other: {}}")
    return load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file)


@pytest.fixture
def make_registry(client, settings):
    return lambda: Registry(load_endpoints(settings), Fleet(client), settings)


@pytest.fixture
def registry(make_registry):
    return make_registry()


@pytest.fixture
def api(settings):
    app = create_app(settings)
    yield app.test_client()
    services_of(app).notices.stop()


def ids(registry, endpoint="ep"):
    registry.refresh()
    return [worker.id for worker in registry.endpoint(endpoint).workers]


def test_an_added_worker_is_every_processes_and_stays(registry, make_registry):
    spec = registry.add("ep", {"url": f"{URL}/", "capacity": 3, "headers": {"X-Token": "t"}})
    assert (spec.id, spec.url, spec.capacity, spec.headers) == (
        "10-0-0-12-8000",
        URL,
        3,
        {"X-Token": "t"},
    )
    other = make_registry()
    assert ids(other) == ["w", spec.id]
    assert other.worker(spec.id) == spec


def test_an_added_worker_is_changed_and_removed(registry, make_registry):
    registry.add("ep", {"url": URL, "id": "x"})
    registry.add("ep", {"url": URL, "id": "x", "capacity": 2})
    assert registry.find("x", "ep").capacity == 2
    registry.fleet.pause("x", "drained")
    registry.remove("x")
    assert ids(make_registry()) == ["w"]
    assert registry.fleet.paused("x") is None


@pytest.mark.parametrize(
    ("endpoint", "values", "error", "says"),
    [
        ("none", {"url": URL}, EndpointNotFound, "none"),
        ("ep", {}, BadRequest, "url: Missing"),
        ("ep", {"url": "ftp://x"}, BadRequest, "url: must be an http"),
        ("ep", {"url": URL, "capacity": 0}, BadRequest, "capacity: must be"),
        ("ep", {"url": URL, "headers": {"X": "a\nb"}}, BadRequest, "one line"),
        (
            "ep",
            {"url": URL, "headers": {"Transfer-encoding": "chunked"}},
            BadRequest,
            "none of connection",
        ),
        ("ep", {"url": URL, "id": "w"}, WorkerConflict, "SIGHUP"),
        ("other", {"url": "http://a:1", "id": "y"}, WorkerConflict, "once only"),
        ("ep", {"url": URL, "id": "housekeeping"}, WorkerConflict, "is taken"),
    ],
)
def test_what_cannot_be_added(registry, endpoint, values, error, says):
    with pytest.raises(error, match=says):
        registry.add(endpoint, values)
    assert ids(registry) == ["w"]


def test_a_configured_worker_is_not_removed(registry):
    with pytest.raises(WorkerConflict, match="or drain it"):
        registry.remove("w")
    with pytest.raises(WorkerNotFound, match="known workers: w"):
        registry.remove("nobody")


def test_the_configuration_comes_first(registry, make_registry, settings):
    registry.add("other", {"url": URL, "id": "x"})
    settings.workers_file.write_text(f"endpoints: {{ep: {{workers: [{{url: '{URL}'}}]}}}}")
    registry.reload(load_endpoints(settings))
    assert ids(registry) == ["10-0-0-12-8000"]
    assert ids(make_registry()) == ["10-0-0-12-8000"]


def test_the_api_adds_drains_and_removes(api, client):
    added = api.post("/v2/ep/workers", json={"url": URL, "id": "x", "headers": {"A": "secret"}})
    assert added.json == {"id": "x", "url": URL, "capacity": 1}
    assert "secret" not in api.get("/v2/ep/workers").get_data(as_text=True)
    assert [w["id"] for w in api.get("/v2/ep/workers").json["workers"]] == ["w", "x"]
    assert api.post("/v2/ep/workers/x/drain").json == {"id": "x", "drained": True}
    assert client.hgetall("ownpod:workers:paused") == {"x": "drained"}
    assert api.post("/v2/ep/workers/x/resume").json == {"id": "x", "drained": False}
    assert api.delete("/v2/ep/workers/w").status_code == 409
    assert api.delete("/v2/other/workers/x").status_code == 404
    assert api.delete("/v2/ep/workers/x").json == {"id": "x", "removed": True}
    assert api.post("/v2/ep/workers", json=[]).status_code == 400


# Why does it wait?


def status(state, reason=""):
    return WorkerStatus(WorkerState(state), reason)


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ([], "the endpoint has no workers"),
        (["paused", "paused"], "the endpoint is paused: all of its workers are paused"),
        (["paused", "ready"], "it waits for a free worker: 1 of 2 are healthy"),
        (["busy", "unhealthy"], "it waits for a free worker: 1 of 2 are healthy"),
        (["paused", "unhealthy"], "no healthy worker: refused"),
        (["initializing"], "no healthy worker: refused"),
    ],
)
def test_the_reason_is_that_of_the_workers(registry, states, reason):
    for number in range(len(states)):
        registry.add("other", {"url": f"http://b:{number + 1}", "id": f"w{number}"})
    endpoint = registry.endpoint("other")
    why = {"unhealthy": "refused", "initializing": "refused"}
    statuses = {f"w{n}": status(state, why.get(state, "")) for n, state in enumerate(states)}
    assert explain(endpoint, statuses) == reason


def test_a_jobs_position_counts_those_that_go_before_it(api, client):
    store = job_store(client)
    for number, low in enumerate([False, True, False, True, False]):
        store.jobs.create(new_job(f"job-{number}", low_priority=low, created_ms=1000 + number))

    def position(number):
        return store.queue.position(store.jobs.get(f"job-{number}", "ep"))

    assert [position(n) for n in range(5)] == [1, 4, 2, 5, 3]
    store.jobs.cancel("job-0", "ep", reason="by hand")
    store.jobs.cancel("job-1", "ep", reason="by hand")
    assert [position(n) for n in range(5)] == [None, None, 1, 3, 2]


def test_status_has_the_reason_of_a_waiting_job_and_none_of_a_running_one(api, client):
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    body = api.get(f"/v2/ep/status/{job}").json
    assert body["queuePosition"] == 1
    assert body["waitingReason"] == "no healthy worker: no node runs for it: is the supervisor up?"
    job_store(client).jobs.claim(job, worker_id="w", claim="x", lease_s=60)
    assert "queuePosition" not in api.get(f"/v2/ep/status/{job}").json


@pytest.mark.parametrize("given", ["trace-1", "é", "x" * 129, None])
def test_a_request_id_is_passed_through_if_it_can_be(api, client, given):
    headers = {} if given is None else {"X-Request-ID": given}
    answer = api.post("/v2/ep/run", json={"input": {}}, headers=headers)
    kept = given if given == "trace-1" else None
    assert answer.headers.get("X-Request-ID") == kept
    attempt = job_store(client).jobs.claim(answer.json["id"], worker_id="w", claim="x", lease_s=60)
    assert attempt.request_id == kept
