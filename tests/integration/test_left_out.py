"""Workers in Redis that cannot be used: left out with a reason, and nothing else changes."""

import json
import logging

import pytest
from helpers import load_settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.configuration import load_endpoints
from ownpod.errors import WorkerNotFound
from ownpod.registry import Registry
from ownpod.store import keys
from ownpod.store.fleet import Fleet

URL = "http://10.0.0.12:8000"
GOOD = {"endpoint": "ep", "url": URL, "id": "x"}


@pytest.fixture
def settings(tmp_path, redis_server):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {workers: [{url: 'http://a:1', id: w}]}, other: {}}")
    return load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file)


@pytest.fixture
def registry(client, settings):
    return Registry(load_endpoints(settings), Fleet(client), settings)


@pytest.fixture
def api(settings, client):
    app = create_app(settings)
    yield app.test_client()
    services_of(app).notices.stop()


def state(registry):
    """Ids of the workers of `ep`, and the reasons of what is left out there."""
    registry.refresh()
    found = registry.left_out("ep")
    return [w.id for w in registry.endpoint("ep").workers], {e.id: e.reason for e in found}


ADDED = [
    ("{", "its entry in Redis is not JSON: "),
    ("[" * 100_000, "its entry in Redis is not JSON: "),
    ("[]", "its entry in Redis is no JSON object"),
    ("null", "its entry in Redis is no JSON object"),
    ({}, "its endpoint 'None' does not exist"),
    ({**GOOD, "endpoint": ["ep"]}, "its endpoint \"['ep']\" does not exist"),
    ({**GOOD, "endpoint": "gone"}, "its endpoint 'gone' does not exist"),
    ({**GOOD, "url": "http://a b"}, "url: must be an http:// or https:// URL"),
    ({**GOOD, "url": 5}, "url: Not a valid string."),
    ({**GOOD, "capacity": "many"}, "capacity: must be a whole number from 1 to 1000"),
    ({**GOOD, "headers": {"X": "a\nb"}}, "headers.X: a header's value must be one line of ASCII"),
    ({**GOOD, "later": 1}, "later: Unknown field."),
    ({**GOOD, "a\nb": 1}, "a b: Unknown field."),
    ({**GOOD, "id": "y"}, "its entry has another id, 'y'"),
    ({**GOOD, "url": "http://a:1"}, "its id or URL is another worker's"),
]
PULLING = [
    ("{", "its entry in Redis is not JSON: "),
    ({"endpoint": "ep"}, "its capacity is no whole number from 1 on"),
    ({"endpoint": "ep", "capacity": 0}, "its capacity is no whole number from 1 on"),
    ({"endpoint": "ep", "capacity": True}, "its capacity is no whole number from 1 on"),
    ({"endpoint": "ep", "capacity": "2"}, "its capacity is no whole number from 1 on"),
    ({"endpoint": 5, "capacity": 1}, "its endpoint '5' does not exist"),
]


@pytest.mark.parametrize(
    ("key", "entry", "reason"),
    [
        *((keys.ADDED, *case) for case in ADDED),
        *((keys.PULLING, *case) for case in PULLING),
    ],
)
def test_an_entry_that_cannot_be_used_is_left_out_and_the_others_stay(
    registry, client, key, entry, reason
):
    registry.add("ep", {"url": "http://b:1", "id": "good"})
    client.hset(key, "x", entry if isinstance(entry, str) else json.dumps(entry))
    client.hset(keys.PULLING, "puller", '{"endpoint": "ep", "capacity": 2}')
    workers, left_out = state(registry)
    assert workers == ["w", "good", "puller"]
    assert list(left_out) == ["x"]
    assert left_out["x"].startswith(reason)
    assert len(left_out["x"]) <= 300


@pytest.mark.parametrize("worker_id", ["housekeeping", "a b", "", "a\nb", "x" * 256])
def test_an_id_that_cannot_be_used_is_left_out(registry, client, worker_id):
    client.hset(keys.ADDED, worker_id, json.dumps({**GOOD, "id": worker_id}))
    client.hset(keys.PULLING, worker_id, '{"endpoint": "ep", "capacity": 2}')
    workers, left_out = state(registry)
    assert workers == ["w"]
    assert left_out == {worker_id: "its id cannot be used"}


@pytest.mark.slow
def test_whatever_redis_has_in_the_hashes_the_configured_workers_stay(registry, client):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    )
    names = st.sampled_from(
        [
            "endpoint",
            "url",
            "id",
            "capacity",
            "headers",
            "verifyTls",
            "caBundle",
            "kind",
            "key",
            "x",
        ]
    )
    entries = st.dictionaries(
        names, st.sampled_from(["ep", URL, "x", 1, {}, True, "pull", "push"]) | values
    )
    texts = entries.map(json.dumps) | st.text(max_size=20)

    @hypothesis_settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.dictionaries(st.sampled_from(["x", "y"]), texts), texts, texts)
    def check(added, pulling, managed):
        client.delete(keys.ADDED)
        if added:
            client.hset(keys.ADDED, mapping=added)
        client.hset(keys.MANAGED_ENTRIES, "m", managed)
        client.hset(keys.PULLING, "z", pulling)
        workers, _ = state(registry)
        assert workers[0] == "w"
        left_out = {e.id for name in ("ep", "other") for e in registry.left_out(name)}
        # One that is pushed to and has no URL yet is in neither.
        assert {"m"} | {w.id for w in registry.workers()} | left_out == {"m", "w", "z", *added}

    check()


@pytest.mark.parametrize("key", [keys.ADDED, keys.PULLING])
def test_a_key_that_is_no_hash_leaves_its_workers_out(registry, client, key, caplog):
    client.set(key, "text")
    assert state(registry) == (["w"], {})
    assert "is no hash" in caplog.text


def test_a_ca_bundle_is_not_checked_by_the_registry(registry):
    registry.add("ep", {"url": "https://b:1", "id": "x", "caBundle": "/none/ca.pem"})
    assert state(registry) == (["w", "x"], {})
    assert registry.worker("x").ca_bundle == "/none/ca.pem"


def test_an_entry_is_logged_once_for_each_change(registry, client, caplog):
    caplog.set_level(logging.WARNING)

    def lines():
        state(registry)
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    client.hset(keys.ADDED, "x", "{")
    assert len(lines()) == 1
    assert lines() == []
    # Another worker comes, the entry is as it was.
    registry.add("ep", {"url": "http://b:1"})
    assert lines() == []
    client.hset(keys.ADDED, "x", "[]")
    assert lines() == ["worker 'x' of run time is left out: its entry in Redis is no JSON object"]


def test_the_api_lists_workers_that_are_left_out_and_removes_them(api, client):
    client.hset(keys.ADDED, "x", json.dumps({**GOOD, "capacity": 0}))
    client.hset(keys.ADDED, "nowhere", "{}")
    services_of(api.application).registry.refresh()
    listed = api.get("/v2/ep/workers").json
    assert [w["id"] for w in listed["workers"]] == ["w"]
    assert {e["id"]: e["reason"] for e in listed["leftOut"]} == {
        "x": "capacity: must be a whole number from 1 to 1000",
        "nowhere": "its endpoint 'None' does not exist",
    }
    assert api.get("/v2/ep/health").json["ownpod"]["leftOut"] == listed["leftOut"]
    assert [e["id"] for e in api.get("/v2/other/workers").json["leftOut"]] == ["nowhere"]
    assert api.delete("/v2/other/workers/x").status_code == 404
    assert api.delete("/v2/ep/workers/x").json == {"id": "x", "removed": True}
    assert api.delete("/v2/other/workers/nowhere").status_code == 200
    assert api.get("/v2/ep/workers").json["leftOut"] == []


def test_a_worker_that_is_left_out_is_mended_by_adding_it_again(registry, client):
    client.hset(keys.ADDED, "x", "{")
    assert state(registry)[0] == ["w"]
    registry.add("ep", {"url": URL, "id": "x"})
    assert state(registry) == (["w", "x"], {})
    with pytest.raises(WorkerNotFound):
        registry.remove("none")


@pytest.mark.parametrize(("state", "held"), [("dreaming", "0"), ("ready", "some"), ("ready", "")])
def test_a_status_that_cannot_be_read_is_unhealthy_or_ready_and_no_error(api, client, state, held):
    client.hset(keys.worker("w"), mapping={"state": state, "held": held})
    (worker,) = api.get("/v2/ep/health").json["ownpod"]["workers"]
    assert worker["state"] == ("ready" if (state, held) == ("ready", "") else "unhealthy")
