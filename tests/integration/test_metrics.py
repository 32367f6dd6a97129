"""What is measured, and that the dashboard asks for what there is."""

import json
import re

import pytest
from helpers import ROOT, job_store, load_settings, new_job, now_ms
from prometheus_client.parser import text_string_to_metric_families

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store.deliveries import Deliveries

WORKERS = "endpoints: {ep: {workers: [{url: 'http://a:1', id: w, capacity: 2}]}, other: {}}"


@pytest.fixture
def api(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(WORKERS)
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    yield app.test_client()
    services_of(app).notices.stop()


@pytest.fixture
def store(client):
    return job_store(client)


def samples(api):
    """Values by name and labels; "ep" is left out."""
    found = {}
    for family in text_string_to_metric_families(api.get("/metrics").get_data(as_text=True)):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("endpoint") == "ep":
                found[sample.name, *labels.values()] = sample.value
    return found


def finish(store, job_id, outcome, created_ms):
    store.jobs.create(new_job(job_id, created_ms=created_ms))
    attempt = store.jobs.claim(job_id, worker_id="w", claim=job_id, lease_s=60)
    assert store.jobs.finish(attempt, outcome)


def test_jobs_are_counted_and_timed(api, store):
    created_ms = now_ms() - 2000
    finish(store, "a", Outcome(JobStatus.COMPLETED, execution_ms=40), created_ms)
    finish(store, "b", Outcome(JobStatus.FAILED, error="x", execution_ms=99_000_000), created_ms)
    store.jobs.create(new_job("c", created_ms=created_ms))
    store.jobs.create(new_job("d"))
    store.jobs.claim("d", worker_id="w", claim="d", lease_s=60)
    found = samples(api)
    assert found["ownpod_jobs_submitted_total",] == 4
    assert found["ownpod_jobs_ended_total", "COMPLETED"] == 1
    assert found["ownpod_jobs_ended_total", "FAILED"] == 1
    assert found["ownpod_jobs", "IN_QUEUE"] == found["ownpod_jobs", "IN_PROGRESS"] == 1
    assert found["ownpod_attempts_total",] == 3
    assert 2 <= found["ownpod_queue_oldest_seconds",] < 20
    assert found["ownpod_execution_seconds_bucket", "0.025"] == 0
    assert found["ownpod_execution_seconds_bucket", "0.05"] == 1
    assert found["ownpod_execution_seconds_bucket", "3600.0"] == 1
    assert found["ownpod_execution_seconds_count",] == 2
    assert found["ownpod_execution_seconds_sum",] == 99_000.04
    assert found["ownpod_delay_seconds_bucket", "1.0"] == 1
    assert found["ownpod_delay_seconds_count",] == 3
    assert found["ownpod_worker_jobs", "w"] == 1
    assert found["ownpod_worker_capacity", "w"] == 2
    assert found["ownpod_workers", "unhealthy"] == 1


def test_retries_lost_attempts_and_webhooks_are_counted(api, store, client):
    store.jobs.create(new_job("a", webhook="http://a/"))
    store.jobs.claim("a", worker_id="w", claim="x", lease_s=60)
    store.jobs.requeue("a", 1, lost=True, reason="gone")
    store.jobs.cancel("a", "ep", reason="by hand")
    deliveries = Deliveries(client, store.messages)
    for token, again_s, result in [("1", 0, "failed"), ("2", None, "delivered")]:
        made = deliveries.claim("a", token)
        options = {"again_s": again_s, "result": result, "result_ttl_s": 60}
        assert deliveries.settle(made, {"try": made.number}, **options)
    found = samples(api)
    assert (found["ownpod_attempts_lost_total",], found["ownpod_jobs_retried_total",]) == (1, 1)
    assert found["ownpod_webhooks_total", "failed"] == 1
    assert found["ownpod_webhooks_total", "delivered"] == 1
    assert found["ownpod_webhooks_total", "given_up"] == 0


def test_the_dashboard_asks_for_what_there_is(api):
    text = api.get("/metrics").get_data(as_text=True)
    known = {
        (sample.name, label)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for label in ("", *sample.labels)
    }
    board = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) > 15
    for query in asked:
        names = re.findall(r"ownpod_[a-z_]+", query)
        assert names
        labels = re.findall(r"([a-z]+)=~?\"", query)
        labels += [
            part.strip() for by in re.findall(r"by \(([^)]*)\)", query) for part in by.split(",")
        ]
        for name in names:
            assert {(name, label) for label in ("", *labels)} <= known, query
