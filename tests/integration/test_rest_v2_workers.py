"""Workers in REST v2: output as a stream of events, the reasons for waiting, roll-outs, the way back."""

import json

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.output import Line
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs, Place, new_batch
from ownpod.store.releases import Releases

NEW = {
    "name": "e",
    "type": "QUEUE",
    "image": "org/worker:1",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 2},
    "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
}
W = "abcdefghij0123"


@pytest.fixture
def app(redis_server, client):
    client.flushall()
    return create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://localhost:1")
    )


@pytest.fixture
def http(app):
    return app.test_client()


@pytest.fixture
def endpoint(http):
    return http.post("/v2/serverless", json=NEW).get_json()


@pytest.fixture
def spec(app, endpoint):
    return services_of(app).registry.endpoint(endpoint["id"]).managed


@pytest.fixture
def managed(client):
    return Managed(client)


def written(client, *texts):
    outputs = Outputs(client)
    lines = [Line(text) for text in texts]
    outputs.append(W, lines, outputs.place(W).batch, Place(new_batch(), "", ""))


def events(response):
    found = []
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in lines:
            found.append((lines["id"], json.loads(lines["data"])))
    return found


@pytest.mark.slow
def test_the_output_of_a_worker_that_has_ended_is_a_stream_that_ends(
    http, endpoint, spec, managed, client
):
    managed.want(W, endpoint["id"], spec=spec)
    written(client, "one", "two", "three")
    managed.discard(W, "no job needs it")
    url = f"/v2/serverless/{endpoint['id']}/workers/{W}/logs"
    response = http.get(url)
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert response.headers["X-Accel-Buffering"] == "no"
    found = events(response)
    assert [data["line"] for _, data in found] == [
        "wanted",
        "stopped: no job needs it",
        "one",
        "two",
        "three",
    ]
    assert [data["source"] for _, data in found] == ["system"] * 2 + ["container"] * 3
    assert found[2][0].startswith(found[2][1]["ts"])
    assert [d["line"] for _, d in events(http.get(f"{url}?source=container&tail=1"))] == ["three"]
    resumed = http.get(url, headers={"Last-Event-ID": found[2][0]})
    assert [data["line"] for _, data in events(resumed)] == ["two", "three"]
    later = http.get(f"{url}?source=container&since=2099-01-01T00:00:00Z")
    assert events(later) == []


@pytest.mark.parametrize(
    ("query", "status"), [("tail=5001", 422), ("tail=x", 422), ("since=x", 422), ("source=x", 400)]
)
def test_wrong_queries_are_refused(http, endpoint, spec, managed, query, status):
    managed.want(W, endpoint["id"], spec=spec)
    url = f"/v2/serverless/{endpoint['id']}/workers/{W}/logs"
    assert http.get(f"{url}?{query}").status_code == status
    assert http.get(url.replace(W, "zzzzzzzzzz0123")).status_code == 404


def test_flash_reads_the_last_lines_at_once(http, endpoint, spec, managed, client):
    managed.want(W, endpoint["id"], spec=spec)
    written(client, "one")
    assert http.get(f"/hapi/v1/pod/{W}/logs").get_json() == {
        "container": ["one"],
        "system": ["wanted"],
    }


def test_why_lists_reasons_that_programs_can_read(http, endpoint, spec, managed):
    url = f"/v2/serverless/{endpoint['id']}"
    assert http.get(f"{url}/why").get_json() == {"queued": 0, "reasons": []}
    managed.want(W, endpoint["id"], spec=spec)
    managed.waits(W, "no agent is running")
    (reason,) = http.get(f"{url}/why").get_json()["reasons"]
    assert (reason["code"], reason["worker"]) == ("NO_PLACE", W)
    assert reason["detail"] == "no agent is running"
    http.patch(url, json={"workers": {"max": 0}})
    assert http.get(f"{url}/why").get_json()["reasons"][0]["code"] == "PAUSED"
    assert http.get("/v2/serverless/nothere/why").status_code == 404


def test_workers_have_the_version_that_they_run(http, endpoint, spec, managed):
    managed.want(W, endpoint["id"], spec=spec)
    url = f"/v2/serverless/{endpoint['id']}"
    (worker,) = http.get(f"{url}/workers").get_json()["workers"]
    assert (worker["version"], worker["isStale"], worker["status"]) == (1, False, "INITIALIZING")
    http.patch(url, json={"image": "org/worker:2"})
    body = http.get(f"{url}/workers").get_json()
    assert (body["workers"][0]["version"], body["workers"][0]["isStale"]) == (1, True)
    assert body["endpointVersion"] == 2
    releases = http.get(f"{url}/releases").get_json()
    assert releases["rollout"]["inProgress"]
    assert [r["workerCount"] for r in releases["releases"]] == [0, 1]


def test_a_patch_waits_for_its_roll_out(http, endpoint):
    response = http.patch(
        f"/v2/serverless/{endpoint['id']}?wait=rollout", json={"image": "org/worker:2"}
    )
    assert response.headers["X-OwnPod-Rollout"] == "complete"
    v1 = http.patch(f"/v1/endpoints/{endpoint['id']}?wait=rollout", json={"idleTimeout": 9})
    assert v1.headers["X-OwnPod-Rollout"] == "complete"


def test_the_way_back_makes_a_release(http, endpoint, spec, client):
    url = f"/v2/serverless/{endpoint['id']}/rollback"
    assert http.post(url).status_code == 400
    releases = Releases(client)
    releases.begin(endpoint["id"], releases.note(endpoint["id"], spec))
    releases.came_up(endpoint["id"], 1)
    http.patch(f"/v2/serverless/{endpoint['id']}", json={"image": "org/worker:2"})
    app = http.application
    other = services_of(app).registry.endpoint(endpoint["id"]).managed
    releases.begin(endpoint["id"], releases.note(endpoint["id"], other))
    assert http.post(url, json={"number": 7}).status_code == 400
    assert http.post(url, json={"number": "1"}).status_code == 400
    would = http.post(url, headers={"X-OwnPod-Dry-Run": "1"}).get_json()
    assert would == {
        "dryRun": True,
        "restarts": True,
        "warnings": [],
        "result": None,
        "diff": [{"field": "release", "old": "2", "new": "1 again"}],
        "of": 1,
        "insteadOf": 2,
    }
    assert http.post(url).get_json() == {"release": 3, "of": 1, "insteadOf": 2}
    newest = services_of(app).management.catalog.audits()[0].audit
    assert (newest.action, newest.target) == ("rollback endpoint", endpoint["id"])
    assert newest.difference == '{"release": ["2", "3, which is 1 again"]}'


def test_a_dry_run_stops_no_worker(http, endpoint, spec, managed):
    managed.want(W, endpoint["id"], spec=spec)
    query = {"query": f'mutation {{ podStop(input: {{podId: "{W}"}}) {{ id }} }}'}
    asked = http.post("/graphql", json=query, headers={"X-OwnPod-Dry-Run": "1"})
    assert asked.get_json() == {"data": {"podStop": {"id": W}}}
    assert [worker.id for worker in managed.list()] == [W]
    http.post("/graphql", json=query)
    assert not managed.list()
    newest = services_of(http.application).management.catalog.audits()[0].audit
    assert (newest.door, newest.action, newest.target) == ("graphql", "stop worker", W)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/stop", 200),
        ("POST", "/reset", 200),
        ("POST", "/restart", 200),
        ("DELETE", "", 204),
    ],
)
def test_a_worker_is_recycled_as_a_pod_of_rest_v1(
    http, app, endpoint, spec, managed, method, path, status
):
    managed.want(W, endpoint["id"], spec=spec)
    url = f"/v1/pods/{W}{path}"
    would = http.open(url, method=method, headers={"X-OwnPod-Dry-Run": "1"}).get_json()
    assert (would["dryRun"], would["restarts"]) == (True, True)
    assert [worker.id for worker in managed.list()] == [W]
    done = http.open(url, method=method)
    assert done.status_code == status
    if status == 200:
        assert done.get_json()["desiredStatus"] == "EXITED"
    assert managed.list() == []
    # Another pod is none of OwnPod's.
    assert http.open(url, method=method).status_code == 501
    newest, before = services_of(app).management.catalog.audits()
    assert (newest.audit.action, newest.audit.target) == ("stop worker", W)
    assert (newest.audit.door, before.audit.action) == ("v1", "create endpoint")
