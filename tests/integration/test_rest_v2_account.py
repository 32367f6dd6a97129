"""The rest of REST v2, and what REST v1 and GraphQL have of it: registries, secrets, GPUs, data centers, billing."""

import pytest
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.managed import AgentInfo, Device


@pytest.fixture
def app(redis_server, client, tmp_path):
    client.flushall()
    return create_app(
        load_settings(
            REDIS_URL=redis_server.url,
            OWNPOD_WORKERS="http://localhost:1",
            OWNPOD_DATA_DIR=tmp_path,
        )
    )


@pytest.fixture
def http(app):
    return app.test_client()


def test_registries_are_the_same_in_all_three_apis(http, client):
    body = {"name": "hub", "username": "me", "password": "a-long-password"}
    made = http.post("/v1/containerregistryauth", json=body)
    assert made.status_code == 200
    assert set(made.get_json()) == {"id", "name"}
    row_id = made.get_json()["id"]
    assert http.get("/v2/registries").get_json() == {"registries": [made.get_json()]}
    assert http.get(f"/v2/registries/{row_id}").get_json() == made.get_json()
    query = "mutation($i: UpdateRegistryAuthInput!) { updateRegistryAuth(input: $i) { id name } }"
    variables = {"i": {"id": row_id, "username": "me", "password": "another-password"}}
    answer = http.post("/graphql", json={"query": query, "variables": variables}).get_json()
    assert answer == {"data": {"updateRegistryAuth": made.get_json()}}
    assert "password" not in str([client.hgetall(key) for key in client.keys("*catalog*:registry")])
    template = http.post(
        "/v2/templates", json={"name": "t", "image": "i", "registry": row_id}
    ).get_json()
    assert template["registry"] == row_id
    assert http.delete(f"/v1/containerregistryauth/{row_id}").status_code == 204
    assert http.get(f"/v2/templates/{template['id']}").get_json()["registry"] is None
    assert http.get("/v1/containerregistryauth").get_json() == []
    assert http.get(f"/v2/registries/{row_id}").status_code == 404


def test_registries_of_v2_need_all_fields_and_unique_names(http):
    body = {"name": "hub", "username": "me", "password": "x"}
    assert http.post("/v2/registries", json={"name": "hub"}).status_code == 422
    assert http.post("/v2/registries", json=body).status_code == 201
    assert http.post("/v2/registries", json=body).status_code == 400
    assert http.get("/v2/registries/delegations").get_json() == {"delegations": []}


def test_secrets_have_no_values_in_any_answer(http):
    made = http.post(
        "/v2/account/secrets",
        json={"name": "HF_TOKEN", "value": "very-secret", "description": "models"},
    )
    assert made.status_code == 201
    assert (made.get_json()["id"], made.get_json()["description"]) == ("HF_TOKEN", "models")
    url = "/v2/account/secrets/HF_TOKEN"
    assert http.patch(url, json={"value": "other-secret"}).status_code == 200
    for answer in (made, http.get(url), http.get("/v2/account/secrets")):
        assert "secret" not in answer.text.replace("secrets", "")
    assert http.patch(url, json={}).status_code == 422
    wrong = http.post("/v2/account/secrets", json={"name": "not a name", "value": "hidden-value"})
    assert (wrong.status_code, "hidden" in wrong.text) == (400, False)
    query = 'mutation { secretDelete(id: "HF_TOKEN") }'
    assert http.post("/graphql", json={"query": query}).get_json() == {
        "data": {"secretDelete": None}
    }
    assert http.get("/v2/account/secrets").get_json() == {"secrets": []}


def test_the_catalog_has_what_the_hosts_have(http, app):
    device = Device("GPU-1", 0, "NVIDIA L4", 23_034, ("AMPERE_24",))
    own = Device("GPU-2", 1, "My Card", 8_192)
    stand_in = Device("cpu-0", 2, "CPU", simulated=True)
    services_of(app).agents.heartbeat(
        AgentInfo("h", "docker", (device, own, stand_in), {"datacenter": "EU-RO-1"}), "token"
    )
    gpus = {
        gpu["id"]: gpu
        for gpu in http.get("/v2/catalog/gpus?include=AVAILABILITY").get_json()["gpus"]
    }
    assert (gpus["NVIDIA L4"]["availability"], gpus["NVIDIA L4"]["maxCount"]["secure"]) == (
        "HIGH",
        1,
    )
    assert (gpus["NVIDIA H200"]["availability"], gpus["My Card"]["memory"]) == ("NONE", 8)
    assert "CPU" not in gpus
    assert http.get("/v2/catalog/gpus/NVIDIA%20L4").get_json()["pool"] == "AMPERE_24"
    assert http.get("/v2/catalog/gpus/none").status_code == 404
    (center,) = http.get("/v2/catalog/datacenters").get_json()["dataCenters"]
    assert center["id"] == "EU-RO-1"
    assert [gpu["id"] for gpu in center["gpuAvailability"]] == ["My Card", "NVIDIA L4"]


@pytest.mark.parametrize(
    "kind", ["", "/pods", "/serverless", "/endpoints", "/network-volumes", "/clusters"]
)
def test_bills_are_empty(http, kind):
    body = http.get(f"/v2/billing{kind}?bucketSize=hour").get_json()
    assert body["records"] == []
    assert body["metadata"]["recordCount"] == 0
    assert body["metadata"]["query"]["bucketSize"] == "hour"
    assert body["metadata"]["totals"]["totalAmount"] == 0


def test_the_account_has_no_ssh(http):
    assert http.get("/v2/account/ssh-keys").get_json() == {"keys": []}
    assert http.put("/v2/account/ssh-keys", json={"keys": []}).status_code == 501
    assert http.get("/v2/catalog/templates").get_json() == {"templates": []}


def test_all_managing_calls_of_a_caller_count_together_where_a_rate_is_set(redis_server, client):
    http = create_app(
        load_settings(
            REDIS_URL=redis_server.url, OWNPOD_RATE_LIMITS='{"management": "3/hour;5/day"}'
        )
    ).test_client()
    query = {"query": "query { myself { id } }"}
    statuses = [
        http.get("/v1/endpoints").status_code,
        http.get("/v2/serverless").status_code,
        http.post("/graphql", json=query).status_code,
    ]
    assert statuses == [200, 200, 200]
    refused = http.get("/v2/templates")
    assert refused.status_code == 429
    assert refused.headers["Retry-After"].isdecimal()
    assert refused.mimetype == "application/problem+json"
    assert http.get("/v2/local-ep/health").status_code == 200
