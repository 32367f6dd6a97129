"""Load-balanced endpoints in RunPod's three management APIs, on a real Redis."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import load_settings, wait_until

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.balancing import Balancing, RouteReading
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.rules.templates import Protocol, ScalerType
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts

NEW = {
    "name": "web",
    "type": "LOAD_BALANCER",
    "image": "org/web:1",
    "scaling": {"type": "REQUEST_COUNT", "requestCount": 2},
    "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
    "env": {"PORT": "8000", "PORT_HEALTH": "8001", "HEALTH_CHECK_PATH": "/healthz"},
    "ports": ["8000/http"],
    "workers": {"min": 0, "max": 2, "idleTimeout": 60},
}


@pytest.fixture
def start(redis_server, client):
    client.flushall()

    def start(**environ):
        environ = {"OWNPOD_WORKERS": "http://localhost:1", **environ}
        return create_app(load_settings(REDIS_URL=redis_server.url, **environ))

    return start


@pytest.fixture
def app(start):
    return start()


@pytest.fixture
def http(app):
    return app.test_client()


@pytest.fixture
def ask(http):
    def asked(query, **variables):
        response = http.post("/graphql", json={"query": query, "variables": variables})
        assert response.status_code == 200, response.text
        return response.get_json()

    return asked


def create(http, **values):
    response = http.post("/v2/serverless", json={**NEW, **values})
    assert response.status_code == 201, response.text
    return response.get_json()


def test_an_endpoint_of_rest_v2_reads_back_and_runs(http, app):
    made = create(http)
    for name, value in NEW.items():
        if name != "cpu":
            assert made[name] == value, name
    base = f"http://localhost/lb/{made['id']}"
    assert made["requestUrls"] == {"base": base, "health": f"{base}/healthz"}
    endpoint = services_of(app).registry.endpoint(made["id"])
    assert endpoint.balancing == Balancing(8000, 8001, "/healthz")
    assert endpoint.managed.template.protocol is Protocol.HTTP
    assert endpoint.managed.template.env == NEW["env"]
    scaling = endpoint.managed.scaling
    assert (scaling.scaler, scaling.scaler_value) == (ScalerType.REQUEST_COUNT, 2)
    assert (scaling.workers_max, scaling.idle_timeout_s) == (2, 60)


def test_a_new_endpoint_is_answered_once_the_front_has_it(http, client):
    fronts, me, events = Fronts(client), Front("f", None), []
    fronts.beat(me, {})

    def serve():
        """A front that reads the endpoints, and later has them."""
        found = wait_until(lambda: fronts.beat(me, {}) and list(Fleet(client).entries().endpoints))
        events.append(f"the front has {found[0]}")
        fronts.beat(me, {name: RouteReading() for name in found})

    with ThreadPoolExecutor(1) as pool:
        front = pool.submit(serve)
        made = create(http)["id"]
        events.append(f"made {made}")
        front.result()
    assert events == [f"the front has {made}", f"made {made}"]


def test_defaults_are_runpods(http, app):
    values = {name: NEW[name] for name in ("name", "type", "image", "scaling", "cpu")}
    made = http.post("/v2/serverless", json=values).get_json()
    assert made["workers"] == {"min": 0, "max": 3, "idleTimeout": 10}
    assert (made["timeout"], made["env"], made["ports"]) == (0, {}, [])
    assert made["requestUrls"]["health"].endswith(f"/lb/{made['id']}/ping")
    assert services_of(app).registry.endpoint(made["id"]).balancing == Balancing()


def test_the_urls_have_the_name_that_a_domain_gives(start):
    http = start(OWNPOD_LB_DOMAIN="gpu.example").test_client()
    made = create(http)
    assert made["requestUrls"]["base"] == f"http://{made['id']}.gpu.example"
    url = f"/v2/serverless/{made['id']}"
    far = http.get(url, base_url="https://localhost:8443").get_json()["requestUrls"]
    assert far == {
        "base": f"https://{made['id']}.gpu.example:8443",
        "health": f"https://{made['id']}.gpu.example:8443/healthz",
    }


def test_the_type_is_fixed_at_creation(http, ask, start):
    made = create(http)
    url = f"/v2/serverless/{made['id']}"
    refused = http.patch(url, json={"type": "QUEUE"})
    assert refused.status_code == 422
    assert refused.get_json()["errors"] == ["$: additional properties 'type' not allowed"]
    # Clients send back what they have read.
    sent = {name: made[name] for name in ("name", "type", "scaling", "workers", "env")}
    assert http.patch(url, json=sent).get_json() == made
    strict = start(OWNPOD_MANAGEMENT_STRICT="true").test_client()
    assert strict.patch(url, json={"type": "LOAD_BALANCER"}).status_code == 422
    save = "mutation($i: EndpointInput!) { saveEndpoint(input: $i) { id type } }"
    answer = ask(save, i={"id": made["id"], "name": "web", "type": "QB"})
    assert "type: an endpoint's type is fixed" in answer["errors"][0]["message"]
    same = ask(save, i={"id": made["id"], "name": "web", "type": "LB"})
    assert same == {"data": {"saveEndpoint": {"id": made["id"], "type": "LB"}}}


def test_a_queue_delay_is_refused_by_rest_v2(http):
    made = create(http)
    by_delay = {"scaling": {"type": "QUEUE_DELAY", "queueDelay": 2}}
    for refused in (
        http.post("/v2/serverless", json={**NEW, **by_delay}),
        http.patch(f"/v2/serverless/{made['id']}", json=by_delay),
    ):
        assert refused.status_code == 422
        assert "REQUEST_COUNT" in refused.text


def test_variables_make_a_release_and_numbers_of_workers_do_not(http, app):
    made = create(http)
    url = f"/v2/serverless/{made['id']}"
    http.patch(url, json={"env": {**NEW["env"], "PORT": "9000"}})
    http.patch(url, json={"scaling": {"type": "REQUEST_COUNT", "requestCount": 8}})
    body = http.get(f"{url}/releases").get_json()
    assert body["endpointVersion"] == 2
    assert body["releases"][0]["diff"][0]["field"] == "template.env"
    assert services_of(app).registry.endpoint(made["id"]).balancing.port == 9000


def test_graphql_makes_one_as_flash_does_and_accepts_runpods_queue_delay(ask, app):
    values = {
        "name": "of-flash",
        "gpuIds": "ANY",
        "type": "LB",
        "scalerType": "QUEUE_DELAY",
        "scalerValue": 4,
        "workersMax": 1,
        "template": {
            "name": "lb__tpl",
            "imageName": "org/flash-lb:1",
            "containerDiskInGb": 10,
            "volumeInGb": 0,
            "dockerArgs": "",
            "ports": "8000/http",
            "env": [{"key": "PORT", "value": "8000"}],
        },
    }
    query = "mutation($i: EndpointInput!) { saveEndpoint(input: $i) { id type scalerType scalerValue } }"
    answer = ask(query, i=values)
    assert "errors" not in answer, answer
    made = answer["data"]["saveEndpoint"]
    endpoint_id = made.pop("id")
    assert made == {"type": "LB", "scalerType": "QUEUE_DELAY", "scalerValue": 4}
    endpoint = services_of(app).registry.endpoint(endpoint_id)
    assert (endpoint.balancing.port, endpoint.managed.scaling.scaler) == (
        8000,
        ScalerType.REQUEST_COUNT,
    )
    plain = {name: value for name, value in values.items() if not name.startswith("scaler")}
    plain["template"] = {**values["template"], "name": "lb2__tpl"}
    assert ask(query, i=plain)["data"]["saveEndpoint"]["scalerType"] == "REQUEST_COUNT"
    read = ask("query($id: String) { myself { endpoint(id: $id) { type } } }", id=endpoint_id)
    assert read["data"]["myself"]["endpoint"] == {"type": "LB"}


def test_rest_v2_shows_what_graphql_has_made(ask, http):
    query = """mutation { saveEndpoint(input: { name: "lb1", gpuIds: "ANY", type: "LB", scalerType: "QUEUE_DELAY",
    scalerValue: 3, template: { name: "t", imageName: "i", containerDiskInGb: 1, volumeInGb: 0, env: [] } }) { id } }"""
    made = ask(query)["data"]["saveEndpoint"]["id"]
    url = f"/v2/serverless/{made}"
    shown = http.get(url).get_json()
    assert shown["scaling"] == {"type": "REQUEST_COUNT", "requestCount": 3}
    assert shown["workers"]["idleTimeout"] == 10
    # What it does not name stays, and is no reason to refuse it.
    changed = http.patch(url, json={"workers": {"max": 1}})
    assert changed.status_code == 200, changed.text
    assert "REQUEST_COUNT" in changed.headers["X-OwnPod-Warning"]


def test_rest_v1_which_has_no_type_reads_and_changes_it(http, app):
    made = create(http)
    url = f"/v1/endpoints/{made['id']}"
    shown = http.get(url).get_json()
    assert (shown["scalerType"], shown["scalerValue"]) == ("REQUEST_COUNT", 2)
    assert not shown.keys() & {"type", "requestUrls"}
    changed = http.patch(url, json={"workersMax": 5, "scalerValue": 3, "idleTimeout": 9})
    assert changed.status_code == 200
    assert services_of(app).registry.endpoint(made["id"]).is_balanced
    assert http.get(f"/v2/serverless/{made['id']}").get_json()["type"] == "LOAD_BALANCER"


def test_what_has_no_effect_is_a_warning(http):
    assert "X-OwnPod-Warning" not in http.post("/v2/serverless", json=NEW).headers
    odd = {**NEW, "env": {}, "timeout": 600_000}
    warning = http.post("/v2/serverless", json=odd).headers["X-OwnPod-Warning"]
    assert "workers get PORT=80, not 8000/http" in warning
    assert "executionTimeout is stored" in warning


def test_why_has_the_reason_of_a_worker_by_url(start, tmp_path, client):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {web: {type: LB, workers: [{url: 'http://127.0.0.1:1', id: a}]}}")
    app = start(OWNPOD_WORKERS_FILE=str(file), OWNPOD_WORKERS="")
    http, fleet = app.test_client(), services_of(app).registry.fleet
    (reason,) = http.get("/v2/serverless/web/why").get_json()["reasons"]
    assert reason["code"] == "NO_FRONT"
    url = "/v2/serverless/web/why"

    def publish(state, reason=""):
        Fronts(client).beat(Front("f", None), {"web": RouteReading(requests=3)})
        fleet.publish_status("a", WorkerStatus(state, reason), node="front@h", ttl_s=60)
        found = http.get(url).get_json()
        assert found["queued"] == 3
        return found["reasons"]

    (reason,) = publish(WorkerState.UNHEALTHY, "/ping answers 404")
    assert reason == {
        "code": "UNHEALTHY",
        "message": "worker a is unhealthy: /ping answers 404",
        "worker": "a",
        "detail": "/ping answers 404",
    }
    (reason,) = publish(WorkerState.INITIALIZING, "/ping answers 204")
    assert (reason["code"], reason["detail"]) == ("STARTING", "/ping answers 204")
    assert publish(WorkerState.READY) == []
    shown = http.get("/v2/serverless/web").get_json()
    assert (shown["type"], shown["requestUrls"]["base"]) == (
        "LOAD_BALANCER",
        "http://localhost/lb/web",
    )
