"""Pinned jobs wait in their worker's own queue, and every command puts them back there."""

import base64
import json

import pytest
from helpers import job_message, job_store, new_job, now_ms, wait_until

from ownpod.broker import names
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import Sweep
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome, Run, RunCheck
from ownpod.store import keys
from ownpod.store.offers import Offers

OWN, SHARED = names.worker_queue("ep", "w"), names.endpoint_queue("ep")
ENDPOINT_KEYS = ("queued", "pinned", "queues", "low", "left")


@pytest.fixture
def store(client):
    return job_store(client)


def pinned(store, job_id="job-1", **changes):
    store.jobs.create(new_job(job_id, queue=OWN, **changes))


def claim(store, job_id="job-1", *, worker="w", token="t"):
    return store.jobs.claim(job_id, worker_id=worker, claim=token, lease_s=15)


def requeue(store, attempt, *, lost=False):
    return store.jobs.requeue(attempt.job_id, attempt.number, lost=lost, reason="why")


def ids(client, queue):
    texts = client.lrange(queue, 0, -1)
    return [json.loads(text)["properties"]["correlation_id"] for text in texts]


def publish_delayed(store, client):
    """As when the pauses of requeued jobs are over."""
    for job_id in client.zrange(keys.DELAYED, 0, -1):
        client.zadd(keys.DELAYED, {job_id: 0})
    return store.queue.publish_delayed(limit=10)


def leaves_nothing(client, store):
    left = [keys.of_endpoint("ep", name) for name in ENDPOINT_KEYS]
    left += [keys.waiting(OWN), keys.waiting(OWN) + ":low", keys.DELAYED, keys.EXPIRIES]
    return client.exists(*left) == 0 and store.figures.counts("ep")[0] == 0


def test_a_pinned_job_waits_in_its_workers_queue_and_is_claimed_by_that_worker_only(store, client):
    pinned(store)
    assert (ids(client, OWN), ids(client, SHARED)) == (["job-1"], [])
    message = json.loads(client.lindex(OWN, 0))
    assert message["properties"]["delivery_info"]["routing_key"] == OWN
    assert store.figures.counts("ep")[0] == 1
    assert claim(store, worker="other") is None
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_QUEUE
    assert store.jobs.finish(claim(store), Outcome(JobStatus.COMPLETED))
    assert leaves_nothing(client, store)


@pytest.mark.parametrize("lost", [False, True])
def test_a_requeued_pinned_job_returns_to_its_own_queue_after_a_pause(store, client, lost):
    pinned(store)
    attempt = claim(store)
    client.delete(OWN)
    began = now_ms()
    assert requeue(store, attempt, lost=lost) is JobStatus.IN_QUEUE
    # At once, its node would take it again and again while the worker is down.
    assert client.zscore(keys.DELAYED, "job-1") >= began + 1000
    assert (ids(client, OWN), ids(client, SHARED)) == ([], [])
    assert wait_until(lambda: store.queue.publish_delayed(limit=10)) == 1
    assert (ids(client, OWN), ids(client, SHARED)) == (["job-1"], [])
    assert store.queue.publish_delayed(limit=10) == 0
    assert claim(store, token="2").number == 2


def test_pauses_of_a_pinned_job_double_up_to_ten_seconds(store, client):
    pinned(store)
    pauses = []
    for number in range(6):
        attempt, before = claim(store, token=str(number)), now_ms()
        requeue(store, attempt)
        at, after = client.zscore(keys.DELAYED, "job-1"), now_ms()
        pauses.append((at - after, at - before))
    expected = [1000, 2000, 4000, 8000, 10_000, 10_000]
    assert all(a <= b <= c for (a, c), b in zip(pauses, expected, strict=True)), pauses


def test_the_sweep_publishes_a_pinned_job_whose_pause_is_over(store, client):
    pinned(store)
    requeue(store, claim(store))
    client.delete(OWN)
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    sweep = Sweep(store, recovery, Offers(client, gone_s=60), lease_s=15)
    client.zadd(keys.DELAYED, {"job-1": 0})
    sweep.once()
    assert ids(client, OWN) == ["job-1"]


@pytest.mark.parametrize("status", [JobStatus.CANCELLED, JobStatus.TIMED_OUT])
def test_a_pinned_job_that_ends_during_its_pause_gets_no_message(store, client, status):
    pinned(store)
    requeue(store, claim(store))
    client.delete(OWN)
    if status is JobStatus.CANCELLED:
        store.jobs.cancel("job-1", "ep", reason="x")
    else:
        client.hset(keys.job("job-1"), "ttl_ms", 1)
        client.zadd(keys.EXPIRIES, {"job-1": 0})
        store.queue.expire(limit=10)
    assert store.jobs.get("job-1", "ep").status is status
    assert publish_delayed(store, client) == 0
    assert leaves_nothing(client, store)


def test_a_lost_message_of_a_pinned_job_returns_to_its_own_queue(store, client):
    for job_id in ("a", "b"):
        pinned(store, job_id, created_ms=now_ms() - 60_000)
        store.jobs.create(new_job(f"shared-{job_id}", created_ms=now_ms() - 60_000))
    recovery = Recovery(store, lambda: ["other", "ep"], lease_s=15)
    assert recovery.once() == recovery.once() == 0
    client.rpop(OWN)
    assert [recovery.once() for _ in range(3)] == [0, 1, 0]
    assert sorted(ids(client, OWN)) == ["a", "b"]
    assert sorted(ids(client, SHARED)) == ["shared-a", "shared-b"]


def test_a_lost_message_of_another_job_is_found_beside_pinned_ones(store, client):
    pinned(store, "a", created_ms=now_ms() - 60_000)
    store.jobs.create(new_job("shared", created_ms=now_ms() - 60_000))
    client.delete(SHARED)
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    assert [recovery.once() for _ in range(3)] == [0, 1, 0]
    assert (ids(client, OWN), ids(client, SHARED)) == (["a"], ["shared"])


def test_a_pinned_job_in_its_pause_is_not_lost(store, client):
    pinned(store, created_ms=now_ms() - 60_000)
    requeue(store, claim(store))
    client.delete(OWN)
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    assert [recovery.once() for _ in range(4)] == [0] * 4
    assert publish_delayed(store, client) == 1


@pytest.mark.parametrize("low", [False, True])
def test_a_cancelled_pinned_job_takes_its_message_with_it(store, client, low):
    pinned(store, "a", low_priority=low)
    store.jobs.cancel("a", "ep", reason="x")
    assert client.exists(OWN, f"{OWN}{names.PRIORITY_SEPARATOR}9") == 0
    assert leaves_nothing(client, store)


def test_a_purge_cancels_pinned_jobs_and_leaves_messages_about_runs(store, client):
    for job_id in ("a", "b"):
        pinned(store, job_id, low_priority=job_id == "b")
        store.jobs.create(new_job(f"shared-{job_id}"))
    client.rpush(OWN, "a message about a run")
    assert store.queue.purge("ep", reason="purged") == 4
    assert store.jobs.get("a", "ep").status is JobStatus.CANCELLED
    assert client.lrange(OWN, 0, -1) == ["a message about a run"]
    assert client.exists(SHARED, f"{OWN}{names.PRIORITY_SEPARATOR}9") == 0
    assert leaves_nothing(client, store)


def test_positions_are_those_in_the_jobs_own_queue(store):
    def position(job_id):
        return store.queue.position(store.jobs.get(job_id, "ep"))

    began = now_ms() - 60_000
    order = ["s1", "p1", "p2", "s2", "s3", "p3"]
    for number, job_id in enumerate(order):
        changes = {"created_ms": began + number, "low_priority": job_id in {"s2", "p2"}}
        queue = OWN if job_id.startswith("p") else None
        store.jobs.create(new_job(job_id, queue=queue, **changes))
    assert {job_id: position(job_id) for job_id in order} == {
        "s1": 1,
        "s3": 2,
        "s2": 3,
        "p1": 1,
        "p3": 2,
        "p2": 3,
    }
    claim(store, "p1")
    assert position("p1") is None
    assert position("p3") == 1


@pytest.mark.parametrize("new_id", ["job-1", "job-2"])
def test_a_retried_pinned_job_waits_in_its_own_queue(store, client, new_id):
    pinned(store)
    store.jobs.finish(claim(store), Outcome(JobStatus.FAILED, error="boom"))
    client.delete(OWN)
    store.jobs.retry("job-1", "ep", new_id)
    assert (ids(client, OWN), ids(client, SHARED)) == ([new_id], [])
    assert claim(store, new_id, worker="other", token="2") is None
    assert claim(store, new_id, token="3").job_id == new_id


def recorded(store, attempt, check):
    run = Run(
        job_id=attempt.job_id,
        attempt=attempt.number,
        id="r",
        check=check,
        execution_timeout_ms=60_000,
    )
    store.runs.record(run, "w")


def settle(store, attempt, how):
    if how == "hand_over":
        return store.runs.hand_over(
            attempt.job_id, attempt.number, "w", reason="it ended", lease_s=15
        )
    return store.runs.adopt(attempt.job_id, "ep", attempt.number, "w", reason="x", lease_s=15)


@pytest.mark.parametrize("how", ["hand_over", "adopt"])
def test_what_a_node_leaves_of_a_pinned_job_returns_to_its_own_queue(store, client, how):
    pinned(store)
    attempt = claim(store)
    recorded(store, attempt, RunCheck.HEALTH)
    client.delete(OWN)
    settle(store, attempt, how)
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_QUEUE
    assert client.exists(SHARED) == 0
    assert publish_delayed(store, client) == 1
    # Where the run still occupies the worker, the message that waits for its end is there too.
    assert ids(client, OWN) == ["await-job-1:1"] * (how == "adopt") + ["job-1"]


def test_a_pinned_jobs_run_that_outlives_its_node_is_adopted(store, client):
    pinned(store)
    attempt = claim(store)
    recorded(store, attempt, RunCheck.POLL)
    client.delete(OWN)
    assert settle(store, attempt, "hand_over") is JobStatus.IN_PROGRESS
    assert settle(store, attempt, "adopt") == "resumed"
    assert ids(client, OWN) == ["job-1"]
    assert claim(store, token="2").run.id == "r"


@pytest.mark.parametrize("kept", [False, True])
def test_a_pinned_job_that_a_node_of_the_version_before_ended_is_not_counted(store, client, kept):
    pinned(store, low_priority=True, created_ms=now_ms() - 60_000)
    # That version ends a job without the keys of a worker's own queue.
    entries = [keys.waiting(OWN), f"{keys.waiting(OWN)}:low", keys.of_endpoint("ep", "pinned")]
    before = {key: client.zrange(key, 0, -1, withscores=True) for key in entries}
    store.jobs.finish(claim(store), Outcome(JobStatus.COMPLETED))
    for key, found in before.items():
        client.zadd(key, dict(found))
    client.hset(keys.of_endpoint("ep", "queues"), OWN, 1)
    client.delete(OWN, f"{OWN}{names.PRIORITY_SEPARATOR}9")
    if not kept:
        client.delete(keys.job("job-1"))
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    assert [recovery.once() for _ in range(2)] == [0, 0]
    assert leaves_nothing(client, store)
    assert client.llen(OWN) == 0


# Records and messages of version 0.1.0: no `queue`, and a body in base64.


def of_the_version_before(store, client, job_id="job-1", **changes):
    store.jobs.create(new_job(job_id, **changes))
    client.hdel(keys.job(job_id), "queue")
    message = json.loads(client.lpop(SHARED))
    message["properties"]["body_encoding"] = "base64"
    message["body"] = base64.b64encode(message["body"].encode()).decode()
    client.lpush(SHARED, json.dumps(message))


def test_a_job_of_the_version_before_is_requeued_and_retried_in_the_endpoints_queue(store, client):
    of_the_version_before(store, client)
    attempt = claim(store)
    client.delete(SHARED)
    requeue(store, attempt)
    assert client.lrange(SHARED, 0, -1) == [job_message("job-1")[1]]
    store.jobs.finish(claim(store, token="2"), Outcome(JobStatus.FAILED, error="boom"))
    client.delete(SHARED)
    store.jobs.retry("job-1", "ep", "job-2")
    assert ids(client, SHARED) == ["job-2"]
    assert client.hget(keys.job("job-2"), "queue") == SHARED


def test_a_cancelled_job_of_the_version_before_leaves_a_message_that_the_claim_drops(store, client):
    of_the_version_before(store, client, "old")
    of_the_version_before(store, client, "kept", created_ms=now_ms() - 60_000)
    assert store.jobs.cancel("old", "ep", reason="x") is JobStatus.CANCELLED
    assert client.zrange(keys.left("ep"), 0, -1) == ["old"]
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    assert [recovery.once() for _ in range(3)] == [0] * 3
    assert claim(store, "old") is None
    assert client.zcard(keys.left("ep")) == 0


def test_a_lost_message_of_the_version_before_is_replaced(store, client):
    of_the_version_before(store, client, "a", created_ms=now_ms() - 60_000)
    of_the_version_before(store, client, "b", created_ms=now_ms() - 60_000)
    client.rpop(SHARED)
    recovery = Recovery(store, lambda: ["ep"], lease_s=15)
    assert [recovery.once() for _ in range(3)] == [0, 1, 0]
    assert sorted(ids(client, SHARED)) == ["a", "b"]
    assert store.queue.position(store.jobs.get("b", "ep")) == 2
    assert store.queue.purge("ep", reason="purged") == 2


@pytest.mark.parametrize("text", ["%1 %%", "@job@ @queue@", '"quoted" \\ back', "]==] é \x06"])
def test_text_in_an_input_stays_as_it_is_in_the_message(store, client, text):
    store.jobs.create(new_job(input=json.dumps(text)))
    (created,) = client.lrange(SHARED, 0, -1)
    assert json.loads(created)["headers"]["argsrepr"] == f"ownpod ep {json.dumps(text)}"
    requeue(store, claim(store))
    assert client.lindex(SHARED, -1) == created
