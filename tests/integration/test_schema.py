"""Records of another schema version: each process reports them, and writes nothing."""

import logging
import threading

import pytest
from helpers import job_store, load_settings, new_job, wait_until

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.errors import RedisUnavailable, SchemaMismatch
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import Sweep
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.fleet import Fleet
from ownpod.store.offers import Offers
from ownpod.store.schema import VERSION


@pytest.fixture
def store(client):
    return job_store(client)


def everything(client):
    return {name: client.dump(name) for name in client.scan_iter()}


def test_a_redis_without_a_version_gets_one_with_the_first_script(store, client):
    client.hset(keys.job("old"), mapping=new_job("old", created_ms=5).record())
    store.jobs.cancel("old", "ep", reason="x")
    assert client.get(keys.SCHEMA) == str(VERSION)


@pytest.mark.parametrize("version", ["1", "3", "9.1", ""])
def test_with_another_version_no_script_changes_anything(store, client, version):
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=0.01)
    client.set(keys.SCHEMA, version)
    before = everything(client)
    registry = Registry({}, Fleet(client), load_settings())
    pulls = Offers(client, gone_s=0)
    status = WorkerStatus(WorkerState.READY)
    for call in (
        lambda: store.jobs.create(new_job("job-2")),
        lambda: store.jobs.renew([attempt], lease_s=15),
        lambda: store.queue.purge("ep", reason="x"),
        lambda: pulls.take("w", "ep", "t", limit=1, in_progress=False),
        lambda: registry.fleet.acquire("w", "n", ttl_s=5),
        lambda: registry.fleet.heartbeat(
            "w", status, process="p", node="n", own_s=5, ttl_s=5, queues=["ownpod.ep"]
        ),
        lambda: registry.fleet.pause("w", "x"),
        lambda: registry.fleet.publish_status("w", status, node="n", ttl_s=5),
    ):
        with pytest.raises(SchemaMismatch, match=f"version {version}, this OwnPod supports"):
            call()
    assert everything(client) == before


def test_the_sweep_of_another_version_waits(store, client):
    store.jobs.create(new_job())
    store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=0.01)
    wait_until(lambda: store.queue.expired(limit=1))
    client.set(keys.SCHEMA, "3")
    before = everything(client)
    sweep = Sweep(
        store, Recovery(store, lambda: ["ep"], lease_s=1), Offers(client, gone_s=0), lease_s=1
    )
    with pytest.raises(RedisUnavailable, match="schema version 3"):
        sweep.once()
    with pytest.raises(RedisUnavailable, match="schema version 3"):
        sweep._is_mine()
    assert everything(client) == before
    client.set(keys.SCHEMA, str(VERSION))
    sweep.once()
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_QUEUE


@pytest.mark.parametrize("path", ["/health", "/v2/local-ep/status/x", "/v2/local-ep/health"])
def test_the_api_answers_503_with_a_sentence(redis_server, client, path):
    client.set(keys.SCHEMA, "3")
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://w:1"))
    answer = app.test_client().get(path)
    services_of(app).notices.stop()
    assert answer.status_code == 503
    assert "schema version 3" in answer.json["error"]
    assert answer.headers["Retry-After"]


@pytest.mark.slow
def test_a_process_that_waits_logs_one_line_and_continues_when_the_versions_agree(
    store, client, caplog
):
    client.set(keys.SCHEMA, "3")
    with caplog.at_level(logging.ERROR):
        waits = threading.Thread(target=store.schema.wait, daemon=True)
        waits.start()
        wait_until(lambda: caplog.records)
        assert waits.is_alive()
        client.delete(keys.SCHEMA)
        waits.join(60)
    assert not waits.is_alive()
    (line,) = caplog.messages
    assert "schema version 3" in line
