"""The metrics, and that the dashboard queries only metrics that exist."""

import json
import re

import pytest
from helpers import ROOT, job_store, load_settings, new_job, now_ms
from prometheus_client.parser import text_string_to_metric_families

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.devices import STATES
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device, Phase
from ownpod.rules.runs import Outcome
from ownpod.rules.sharing import Evict, Victim
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.deliveries import Deliveries
from ownpod.store.managed import Managed

WORKERS = "endpoints: {ep: {workers: [{url: 'http://a:1', id: w, capacity: 2}]}, other: {}}"

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
SPEC = ManagedSpec(Template(command=("python", "w.py")), gpu=GpuNeed())
STAND_IN = Device("cpu-0", 0, "CPU", simulated=True)
GPU = Device(
    *("GPU-1", 1, "NVIDIA GeForce RTX 4090", 24 * 1024),
    problem="used by another program: game",
    metrics={"memory_used_mb": 1024, "utilization_percent": 37},
)


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
            if labels.pop("endpoint", "ep") == "ep":
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


@pytest.fixture
def managed(client):
    return Managed(client)


def place(client, managed, worker_id=W, **more):
    Agents(client).heartbeat(AgentInfo("h", "process", (STAND_IN, GPU), **more), "t")
    assert managed.want(worker_id, "ep", spec=SPEC)
    assert managed.place(worker_id, "h", "t", ["cpu-0"])


def test_managed_workers_are_counted_by_phase_and_not_by_their_nodes_status(api, client, managed):
    place(client, managed)
    assert managed.want(X, "ep", spec=SPEC)
    services_of(api.application).registry.refresh()
    found = samples(api)
    assert found["ownpod_managed_workers", "preparing"] == 1
    assert found["ownpod_managed_workers", "wanted"] == 1
    assert found["ownpod_managed_workers", "ready"] == 0
    assert ("ownpod_managed_workers", "stopped") not in found
    # The other worker of `ep` has no node, and is not managed.
    assert found["ownpod_workers", "initializing"] == 1
    assert found["ownpod_workers", "unhealthy"] == 1
    assert managed.ready(W)
    found = samples(api)
    assert found["ownpod_managed_workers", "ready"] == 1
    assert found["ownpod_workers", "unhealthy"] == 2


def test_an_endpoint_without_managed_workers_has_no_metrics_of_them(api):
    assert not any("managed" in name or "cold" in name for name, *_ in samples(api))


def test_a_cold_start_is_measured_once_by_part(api, client, managed):
    place(client, managed)
    record = keys.managed(W)
    created_ms = int(client.hget(record, "created_ms")) - 100_000
    client.hset(record, mapping={"created_ms": created_ms, "placed_ms": created_ms + 40})
    assert managed.set_key(W, "h", "0" * 64)
    client.hset(record, "prepared_ms", created_ms + 40 + 7000)
    assert managed.started(W, "h")
    client.hset(record, "started_ms", created_ms + 40 + 7000 + 200)
    assert managed.ready(W)
    # A second first request, from another API process, counts nothing.
    assert not managed.ready(W)
    found = samples(api)
    for part, below, end, duration_s in (
        ("device", "0.025", "0.05", 0.04),
        ("prepare", "5.0", "10.0", 7),
        ("create", "0.1", "0.25", 0.2),
    ):
        assert found["ownpod_cold_start_seconds_bucket", below, part] == 0
        assert found["ownpod_cold_start_seconds_bucket", end, part] == 1
        assert found["ownpod_cold_start_seconds_count", part] == 1
        assert found["ownpod_cold_start_seconds_sum", part] == duration_s
    assert found["ownpod_cold_start_seconds_sum", "import"] > 90
    assert found["ownpod_managed_failed_starts_total",] == 0


def test_workers_that_gave_way_are_counted_by_the_endpoint_that_got_their_devices(
    api, client, managed
):
    place(client, managed)
    assert managed.started(W, "h")
    assert managed.ready(W)
    assert managed.want(X, "other", spec=SPEC)
    choice = Evict("h", (Victim(W, "ep", "its device goes to other"),), ("cpu-0#0",), "")
    assert managed.evict(choice, X)
    assert samples(api)["ownpod_worker_swaps_total", "other"] == 1


def test_a_worker_that_is_ready_before_its_start_is_recorded_has_no_such_part(api, client, managed):
    place(client, managed)
    assert managed.ready(W)
    found = samples(api)
    assert found["ownpod_cold_start_seconds_count", "device"] == 1
    for part in ("prepare", "create", "import"):
        assert found["ownpod_cold_start_seconds_count", part] == 0


def test_failed_starts_are_counted_and_ends_after_ready_are_not(api, client, managed):
    end = {"exit_code": 3, "reason": "it ended", "failed": True, "log": ""}
    place(client, managed)
    assert managed.stopped(W, "h", **end)
    place(client, managed, X)
    assert managed.ready(X)
    assert managed.stopped(X, "h", **end)
    found = samples(api)
    assert found["ownpod_managed_failed_starts_total",] == 1
    assert sum(found["ownpod_managed_workers", phase] for phase in list(Phase)[:-1]) == 0


def test_devices_are_counted_by_state_and_gpus_have_their_figures(api, client, managed):
    place(client, managed)
    found = samples(api)
    states = {state: found["ownpod_devices", "h", state] for state in STATES}
    assert states == dict.fromkeys(STATES, 0) | {"busy": 1, "unusable": 1}
    assert found["ownpod_device_memory_bytes", "GPU-1", "h"] == 24 * 1024**3
    assert found["ownpod_device_memory_used_bytes", "GPU-1", "h"] == 1024**3
    assert found["ownpod_device_utilization_ratio", "GPU-1", "h"] == 0.37
    assert ("ownpod_device_power_watts", "GPU-1", "h") not in found
    assert not any(name[1:] == ("cpu-0", "h") for name in found)
    client.hset(keys.AGENTS_SEEN, "h", "1000 t")
    found = samples(api)
    assert found["ownpod_devices", "h", "silent"] == 2
    assert found["ownpod_host_silent_seconds", "h"] > 60
    assert ("ownpod_device_memory_used_bytes", "GPU-1", "h") not in found


def test_the_dashboard_asks_for_what_there_is(api):
    # Only endpoints with such replies have these metrics.
    services_of(api.application).replies.add("ep", first_s=0.1, rate=20.0)
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
