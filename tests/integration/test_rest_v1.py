"""RunPod's REST v1 on a real Redis: shapes, status codes, the three forms of errors, the flow of a deployment."""

import json
import re

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.managed import AgentInfo, Device, HostVolume
from ownpod.rules.placement import pools_of

JSON = {"Content-Type": "application/json"}
TEMPLATE = {
    "name": "t",
    "imageName": "org/worker:1",
    "env": {"MODEL": "small"},
    "isServerless": True,
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


@pytest.fixture
def template(http):
    return http.post("/v1/templates", json=TEMPLATE).get_json()


def create(http, template, **values):
    response = http.post(
        "/v1/endpoints", json={"templateId": template["id"], "name": "e", **values}
    )
    assert response.status_code == 200, response.text
    return response.get_json()


def test_the_flow_of_a_deployment(http, app):
    volume = http.post(
        "/v1/networkvolumes", json={"name": "models", "size": 50, "dataCenterId": "EU-RO-1"}
    )
    assert (volume.status_code, set(volume.get_json())) == (
        200,
        {"id", "name", "size", "dataCenterId"},
    )
    assert http.get("/v1/networkvolumes").get_json() == [volume.get_json()]
    template = http.post("/v1/templates", json=TEMPLATE).get_json()
    endpoint = create(http, template, executionTimeout=600, gpuTypeIds=["NVIDIA GeForce RTX 4090"])
    assert endpoint["executionTimeoutMs"] == 600_000
    assert endpoint["template"]["imageName"] == "org/worker:1"
    assert endpoint["workersStandby"] == endpoint["workersMax"] == 3
    spec = services_of(app).registry.endpoint(endpoint["id"])
    assert spec.execution_timeout_ms == 600_000
    assert spec.managed.template.env == {"MODEL": "small"}
    run = http.post(f"/v2/{endpoint['id']}/run", json={"input": {}})
    assert run.status_code == 200, run.text
    assert http.delete(f"/v1/endpoints/{endpoint['id']}").status_code == 204
    assert http.get(f"/v1/endpoints/{endpoint['id']}").status_code == 404
    assert http.delete(f"/v1/templates/{template['id']}").status_code == 204


def test_what_was_sent_is_read_back_unchanged(http, template):
    sent = {
        "gpuTypeIds": ["NVIDIA RTX A4500", "NVIDIA L4"],
        "gpuCount": 2,
        "dataCenterIds": ["US-TX-3", "EU-RO-1"],
        "idleTimeout": 7,
        "scalerType": "REQUEST_COUNT",
        "scalerValue": 3,
        "workersMin": 0,
        "workersMax": 2,
        "flashboot": True,
        "allowedCudaVersions": ["12.4", "12.1"],
        "minCudaVersion": "12.1",
        "executionTimeoutMs": 0,
    }
    made = create(http, template, **sent)
    read = http.get(f"/v1/endpoints/{made['id']}").get_json()
    assert {name: read[name] for name in sent} == sent
    assert "template" not in read
    (listed,) = [
        row
        for row in http.get("/v1/endpoints?includeTemplate=true&includeWorkers=true").get_json()
        if row["id"] == made["id"]
    ]
    assert listed["template"]["id"] == template["id"]
    assert listed["workers"] == []


def test_patch_and_its_twin_change_only_what_is_sent(http, template):
    made = create(http, template, workersMax=2)
    url = f"/v1/endpoints/{made['id']}"
    assert http.patch(url, json={"idleTimeout": 60}).get_json()["version"] == 1
    changed = http.post(f"{url}/update", json={"gpuCount": 2, "name": "other"}).get_json()
    assert (changed["version"], changed["idleTimeout"], changed["workersMax"]) == (2, 60, 2)
    assert (changed["gpuCount"], changed["name"]) == (2, "other")


def test_a_templates_env_is_replaced_as_a_whole_and_its_endpoints_get_a_version(
    http, template, app
):
    made = create(http, template)
    response = http.post(
        f"/v1/templates/{template['id']}/update",
        json={"env": {"OTHER": "1"}, "dockerArgs": "python -u 'a b.py'"},
    )
    assert response.get_json()["env"] == {"OTHER": "1"}
    assert response.get_json()["dockerStartCmd"] == ["python", "-u", "a b.py"]
    read = http.get(f"/v1/endpoints/{made['id']}").get_json()
    assert (read["version"], read["env"]) == (2, {"OTHER": "1"})
    services_of(app).registry.refresh()
    managed = services_of(app).registry.endpoint(made["id"]).managed
    assert managed.template.command == ("python", "-u", "a b.py")


def test_an_endpoint_with_no_workers_at_most_is_paused_with_runpods_409(http, template):
    made = create(http, template, workersMax=0, workersMin=0)
    run = http.post(f"/v2/{made['id']}/run", json={"input": {}})
    assert (run.status_code, run.get_json()["code"]) == (409, "ENDPOINT_PAUSED")
    http.patch(f"/v1/endpoints/{made['id']}", json={"workersMax": 1})
    assert http.post(f"/v2/{made['id']}/run", json={"input": {}}).status_code == 200


def test_a_body_that_does_not_fit_is_a_400_with_runpods_array(http):
    response = http.post(
        "/v1/templates", json={"name": "t", "imageName": "i", "env": [{"key": "a"}]}
    )
    (error,) = response.get_json()
    assert response.status_code == 400
    assert error["problems"] == ["At /templates/properties/env/type: got array, want object"]
    assert "does not meet the schema requirements" in error["error"]
    missing = http.post("/v1/endpoints", json={}).get_json()
    assert missing[0]["problems"] == ["At /endpoints: missing property 'templateId'"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workersMax", "3"),
        ("workersMax", -1),
        ("idleTimeout", 0),
        ("idleTimeout", 3601),
        ("scalerType", "FAST"),
        ("gpuCount", 0),
        ("gpuTypeIds", "NVIDIA L4"),
        ("gpuTypeIds", [1]),
        ("flashboot", "yes"),
        ("name", "x" * 192),
        ("executionTimeoutMs", 10**12),
        ("workersMax", True),
    ],
)
def test_each_field_has_its_type_and_limits(http, template, field, value):
    response = http.post("/v1/endpoints", json={"templateId": template["id"], field: value})
    assert response.status_code == 400, response.text
    assert field in response.get_json()[0]["problems"][0]


def test_rules_are_500_with_runpods_text(redis_server, client, http, template):
    response = http.post("/v1/endpoints", json={"templateId": "nothere"})
    assert response.status_code == 500
    assert response.get_json() == {
        "error": "create endpoint: create endpoint: graphql: template 'nothere' not found",
        "status": 500,
    }
    twice = http.post("/v1/templates", json=TEMPLATE)
    assert twice.status_code == 500
    assert "unique" in twice.get_json()["error"]


def test_unknown_fields_are_named_and_refused_where_that_is_set(http, template, redis_server):
    body = {"templateId": template["id"], "foo": 1, "x\ny": 2}
    response = http.post("/v1/endpoints", json=body)
    assert response.headers["X-OwnPod-Ignored"] == "foo, x?y"
    strict = create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_MANAGEMENT_STRICT="true")
    ).test_client()
    refused = strict.post("/v1/endpoints", json=body)
    assert refused.status_code == 400
    assert "foo not in input schema" in refused.get_json()[0]["problems"]


def test_a_dry_run_tells_the_difference_and_writes_nothing(http, template):
    made = create(http, template)
    url, header = f"/v1/endpoints/{made['id']}", {"X-OwnPod-Dry-Run": "1"}
    body = http.patch(url, json={"gpuCount": 2}, headers=header).get_json()
    assert (body["dryRun"], body["restarts"]) == (True, True)
    assert body["diff"] == [{"field": "gpu", "old": "1 x any", "new": "2 x any"}]
    assert body["result"]["gpuCount"] == 2
    assert http.get(url).get_json()["gpuCount"] == 1
    assert http.delete(url, headers=header).get_json()["dryRun"]
    assert http.get(url).status_code == 200
    before = http.get("/v1/endpoints").get_json()
    http.post("/v1/endpoints", json={"templateId": template["id"]}, headers=header)
    assert http.get("/v1/endpoints").get_json() == before


def test_a_dry_run_warns_of_what_would_have_no_effect(http, template, app):
    header = {"X-OwnPod-Dry-Run": "1"}
    body = {"templateId": template["id"], "flashboot": True, "foo": 1, "dataCenterIds": ["X-1"]}
    device = Device("GPU-1", 0, "NVIDIA L4", 23_000, pools_of("NVIDIA L4", 23_000))
    services_of(app).agents.heartbeat(AgentInfo("h", "docker", (device,)), "token")
    response = http.post("/v1/endpoints", json=body, headers=header)
    would = response.get_json()
    assert (would["dryRun"], would["restarts"]) == (True, False)
    assert would["warnings"] == [
        "no host has the data center X-1 (they have LOCAL-1): workers start on any host",
        "flashboot is stored, and changes nothing",
        "foo is no field that OwnPod knows",
    ]
    assert response.headers["X-OwnPod-Ignored"] == "foo"
    made = create(http, template)
    url = f"/v1/endpoints/{made['id']}"
    assert http.patch(url, json={"idleTimeout": 9}, headers=header).get_json()["warnings"] == []
    assert http.delete(url, headers=header).get_json()["warnings"] == []
    volume = {"name": "v", "size": 10, "dataCenterId": "X-1"}
    asked = http.post("/v1/networkvolumes", json=volume, headers=header).get_json()
    assert asked["warnings"] == would["warnings"][:1]
    made = http.post("/v1/networkvolumes", json=volume).get_json()
    asked = http.patch(f"/v1/networkvolumes/{made['id']}", json={"size": 20}, headers=header)
    assert asked.get_json()["warnings"] == would["warnings"][:1]


def test_a_dry_run_of_a_templates_edit_has_what_it_changes_of_endpoints(http, template):
    url, header = f"/v1/templates/{template['id']}", {"X-OwnPod-Dry-Run": "1"}
    edit = {"imageName": "org/worker:2"}
    assert http.patch(url, json=edit, headers=header).get_json()["restarts"] is False
    made = [create(http, template, name=name) for name in ("a", "b")]
    body = http.patch(url, json=edit, headers=header).get_json()
    image = {"field": "template.imageName", "old": "org/worker:1", "new": "org/worker:2"}
    assert (body["restarts"], body["diff"]) == (True, [image])
    assert http.get(f"/v1/endpoints/{made[0]['id']}").get_json()["version"] == 1


def test_gpus_that_no_host_has_are_refused_at_once(http, template, app):
    device = Device("GPU-1", 0, "NVIDIA L4", 23_000, pools_of("NVIDIA L4", 23_000))
    services_of(app).agents.heartbeat(AgentInfo("h", "docker", (device,)), "token")
    response = http.post(
        "/v1/endpoints", json={"templateId": template["id"], "gpuTypeIds": ["NVIDIA H200"]}
    )
    assert "no host has a device of pool NVIDIA H200; the hosts have 1 x NVIDIA L4" in response.text
    many = http.post("/v1/endpoints", json={"templateId": template["id"], "gpuCount": 2})
    assert "no host has 2 devices" in many.text
    assert create(http, template, gpuTypeIds=["NVIDIA H200", "NVIDIA L4"])


def test_cpu_endpoints_need_no_gpu(http, template, app):
    made = create(http, template, computeType="CPU", cpuFlavorIds=["cpu5c"], vcpuCount=4)
    assert (made["computeType"], made["cpuFlavorIds"], made["vcpuCount"]) == ("CPU", ["cpu5c"], 4)
    assert services_of(app).registry.endpoint(made["id"]).managed.gpu is None


def test_endpoints_of_the_file_are_visible_and_read_only(http):
    (row,) = http.get("/v1/endpoints").get_json()
    response = http.patch(f"/v1/endpoints/{row['id']}", json={"name": "x"})
    assert response.status_code == 409
    assert "workers.yaml" in response.get_json()["error"]


def test_pods_and_billing(http):
    assert http.get("/v1/pods").get_json() == []
    assert http.get("/v1/pods?includeWorkers=true").get_json() == []
    assert http.post("/v1/pods", json={}).status_code == 501
    assert http.get("/v1/billing/endpoints").get_json() == []
    assert http.get("/v1/gputypes").status_code == 404


def test_only_admin_keys_manage(redis_server, client):
    app = create_app(
        load_settings(REDIS_URL=redis_server.url, OWNPOD_API_KEYS="user", OWNPOD_ADMIN_KEYS="admin")
    )
    http = app.test_client()
    for method, path in [
        ("GET", "/v1/endpoints"),
        ("POST", "/v1/templates"),
        ("DELETE", "/v1/endpoints/x"),
        ("PATCH", "/v1/networkvolumes/x"),
    ]:
        assert http.open(path, method=method, json={}).status_code == 401
        user = http.open(path, method=method, json={}, headers={"Authorization": "Bearer user"})
        assert user.status_code == 403
        assert set(user.get_json()) == {"error", "message", "status"}
        admin = http.open(path, method=method, json={}, headers={"Authorization": "Bearer admin"})
        assert admin.status_code not in {401, 403}


def test_a_body_of_another_type_is_refused(http):
    response = http.post("/v1/templates", data=json.dumps(TEMPLATE))
    assert response.status_code == 415
    assert http.post("/v1/templates", data="{", headers=JSON).status_code == 400
    assert http.post("/v1/templates", json=[1]).status_code == 400


def test_what_has_no_effect_is_a_warning(http, template, app):
    offer = HostVolume("*", "directory", "/volumes", 100_000, 20_480)
    host = AgentInfo("h", "docker", labels={"datacenter": "EU-RO-1"}, volumes=(offer,))
    services_of(app).agents.heartbeat(host, "token")
    body = {"name": "v", "size": 10, "dataCenterId": "EU-RO-1"}
    assert "X-OwnPod-Warning" not in http.post("/v1/networkvolumes", json=body).headers
    far = http.post("/v1/networkvolumes", json={**body, "size": 500, "dataCenterId": "US-TX-3"})
    assert far.status_code == 200
    assert "no host has the data center US-TX-3" in far.headers["X-OwnPod-Warning"]
    assert "no host has 500 GB free" in far.headers["X-OwnPod-Warning"]
    made = http.post(
        "/v1/endpoints",
        json={
            "templateId": template["id"],
            "computeType": "CPU",
            "dataCenterIds": ["US-TX-3"],
            "flashboot": True,
        },
    )
    assert "US-TX-3" in made.headers["X-OwnPod-Warning"]
    assert "flashboot" in made.headers["X-OwnPod-Warning"]
    changed = http.patch(f"/v1/endpoints/{made.get_json()['id']}", json={"minCudaVersion": "12.4"})
    assert "CUDA" in changed.headers["X-OwnPod-Warning"]


@pytest.mark.parametrize("seconds", [5, 600, 86_400])
def test_a_timeout_is_in_seconds_or_in_ms_and_is_that_of_the_jobs(http, template, app, seconds):
    ms = seconds * 1000
    old = create(http, template, executionTimeout=seconds)
    new = create(http, template, name="ms", executionTimeoutMs=ms)
    v2 = http.post(
        "/v2/serverless",
        json={
            "name": "v2",
            "type": "QUEUE",
            "image": "org/worker:1",
            "timeout": ms,
            "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
            "gpu": {"pools": ["ADA_24"]},
        },
    ).get_json()
    query = 'mutation { saveEndpoint(input: {name: "gql", templateId: "%s", gpuIds: "ADA_24", executionTimeoutMs: %d}) { id } }'
    answer = http.post("/graphql", json={"query": query % (template["id"], ms)}).get_json()
    for made in (old, new, v2, answer["data"]["saveEndpoint"]):
        endpoint = services_of(app).registry.endpoint(made["id"])
        assert endpoint.execution_timeout_ms == ms
        job = {"input": {}, "policy": {"executionTimeout": ms}}
        assert http.post(f"/v2/{made['id']}/run", json=job).status_code == 200


def test_an_endpoint_that_has_expired_takes_no_jobs(http, template):
    made = create(http, template, expires="2020-01-01T00:00:00Z")
    assert made["expires"] == "2020-01-01T00:00:00Z"
    refused = http.post(f"/v2/{made['id']}/run", json={"input": {}})
    assert (refused.status_code, refused.get_json()["code"]) == (409, "ENDPOINT_PAUSED")
    reasons = http.get(f"/v2/serverless/{made['id']}/why").get_json()["reasons"]
    assert reasons[0]["code"] == "PAUSED"
    http.patch(f"/v1/endpoints/{made['id']}", json={"expires": "2999-01-01T00:00:00Z"})
    assert http.post(f"/v2/{made['id']}/run", json={"input": {}}).status_code == 200


def test_ids_have_runpods_shapes(http, template):
    volume = {"name": "v", "size": 10, "dataCenterId": "EU-RO-1"}
    registry = {"name": "r", "username": "u", "password": "p"}
    for found in (
        template,
        http.post("/v1/networkvolumes", json=volume).get_json(),
    ):
        assert re.fullmatch("[a-z0-9]{10}", found["id"])
    assert re.fullmatch("[a-z0-9]{13,14}", create(http, template)["id"])
    made = http.post("/v1/containerregistryauth", json=registry).get_json()
    assert re.fullmatch("[a-z0-9]+", made["id"])
