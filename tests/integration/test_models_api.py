"""/api/models and `ownpod models`: what hosts have, and what they are asked to do."""

import json
from dataclasses import asdict

import pytest
from click.testing import CliRunner
from helpers import load_settings

from ownpod import settings
from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.managed import AgentInfo
from ownpod.rules.model_news import News, State
from ownpod.rules.models import ModelSource
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.models import FETCH, REMOVE, Models
from ownpod.tools.cli import main

PRESETS = """
models:
  org/tiny:
    source: hf://org/tiny
    presets: {chat: {image: "x:1"}, other: {image: "x:2"}}
  here:
    source: file:///srv/here
    presets: {chat: {image: "x:1"}}
"""
TINY = ModelSource("org/tiny", "hf://org/tiny")


@pytest.fixture
def config(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(PRESETS)
    return {
        "REDIS_URL": redis_server.url,
        "OWNPOD_WORKERS_FILE": file,
        "OWNPOD_ADMIN_KEYS": "admin",
    }


@pytest.fixture
def api(config):
    app = create_app(load_settings(**config))
    yield app.test_client()
    services_of(app).notices.stop()


@pytest.fixture
def stored(client):
    for host in ("h", "i"):
        Agents(client).heartbeat(AgentInfo(host, "docker"), host)
    return Models(client)


@pytest.mark.parametrize(
    ("do", "changes"),
    [
        ([], {}),
        ("other", {}),
        (FETCH, {"id": 5}),
        (FETCH, {"source": 5}),
        (FETCH, {"revision": 5}),
        (FETCH, {"other": 5}),
    ],
)
def test_an_order_that_cannot_be_read_does_not_hide_the_others(client, stored, do, changes):
    stored.order("h", FETCH, TINY)
    source = {**asdict(ModelSource("other", "hf://org/other")), **changes}
    try:
        key = ModelSource(**source).key
    except (TypeError, AttributeError):
        key = "x"
    text = json.dumps({"do": do, "source": source})
    client.hset(f"{keys.MODELS_ORDERS}h", key, text)
    assert [order.source for order in stored.read("h")[0].values()] == [TINY]


def call(api, method, path, **options):
    answer = api.open(path, method=method, headers={"Authorization": "admin"}, **options)
    return answer.status_code, answer.json


def ready(source=TINY, workers=()):
    return News(
        source.key, source.id, source.shown, State.READY, 10, 10, workers=workers, origin=source
    )


def test_models_of_presets_and_of_hosts_are_listed(api, stored):
    stored.publish("h", [ready(workers=("w1",))])
    stored.publish("i", [News("k", "old", "https://x/old", State.FETCHING, 1, 4)])
    stored.pin("old", pinned=True)
    status, body = call(api, "GET", "/api/models")
    assert (status, body["total"]) == (200, 3)
    found = {model["id"]: model for model in body["models"]}
    assert found["here"] == {
        "id": "here",
        "sources": ["file:///srv/here"],
        "pinned": False,
        "hosts": [],
    }
    assert found["old"]["pinned"]
    (host,) = found["org/tiny"]["hosts"]
    assert (host["host"], host["state"], host["workers"]) == ("h", "ready", ["w1"])
    assert "origin" not in host


def test_all_hosts_or_one_are_asked_to_fetch(api, stored):
    status, body = call(api, "POST", "/api/models/org/tiny/fetch", json={"host": "h"})
    assert (status, body["hosts"]) == (200, ["h"])
    assert {key: order.do for key, order in stored.read("h")[0].items()} == {TINY.key: FETCH}
    assert stored.read("i")[0] == {}
    assert call(api, "POST", "/api/models/org/tiny/fetch")[1]["hosts"] == ["h", "i"]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "words"),
    [
        ("POST", "/api/models/none/fetch", {}, 404, "is in no preset"),
        ("POST", "/api/models/org/tiny/fetch", {"json": {"host": "x"}}, 400, "one of h, i"),
        ("POST", "/api/models/org/tiny/fetch", {"json": {"host": 1}}, 400, "name of a host"),
        ("POST", "/api/models/org/tiny/fetch", {"json": []}, 400, "JSON object"),
        ("POST", "/api/models/here/fetch", {}, 400, "is used where it is"),
        ("POST", "/api/models/../x/fetch", {}, 400, "letters, digits"),
        ("DELETE", "/api/models/none", {}, 404, "on no host"),
        ("POST", "/api/models/none/pin", {}, 404, "on no host"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(api, stored, method, path, options, status, words):
    found, body = call(api, method, path, **options)
    assert found == status
    assert words in body["error"]
    assert set(body) == {"detail", "error", "code"}


def test_hosts_that_have_a_model_are_asked_to_remove_it_unless_a_worker_has_it(api, stored):
    stored.publish("h", [ready(workers=("w1",))])
    status, body = call(api, "DELETE", "/api/models/org/tiny")
    assert status == 400
    assert "in use by worker w1" in body["error"]
    old = ModelSource("old", "https://x/old")
    stored.publish("h", [ready(), ready(old)])
    assert call(api, "DELETE", "/api/models/org/tiny")[1]["hosts"] == ["h"]
    # No preset has this one any more.
    assert call(api, "DELETE", "/api/models/old")[1]["hosts"] == ["h"]
    orders = stored.read("h")[0]
    assert {key: order.do for key, order in orders.items()} == {TINY.key: REMOVE, old.key: REMOVE}
    for key, order in orders.items():
        stored.done("h", key, order)
    assert stored.read("h")[0] == {}


def test_a_later_order_stays_when_an_earlier_one_is_done(stored):
    stored.order("h", FETCH, TINY)
    first = stored.read("h")[0][TINY.key]
    stored.order("h", REMOVE, TINY)
    stored.done("h", TINY.key, first)
    assert stored.read("h")[0][TINY.key].do == REMOVE


def test_a_model_is_pinned_until_it_is_unpinned(api, stored):
    assert call(api, "POST", "/api/models/org/tiny/pin")[0] == 200
    assert stored.read("h")[1] == {"org/tiny"}
    assert call(api, "DELETE", "/api/models/org/tiny/pin")[0] == 200
    assert stored.pinned() == frozenset()


def test_one_host_at_a_time_may_fetch_for_a_worker(stored):
    assert stored.may_fetch("w", "h")
    assert stored.may_fetch("w", "h")
    assert not stored.may_fetch("w", "i")
    stored.give_up("w", "i")
    assert not stored.may_fetch("w", "i")
    stored.give_up("w", "h")
    assert stored.may_fetch("w", "i")


@pytest.fixture
def run(config, monkeypatch):
    for name, value in config.items():
        monkeypatch.setenv(name, str(value))
    settings.current.cache_clear()
    yield lambda *arguments: CliRunner().invoke(main, ["models", *arguments])
    settings.current.cache_clear()


def test_the_commands_list_and_ask(stored, run):
    stored.publish("h", [ready()])
    listed = run("list").output
    assert "org/tiny" in listed
    assert "ready" in listed
    assert "not fetched" in listed
    assert [model["id"] for model in json.loads(run("list", "--json").output)] == [
        "here",
        "org/tiny",
    ]
    assert (
        run("fetch", "org/tiny", "--host", "i").output == "model org/tiny is being fetched on i\n"
    )
    assert "pinned org/tiny" in run("pin", "org/tiny").output
    assert stored.pinned() == {"org/tiny"}
    assert run("unpin", "org/tiny").output == "unpinned org/tiny\n"
    assert run("remove", "org/tiny").output == "model org/tiny is being removed on h\n"
    assert run("fetch", "none").exit_code == 2
