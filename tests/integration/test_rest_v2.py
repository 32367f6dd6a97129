"""RunPod's REST v2 on a real Redis: shapes, status codes, problems, and the prefix that it shares with the job API."""

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of

NEW = {
    "name": "e",
    "type": "QUEUE",
    "image": "org/worker:1",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 2.5},
    "gpu": {"pools": ["ADA_24", "AMPERE_24"], "excludedTypes": ["NVIDIA L4"], "count": 2},
}


@pytest.fixture
def app(redis_server, client):
    client.flushall()
    return create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://localhost:1")
    )


@pytest.fixture
def http(app):
    return app.test_client()


def create(http, **values):
    response = http.post("/v2/serverless", json={**NEW, **values})
    assert response.status_code == 201, response.text
    return response.get_json()


def test_an_endpoint_is_made_changed_listed_and_deleted(http, app):
    made = create(http, env={"B": "2", "A": "1"}, args="python -u handler.py")
    url = f"/v2/serverless/{made['id']}"
    assert made["requestUrls"]["status"].endswith(f"/v2/{made['id']}/status/{{job_id}}")
    assert (made["timeout"], made["workers"]) == (0, {"min": 0, "max": 3, "idleTimeout": 10})
    assert http.get("/v2/serverless").get_json()["endpoints"][0] == made
    changed = http.patch(url, json={"workers": {"max": 5}, "env": {"C": "3"}})
    assert changed.status_code == 200
    assert changed.get_json()["workers"]["max"] == 5
    assert changed.get_json()["env"] == {"C": "3"}
    managed = services_of(app).registry.endpoint(made["id"]).managed
    assert managed.template.command == ("python", "-u", "handler.py")
    assert managed.gpu.pools == ("ADA_24", "AMPERE_24", "-NVIDIA L4")
    assert http.delete(url).status_code == 204
    gone = http.get(url)
    assert (gone.status_code, gone.mimetype) == (404, "application/problem+json")
    assert set(gone.get_json()) == {"title", "status", "detail"}


def test_what_was_sent_is_read_back_unchanged(http):
    sent = {
        **NEW,
        "dataCenterIds": ["US-TX-3", "EU-RO-1"],
        "env": {"Z": "1", "A": "2"},
        "ports": ["8888/http", "22/tcp"],
        "disk": 30,
        "timeout": 600_000,
        "flashboot": "FLASHBOOT",
        "args": "python  -u   handler.py",
    }
    made = create(http, **{name: value for name, value in sent.items() if name not in NEW})
    read = http.get(f"/v2/serverless/{made['id']}").get_json()
    for name in sent.keys() - {"gpu"}:
        assert read[name] == sent[name], name
    assert {name: read["gpu"][name] for name in NEW["gpu"]} == NEW["gpu"]
    assert not read.keys() & {"templateId", "version"}
    # The same values once more are no release.
    http.patch(f"/v2/serverless/{made['id']}", json={"gpu": NEW["gpu"], "args": sent["args"]})
    releases = http.get(f"/v2/serverless/{made['id']}/releases").get_json()
    assert releases["endpointVersion"] == 1


def test_releases_tell_what_changed_the_newest_first(http):
    made = create(http, env={"KEY": "secret-value"})
    http.patch(f"/v2/serverless/{made['id']}", json={"image": "org/worker:2"})
    http.patch(f"/v2/serverless/{made['id']}", json={"env": {"KEY": "other-secret"}})
    found = http.get(f"/v2/serverless/{made['id']}/releases")
    body = found.get_json()
    assert [release["version"] for release in body["releases"]] == [3, 2, 1]
    assert body["releases"][1]["diff"] == [
        {"field": "template.imageName", "old": "org/worker:1", "new": "org/worker:2"}
    ]
    assert "secret" not in found.text
    assert body["rollout"] == {
        "inProgress": False,
        "workersOnLatest": 0,
        "workersTotal": 0,
        "percentOnLatest": 0,
    }
    workers = http.get(f"/v2/serverless/{made['id']}/workers").get_json()
    assert workers["summary"]["total"] == 0
    assert workers["endpointVersion"] == 3


def test_workers_of_a_configuration_that_is_back_are_not_stale(http, app):
    svc, made = services_of(app), create(http)
    url, releases = f"/v2/serverless/{made['id']}", services_of(app).managed.releases

    def start(worker_id):
        """A worker as the scaler wants it."""
        spec = svc.registry.endpoint(made["id"]).managed
        releases.note(made["id"], spec)
        releases.begin(made["id"], releases.rollout(made["id"]).latest.number)
        current = releases.rollout(made["id"]).current
        assert svc.managed.want(worker_id, made["id"], spec=spec, release=current.id)

    start("a" * 14)
    for number, image in ((2, "org/worker:2"), (3, "org/worker:1")):
        http.patch(url, json={"image": image})
        start(str(number) * 14)
    found = http.get(f"{url}/workers").get_json()["workers"]
    assert {w["id"][0]: (w["version"], w["isStale"]) for w in found} == {
        "a": (1, True),
        "2": (2, True),
        "3": (3, False),
    }
    rollout = http.get(f"{url}/releases").get_json()["rollout"]
    assert (rollout["workersOnLatest"], rollout["inProgress"]) == (1, True)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"name": None}, 422, "$.name: got null, want string"),
        ({"image": None}, 422, "$.image"),
        ({"workers": {"max": -1}}, 422, "$.workers.max: minimum: must be 0"),
        ({"scaling": {"type": "QUEUE_DELAY"}}, 422, "missing property 'queueDelay'"),
        (
            {"scaling": {"type": "REQUEST_COUNT", "requestCount": 2, "queueDelay": 1}},
            422,
            "does not allow",
        ),
        (
            {
                "scaling": {"type": "REQUEST_COUNT", "requestCount": 2},
                "workers": {"idleTimeout": 9},
            },
            422,
            "idleTimeout",
        ),
        ({"type": "LOAD_BALANCER"}, 422, "REQUEST_COUNT"),
        (
            {
                "type": "LOAD_BALANCER",
                "scaling": {"type": "REQUEST_COUNT", "requestCount": 2},
                "env": {"PORT": "http"},
            },
            400,
            "template.env.PORT: must be a port from 1 to 65535",
        ),
        ({"cpu": [{"id": "cpu3c", "vcpuCount": 2}]}, 400, "exactly one of gpu and cpu"),
        ({"gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA L4"]}}, 400, "none of the pools"),
        (
            {
                "gpu": {
                    "pools": ["ADA_24"],
                    "allowedCudaVersions": ["12.4"],
                    "minCudaVersion": "12.1",
                }
            },
            400,
            "only one of",
        ),
        ({"gpu": {"pools": []}}, 422, "$.gpu.pools"),
        ({"networkVolumes": ["nothere"]}, 400, "network volume 'nothere' not found"),
        ({"templateId": "nothere"}, 404, "template 'nothere' not found"),
        ({"env": {"A": 1}}, 422, "$.env.A: got integer, want string"),
    ],
)
def test_wrong_values_are_problems_that_name_the_field(http, change, status, words):
    response = http.post("/v2/serverless", json={**NEW, **change})
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    body = response.get_json()
    assert words in " ".join([body["detail"], *body.get("errors", [])])
    assert http.get("/v2/serverless").get_json()["endpoints"][0]["name"] != "e"


def test_unknown_fields_are_named_and_refused_where_that_is_set(http, redis_server):
    response = http.post("/v2/serverless", json={**NEW, "x": 1})
    assert response.headers["X-OwnPod-Ignored"] == "x"
    strict = create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_MANAGEMENT_STRICT="true")
    ).test_client()
    refused = strict.post("/v2/serverless", json={**NEW, "x": 1})
    assert refused.status_code == 422
    assert refused.get_json()["errors"] == ["$: additional properties 'x' not allowed"]


def test_a_template_is_a_copy_and_its_env_is_merged(http):
    template = http.post(
        "/v2/templates",
        json={"name": "t", "image": "org/base:1", "serverless": True, "env": {"A": "1", "B": "1"}},
    )
    assert template.status_code == 201
    made = http.post(
        "/v2/serverless",
        json={
            "name": "e",
            "type": "QUEUE",
            "scaling": NEW["scaling"],
            "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
            "templateId": template.get_json()["id"],
            "env": {"B": "2"},
        },
    ).get_json()
    assert (made["image"], made["env"]) == ("org/base:1", {"A": "1", "B": "2"})
    assert made["cpu"] == [{"id": "cpu3c", "vcpuCount": 2, "memory": 4}]
    assert made["gpu"] is None
    url = f"/v2/templates/{template.get_json()['id']}"
    assert http.patch(url, json={"image": "org/base:2"}).get_json()["image"] == "org/base:2"
    assert http.get(f"/v2/serverless/{made['id']}").get_json()["image"] == "org/base:1"
    assert http.delete(url).status_code == 204


def test_network_volumes_only_grow(http):
    made = http.post("/v2/network-volumes", json={"name": "v", "size": 20, "dataCenter": "LOCAL-1"})
    assert made.status_code == 201
    url = f"/v2/network-volumes/{made.get_json()['id']}"
    assert http.patch(url, json={"size": 30}).get_json()["size"] == 30
    assert http.patch(url, json={"size": 20}).status_code == 400
    assert http.patch(url, json={}).status_code == 422
    assert http.delete(url).status_code == 204
    assert http.get("/v2/network-volumes").get_json() == {"networkVolumes": []}


def test_the_prefix_is_shared_with_the_job_api(http):
    made = create(http, workers={"max": 1})
    assert http.post(f"/v2/{made['id']}/run", json={"input": {}}).status_code == 200
    assert http.get(f"/v2/{made['id']}/health").status_code == 200
    assert http.get("/v2/serverless/health").status_code == 404
    wrong = http.put("/v2/serverless")
    assert (wrong.status_code, wrong.mimetype) == (405, "application/problem+json")
    assert "POST" in wrong.headers["Allow"]
    assert http.post("/v2/pods", json={}).status_code == 501
    assert http.get("/v2/pods").get_json() == {"pods": []}


def test_a_dry_run_writes_nothing(http):
    made = create(http)
    url, header = f"/v2/serverless/{made['id']}", {"X-OwnPod-Dry-Run": "1"}
    body = http.patch(url, json={"image": "org/worker:9"}, headers=header).get_json()
    assert body["restarts"]
    assert body["result"]["image"] == "org/worker:9"
    assert body["warnings"] == []
    assert http.get(url).get_json()["image"] == "org/worker:1"
    asked = http.patch(url, json={"flashboot": "FLASHBOOT"}, headers=header).get_json()
    assert asked["warnings"] == ["flashboot is stored, and changes nothing"]
    wanted = {"name": "v", "size": 10, "dataCenter": "X-1", "foo": 1}
    asked = http.post("/v2/network-volumes", json=wanted, headers=header)
    assert asked.get_json()["warnings"] == ["foo is no field that OwnPod knows"]
    secret = {"name": "hub", "value": "s3cret"}
    asked = http.post("/v2/account/secrets", json=secret, headers=header)
    assert asked.get_json()["warnings"] == []
    assert "s3cret" not in asked.text


def test_endpoints_of_the_other_apis_are_shown_here_and_the_other_way(http):
    made = create(http)
    (other,) = [e for e in http.get("/v1/endpoints").get_json() if e["id"] == made["id"]]
    assert other["gpuTypeIds"] == [
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GeForce RTX 3090",
        "NVIDIA RTX A5000",
    ]
    assert (other["scalerValue"], other["gpuCount"]) == (3, 2)
    http.patch(f"/v1/endpoints/{made['id']}", json={"gpuTypeIds": ["NVIDIA A40"]})
    gpu = http.get(f"/v2/serverless/{made['id']}").get_json()["gpu"]
    assert (gpu["pools"], gpu["excludedTypes"]) == (["AMPERE_48"], ["NVIDIA RTX A6000"])
