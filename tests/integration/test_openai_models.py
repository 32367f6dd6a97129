"""The list of models that OpenAI's clients ask for: kept in Redis, and made for workers that have none."""

import json

import pytest
from answering import Answering, answering, error_of
from helpers import job_store

from ownpod.api.openai import models as openai_models
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.store import keys, model_lists
from ownpod.store.fleet import Fleet
from ownpod.store.model_lists import ModelLists

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: w1}]}
  made:
    template: {image: x, env: {MODEL_NAME: org/m, SERVED_MODEL_NAME: short}}
    workersMin: 0
  paused: {template: {image: x}, workersMax: 0}
"""
LIST = '{"object": "list",  "data": [{"id": "m", "object": "model"}]}'
OTHER = LIST.replace('"m"', '"other"')


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def api(new_app):
    return new_app(FILE).test_client()


def models(api, endpoint="ep", **headers):
    return api.get(f"/v2/{endpoint}/openai/v1/models", headers=headers)


def publish(client, state):
    Fleet(client).publish_status("w1", WorkerStatus(state, "", 0), ttl_s=60, node="n")


def age(client, seconds, endpoint="ep"):
    name = keys.model_list(endpoint)
    client.hincrby(name, "at_ms", -1000 * int(seconds))


def test_the_first_request_is_a_job_and_the_next_ones_are_answered_by_the_list(api, store, client):
    def steps(worker):
        assert worker.claim() == {"openai_route": "/v1/models", "openai_input": {}}
        worker.finish(f"[{LIST}]")

    with Answering(store, steps):
        assert models(api).text == LIST
    for _ in range(3):
        assert models(api).text == LIST
    assert len(store.listing.recent("ep", status=None, before=None, limit=9)[0]) == 1
    assert client.ttl(keys.model_list("ep")) > 0


def test_an_old_list_is_answered_while_no_worker_is_ready(api, store, client):
    ModelLists(client).put("ep", LIST)
    age(client, openai_models.FRESH_S + 1)
    assert models(api).text == LIST
    publish(client, WorkerState.READY)
    with answering(store, [json.loads(OTHER)]):
        assert models(api).text == OTHER.replace("  ", " ")
    assert models(api).text == OTHER.replace("  ", " ")


def test_an_old_list_is_answered_in_place_of_an_error(api, store, client):
    ModelLists(client).put("ep", LIST)
    age(client, openai_models.FRESH_S + 1)
    publish(client, WorkerState.READY)

    def fail(worker):
        worker.claim()
        worker.finish(error="x")

    with Answering(store, fail):
        assert models(api).text == LIST


def test_a_request_that_names_a_worker_asks_that_worker(api, store, client):
    ModelLists(client).put("ep", LIST)
    with answering(store, OTHER):
        assert models(api, **{"X-Runpod-Worker-Id": "w1"}).text == OTHER
    assert models(api).text == LIST


@pytest.mark.parametrize("answer", ['{"data": [1]}', "[1, 2]", '{"object": "list"}', '"x"'])
def test_what_is_no_list_is_answered_and_not_kept(api, store, client, answer):
    with answering(store, f"[{answer}]"):
        assert models(api).status_code == 200
    assert ModelLists(client).get("ep") is None


def test_a_worker_that_has_no_list_gets_one_of_its_template(api, store):
    with answering(store, json.dumps(['{"detail":"Method Not Allowed"}']), endpoint="made"):
        found = models(api, "made").json
    assert [model["id"] for model in found["data"]] == ["short"]
    assert models(api, "made").json == found
    # Without a template there is nothing to make it of.
    with answering(store, json.dumps(['{"detail":"Method Not Allowed"}'])):
        assert error_of(models(api))[:2] == (405, "Method Not Allowed")


REFUSED = '{"detail":"Method Not Allowed"}'


def env_of(**env):
    template = {"image": "x", "env": env}
    return json.dumps({"endpoints": {"made": {"template": template, "workersMin": 0}}})


@pytest.mark.parametrize("refused", [REFUSED, '{"detail":"Not Found"}'])
@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"MODEL_NAME": "org/m"}, "org/m"),
        ({"MODEL_NAME": "org/m", "SERVED_MODEL_NAME": "b"}, "b"),
        ({"SERVED_MODEL_NAME": "b", "OPENAI_SERVED_MODEL_NAME_OVERRIDE": "a"}, "a"),
        ({"MODEL_NAME": "org/m", "SERVED_MODEL_NAME": ""}, "org/m"),
    ],
)
def test_a_made_list_has_the_name_under_which_the_model_is_served(
    new_app, store, env, name, refused
):
    api = new_app(env_of(**env)).test_client()
    # worker-sglang yields the lines of what its server answers.
    with answering(store, [refused], endpoint="made"):
        response = models(api, "made")
    assert response.content_type == "application/json"
    (model,) = response.json["data"]
    assert model == {"id": name, "object": "model", "created": 0, "owned_by": "ownpod"}
    assert response.json["object"] == "list"


@pytest.mark.parametrize("env", [{}, {"MODEL_NAME": "{{ RUNPOD_SECRET_model }}"}])
def test_a_template_that_names_no_model_makes_no_list(new_app, store, client, env):
    api = new_app(env_of(**env)).test_client()
    with answering(store, [REFUSED], endpoint="made"):
        refused = models(api, "made")
    assert error_of(refused)[:3] == (405, "Method Not Allowed", "false")
    assert "RUNPOD_SECRET" not in refused.text
    assert ModelLists(client).get("made") is None


@pytest.mark.parametrize("output", [{"error": "out of memory"}, {"detail": "Unauthorized"}])
def test_a_worker_that_fails_gets_no_made_list(api, store, client, output):
    with answering(store, [output], endpoint="made"):
        assert models(api, "made").status_code >= 400
    assert ModelLists(client).get("made") is None


def test_another_route_of_a_worker_without_a_list_is_its_own_error(api, store):
    for method, path in (("POST", "/v1/models"), ("GET", "/v1/models/short")):
        with answering(store, [REFUSED], endpoint="made"):
            found = api.open(f"/v2/made/openai{path}", method=method)
        assert error_of(found)[0] == 405


def test_a_made_list_has_the_templates_name_of_now(new_app, store, client):
    before = new_app(env_of(MODEL_NAME="before")).test_client()
    with answering(store, [REFUSED], endpoint="made"):
        assert models(before, "made").json["data"][0]["id"] == "before"
    after = new_app(env_of(MODEL_NAME="after")).test_client()
    assert models(after, "made").json["data"][0]["id"] == "after"
    # Also while no worker is ready.
    age(client, openai_models.FRESH_S + 1, "made")
    assert models(after, "made").json["data"][0]["id"] == "after"
    # A worker's own list is not replaced.
    ModelLists(client).put("made", LIST)
    assert models(after, "made").text == LIST


def test_a_worker_that_learns_its_list_replaces_the_made_one(api, store, client):
    with answering(store, [REFUSED], endpoint="made"):
        assert models(api, "made").json["data"][0]["id"] == "short"
    with answering(store, LIST, endpoint="made", worker="w1"):
        named = models(api, "made", **{"X-Runpod-Worker-Id": "w1"})
    assert named.text == LIST
    client.delete(keys.model_list("made"))
    with answering(store, LIST, endpoint="made"):
        assert models(api, "made").text == LIST
    assert models(api, "made").text == LIST


def test_a_paused_endpoint_answers_its_last_list(api, client):
    assert error_of(models(api, "paused"))[0] == 409
    ModelLists(client).put("paused", LIST)
    age(client, 3600, "paused")
    assert models(api, "paused").text == LIST


def test_lists_are_bounded_and_can_be_forgotten(client):
    lists = ModelLists(client)
    lists.put("ep", "x" * (model_lists.MOST_BYTES + 1))
    assert lists.get("ep") is None
    lists.put("ep", LIST)
    assert lists.get("ep").body == LIST
    assert lists.get("ep").age_s < 60
    lists.forget("ep")
    assert lists.get("ep") is None
