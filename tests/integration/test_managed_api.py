"""Endpoints with templates and managed workers, as the API answers them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from helpers import job_store, new_job, wait_until

from ownpod.api.jobs.waiting import Waiting
from ownpod.api.services import provide, services_of
from ownpod.errors import EndpointPaused, RedisUnavailable
from ownpod.rules.credentials import digest_of
from ownpod.rules.endpoints import WorkerKind, WorkerSource, pull_worker
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, ManagedWorker, Phase
from ownpod.rules.releases import Release, RolledOut, Rollout
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers

# They take a tenth of the time of all fast tests.
pytestmark = pytest.mark.slow

A, B, C = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc"
OWN = {A: "key-of-a", B: "key-of-b"}
FILE = """
endpoints:
  ep: {maxWorkers: 1, workersMax: 3, template: {command: python handler.py}}
  paused: {workersMax: 0, template: {command: python handler.py}}
  expired: {expires: 2026-01-02T03:04:05Z, template: {command: python handler.py}}
  closed:
    hours: [{from: "00:00", to: "24:00", workersMax: 0}]
    template: {command: python handler.py}
  other: {}
  balanced: {type: LB, template: {command: python app.py}}
"""
NOW_MS = 60_000
KEYED = {
    "OWNPOD_WORKER_KEYS": "worker-key",
    "OWNPOD_API_KEYS": "api-key",
    "OWNPOD_ADMIN_KEYS": "admin-key",
}
PAUSED = {
    "status": 409,
    "title": "Conflict",
    "detail": "Endpoint is paused (max_workers=0). Set max_workers > 0 to accept work.",
    "code": "ENDPOINT_PAUSED",
}

FAILING = (
    "its workers do not start, the last {} starts in a row have failed: "
    "it ended before it asked for a job, exit code 1"
)


@dataclass
class Failed:
    count: int
    pause_s: float
    release: str = ""
    reason: str = "it ended before it asked for a job"
    exit_code: int | None = 1
    log: str = ""
    worker: str = A


class Records:
    """The records of managed workers."""

    def __init__(self):
        self.reported, self.found, self.failed, self.problem = [], [], None, None
        self.stopped, self.release = [], ""
        self.releases = RolledOut()

    def ready(self, worker_id):
        if self.problem is not None:
            raise self.problem
        self.reported.append(worker_id)
        return True

    def list(self, endpoint):
        return [worker for worker in self.found if worker.endpoint == endpoint]

    def recent(self, endpoint):
        return [worker for worker in self.stopped if worker.endpoint == endpoint]

    def crashed(self, endpoint):
        return [worker for worker in self.recent(endpoint) if worker.ended_badly]

    def failures(self, endpoint):
        if self.failed is None or endpoint != "ep":
            return None
        return replace(self.failed, release=self.failed.release or self.release)

    def now_ms(self):
        return NOW_MS

    def rolled_out(self, endpoint):
        return self.releases


@pytest.fixture
def records():
    return Records()


@pytest.fixture
def make_api(new_app, records):
    def make(**environ):
        app = new_app(FILE, **environ)
        svc = services_of(app)
        records.release = svc.registry.endpoint("ep").managed.release
        waiting = Waiting(svc.registry, svc.offers.refusals, records)
        provide(app, replace(svc, managed=records, waiting=waiting))
        add(app, A, B)
        return app.test_client()

    return make


@pytest.fixture
def api(make_api):
    return make_api()


def add(app, *worker_ids, **changes):
    """Makes these the managed workers of the endpoint `ep`."""
    registry = services_of(app).registry
    workers = tuple(
        replace(
            pull_worker("ep", name, 1),
            source=WorkerSource.MANAGED,
            key_digest=digest_of(OWN[name]),
            **changes,
        )
        for name in worker_ids
    )
    endpoints = dict(registry.endpoints)
    registry.reload(endpoints | {"ep": replace(endpoints["ep"], workers=workers)})


def headers(key):
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def take(api, worker=A, key=OWN[A], endpoint="ep"):
    """A request for jobs that is answered at once, because a job is offered, or the request is refused."""
    return api.get(
        f"/v2/{endpoint}/job-take/{worker}?gpu=x&job_in_progress=1", headers=headers(key)
    )


def post(api, path, body, key):
    return api.post(f"/v2/ep/{path}", data=json.dumps(body), headers=headers(key))


def offer(client, worker=A, run="job-1"):
    Offers(client, gone_s=60).offer(
        worker, run, job_id=run, attempt=1, body=f'{{"id": "{run}", "input": {{}}}}', time_s=60
    )


def managed(phase, worker=A, **changes):
    values = {"id": worker, "endpoint": "ep", "release": "r1", "phase": phase, "created_ms": 1000}
    return ManagedWorker(**values | changes)


# A paused endpoint.


@pytest.mark.parametrize("path", ["run", "runsync"])
def test_a_paused_endpoint_refuses_jobs_in_runpods_words_before_it_reads_them(api, client, path):
    for body in (b'{"input": {}}', b"no JSON"):
        answer = api.post(f"/v2/paused/{path}", data=body)
        assert (answer.status_code, answer.json) == (409, PAUSED)
    assert client.llen("ownpod.paused") == 0


def test_a_paused_endpoint_answers_everything_but_new_jobs(api, client):
    store = job_store(client)
    store.jobs.create(new_job("job-1", endpoint="paused"))
    assert api.get("/v2/paused/status/job-1").json["waitingReason"] == (
        "the endpoint is paused: its workersMax is 0"
    )
    for path in ("health", "workers", "requests", "requests/job-1", "history"):
        assert api.get(f"/v2/paused/{path}").status_code == 200
    assert api.post("/v2/paused/cancel/job-1").json["status"] == "CANCELLED"
    assert api.post("/v2/paused/purge-queue").status_code == 200


@pytest.mark.parametrize(
    ("endpoint", "detail", "reason"),
    [
        (
            "expired",
            "It expired at 2026-01-02T03:04:05Z. Set a later `expires` to accept work.",
            "it expired at 2026-01-02T03:04:05Z",
        ),
        (
            "closed",
            "Its `hours` set workersMax to 0.",
            "its workersMax is 0 in its hours",
        ),
    ],
)
def test_an_endpoint_that_is_paused_by_time_says_why_and_keeps_its_jobs(
    make_api, client, records, endpoint, detail, reason
):
    api = make_api()
    # The clock of the records is after the expiry, too.
    records.now_ms = lambda: 1_800_000_000_000
    job_store(client).jobs.create(new_job("job-1", endpoint=endpoint))
    for path in ("run", "runsync"):
        answer = api.post(f"/v2/{endpoint}/{path}", data=b"no JSON")
        detail_of_runpod = f"Endpoint is paused (max_workers=0). {detail}"
        assert (answer.status_code, answer.json) == (409, PAUSED | {"detail": detail_of_runpod})
    job = api.get(f"/v2/{endpoint}/status/job-1").json
    assert (job["status"], job["waitingReason"]) == (
        "IN_QUEUE",
        f"the endpoint is paused: {reason}",
    )
    health = api.get(f"/v2/{endpoint}/health").json
    assert health["ownpod"]["paused"] == f"the endpoint is paused: {reason}"
    assert api.get("/v2/ep/health").json["ownpod"]["paused"] is None


def test_a_failed_job_of_a_paused_endpoint_is_not_retried(api, client):
    store = job_store(client)
    store.jobs.create(new_job("job-1", endpoint="paused"))
    attempt = store.jobs.claim("job-1", worker_id="w", claim="x", lease_s=60)
    store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="x"))
    answer = api.post("/v2/paused/retry/job-1")
    assert (answer.status_code, answer.json) == (409, PAUSED)
    assert api.get("/v2/paused/status/job-1").json["status"] == "FAILED"


def test_every_way_in_gets_the_error_of_a_paused_endpoint(api):
    submissions = services_of(api.application).submissions
    with pytest.raises(EndpointPaused, match="Endpoint is paused"):
        submissions.check_open("paused")


def test_the_document_has_both_shapes_of_the_409(api):
    document = api.get("/openapi.json").json
    for path in ("run", "runsync", "retry/{job_id}"):
        answer = document["paths"][f"/v2/{{endpoint_id}}/{path}"]["post"]["responses"]["409"]
        shapes = answer["content"]["application/json"]["schema"]["oneOf"]
        assert [shape["$ref"].rpartition("/")[2] for shape in shapes] == ["Error", "Paused"]
    assert set(document["components"]["schemas"]["Paused"]["required"]) == set(PAUSED)


# A managed worker's own key.


@pytest.mark.parametrize("environ", [{}, KEYED], ids=["open", "keyed"])
def test_a_managed_worker_is_let_in_with_its_own_key_only(make_api, client, environ):
    api = make_api(**environ)
    offer(client)
    for key in (None, "worker-key", "api-key", "admin-key", OWN[B], digest_of(OWN[A])):
        answer = take(api, A, key)
        assert answer.status_code == 429, key
        assert "its own key only" in answer.json["error"]
        assert api.get(f"/v2/ep/ping/{A}?job_id=job-1", headers=headers(key)).status_code == 401
        stop = api.get(f"/v2/ep/job-stop/{A}", headers=headers(key))
        assert stop.status_code == 429
    assert take(api).json["id"] == "job-1"
    assert api.get(f"/v2/ep/ping/{A}?job_id=job-1", headers=headers(OWN[A])).status_code == 200


@pytest.mark.parametrize("environ", [{}, KEYED], ids=["open", "keyed"])
def test_a_managed_workers_result_counts_under_its_own_key_only(make_api, client, environ):
    api = make_api(**environ)
    offer(client)
    assert take(api).json["id"] == "job-1"
    run = f"{keys.pull(A)}:run:job-1"
    for path in (f"job-done/{A}/job-1?isStream=false", f"job-stream/{A}/job-1"):
        for key in (None, "worker-key", OWN[B]):
            assert post(api, path, {"output": "forged"}, key).status_code == 503
    assert client.hget(run, "state") == "delivered"
    done = post(api, f"job-done/{A}/job-1?isStream=false", {"output": "mine"}, OWN[A])
    assert done.status_code == 200
    assert client.hmget(run, "state", "output") == ["done", '"mine"']


def test_a_managed_workers_key_opens_nothing_else(make_api):
    api = make_api(**KEYED)
    assert take(api, "another", OWN[A]).status_code == 429
    assert take(api, A, OWN[A], endpoint="other").status_code == 429
    for path in ("ep/health", "ep/workers", "other/health"):
        assert api.get(f"/v2/{path}", headers=headers(OWN[A])).status_code == 401
    assert api.post("/v2/ep/run", json={"input": {}}, headers=headers(OWN[A])).status_code == 401
    post_worker = api.post("/v2/ep/workers", json={}, headers=headers(OWN[A]))
    assert post_worker.status_code == 401
    assert api.get("/metrics", headers=headers(OWN[A])).status_code == 401


def test_a_managed_worker_without_a_key_is_not_let_in(api):
    add(api.application, A)
    registry = services_of(api.application).registry
    endpoint = registry.endpoint("ep")
    keyless = replace(endpoint.workers[0], key_digest=None)
    registry.reload(dict(registry.endpoints) | {"ep": replace(endpoint, workers=(keyless,))})
    for key in (None, OWN[A], ""):
        assert take(api, A, key).status_code == 429


def test_a_worker_that_has_left_the_registry_is_treated_as_any_other(make_api, client):
    api = make_api(**KEYED)
    add(api.application, B)
    answer = take(api)
    assert answer.status_code == 429
    assert "OWNPOD_WORKER_KEYS" in answer.json["error"]
    offer(client)
    assert take(api, key="worker-key").json["id"] == "job-1"


def test_a_managed_worker_that_is_pushed_to_gets_no_jobs_from_here(api):
    add(api.application, A, kind=WorkerKind.PUSH, url="http://127.0.0.1:9")
    answer = take(api)
    assert answer.status_code == 429
    assert "is the id of a worker at" in answer.json["error"]


def test_managed_workers_do_not_count_towards_max_workers(api, client):
    for worker in (A, B):
        offer(client, worker)
        assert take(api, worker, OWN[worker]).status_code == 200
    # The limit of the endpoint is 1.
    offer(client, "mine")
    assert take(api, "mine", None).json["id"] == "job-1"
    refused = take(api, "too-many", None)
    assert refused.status_code == 429
    assert "maxWorkers" in refused.json["error"]


def test_a_managed_worker_may_use_any_host_name_and_other_callers_may_not(api, client):
    offer(client)
    base = "http://ownpod.example.com:8000"
    path = f"/v2/ep/job-take/{A}?job_in_progress=1"
    assert api.get(path, base_url=base).status_code == 429
    assert api.get(path, base_url=base, headers=headers("wrong")).status_code == 429
    assert api.get("/v2/ep/health", base_url=base, headers=headers(OWN[A])).status_code == 403
    assert api.get(path, base_url=base, headers=headers(OWN[A])).json["id"] == "job-1"


# The first request, the drain, and the stop.


def test_only_the_first_request_of_a_managed_worker_is_reported(api, client, records):
    for number in range(3):
        offer(client, run=f"job-{number}")
        assert take(api).status_code == 200
    offer(client, B)
    assert take(api, B, OWN[B]).status_code == 200
    assert records.reported == [A, B]


def test_a_request_that_is_refused_is_no_first_request(api, records):
    assert take(api, A, OWN[B]).status_code == 429
    assert take(api, A, OWN[A], endpoint="other").status_code == 429
    assert records.reported == []


def test_a_first_request_that_could_not_be_reported_gets_no_job_and_is_reported_again(
    api, client, records
):
    offer(client)
    records.problem = RedisUnavailable()
    assert take(api).status_code == 429
    records.problem = None
    assert take(api).json["id"] == "job-1"
    assert records.reported == [A]


def test_a_draining_worker_gets_what_its_node_has_fetched(api, client):
    offer(client)
    add(api.application, A, draining=True)
    assert take(api).json["id"] == "job-1"
    done = post(api, f"job-done/{A}/job-1?isStream=false", {"output": 1}, OWN[A])
    assert done.status_code == 200
    assert client.hget(f"{keys.pull(A)}:run:job-1", "state") == "done"


def test_a_worker_that_is_stopped_gets_no_job_and_its_results_count(api, client, records):
    offer(client)
    assert take(api).json["id"] == "job-1"
    offer(client, run="job-2")
    add(api.application, A, draining=True, stopping=True)
    assert take(api).status_code == 204
    batch = f"/v2/ep/job-take-batch/{A}?batch_size=4&job_in_progress=1"
    assert api.get(batch, headers=headers(OWN[A])).status_code == 204
    assert records.reported == [A]
    done = post(api, f"job-done/{A}/job-1?isStream=false", {"output": 1}, OWN[A])
    assert done.status_code == 200
    assert client.hget(f"{keys.pull(A)}:run:job-1", "state") == "done"
    assert client.hget(f"{keys.pull(A)}:run:job-2", "state") == "offered"


@pytest.fixture
def no_checks(monkeypatch):
    """Held requests wake as behind a real connection: a test's has none, and is checked every second."""
    monkeypatch.setattr("ownpod.api.workers.held.CHECK_S", float("inf"))


@pytest.mark.usefixtures("no_checks")
@pytest.mark.parametrize("notice", [True, False], ids=["with a notice", "with a missed notice"])
def test_the_held_request_of_a_worker_that_is_stopped_is_answered_204(api, client, notice):
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(take, api)
        wait_until(lambda: client.hget(keys.pull(A), "take"), what="the request is held")
        add(api.application, A, draining=True, stopping=True)
        if notice:
            client.publish(keys.PULL_EVENTS, f"take:{A} LOOK")
        # Of a worker that is not stopped it is held for 20 s.
        assert held.result(18).status_code == 204
    # Its node requeues what it offers, and does not wait for the worker.
    assert client.hget(keys.pull(A), "take") is None


@pytest.mark.usefixtures("no_checks")
@pytest.mark.parametrize("notice", [True, False], ids=["with a notice", "with a missed notice"])
def test_the_held_request_for_stops_of_a_worker_that_is_stopped_is_answered_204(
    api, client, monkeypatch, notice
):
    held, offers = threading.Event(), services_of(api.application).offers

    def stops(worker_id, endpoint_id):
        held.set()
        return Offers.stops(offers, worker_id, endpoint_id)

    monkeypatch.setattr(offers, "stops", stops)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.get, f"/v2/ep/job-stop/{A}", headers=headers(OWN[A]))
        assert held.wait(60)
        add(api.application, A, draining=True, stopping=True)
        if notice:
            client.publish(keys.PULL_EVENTS, f"stop:{A} LEAVE")
        # Of a worker that is not stopped it is held for 20 s.
        assert answer.result(18).status_code == 204


def test_a_notice_that_is_no_stop_leaves_the_request_held(api, client):
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(take, api)
        wait_until(lambda: client.hget(keys.pull(A), "take"), what="the request is held")
        asked = client.hget(keys.pull(A), "asked_ms")
        client.publish(keys.PULL_EVENTS, f"take:{A} LOOK")
        wait_until(lambda: client.hget(keys.pull(A), "asked_ms") != asked)
        assert not held.done()
        offer(client)
        assert held.result(60).json["id"] == "job-1"


# States and reasons.


def publish(client, worker, state, **changes):
    status = WorkerStatus(state, **changes)
    Fleet(client).publish_status(worker, status, node=f"{worker}@h", ttl_s=60)


def workers_of(api):
    counts = api.get("/v2/ep/health").json["workers"]
    return {word: count for word, count in counts.items() if count}


@pytest.mark.parametrize(
    ("phase", "changes", "expected"),
    [
        (Phase.WANTED, {}, {"initializing": 1}),
        (Phase.WANTED, {"reason": "all 2 GPUs of pool low are busy"}, {"throttled": 1}),
        (Phase.PREPARING, {"reason": "image pull 43 %"}, {"initializing": 1}),
        (Phase.STARTING, {}, {"initializing": 1}),
        (Phase.READY, {}, {"ready": 1, "idle": 1}),
        (Phase.DRAINING, {}, {"idle": 1}),
        (Phase.STOPPING, {}, {"idle": 1}),
    ],
)
def test_a_managed_worker_counts_as_its_phase(api, client, records, phase, changes, expected):
    add(api.application, *([] if phase is Phase.WANTED else [A]))
    state = WorkerState.READY if phase is Phase.READY else WorkerState.UNHEALTHY
    publish(client, A, state, reason="it has not asked for a job")
    records.found = [managed(phase, **changes)]
    assert workers_of(api) == expected


@pytest.mark.parametrize(
    ("phase", "expected"),
    [(Phase.READY, {"ready": 1, "running": 1}), (Phase.DRAINING, {"running": 1})],
)
def test_a_managed_worker_with_a_job_is_running(api, client, records, phase, expected):
    add(api.application, A)
    publish(client, A, WorkerState.READY)
    records.found = [managed(phase)]
    store = job_store(client)
    store.jobs.create(new_job())
    store.jobs.claim("job-1", worker_id=A, claim="x", lease_s=60)
    assert workers_of(api) == expected


def test_a_managed_worker_that_was_ready_and_is_unhealthy_counts_as_its_node_reports(
    api, client, records
):
    add(api.application, A)
    publish(client, A, WorkerState.UNHEALTHY, reason="it does not answer")
    records.found = [managed(Phase.READY)]
    assert workers_of(api) == {"unhealthy": 1}


def test_workers_that_do_not_start_are_unhealthy_with_exit_code_and_last_lines(api, records):
    add(api.application)
    records.failed = Failed(5, 0, log="\n".join(f"line {n}" for n in range(60)))
    body = api.get("/v2/ep/health").json
    assert body["workers"]["unhealthy"] == 1
    failures = body["ownpod"]["managed"]["failures"]
    assert failures.pop("log") == [f"line {n}" for n in range(10, 60)]
    assert failures == {
        "unhealthy": True,
        "count": 5,
        "pauseSeconds": 0,
        "worker": A,
        "reason": "it ended before it asked for a job",
        "exitCode": 1,
    }


@pytest.mark.parametrize(("count", "pause_s", "unhealthy"), [(1, 0.0, 0), (1, 2.0, 1), (0, 9, 0)])
def test_an_endpoint_is_unhealthy_while_it_starts_nothing(api, records, count, pause_s, unhealthy):
    add(api.application)
    records.failed = Failed(count, pause_s)
    assert api.get("/v2/ep/health").json["workers"]["unhealthy"] == unhealthy


def test_failures_of_another_release_do_not_count(api, records):
    add(api.application)
    records.failed = Failed(7, 30, release="earlier")
    body = api.get("/v2/ep/health").json
    assert body["workers"]["unhealthy"] == 0
    assert body["ownpod"]["managed"]["failures"] is None


def test_workers_and_health_list_the_managed_workers_with_their_phases(api, client, records):
    records.found = [
        managed(Phase.WANTED, C, created_ms=3000, reason="no agent is running"),
        managed(Phase.PREPARING, B, created_ms=2000, reason="image pull 43 %", host="h2"),
        managed(Phase.DRAINING, A, reason="idle", host="h1", devices=("cpu-0",), ready_ms=2500),
    ]
    for found in (api.get("/v2/ep/workers").json, api.get("/v2/ep/health").json["ownpod"]):
        shown = found["managed"]["workers"]
        assert [(w["id"], w["phase"], w["reason"]) for w in shown] == [
            (A, "draining", "drains: idle"),
            (B, "preparing", "is prepared: image pull 43 %"),
            (C, "wanted", "waits for a place: no agent is running"),
        ]
        assert (shown[0]["host"], shown[0]["devices"]) == ("h1", ["cpu-0"])
        assert [(w["id"], w["state"], w["reason"]) for w in found["workers"]] == [
            (A, "paused", "drains: idle"),
            (B, "initializing", "is prepared: image pull 43 %"),
        ]
        assert OWN[A] not in str(found)
        assert digest_of(OWN[A]) not in str(found)


def test_the_releases_are_shown_with_their_states_and_never_with_values(api, records):
    spec = api_spec(api)
    old = Release(1, "a" * 12, 1000, spec, ended="3 starts in a row failed: no module")
    new = Release(2, "b" * 12, 2000, spec, why="rollback to 1", digest="sha256:" + "c" * 64)
    coming = Release(3, "c" * 12, 2000, spec)
    records.found = [managed(Phase.READY, A, release="a" * 12)]
    records.releases = RolledOut(Rollout(current=new), given_up=old)
    found = api.get("/v2/ep/workers").json["managed"]
    assert [w["outdated"] for w in found["workers"]] == [True]
    assert found["releases"] == {
        "current": 2,
        "next": None,
        "image": spec.template.image,
        "digest": new.digest,
        "state": "rolls out: 0 of 1 workers have it",
        "givenUp": {"number": 1, "reason": "3 starts in a row failed: no module"},
    }
    records.releases = RolledOut(Rollout(current=new, next=coming), "host h: image pull 43 %")
    found = api.get("/v2/ep/health").json["ownpod"]["managed"]["releases"]
    assert (found["current"], found["next"]) == (2, 3)
    assert found["state"] == "prepares: host h: image pull 43 %"


def api_spec(api):
    return services_of(api.application).registry.endpoint("ep").managed


def test_an_endpoint_without_a_template_has_no_managed_workers(api):
    nothing = {"workers": [], "failures": None, "releases": None}
    assert api.get("/v2/other/workers").json["managed"] == nothing | {"ended": []}
    assert api.get("/v2/other/health").json["ownpod"]["managed"] == nothing


@pytest.mark.parametrize(
    ("found", "failed", "reason"),
    [
        ([], None, "no worker of the endpoint runs, and its first one has not been requested yet"),
        ([managed(Phase.WANTED)], None, f"worker {A} waits for a place"),
        (
            [managed(Phase.WANTED, reason="all 2 GPUs of pool low are busy")],
            None,
            f"worker {A} waits for a place: all 2 GPUs of pool low are busy",
        ),
        (
            [managed(Phase.WANTED, B), managed(Phase.PREPARING, reason="image pull 43 %")],
            None,
            f"worker {A} is prepared: image pull 43 %",
        ),
        ([managed(Phase.PREPARING, B), managed(Phase.STARTING)], None, f"worker {A} starts"),
        (
            [],
            Failed(3, 3.6),
            f"{FAILING.format(3)}; the next start is in 4 s",
        ),
        (
            [managed(Phase.STARTING)],
            Failed(5, 0),
            f"{FAILING.format(5)}; worker {A} starts",
        ),
    ],
)
def test_a_waiting_job_has_the_reason_of_its_endpoints_managed_workers(
    api, records, found, failed, reason
):
    add(api.application, *(w.id for w in found if w.phase is not Phase.WANTED))
    records.found, records.failed = found, failed
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    assert api.get(f"/v2/ep/status/{job}").json["waitingReason"] == reason


def test_a_worker_that_starts_is_shown_with_the_time_of_earlier_starts(api, records):
    add(api.application, A)
    records.found = [managed(Phase.STARTING, started_ms=NOW_MS - 12_000)]
    records.stopped = [
        managed(Phase.STOPPED, name, started_ms=1000, ready_ms=1000 + took_ms)
        for name, took_ms in [(B, 20_900), (C, 300_000), ("d" * 14, 1000)]
    ]
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    assert api.get(f"/v2/ep/status/{job}").json["waitingReason"] == (
        f"worker {A} starts, 12 s (usually 21 s)"
    )


def test_a_job_that_waits_beside_a_busy_worker_names_the_one_that_comes(api, client, records):
    publish(client, A, WorkerState.READY)
    records.found = [managed(Phase.READY), managed(Phase.STARTING, B)]
    job = api.post("/v2/ep/run", json={"input": {}}).json["id"]
    assert api.get(f"/v2/ep/status/{job}").json["waitingReason"] == (
        f"it waits for a free worker: 1 of 1 are healthy; worker {B} starts"
    )


# With the records in Redis.


@pytest.mark.usefixtures("no_checks")
def test_a_worker_is_shown_and_served_from_the_wish_to_its_end(new_app, client):
    app = new_app(FILE, **KEYED)
    api, store = app.test_client(), Managed(client)
    spec = services_of(app).registry.endpoint("ep").managed

    def counts():
        body = api.get("/v2/ep/health", headers=headers("api-key")).json
        return {word: count for word, count in body["workers"].items() if count}

    assert store.want(A, "ep", spec=spec)
    assert counts() == {"initializing": 1}
    store.waits(A, "no agent is running")
    assert counts() == {"throttled": 1}
    Agents(client).heartbeat(AgentInfo("h", "process"), "t")
    assert store.place(A, "h", "t")
    services_of(app).registry.refresh()
    assert counts() == {"initializing": 1}
    store.set_key(A, "h", digest_of(OWN[A]))
    store.started(A, "h")
    # The worker asks before this process has read the registry again.
    offer(client)
    assert take(api).json["id"] == "job-1"
    assert store.get(A).phase is Phase.READY
    done = post(api, f"job-done/{A}/job-1?isStream=false", {"output": 1}, OWN[A])
    assert done.status_code == 200
    asked = client.hget(keys.pull(A), "take")
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(take, api)
        stops = pool.submit(api.get, f"/v2/ep/job-stop/{A}", headers=headers(OWN[A]))
        wait_until(lambda: client.hget(keys.pull(A), "take") != asked)
        assert store.drain(A, "idle for 5 s")
        # This process has read the drain, and does not read again for a second.
        wait_until(lambda: services_of(app).registry.worker(A).draining)
        assert store.stopping(A, "h")
        assert held.result(18).status_code == 204
        assert stops.result(18).status_code == 204
    assert take(api).status_code == 204
    assert counts() == {"idle": 1}
    store.stopped(A, "h", exit_code=0, reason="idle for 5 s", failed=False, log="")
    services_of(app).registry.refresh()
    assert take(api).status_code == 429
    assert counts() == {}
    assert store.recent("ep")[0].id == A


def test_starts_that_fail_are_shown_with_the_last_lines(new_app, client):
    app = new_app(FILE)
    api, store = app.test_client(), Managed(client)
    spec = services_of(app).registry.endpoint("ep").managed
    Agents(client).heartbeat(AgentInfo("h", "process"), "t")
    store.want(A, "ep", spec=spec)
    store.place(A, "h", "t")
    store.stopped(A, "h", exit_code=3, reason="it ended", failed=True, log="one\nlast words")
    # Until the fifth, an endpoint is shown during the pause before its next start only.
    client.hset(f"{keys.MANAGED_FAILURES}ep", "count", 5)
    body = api.get("/v2/ep/health").json
    assert body["workers"]["unhealthy"] == 1
    failures = body["ownpod"]["managed"]["failures"]
    assert (failures["exitCode"], failures["log"]) == (3, ["one", "last words"])


# Load-balanced endpoints.


def test_no_worker_gets_jobs_of_a_load_balanced_endpoint(api, records):
    for path in (f"job-take/{C}", f"job-take-batch/{C}", f"job-stop/{C}"):
        refused = api.get(f"/v2/balanced/{path}?gpu=x", headers=headers("any"))
        assert refused.status_code == 429
        assert (
            refused.json["error"] == "endpoint 'balanced' is load-balanced: its workers get no jobs"
        )
    assert api.get(f"/v2/balanced/ping/{C}").status_code == 409
    assert records.reported == []
