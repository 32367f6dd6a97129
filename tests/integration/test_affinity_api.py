"""Jobs that name their worker: where they wait, and what becomes of them when it leaves."""

import pytest
from helpers import job_store, load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.broker import names
from ownpod.configuration import load_endpoints
from ownpod.housekeeping.left_pins import LeftPins
from ownpod.housekeeping.scaler import Scaler
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Phase
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed

FILE = """
endpoints:
  ep: {workers: [{url: "http://127.0.0.1:1", id: a, capacity: 2}, {url: "http://127.0.0.1:2", id: b}]}
  other: {workers: [{url: "http://127.0.0.1:3", id: c}]}
  made: {template: {command: python handler.py}}
"""
SHARED = names.endpoint_queue("ep")
HEADER = "X-Runpod-Worker-Id"
M = "mmmmmmmmmmmmmm"


@pytest.fixture
def settings(redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(FILE)
    return load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file)


@pytest.fixture
def api(client, settings):
    app = create_app(settings)
    yield app.test_client()
    services_of(app).notices.stop()


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def managed(client):
    return Managed(client)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pins(client, store, settings, managed, clock):
    registry = Registry(load_endpoints(settings), Fleet(client), settings)
    return LeftPins(registry, store.queue, managed, patience_s=2, clock=clock)


def own(worker, endpoint="ep"):
    return names.worker_queue(endpoint, worker)


def run(api, pin, endpoint="ep", path="run"):
    return api.post(f"/v2/{endpoint}/{path}", json={"input": {}}, headers={HEADER: pin})


def queue_of(client, answer):
    assert answer.status_code == 200, answer.json
    return client.hget(keys.job(answer.json["id"]), "queue")


def publish(client, worker, state=WorkerState.READY, held=0):
    status = WorkerStatus(state, "", held)
    Fleet(client).publish_status(worker, status, node=f"{worker}@host", ttl_s=60)


def claim(store, job_id, worker="a", token="t"):
    return store.jobs.claim(job_id, worker_id=worker, claim=token, lease_s=60)


def test_a_strict_job_waits_in_its_workers_own_queue_also_while_that_is_busy(api, client):
    for _ in range(4):
        assert queue_of(client, run(api, "strict b")) == own("b")
    assert (client.llen(own("b")), client.llen(SHARED)) == (4, 0)


@pytest.mark.parametrize("pin", ["strict z", "strict c", "strict-resume z", f"strict-resume {M}"])
@pytest.mark.parametrize("path", ["run", "runsync"])
def test_a_strict_job_for_a_worker_that_is_not_the_endpoints_is_refused(api, client, pin, path):
    answer = run(api, pin, path=path)
    assert answer.status_code == 404
    assert answer.json["reason"] == "affinity_worker_gone"
    assert (answer.json["status"], answer.json["title"]) == (404, "Not Found")
    assert client.zcard(keys.queued("ep")) == 0


@pytest.mark.parametrize("pin", ["strict", "strict a b", "a b", "strict a.b", "../a"])
def test_a_header_of_another_form_is_refused_with_the_forms(api, pin):
    answer = run(api, pin)
    assert answer.status_code == 400
    assert "strict-resume <id>" in answer.json["error"]


def test_an_empty_header_names_no_worker(api, client):
    assert queue_of(client, run(api, "")) == SHARED


def test_a_soft_job_waits_for_its_worker_only_while_that_has_a_free_slot(api, client, store):
    # Nothing is known of the worker yet, so it may not be there.
    assert queue_of(client, run(api, "a")) == SHARED
    publish(client, "a")
    first, second = run(api, "a"), run(api, "a")
    assert queue_of(client, first) == queue_of(client, second) == own("a")
    # Both slots are taken by waiting jobs, then by running ones.
    assert queue_of(client, run(api, "a")) == SHARED
    one, two = (claim(store, answer.json["id"]) for answer in (first, second))
    assert queue_of(client, run(api, "a")) == SHARED
    store.jobs.finish(one, Outcome(JobStatus.COMPLETED))
    assert queue_of(client, run(api, "a")) == own("a")
    store.jobs.finish(two, Outcome(JobStatus.COMPLETED))


@pytest.mark.parametrize("state", [WorkerState.PAUSED, WorkerState.UNHEALTHY, WorkerState.BUSY])
def test_a_soft_job_goes_elsewhere_if_its_worker_takes_no_jobs(api, client, state):
    publish(client, "a", state)
    assert queue_of(client, run(api, "a")) == SHARED
    publish(client, "a", held=2)
    assert queue_of(client, run(api, "a")) == SHARED
    assert queue_of(client, run(api, "z")) == SHARED


def test_a_soft_job_that_its_worker_does_not_take_waits_for_any_worker(api, client, store):
    publish(client, "a")
    job = run(api, "a").json["id"]
    assert store.queue.release_preferring(limit=9) == 0
    client.zadd(keys.PREFERRING, {job: 0})
    assert store.queue.release_preferring(limit=9) == 1
    assert (client.llen(own("a")), client.llen(SHARED)) == (0, 1)
    assert client.exists(keys.of_endpoint("ep", "pinned"), keys.PREFERRING) == 0
    assert store.queue.release_preferring(limit=9) == 0
    assert claim(store, job, "b").worker_id == "b"


def test_a_soft_job_that_is_requeued_waits_for_any_worker(api, client, store):
    publish(client, "a")
    job = run(api, "a").json["id"]
    assert claim(store, job, "b") is None
    client.delete(own("a"))
    attempt = claim(store, job)
    store.jobs.requeue(job, attempt.number, lost=False, reason="it was killed")
    assert (client.llen(own("a")), client.llen(SHARED)) == (0, 1)
    assert client.exists(keys.PREFERRING, keys.DELAYED) == 0
    assert claim(store, job, "b", "2").number == 2


def test_the_answer_has_the_worker_that_ran_the_job(api, client, store):
    job = run(api, "strict a").json["id"]
    answer = api.get(f"/v2/ep/status/{job}")
    assert HEADER not in answer.headers
    assert answer.json["waitingReason"].startswith("it waits for worker a, which it names; no ")
    store.jobs.finish(claim(store, job), Outcome(JobStatus.COMPLETED, output="1"))
    for path in (f"status/{job}", f"status-sync/{job}"):
        assert api.get(f"/v2/ep/{path}").headers[HEADER] == "a"


def test_jobs_whose_worker_has_left_fail_with_runpods_reason(api, client, store, pins, clock):
    services_of(api.application).registry.add("ep", {"url": "http://127.0.0.1:9", "id": "x"})
    left = [run(api, "strict x").json["id"] for _ in range(2)]
    stays = run(api, "strict a").json["id"]
    pins.once()
    services_of(api.application).registry.remove("x")
    pins._registry.refresh()
    pins.once()
    # The entry of a worker may be late.
    assert store.jobs.get(left[0], "ep").status is JobStatus.IN_QUEUE
    clock.now = 3
    pins.once()
    for job in left:
        found = store.jobs.get(job, "ep")
        assert found.status is JobStatus.FAILED
        assert found.error.startswith("affinity_worker_gone: worker 'x'")
    assert store.jobs.get(stays, "ep").status is JobStatus.IN_QUEUE
    assert client.llen(own("x")) == 0
    assert run(api, "strict x").status_code == 404


def test_a_worker_with_a_node_elsewhere_has_not_left(api, client, store, pins, clock):
    services_of(api.application).registry.add("ep", {"url": "http://127.0.0.1:9", "id": "x"})
    job = run(api, "strict x").json["id"]
    services_of(api.application).registry.remove("x")
    publish(client, "x")
    for clock.now in (1, 5, 9):
        pins.once()
    assert store.jobs.get(job, "ep").status is JobStatus.IN_QUEUE


def test_a_worker_that_comes_again_in_time_keeps_its_jobs(api, store, pins, clock):
    registry = services_of(api.application).registry
    registry.add("ep", {"url": "http://127.0.0.1:9", "id": "x"})
    job = run(api, "strict x").json["id"]
    registry.remove("x")
    pins.once()
    registry.add("ep", {"url": "http://127.0.0.1:9", "id": "x"})
    clock.now = 3
    pins._registry.refresh()
    pins.once()
    registry.remove("x")
    clock.now = 4
    pins._registry.refresh()
    pins.once()
    assert store.jobs.get(job, "ep").status is JobStatus.IN_QUEUE


# --- workers that OwnPod starts


def stopped(api, client, managed, **fields):
    """A managed worker that was ready and has been stopped."""
    spec = services_of(api.application).registry.endpoint("made").managed
    assert managed.want(M, "made", spec=spec)
    values = {"phase": Phase.STOPPED, "ready_ms": 1, "stopped_ms": 2} | fields
    client.hset(keys.managed(M), mapping=values)
    client.zrem(keys.MANAGED, M)


def test_a_strict_job_waits_for_a_worker_that_is_on_its_way(api, client, managed, pins, clock):
    spec = services_of(api.application).registry.endpoint("made").managed
    managed.want(M, "made", spec=spec)
    job = run(api, f"strict {M}", "made").json["id"]
    for clock.now in (1, 5, 9):
        pins.once()
    assert client.hget(keys.job(job), "status") == JobStatus.IN_QUEUE
    assert client.smembers(keys.resumes("made")) == set()


def test_strict_resume_reports_a_stopped_worker_to_the_scaler(api, client, managed, pins, clock):
    stopped(api, client, managed)
    assert run(api, f"strict {M}", "made").status_code == 404
    assert run(api, M, "made").status_code == 200
    job = run(api, f"strict-resume {M}", "made").json["id"]
    assert client.smembers(keys.resumes("made")) == {M}
    for clock.now in (1, 5, 9):
        pins.once()
    assert client.smembers(keys.resumes("made")) == {M}
    assert client.hget(keys.job(job), "status") == JobStatus.IN_QUEUE
    api.post(f"/v2/made/cancel/{job}")
    pins.once()
    assert client.smembers(keys.resumes("made")) == set()


def test_strict_resume_without_a_chance_is_refused(api, client, managed):
    stopped(api, client, managed, failed=1)
    assert run(api, f"strict-resume {M}", "made").status_code == 404
    client.hset(keys.managed(M), mapping={"failed": 0, "release": "older"})
    assert run(api, f"strict-resume {M}", "made").status_code == 404
    assert client.smembers(keys.resumes("made")) == set()


def test_only_strict_resume_jobs_outlive_their_worker(api, client, store, managed, pins, clock):
    spec = services_of(api.application).registry.endpoint("made").managed
    managed.want(M, "made", spec=spec)
    strict = run(api, f"strict {M}", "made").json["id"]
    resume = run(api, f"strict-resume {M}", "made").json["id"]
    client.hset(keys.managed(M), mapping={"phase": Phase.STOPPED, "ready_ms": 1, "stopped_ms": 2})
    for clock.now in (1, 5):
        pins.once()
    assert store.jobs.get(strict, "made").status is JobStatus.FAILED
    assert store.jobs.get(resume, "made").status is JobStatus.IN_QUEUE
    assert client.smembers(keys.resumes("made")) == {M}
    # The second life ends badly: the worker does not come again.
    client.hset(keys.managed(M), "failed", 1)
    pins.once()
    assert store.jobs.get(resume, "made").status is JobStatus.FAILED
    pins.once()
    assert client.smembers(keys.resumes("made")) == set()


def test_the_scaler_starts_a_stopped_worker_again_and_keeps_it_until_it_has_the_job(
    api, client, managed, settings
):
    registry = Registry(load_endpoints(settings), Fleet(client), settings)
    spec = registry.endpoint("made").managed
    scaler = Scaler(registry, managed, Agents(client), Wakeups(client))
    Agents(client).heartbeat(AgentInfo("h", "process", ()), "h:1")

    def start():
        assert managed.place(M, "h", "h:1", [])
        assert managed.started(M, "h")
        assert managed.ready(M)

    assert managed.want(M, "made", spec=spec)
    start()
    managed.drain(M, "it was idle")
    assert managed.stopped(M, "h", exit_code=0, reason="it was idle", failed=False)
    scaler.once()
    assert managed.list("made") == []
    job = run(api, f"strict-resume {M}", "made").json["id"]
    for _ in range(3):
        scaler.once()
        # No other job waits, so that without the wish it would be discarded.
        assert [(w.id, w.phase) for w in managed.list("made")] == [(M, Phase.WANTED)]
    start()
    assert client.hget(keys.job(job), "queue") == own(M, "made")
