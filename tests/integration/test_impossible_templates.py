"""Endpoints and templates that no host can start are refused by each way to manage, and the answer says what to change."""

import json

import pytest
from commands import command_environment, running_commands
from helpers import load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError
from ownpod.onehost import templates
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.placement import pools_of
from ownpod.store.agents import Agents
from ownpod.store.secrets import Secrets

GPU = Device("GPU-1", 0, "NVIDIA L4", 23_000, pools_of("NVIDIA L4", 23_000))
TEAM = ("ghcr.io/team/*", "ubuntu")
IMAGE = "ghcr.io/team/a:1"
NO_IMAGE = (
    "no host may start the image docker.io/org/worker:1: OWNPOD_IMAGES of host h allows ghcr.io/team/*, ubuntu; "
    "add the image to OWNPOD_IMAGES where an agent runs, or use another image"
)
NO_SECRET = "secret 'hub' is not there: use `ownpod secrets set hub`, or set OWNPOD_SECRET_hub where the agent runs"
REFERENCE = "{{ RUNPOD_SECRET_hub }}"


@pytest.fixture
def environ(redis_server, client, tmp_path):
    return command_environment(tmp_path, redis_server.url, "endpoints: {}\n")


@pytest.fixture
def app(environ):
    return create_app(load_settings(**environ))


@pytest.fixture
def http(app):
    return app.test_client()


@pytest.fixture
def beat(client):
    def beat(host="h", engine="docker", images=TEAM, secrets=("other",), devices=(GPU,)):
        info = AgentInfo(host, engine, devices, images=images, secrets=secrets)
        Agents(client).heartbeat(info, "token")

    return beat


def by_v1(http, image, env, count):
    """Creates a template and an endpoint; the response that refuses, or the last one."""
    body = {"name": "t", "imageName": image, "env": env, "isServerless": True}
    response = http.post("/v1/templates", json=body)
    if response.status_code >= 300:
        return response
    values = {"templateId": response.get_json()["id"], "name": "e", "gpuCount": count}
    return http.post("/v1/endpoints", json=values)


def by_v2(http, image, env, count):
    gpu = {"pools": ["AMPERE_24"], "count": count}
    scaling = {"type": "QUEUE_DELAY", "queueDelay": 4}
    body = {
        "name": "e",
        "type": "QUEUE",
        "image": image,
        "env": env,
        "gpu": gpu,
        "scaling": scaling,
    }
    return http.post("/v2/serverless", json=body)


def by_graphql(http, image, env, count):
    pairs = [{"key": key, "value": value} for key, value in env.items()]
    template = {"name": "t", "imageName": image, "env": pairs, "containerDiskInGb": 1}
    asked = {**template, "volumeInGb": 0, "dockerArgs": "", "isServerless": True}
    query = "mutation($input: SaveTemplateInput!) { saveTemplate(input: $input) { id } }"
    response = http.post("/graphql", json={"query": query, "variables": {"input": asked}})
    if "errors" in response.get_json():
        return response
    template_id = response.get_json()["data"]["saveTemplate"]["id"]
    wanted = {"name": "first", "templateId": template_id, "gpuIds": "AMPERE_24", "gpuCount": count}
    query = "mutation($input: EndpointInput!) { saveEndpoint(input: $input) { id } }"
    return http.post("/graphql", json={"query": query, "variables": {"input": wanted}})


WAYS = [by_v1, by_v2, by_graphql]


def text_of(response):
    body = response.get_json()
    if "errors" in body and response.status_code == 200:
        # GraphQL, as RunPod: HTTP 200 with the errors.
        return body["errors"][0]["message"]
    assert 400 <= response.status_code < 500, response.text
    return json.dumps(body, ensure_ascii=False)


def is_made(response):
    return response.status_code < 300 and not response.get_json().get("errors")


@pytest.mark.parametrize("way", WAYS)
def test_an_image_that_no_living_host_may_start_is_refused(http, beat, way):
    beat()
    assert NO_IMAGE in text_of(way(http, "org/worker:1", {}, 1))


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_that_is_nowhere_is_refused(http, beat, way):
    beat()
    assert NO_SECRET in text_of(way(http, IMAGE, {"TOKEN": REFERENCE}, 1))


@pytest.mark.parametrize("way", WAYS)
def test_more_gpus_than_any_host_has_are_refused(http, beat, way):
    beat()
    assert "no host has 2 devices" in text_of(way(http, IMAGE, {}, 2))


@pytest.mark.parametrize("way", WAYS)
def test_without_a_host_nothing_is_known_and_nothing_refused(http, way):
    assert is_made(way(http, "org/worker:1", {"TOKEN": REFERENCE}, 8))


@pytest.mark.parametrize(
    ("host", "image", "env"),
    [
        ({"host": "i", "images": None}, "org/worker:1", {}),
        ({"host": "i", "engine": "process", "images": None}, "org/worker:1", {}),
        ({"host": "i", "secrets": ("hub",), "devices": ()}, IMAGE, {"TOKEN": REFERENCE}),
        ({"host": "i", "secrets": None, "devices": ()}, IMAGE, {"TOKEN": REFERENCE}),
    ],
    ids=["all images", "engine process", "own variable", "earlier version"],
)
def test_one_host_that_can_is_enough(http, beat, host, image, env):
    beat()
    beat(**host)
    assert is_made(by_v2(http, image, env, 1))


def test_the_image_must_be_allowed_where_the_gpus_are(http, beat):
    beat()
    beat(host="i", images=None, devices=())
    assert NO_IMAGE in text_of(by_v2(http, "org/worker:1", {}, 1))


def test_a_stored_secret_is_enough(http, beat, app):
    beat()
    services_of(app).management.secrets.secrets.put("hub", "hunter2")
    assert is_made(by_v2(http, IMAGE, {"TOKEN": REFERENCE}, 1))


def test_a_change_and_a_paused_endpoint(http, beat):
    beat()
    made = by_v2(http, IMAGE, {}, 1).get_json()
    url = f"/v2/serverless/{made['id']}"
    assert NO_IMAGE in text_of(http.patch(url, json={"image": "org/worker:1"}))
    paused = {"image": "org/worker:1", "workers": {"min": 0, "max": 0}}
    assert is_made(http.patch(url, json=paused))


def test_a_template_for_endpoints_is_refused_and_one_for_pods_is_not(http, beat):
    beat()
    body = {"name": "t", "imageName": IMAGE, "env": {"TOKEN": REFERENCE}}
    refused = http.post("/v1/templates", json={**body, "isServerless": True})
    assert NO_SECRET in text_of(refused)
    other = {"name": "t", "imageName": "org/worker:1", "isServerless": True}
    assert NO_IMAGE in text_of(http.post("/v1/templates", json=other))
    assert http.post("/v1/templates", json=body).status_code < 300


def test_the_commands_say_it_in_one_line(beat, environ, monkeypatch, tmp_path):
    beat()
    file = tmp_path / "endpoints.yaml"
    file.write_text("endpoints:\n  one: {template: {image: org/worker:1}}\n")
    with running_commands(monkeypatch, **environ) as run:
        done = run("apply", "-f", str(file))
        assert done.code != 0
        assert f"endpoints.one: {NO_IMAGE}; nothing was changed" in done.errors
        file.write_text(
            f'endpoints:\n  one: {{template: {{image: {IMAGE}, env: {{T: "{REFERENCE}"}}}}}}\n'
        )
        assert NO_SECRET in run("apply", "-f", str(file)).errors


# The start of `ownpod up`.

FILE = """
endpoints:
  good: {template: {image: ghcr.io/team/a, env: {T: "{{ SECRET_own }}"}}}
  other: {template: {image: org/worker, command: [c], env: {T: "{{ SECRET_hub }}{{ SECRET_stored }}"}}}
"""


@pytest.fixture
def start(tmp_path, client):
    """Settings and endpoints of FILE."""

    def start(**environ):
        values = command_environment(tmp_path, "redis://unused", FILE)
        config = load_settings(**{**values, **environ})
        return config, load_endpoints(config)

    return start


@pytest.mark.parametrize("engine", ["docker", "auto"])
def test_the_start_stops_at_an_image_that_this_host_may_not_start(start, monkeypatch, engine):
    monkeypatch.setattr(templates, "has_docker", lambda: True)
    with pytest.raises(ConfigurationError) as caught:
        templates.check_images(*start(OWNPOD_ENGINE=engine, OWNPOD_IMAGES="ghcr.io/team/*"))
    assert str(caught.value) == (
        "endpoint 'other': image docker.io/org/worker:latest is not allowed: OWNPOD_IMAGES allows ghcr.io/team/*; "
        "add the image to OWNPOD_IMAGES, or change template.image"
    )


@pytest.mark.parametrize(
    ("engine", "images"),
    [("process", "ghcr.io/team/*"), ("auto", "ghcr.io/team/*"), ("docker", "ghcr.io/team/*,org/*")],
)
def test_the_start_goes_on_where_the_image_is_only_noted_or_allowed(
    start, monkeypatch, engine, images
):
    monkeypatch.setattr(templates, "has_docker", lambda: False)
    templates.check_images(*start(OWNPOD_ENGINE=engine, OWNPOD_IMAGES=images))


def test_the_start_warns_in_one_line_of_a_secret_that_is_not_there(start, client, tmp_path):
    _, endpoints = start()
    secrets = Secrets(client, tmp_path / "secrets.key")
    secrets.put("stored", "hunter2")
    assert templates.secrets_warning(endpoints, secrets, {"OWNPOD_SECRET_own": "x"}) == (
        f"warning: the jobs of other wait: {NO_SECRET}"
    )
    secrets.put("hub", "hunter2")
    assert templates.secrets_warning(endpoints, secrets, {"OWNPOD_SECRET_own": "x"}) is None
