"""A cloud worker's driver, its breaker and its runner against a small HTTP server as the other side; no Celery."""

import contextlib
import itertools
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from types import SimpleNamespace

import pytest
from helpers import (
    Answer,
    FakeWorker,
    job_store,
    load_settings,
    new_job,
    now_ms,
    wait_until,
    worker_spec,
)

from ownpod.node.overflow import Chooser, OverflowBreaker
from ownpod.node.purse import Purse
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Slots
from ownpod.rules.endpoints import Overflow, WorkerKind
from ownpod.rules.fleet import WorkerState
from ownpod.rules.jobs import JobStatus
from ownpod.rules.overflow import CloudSpec, LanUrls, Spent
from ownpod.store.budgets import Budgets
from ownpod.workers.cloud import CloudWorker

PRICE = Decimal(1000)
"""Micro-units a second, so one a millisecond."""


class OtherSide:
    """RunPod's v2 API for one endpoint. ``answers``: by operation, an Answer or a function of the path and the body."""

    def __init__(self):
        self.ids = itertools.count(1)
        self.answers = {
            "run": lambda *_: Answer(body={"id": f"r{next(self.ids)}", "status": "IN_QUEUE"}),
            "status": self.done({"ok": 1}),
            "stream": Answer(body={"status": "COMPLETED", "stream": []}),
            "cancel": Answer(body={"status": "CANCELLED"}),
            "health": Answer(body={"workers": {}}),
        }
        self.server = FakeWorker({f"{m} /v2": self.answer for m in ("GET", "POST")})

    @property
    def url(self):
        return f"{self.server.url}/v2/abc"

    @staticmethod
    def state(status, **body):
        return Answer(body={"id": "r1", "status": status, **body})

    def done(self, output, **body):
        values = {"output": output, "executionTime": 1500, "workerId": "w9"} | body
        return self.state("COMPLETED", **values)

    def answer(self, path, body):
        made = self.answers[path.split("/")[3].partition("?")[0]]
        return made(path, body) if callable(made) else made

    def count(self, operation):
        return sum(path.split("/")[3].startswith(operation) for _, path, _ in self.server.seen)

    def submitted(self):
        found = [
            (headers, json.loads(raw))
            for (method, path, _), (headers, raw) in zip(
                self.server.seen, self.server.raw, strict=True
            )
            if (method, path.split("/")[3]) == ("POST", "run")
        ]
        return found[-1]


@pytest.fixture
def other():
    side = OtherSide()
    with side.server.serving():
        yield side


class Node:
    """What a cloud worker's node is made of, but for Celery: jobs of its own queue run when the test wants."""

    def __init__(self, client, url, **cloud):
        values = {"key": "rpa_KEY", "after_s": 0.0, "price_micro_per_s": PRICE} | cloud
        capacity = values.pop("capacity", 4)
        self.spec = worker_spec(
            url,
            id="runpod",
            capacity=capacity,
            kind=WorkerKind.CLOUD,
            cloud=CloudSpec(**values),
        )
        self.client = client
        self.store = job_store(client)
        self.settings = load_settings(
            OWNPOD_WORKER_RUN_READ_TIMEOUT_S=60, OWNPOD_WORKER_STATUS_TIMEOUT_S=60
        )
        self.budgets = Budgets(client)
        self.purse = Purse(self.store, "ep", "runpod", self.spec.cloud)
        self.worker = CloudWorker(self.spec, self.spec.cloud, self.settings, self.purse)
        self.slots = Slots(
            self.store, self.worker, lease_s=1, on_change=lambda: None, begins_later=True
        )
        self.endpoint = SimpleNamespace(overflow=Overflow.ALLOWED)
        registry = SimpleNamespace(endpoint=lambda _: self.endpoint)
        self.published = []
        self.breaker = OverflowBreaker(
            self.worker.probe,
            self.published.append,
            publish_every_s=60,
            slots=self.slots,
            is_paused=lambda: False,
            on_change=lambda: None,
            worker=self.worker,
            chooser=Chooser(self.store, registry, self.spec, self.spec.cloud, self.purse),
            capacity=capacity,
        )
        self.runner = JobRunner(
            self.store, self.worker, self.slots, self.breaker, worker_id="runpod"
        )

    def create(self, name="job-1", **changes):
        self.store.jobs.create(new_job(name, **{"created_ms": now_ms() - 5000} | changes))

    def run(self, name="job-1"):
        return self.runner.run(name)

    def job(self, name="job-1"):
        return self.store.jobs.get(name, "ep")

    @property
    def spent(self):
        return self.budgets.spent(["runpod"])["runpod"]

    @property
    def state(self):
        return self.breaker.status.state

    @property
    def reason(self):
        return self.breaker.status.reason


@pytest.fixture
def node(client, other):
    return Node(client, other.url)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as found:
        yield found


def test_a_job_runs_there_and_keeps_its_id(node, other):
    node.create(input='{"x": [1]}', low_priority=True, request_id="abc-1")
    node.run()
    job = node.job()
    assert (job.id, job.status, job.output) == ("job-1", JobStatus.COMPLETED, '{"ok": 1}')
    assert (job.worker_id, job.execution_ms) == ("runpod", 1500)
    details = node.store.listing.details("job-1")
    assert details["remote"] == {"url": other.url, "endpoint": "abc", "id": "r1", "workerId": "w9"}
    headers, body = other.submitted()
    assert (headers["X-OwnPod-Hops"], headers["X-Request-ID"]) == ("1", "abc-1")
    assert headers["Authorization"] == "Bearer rpa_KEY"
    assert body == {
        "input": {"x": [1]},
        "policy": {"executionTimeout": 600_000, "ttl": 1_200_000, "lowPriority": True},
    }
    assert node.spent == Spent(1500, 0)


def test_its_ttl_there_is_at_most_the_rest_of_its_ttl_here(node, other):
    node.create(ttl_ms=65_000, s3_config='{"secret": 1}')
    node.run()
    # Without `allowSecrets` it stays.
    assert (other.count("run"), node.job().status) == (0, JobStatus.IN_QUEUE)
    node.create("job-2", ttl_ms=65_000)
    node.run("job-2")
    assert 50_000 < other.submitted()[1]["policy"]["ttl"] <= 60_000


def test_secrets_go_if_that_is_allowed(client, other):
    node = Node(client, other.url, allow_secrets=True)
    node.create(s3_config='{"secret": 1}')
    node.run()
    assert other.submitted()[1]["s3Config"] == {"secret": 1}


def test_chunks_come_as_they_are_yielded_and_are_the_output_of_a_generator(node, other):
    parts = iter([[1], [{"a": 2}, "x"], []])
    states = iter(["IN_QUEUE", "IN_PROGRESS", "IN_PROGRESS"])
    other.answers["stream"] = lambda *_: Answer(
        body={"status": "IN_PROGRESS", "stream": [{"output": o} for o in next(parts, [])]}
    )
    other.answers["status"] = lambda *_: (
        other.state(state) if (state := next(states, None)) else other.done(None)
    )
    node.create()
    node.run()
    chunks = node.store.chunks.stream("job-1", "ep", (None, 0)).chunks
    assert [json.loads(chunk) for chunk in chunks] == [1, {"a": 2}, "x"]
    assert json.loads(node.job().output) == [1, {"a": 2}, "x"]


@pytest.mark.slow
def test_the_time_counts_from_the_begin_there(node, other, pool):
    begins = threading.Event()
    progress = {"output": {"percent": 5}}
    other.answers["status"] = lambda *_: (
        other.state("IN_PROGRESS", **progress) if begins.is_set() else other.state("IN_QUEUE")
    )
    node.slots.start()
    node.create(execution_timeout_ms=3000, ttl_ms=600_000)
    running = pool.submit(node.run)
    wait_until(lambda: node.job().progress == '{"remote": "IN_QUEUE"}')
    claimed_ms = node.job().started_ms
    until = time.monotonic() + 3.5
    while time.monotonic() < until:
        assert node.job().status is JobStatus.IN_PROGRESS
        time.sleep(0.05)
    begins.set()
    wait_until(lambda: node.job().progress == '{"percent": 5}')
    assert node.job().started_ms >= claimed_ms + 3400
    wait_until(lambda: node.job().status is JobStatus.TIMED_OUT)
    wait_until(lambda: other.count("cancel"))
    other.answers["status"] = other.state("CANCELLED", executionTime=800)
    running.result(10)
    assert node.job().error == "executionTimeout: the job ran longer than 3000 ms"
    assert node.spent == Spent(800, 0)


def test_a_cancel_goes_there_and_a_late_result_changes_nothing(node, other, pool):
    other.answers["status"] = other.state("IN_PROGRESS")
    node.slots.start()
    node.create()
    running = pool.submit(node.run)
    wait_until(lambda: other.count("status"))
    node.store.jobs.cancel("job-1", "ep", reason="by hand")
    wait_until(lambda: other.count("cancel"))
    other.answers["status"] = other.done("late", executionTime=321)
    running.result(10)
    assert (node.job().status, node.job().output) == (JobStatus.CANCELLED, None)
    assert node.spent == Spent(321, 0)
    assert node.slots.taken == 0


def test_a_cancel_while_the_submission_is_on_its_way_stops_the_run(node, other, pool):
    held = threading.Event()
    other.answers["run"] = Answer(body={"id": "r1"}, hold=held)
    other.answers["status"] = other.state("IN_PROGRESS")
    node.slots.start()
    node.create()
    running = pool.submit(node.run)
    try:
        wait_until(lambda: other.count("run"))
        node.store.jobs.cancel("job-1", "ep", reason="by hand")
        wait_until(lambda: node.slots.lingering)
        assert other.count("cancel") == 0
        held.set()
        wait_until(lambda: other.count("cancel"))
    finally:
        held.set()
        other.answers["status"] = other.state("CANCELLED", executionTime=7, workerId="w")
        running.result(30)
    assert node.spent == Spent(7, 0)


@pytest.mark.slow
def test_a_cancel_that_is_not_taken_is_repeated(node, other, pool):
    other.answers["status"] = other.state("IN_PROGRESS")
    answers = iter([Answer(503, {}), Answer(hang_up=True)])
    other.answers["cancel"] = lambda *_: next(answers, Answer(body={}))
    node.slots.start()
    node.create()
    running = pool.submit(node.run)
    wait_until(lambda: other.count("status"))
    node.store.jobs.cancel("job-1", "ep", reason="by hand")
    wait_until(lambda: other.count("cancel") > 2)
    other.answers["status"] = other.state("CANCELLED")
    running.result(10)


def test_an_error_there_is_the_jobs(node, other):
    other.answers["status"] = other.state("FAILED", error="boom", executionTime=20, workerId="w")
    node.create()
    node.run()
    assert (node.job().status, node.job().error) == (JobStatus.FAILED, "boom")
    assert node.spent == Spent(20, 0)


def test_a_job_that_waited_too_long_there_is_requeued(node, other):
    other.answers["status"] = other.state("TIMED_OUT", error="ttl", workerId="")
    node.create()
    node.run()
    assert (node.job().status, node.job().retries) == (JobStatus.IN_QUEUE, 0)
    assert (node.spent, node.state) == (Spent(), WorkerState.UNHEALTHY)


# Refusals of the other side.


@pytest.mark.parametrize("status", [401, 402, 403, 404, 503])
def test_a_refusal_costs_no_attempt_and_no_money(node, other, monkeypatch, status):
    monkeypatch.setattr("ownpod.workers.other_side.FIRST_HOLD_S", 60.0)
    other.answers["run"] = Answer(status, {"error": "no"})
    node.create()
    node.run()
    assert (node.job().status, node.job().retries) == (JobStatus.IN_QUEUE, 0)
    assert (node.state, node.spent) == (WorkerState.UNHEALTHY, Spent())
    assert str(status) in node.reason
    # It is not asked again for a while, though a job waits.
    node.breaker.probe_once()
    assert (other.count("run"), other.count("health")) == (1, 0)
    assert "asked again in" in node.reason


def test_a_limit_of_requests_is_kept_for_as_long_as_it_says(node, other):
    other.answers["run"] = Answer(429, {"error": "slow down"}, headers={"Retry-After": "700"})
    node.create()
    node.run()
    assert (node.state, node.job().status) == (WorkerState.STANDBY, JobStatus.IN_QUEUE)
    node.breaker.probe_once()
    assert node.reason.startswith("the other side limits requests: /run answered 429; asked again")
    assert 600 < float(node.reason.split()[-2]) <= 700
    assert (other.count("run"), node.spent) == (1, Spent())


@pytest.mark.slow
def test_a_lost_answer_is_a_lost_attempt_whose_money_is_spent(node, other):
    held = threading.Event()
    other.answers["run"] = Answer(body={"id": "r1"}, hold=held)
    node.worker._settings = load_settings(OWNPOD_WORKER_RUN_READ_TIMEOUT_S=0.5)
    node.create(execution_timeout_ms=7000, max_attempts=2)
    node.run()
    assert (node.job().status, node.job().retries) == (JobStatus.IN_QUEUE, 1)
    assert node.spent == Spent(7000, 0)
    node.run()
    held.set()
    assert node.job().status is JobStatus.FAILED
    assert node.spent == Spent(14_000, 0)


def test_a_job_that_the_other_side_refuses_stays_here(node, other):
    other.answers["run"] = Answer(400, {"error": "input: too long"})
    node.create()
    node.run()
    assert (node.job().status, node.state) == (JobStatus.IN_QUEUE, WorkerState.STANDBY)
    assert "input: too long" in node.reason
    node.breaker.probe_once()
    assert "not needed" in node.reason


def test_addresses_of_this_network_are_warned_of_or_refused(client, other, caplog):
    node = Node(client, other.url)
    node.create(input='{"u": "http://10.0.0.9/x"}')
    node.run()
    assert node.job().status is JobStatus.COMPLETED
    assert "its input names 10.0.0.9" in caplog.text
    node = Node(client, other.url, lan_urls=LanUrls.REFUSE)
    node.create("job-2", input='{"u": "http://10.0.0.9/x"}')
    node.run("job-2")
    assert node.job("job-2").status is JobStatus.IN_QUEUE
    assert other.count("run") == 1


def test_a_key_that_is_not_set_is_a_reason(client, other):
    node = Node(client, other.url, key="env:NO_SUCH_KEY")
    node.create()
    node.breaker.probe_once()
    assert (node.state, "NO_SUCH_KEY" in node.reason) == (WorkerState.UNHEALTHY, True)
    assert other.server.seen == []


# Hostile answers.


@pytest.mark.parametrize(
    ("state", "status", "error"),
    [
        (b'{"id": "r1", "status": []}', JobStatus.FAILED, "the worker answered /status with an"),
        (b'{"id": "r1", "status": {}}', JobStatus.FAILED, "the worker answered /status with an"),
        (b'{"status": "FAILED", "error": "\\ud800x"}', JobStatus.FAILED, "?x"),
        (b'{"status": "FAILED", "error": "no: rpa_KEY"}', JobStatus.FAILED, "no: ***"),
        (b"a\nb\x1b[31m", JobStatus.FAILED, "the worker answered /status with an"),
        (b'{"status": "COMPLETED", "output": 1, "workerId": "\\ud800"}', JobStatus.COMPLETED, ""),
    ],
)
def test_a_strange_state_ends_the_job_and_its_reservation(node, other, state, status, error):
    other.answers["status"] = Answer(body=state)
    node.create(execution_timeout_ms=7000)
    node.run()
    job = node.job()
    assert (job.status, (job.error or "").startswith(error)) == (status, True)
    assert (job.error or "").isprintable()
    assert node.spent == Spent(7000, 0)
    assert "workerId" not in node.store.listing.details("job-1")["remote"]


@pytest.mark.parametrize("remote_id", ["\ud800", "a\r\nb", "x" * 256, "", 5])
def test_an_id_that_redis_or_a_log_cannot_have_is_a_lost_attempt(node, other, remote_id):
    other.answers["run"] = Answer(body={"id": remote_id})
    node.create(execution_timeout_ms=7000)
    node.run()
    assert (node.job().status, node.job().retries) == (JobStatus.IN_QUEUE, 1)
    assert node.spent == Spent(7000, 0)


def test_a_worker_id_that_redis_cannot_read_does_not_keep_the_job(node, other):
    known = iter([other.state("IN_PROGRESS", workerId="\ud800")])
    other.answers["status"] = lambda *_: next(known, Answer(404, {}))
    other.answers["stream"] = Answer(404, {})
    node.create(execution_timeout_ms=100)
    node.run()
    assert (node.job().status, node.job().retries) == (JobStatus.IN_QUEUE, 1)


def test_chunks_without_end_end(node, other, monkeypatch):
    monkeypatch.setattr("ownpod.workers.other_side.DRAIN_S", 0.2)
    other.answers["stream"] = Answer(body={"status": "COMPLETED", "stream": [{"output": 1}]})
    node.create()
    node.run()
    assert node.job().status is JobStatus.COMPLETED


def test_a_key_in_an_answer_is_in_no_reason(node, other, caplog):
    other.answers["run"] = Answer(503, {"error": "not for the key rpa_KEY"})
    node.create()
    node.run()
    assert "not for the key ***" in node.reason
    assert "rpa_KEY" not in caplog.text


# The breaker.


def test_jobs_go_when_they_have_waited_and_the_state_is_standby_otherwise(client, other):
    node = Node(client, other.url, after_s=30)
    node.create()
    node.breaker.probe_once()
    assert (node.state, other.server.seen) == (WorkerState.STANDBY, [])
    assert "has waited 30 s" in node.reason
    for number in range(6):
        node.create(f"old-{number}", created_ms=now_ms() - 40_000)
    node.breaker.probe_once()
    assert node.state is WorkerState.READY
    assert client.zrange("ownpod:waiting:ownpod.ep.runpod", 0, -1) == [
        *("old-0", "old-1", "old-2", "old-3")
    ]
    # One check of its health a minute, however many jobs go.
    node.breaker.probe_once()
    assert other.count("health") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"budget_micro_per_day": 599_999}, "the day's budget of 0.599999 has no room"),
        ({}, "`overflow` is never"),
    ],
)
def test_money_and_the_endpoint_decide_too(client, other, change, reason):
    node = Node(client, other.url, **change)
    if not change:
        node.endpoint.overflow = Overflow.NEVER
    node.create()
    node.breaker.probe_once()
    assert (node.state, reason in node.reason) == (WorkerState.STANDBY, True)
    assert client.llen("ownpod.ep.runpod") == 0


def test_the_other_sides_health_decides_too(node, other):
    other.answers["health"] = Answer(401, {})
    node.create()
    node.breaker.probe_once()
    assert (node.state, "401" in node.reason) == (WorkerState.UNHEALTHY, True)


@pytest.fixture
def stack():
    with contextlib.ExitStack() as found:
        yield found


def test_a_status_is_published_when_it_changes_and_not_at_each_check(node, stack):
    # Its thread has no end. One that is paused does not use the Redis of later tests.
    node.breaker.start()
    stack.callback(setattr, node.breaker, "_is_paused", lambda: True)
    wait_until(lambda: node.state is WorkerState.STANDBY)
    wait_until(lambda: node.published and node.published[-1].state is WorkerState.STANDBY)
    count = len(node.published)
    node.breaker.recheck()
    node.breaker.recheck()
    assert len(node.published) - count <= 1


def test_a_job_here_pays_its_usual_time_once_that_is_known(node, client):
    client.hset("ownpod:endpoint:ep:execution", mapping={"8": 100})
    assert node.purse.estimate(600_000) == 1500


def test_the_warning_about_the_budget_is_logged_once(client, other, caplog):
    node = Node(client, other.url, budget_micro_per_day=1000)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            assert node.purse.reserve(f"j{number}:1", 300)
    assert caplog.text.count("80 % of the day's budget of 0.001") == 1


# A node that ends.


def test_the_next_node_adopts_the_run_and_submits_nothing(node, other, client, pool):
    other.answers["status"] = other.state("IN_PROGRESS")
    node.create()
    running = pool.submit(node.run)
    wait_until(lambda: "poll" in str(client.hgetall("ownpod:runs:runpod")))
    wait_until(lambda: node.store.listing.details("job-1").get("remote"))
    later = Node(client, other.url)
    assert later.runner.adopt("ep")
    other.answers["status"] = other.done("once")
    assert later.run().status is JobStatus.COMPLETED
    assert (other.count("run"), node.job().output) == (1, '"once"')
    running.result(10)
    assert node.spent == Spent(1500, 0)


def test_the_money_of_a_run_that_was_lost_with_its_node_is_spent(node, client, other):
    node.create()
    node.store.jobs.claim("job-1", worker_id="runpod", claim="c", lease_s=10)
    assert node.purse.reserve("job-1:1", 9000)
    node.purse.settle_lost()
    assert node.spent == Spent(0, 9000)
    later = Node(client, other.url)
    later.runner.adopt("ep")
    later.breaker.probe_once()
    assert (later.spent, later.job().retries) == (Spent(9000, 0), 1)


@pytest.mark.slow
def test_the_run_of_a_job_that_was_cancelled_without_a_node_is_stopped_there(
    node, other, client, pool
):
    other.answers["status"] = other.state("IN_PROGRESS")
    node.create()
    with contextlib.ExitStack() as stack:
        running = pool.submit(node.run)
        wait_until(lambda: "poll" in str(client.hgetall("ownpod:runs:runpod")))
        node.store.jobs.cancel("job-1", "ep", reason="by hand")
        stack.callback(running.result, 10)
        later = Node(client, other.url)
        waiting = pool.submit(later.runner.await_run, "job-1", 1)
        wait_until(lambda: other.count("cancel"))
        other.answers["status"] = other.state("CANCELLED", executionTime=5, workerId="w")
        waiting.result(10)
    assert node.spent == Spent(5, 0)
