"""Load-balanced endpoints as the API shows them: what fronts publish is written by hand."""

from dataclasses import replace

import pytest
from helpers import load_settings, wait_until

from ownpod.api import create_app
from ownpod.api.services import provide, services_of
from ownpod.rules.balanced_states import NO_FRONT, NOT_CHECKED
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts

FILE = """
endpoints:
  web:
    type: LB
    capacity: 2
    apiKeys: [web-key]
    workers:
      - {url: "http://127.0.0.1:1", id: a}
      - {url: "http://127.0.0.1:2", id: b, capacity: 7}
  open: {type: LB, workers: [{url: "http://127.0.0.1:3", id: c}]}
  ep: {workers: [{url: "http://127.0.0.1:4", id: q}]}
"""
REFUSED = {"error": "not allowed for LB API"}
KEY = {"Authorization": "Bearer all"}


class FewFronts:
    """What fronts have published."""

    def __init__(self):
        self.read, self.count = {}, 1

    def living(self):
        return [Front(f"f{n}") for n in range(self.count)], {"f0": self.read}


@pytest.fixture
def fronts():
    return FewFronts()


@pytest.fixture
def api(client, redis_server, tmp_path, fronts):
    file = tmp_path / "workers.yaml"
    file.write_text(FILE)
    environ = {"OWNPOD_API_KEYS": "all", "OWNPOD_WORKER_KEYS": "worker"}
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file, **environ))
    provide(app, replace(services_of(app), fronts=fronts))
    yield app.test_client()
    services_of(app).notices.stop()


def publish(client, worker_id, state, reason="", held=0):
    status = WorkerStatus(state, reason, held)
    Fleet(client).publish_status(worker_id, status, node="front@host", ttl_s=60)


def health(api, endpoint="web"):
    answer = api.get(f"/v2/{endpoint}/health", headers=KEY)
    assert answer.status_code == 200
    return answer.json


def counts(found):
    return {name: number for name, number in found["workers"].items() if number}


def rows(found):
    return {row["id"]: row for row in found["ownpod"]["workers"]}


def test_health_counts_requests_as_jobs_and_workers_in_runpods_words(api, client, fronts):
    fronts.read = {
        "web": RouteReading(
            requests=8, total=40, servers={"a": ServerReading(2, 1, 30), "b": ServerReading(3)}
        )
    }
    publish(client, "a", WorkerState.READY, held=2)
    publish(client, "b", WorkerState.READY)
    found = health(api)
    jobs = {"completed": 0, "failed": 0, "inProgress": 5, "inQueue": 3, "retried": 0}
    assert found["jobs"] == jobs
    assert counts(found) == {"ready": 2, "running": 2}
    front = {"alive": 1, "problem": None, "open": 5, "waiting": 3, "total": 40}
    assert found["ownpod"]["front"] == front
    assert found["ownpod"]["type"] == "LB"
    a, b = rows(found).values()
    assert (a["open"], a["waiting"], a["total"], a["capacity"]) == (2, 1, 30, 2)
    assert (b["open"], b["capacity"], b["state"], b["reason"]) == (3, 7, "ready", "")


def test_health_states_why_a_front_serves_an_endpoint_not_at_all(api, fronts):
    fronts.read = {"web": RouteReading(problem="the front has room for 128")}
    assert health(api)["ownpod"]["front"]["problem"] == "the front has room for 128"


def test_a_ready_worker_is_idle_as_soon_as_no_request_is_open(api, client):
    # `held` is 1 after a request that has ended, for the scaler.
    publish(client, "a", WorkerState.READY, held=1)
    publish(client, "b", WorkerState.PAUSED, "drained")
    assert counts(health(api)) == {"ready": 1, "idle": 1, "throttled": 1}


def test_an_unready_worker_has_the_reason_of_its_health_check(api, client):
    why = "nothing listens on port 1: is the program bound to 0.0.0.0?"
    publish(client, "a", WorkerState.UNHEALTHY, why)
    publish(client, "b", WorkerState.INITIALIZING, "204 on /ping")
    found = health(api)
    assert counts(found) == {"unhealthy": 1, "initializing": 1}
    assert rows(found)["a"]["reason"] == why
    assert rows(found)["b"]["reason"] == "204 on /ping"


def test_a_worker_that_no_front_has_checked_is_initializing_while_one_runs(api):
    found = health(api)
    assert counts(found) == {"initializing": 2}
    assert rows(found)["a"]["reason"] == NOT_CHECKED


def test_without_a_front_health_shows_that_none_runs(api, fronts):
    fronts.count = 0
    found = health(api)
    assert found["ownpod"]["front"]["alive"] == 0
    assert found["ownpod"]["front"]["problem"] == NO_FRONT
    assert counts(found) == {"unhealthy": 2}
    assert rows(found)["a"]["reason"] == NO_FRONT


def test_two_fronts_are_counted_together(api, client):
    provide(api.application, replace(services_of(api.application), fronts=Fronts(client)))

    def counted():
        # Their heartbeats are valid for two seconds.
        for name in ("f1", "f2"):
            reading = RouteReading(requests=3, total=5, servers={"a": ServerReading(2, 0, 5)})
            Fronts(client).beat(Front(name), {"web": reading})
        found = health(api)
        return found["ownpod"]["front"]["alive"] == 2 and found

    found = wait_until(counted)
    assert (found["jobs"]["inProgress"], found["jobs"]["inQueue"]) == (4, 2)


def test_a_worker_without_a_limit_has_no_capacity(api):
    (row,) = health(api, "open")["ownpod"]["workers"]
    assert row["capacity"] is None
    listed = api.get("/v2/open/workers", headers=KEY).json["workers"]
    assert listed == [row]


def test_a_queue_endpoint_has_its_type_and_no_front(api):
    found = health(api, "ep")["ownpod"]
    assert found["type"] == "QB"
    assert "front" not in found
    assert api.get("/v2/", headers=KEY).json["types"] == {"ep": "QB", "open": "LB", "web": "LB"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "run"),
        ("POST", "runsync"),
        ("GET", "status/none"),
        ("POST", "status-sync/none"),
        ("GET", "stream/none"),
        ("POST", "cancel/none"),
        ("POST", "retry/none"),
        ("POST", "purge-queue"),
        ("GET", "requests"),
        ("GET", "requests/none"),
        ("GET", "openaix/v1/models"),
        ("GET", "ping"),
    ],
)
def test_a_queue_route_of_a_load_balanced_endpoint_is_refused_as_by_runpod(api, method, path):
    def call(**headers):
        answer = api.open(f"/v2/web/{path}", method=method, json={"input": {}}, headers=headers)
        return answer.status_code, answer.json

    assert call(Authorization="Bearer all") == (400, REFUSED)
    assert call(Authorization="Bearer web-key") == (400, REFUSED)
    assert call()[0] == 401
    assert call(Authorization="Bearer other")[0] == 401


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "v1/chat/completions"), ("GET", "v1/models")]
)
def test_an_openai_route_of_a_load_balanced_endpoint_names_the_front(api, method, path):
    def call(**headers):
        return api.open(f"/v2/web/openai/{path}", method=method, json={}, headers=headers)

    for key in ("all", "web-key"):
        answer = call(Authorization=f"Bearer {key}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
        assert "front" in answer.json["error"]["message"]
        assert answer.json["error"]["code"] == "no_front"
    assert call().status_code == 401
    assert call(Authorization="Bearer other").status_code == 401


def test_a_path_of_the_front_is_a_404_that_names_the_front(api):
    for method in ("GET", "POST", "DELETE"):
        answer = api.open("/lb/web/any/path", method=method)
        assert answer.status_code == 404
        assert answer.json["title"] == "Not Found"
        assert "front" in answer.json["detail"]


def test_a_load_balanced_worker_is_added_without_a_limit_and_drained(client, api):
    registry = services_of(api.application).registry
    spec = registry.add("open", {"url": "http://127.0.0.1:9", "id": "d"})
    assert spec.capacity == 0
    found = api.get("/v2/open/workers", headers=KEY).json["workers"]
    assert [row["capacity"] for row in found] == [None, None]
    registry.fleet.pause("d", "drained")
    publish(client, "d", WorkerState.PAUSED, "drained")
    assert rows(health(api, "open"))["d"]["state"] == "paused"
    assert counts(health(api, "open")) == {"initializing": 1, "throttled": 1}


def test_metrics_count_requests_of_endpoints_and_workers_instead_of_jobs(api, client, fronts):
    servers = {"a": ServerReading(2, 0, 30)}
    fronts.read = {"web": RouteReading(requests=5, total=40, servers=servers)}
    publish(client, "a", WorkerState.READY, held=2)
    text = api.get("/metrics", headers=KEY).get_data(as_text=True)
    for line in (
        "ownpod_fronts 1.0",
        'ownpod_requests{endpoint="web",state="waiting"} 3.0',
        'ownpod_requests{endpoint="web",state="open"} 2.0',
        'ownpod_requests_received_total{endpoint="web"} 40.0',
        'ownpod_worker_requests{endpoint="web",worker="a"} 2.0',
        'ownpod_worker_requests{endpoint="web",worker="b"} 0.0',
        'ownpod_workers{endpoint="web",state="ready"} 1.0',
        'ownpod_workers{endpoint="web",state="initializing"} 1.0',
        'ownpod_worker_capacity{endpoint="web",worker="b"} 7.0',
    ):
        assert f"{line}\n" in text, line
    # A worker without a limit has no capacity, and a load-balanced endpoint no jobs.
    assert 'ownpod_worker_capacity{endpoint="open"' not in text
    assert 'ownpod_jobs{endpoint="web"' not in text
    assert 'ownpod_jobs{endpoint="ep"' in text
