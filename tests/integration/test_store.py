"""Job records on a real Redis: each move, its fence, and what it leaves."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import job_message, job_messages, job_store, new_job, now_ms, wait_until

from ownpod.errors import (
    IdempotencyConflict,
    JobNotFound,
    NotRetryable,
    QueueFull,
    RedisUnavailable,
)
from ownpod.rules.jobs import MOVES, JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.deliveries import Deliveries
from ownpod.store.jobs import Idempotency

DONE = Outcome(JobStatus.COMPLETED, output='{"a": 1}', execution_ms=7)
QUEUE = "ownpod.ep"


@pytest.fixture
def store(client):
    return job_store(client)


def claim(store, job_id="job-1", token="t"):
    return store.jobs.claim(job_id, worker_id="w", claim=token, lease_s=15)


def requeue(store, attempt, **changes):
    options = {"lost": False, "reason": "why"} | changes
    return store.jobs.requeue(attempt.job_id, attempt.number, **options)


def test_a_new_job_waits_with_its_message(store, client):
    store.jobs.create(new_job())
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_QUEUE
    assert client.lrange(QUEUE, 0, -1) == [job_message("job-1")[1]]
    assert store.figures.counts("ep") == (1, {}, {})


def test_creating_twice_is_creating_once(store, client):
    job = new_job()
    store.jobs.create(job)
    store.jobs.create(job)
    assert client.llen(QUEUE) == 1


def test_a_claim_begins_the_first_attempt(store, client):
    store.jobs.create(new_job(input='{"x": 1}', s3_config='{"b": 2}', execution_timeout_ms=9000))
    attempt = claim(store)
    assert (attempt.number, attempt.input, attempt.s3_config) == (1, '{"x": 1}', '{"b": 2}')
    assert attempt.execution_timeout_ms == 9000
    job = store.jobs.get("job-1", "ep")
    assert (job.status, job.worker_id, job.attempt) == (JobStatus.IN_PROGRESS, "w", 1)
    assert store.figures.counts("ep") == (0, {"job-1": "w"}, {})
    assert client.zscore(keys.LEASES, "job-1") > job.started_ms


def test_one_of_many_claims_wins(store):
    store.jobs.create(new_job())
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: claim(store, token=f"t{n}"), range(50)))
    assert len([attempt for attempt in found if attempt]) == 1


def test_the_same_claim_repeated_is_the_same_attempt(store):
    store.jobs.create(new_job())
    assert claim(store, token="t") == claim(store, token="t")
    assert claim(store, token="other") is None


def test_a_job_that_is_not_there_cannot_be_claimed(store):
    assert claim(store) is None


def test_a_finished_job_has_output_and_goes_after_its_time(store, client):
    store.jobs.create(new_job())
    assert store.jobs.finish(claim(store), DONE)
    job = store.jobs.get("job-1", "ep")
    assert (job.status, job.output, job.execution_ms) == (JobStatus.COMPLETED, '{"a": 1}', 7)
    assert 1700 < client.ttl(keys.job("job-1")) <= 1800
    assert store.figures.counts("ep") == (0, {}, {"COMPLETED": 1})
    assert client.zcard(keys.LEASES) == 0


def test_a_finished_job_stays_finished(store):
    store.jobs.create(new_job())
    attempt = claim(store)
    store.jobs.finish(attempt, DONE)
    assert not store.jobs.finish(attempt, Outcome(JobStatus.FAILED, error="late"))
    assert store.jobs.cancel("job-1", "ep", reason="late") is JobStatus.COMPLETED
    assert requeue(store, attempt) is None
    assert claim(store, token="again") is None
    assert store.jobs.get("job-1", "ep").error is None


def test_the_table_of_moves_is_what_redis_allows(store, client):
    def takes_to(old, new):
        job_id = f"{old}-{new}"
        store.jobs.create(new_job(job_id))
        if old is not JobStatus.IN_QUEUE:
            attempt = claim(store, job_id)
            if old is not JobStatus.IN_PROGRESS:
                store.jobs.finish(attempt, Outcome(old, error="x"))
        attempt = attempt if old is not JobStatus.IN_QUEUE else None
        if new is JobStatus.IN_PROGRESS:
            return claim(store, job_id, "next") is not None
        if new is JobStatus.IN_QUEUE:
            return attempt is not None and requeue(store, attempt) is new
        if new is JobStatus.CANCELLED:
            store.jobs.cancel(job_id, "ep", reason="x")
            return old is not new and store.jobs.get(job_id, "ep").status is new
        return attempt is not None and store.jobs.finish(attempt, Outcome(new, error="y"))

    # A job that waits can end by FAILED too, but no call does it yet; its ttl has tests of its own.
    for old in JobStatus:
        for new in JobStatus:
            if old is JobStatus.IN_QUEUE and new in {JobStatus.FAILED, JobStatus.TIMED_OUT}:
                continue
            if old is JobStatus.IN_QUEUE and new is JobStatus.COMPLETED:
                continue
            assert takes_to(old, new) == (new in MOVES[old]), (old, new)


def test_a_late_answer_of_an_abandoned_attempt_changes_nothing(store):
    store.jobs.create(new_job())
    first = claim(store, token="1")
    assert requeue(store, first, lost=True) is JobStatus.IN_QUEUE
    second = claim(store, token="2")
    assert second.number == 2
    assert not store.jobs.finish(first, DONE)
    assert requeue(store, first) is None
    assert store.jobs.renew([first, second], lease_s=15) == {"job-1"}
    assert store.jobs.get("job-1", "ep").status is JobStatus.IN_PROGRESS


def test_a_requeued_job_is_the_next_to_be_taken(store, client):
    store.jobs.create(new_job("a"))
    attempt = claim(store, "a")
    client.delete(QUEUE)
    store.jobs.create(new_job("b"))
    requeue(store, attempt)
    assert client.lindex(QUEUE, -1) == job_message("a")[1]
    job = store.jobs.get("a", "ep")
    assert (job.status, job.worker_id, job.started_ms) == (JobStatus.IN_QUEUE, None, None)


def test_attempts_that_were_not_begun_do_not_count(store):
    store.jobs.create(new_job(max_attempts=2))
    for number in range(1, 6):
        assert requeue(store, claim(store, token=str(number))) is JobStatus.IN_QUEUE
    assert store.jobs.get("job-1", "ep").retries == 0
    assert store.figures.counts("ep")[2] == {}


def test_the_last_lost_attempt_ends_in_failed_with_the_reason(store):
    store.jobs.create(new_job(max_attempts=2))
    assert requeue(store, claim(store, token="1"), lost=True) is JobStatus.IN_QUEUE
    second = claim(store, token="2")
    assert requeue(store, second, lost=True, reason="it died") is JobStatus.FAILED
    job = store.jobs.get("job-1", "ep")
    assert (job.status, job.error, job.retries) == (JobStatus.FAILED, "it died", 1)
    assert store.figures.counts("ep")[2] == {"retried": 1, "FAILED": 1}


def test_a_waiting_job_is_cancelled_with_its_message(store, client):
    store.jobs.create(new_job("a"))
    store.jobs.create(new_job("b"))
    assert store.jobs.cancel("a", "ep", reason="no more") is JobStatus.CANCELLED
    assert client.llen(QUEUE) == 1
    assert store.jobs.get("a", "ep").error == "no more"
    assert claim(store, "a") is None


def test_a_running_job_is_cancelled_and_its_node_notified(store):
    store.jobs.create(new_job())
    attempt = claim(store)
    assert store.jobs.cancel("job-1", "ep", reason="x") is JobStatus.CANCELLED
    assert store.jobs.renew([attempt], lease_s=15) == {"job-1"}


def test_another_endpoints_job_is_not_found(store):
    store.jobs.create(new_job())
    for call in (
        lambda: store.jobs.get("job-1", "other"),
        lambda: store.jobs.cancel("job-1", "other", reason="x"),
        lambda: store.jobs.get("none", "ep"),
    ):
        with pytest.raises(JobNotFound):
            call()


def test_a_purge_takes_this_endpoints_waiting_jobs_and_only_those(store, client):
    for number in range(2500):
        store.jobs.create(new_job(f"w{number}"))
    store.jobs.create(new_job("running"))
    running = claim(store, "running")
    store.jobs.create(new_job("elsewhere", endpoint="other"))

    assert store.queue.purge("ep", reason="purged") == 2500

    assert store.jobs.get("w7", "ep").status is JobStatus.CANCELLED
    assert store.jobs.get("w7", "ep").error == "purged"
    assert client.exists(*job_messages().lists("ep")) == 0
    assert store.figures.counts("ep") == (0, {"running": "w"}, {"CANCELLED": 2500})
    assert store.jobs.finish(running, DONE)
    assert store.jobs.get("elsewhere", "other").status is JobStatus.IN_QUEUE
    assert store.queue.purge("ep", reason="purged") == 0


def test_jobs_submitted_during_a_purge_keep_their_messages(store, client):
    for number in range(300):
        store.jobs.create(new_job(f"w{number}"))
    with ThreadPoolExecutor(2) as pool:
        purge = pool.submit(store.queue.purge, "ep", reason="purged")
        pool.submit(lambda: [store.jobs.create(new_job(f"n{n}")) for n in range(200)]).result()
        purge.result()
    waiting = [n for n in range(200) if store.jobs.get(f"n{n}", "ep").status is JobStatus.IN_QUEUE]
    assert client.llen(QUEUE) == len(waiting) == store.figures.counts("ep")[0]


def test_only_leases_that_ran_out_are_found_and_taken_up(store):
    store.jobs.create(new_job("dead"))
    store.jobs.create(new_job("alive"))
    store.jobs.claim("dead", worker_id="w", claim="1", lease_s=0.05)
    alive = store.jobs.claim("alive", worker_id="w", claim="2", lease_s=60)
    (found,) = wait_until(lambda: store.queue.expired(limit=10))
    assert found.id == "dead"
    options = {"lost": True, "reason": "silent", "lease_end_ms": found.lease_end_ms}
    assert store.jobs.requeue("alive", alive.number, **options) is None
    assert store.jobs.requeue("dead", found.attempt, **options) is JobStatus.IN_QUEUE
    assert store.queue.expired(limit=10) == []


def test_a_renewed_lease_does_not_run_out(store):
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id="w", claim="1", lease_s=0.05)
    wait_until(lambda: store.queue.expired(limit=10))
    assert store.jobs.renew([attempt], lease_s=60) == set()
    assert store.queue.expired(limit=10) == []


def test_a_shorter_stay_of_a_record_is_never_a_longer_one(store, client):
    store.jobs.create(new_job())
    store.jobs.finish(claim(store), DONE)
    deliveries = Deliveries(client, store.messages)
    deliveries.shorten_ttl("job-1", 5_000)
    assert client.pttl(keys.job("job-1")) <= 5_000
    deliveries.shorten_ttl("job-1", 60_000)
    assert client.pttl(keys.job("job-1")) <= 5_000


def test_a_redis_that_is_away_is_an_error_of_ownpods_own():
    with pytest.raises(RedisUnavailable, match="cannot be reached"):
        job_store(connect("redis://127.0.0.1:1/0")).jobs.create(new_job())


def test_a_redis_that_refuses_writes_is_unavailable_and_keeps_what_it_has(store, client):
    store.jobs.create(new_job("before"))
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable, match="refuses"):
            store.jobs.create(new_job("after"))
    finally:
        client.config_set("maxmemory", 0)
    assert store.jobs.get("before", "ep").status is JobStatus.IN_QUEUE
    with pytest.raises(JobNotFound):
        store.jobs.get("after", "ep")


def test_a_low_priority_job_waits_in_the_queues_second_list(store, client):
    store.jobs.create(new_job("low", low_priority=True))
    store.jobs.create(new_job("normal"))
    lists = job_messages().lists("ep")
    assert [client.llen(name) for name in lists] == [1, 1]
    # So it does when it is handed back, and it goes when it is cancelled.
    requeue(store, claim(store, "low"))
    assert client.llen(lists[1]) == 2
    store.jobs.cancel("low", "ep", reason="x")
    assert client.llen(lists[1]) == 1


def test_a_job_that_waited_longer_than_its_ttl_is_timed_out_by_the_sweep(store):
    store.jobs.create(new_job("old", created_ms=now_ms() - 20_000, ttl_ms=10_000))
    store.jobs.create(new_job("young", ttl_ms=10_000))
    assert store.queue.expire(limit=10) == ["old"]
    job = store.jobs.get("old", "ep")
    assert job.status is JobStatus.TIMED_OUT
    assert job.error == "ttl: the job waited longer than 10000 ms for a worker"
    assert store.queue.expire(limit=10) == []
    assert store.jobs.get("young", "ep").status is JobStatus.IN_QUEUE


def test_a_job_past_its_ttl_is_not_begun(store):
    store.jobs.create(new_job(created_ms=now_ms() - 20_000, ttl_ms=10_000))
    assert claim(store) is None
    assert store.jobs.get("job-1", "ep").status is JobStatus.TIMED_OUT


def test_chunks_are_kept_in_order_and_fenced(store, client):
    store.jobs.create(new_job())
    first = claim(store, token="1")
    assert store.chunks.add(first.job_id, first.number, ["1", "2"])
    assert store.chunks.add(first.job_id, first.number, ["3"])
    assert store.chunks.stream("job-1", "ep", (0, 0)).chunks == ["1", "2", "3"]
    requeue(store, first, lost=True)
    second = claim(store, token="2")
    assert not store.chunks.add(first.job_id, first.number, ["late"])
    assert store.chunks.stream("job-1", "ep", (1, 3)).chunks == []
    store.chunks.add(second.job_id, second.number, ["new"])
    # A cursor of an earlier attempt begins anew.
    assert store.chunks.stream("job-1", "ep", (1, 3)).chunks == ["new"]
    store.jobs.finish(second, DONE)
    assert 0 < client.ttl(keys.chunks("job-1")) <= 1800


def test_the_drain_cursor_moves_only_when_saved_and_once(store):
    store.jobs.create(new_job())
    attempt = claim(store)
    store.chunks.add(attempt.job_id, attempt.number, ["1", "2"])
    seen = store.chunks.stream("job-1", "ep", None)
    again = store.chunks.stream("job-1", "ep", None)
    assert seen.chunks == again.chunks == ["1", "2"]
    store.chunks.save_cursor(seen)
    store.chunks.save_cursor(again)
    assert store.chunks.stream("job-1", "ep", None).chunks == []
    assert store.chunks.stream("job-1", "ep", (0, 0)).chunks == ["1", "2"]


def failed_job(store, job_id="job-1", **changes):
    store.jobs.create(new_job(job_id, **changes))
    attempt = claim(store, job_id)
    store.chunks.add(attempt.job_id, attempt.number, ["1"])
    store.jobs.finish(attempt, Outcome(JobStatus.FAILED, output="5", error="boom"))
    return attempt


def test_a_retry_is_a_new_job_with_the_same_payload(store):
    failed_job(store, input='{"x": 1}', s3_config="{}", execution_timeout_ms=7777)
    store.jobs.retry("job-1", "ep", "job-2")
    assert store.jobs.get("job-1", "ep").status is JobStatus.FAILED
    again = store.jobs.get("job-2", "ep")
    assert (again.status, again.error, again.output, again.attempt) == (
        JobStatus.IN_QUEUE,
        None,
        None,
        0,
    )
    attempt = claim(store, "job-2")
    assert (attempt.input, attempt.s3_config, attempt.execution_timeout_ms) == (
        '{"x": 1}',
        "{}",
        7777,
    )
    assert store.figures.counts("ep")[2]["retried"] == 1


def test_a_retry_under_the_same_id_removes_the_old_output_and_counts(store, client):
    old = failed_job(store)
    store.jobs.retry("job-1", "ep", "job-1")
    job = store.jobs.get("job-1", "ep")
    assert (job.status, job.error, job.output, job.retries) == (JobStatus.IN_QUEUE, None, None, 1)
    assert client.ttl(keys.job("job-1")) == -1
    assert store.chunks.stream("job-1", "ep", (0, 0)).chunks == []
    attempt = claim(store, token="again")
    assert attempt.number == 2
    assert not store.jobs.finish(old, DONE)
    assert store.jobs.finish(attempt, DONE)


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.CANCELLED, None])
def test_other_jobs_cannot_be_retried(store, client, status):
    store.jobs.create(new_job())
    if status is not None:
        store.jobs.finish(claim(store), Outcome(status))
    with pytest.raises(NotRetryable, match="only FAILED and TIMED_OUT"):
        store.jobs.retry("job-1", "ep", "job-2")
    with pytest.raises(JobNotFound):
        store.jobs.retry("job-1", "other", "job-2")
    assert not client.exists(keys.job("job-2"))


def once(body="b", key="k"):
    return Idempotency(key=key, body=body, ttl_s=60)


def test_the_same_key_and_body_is_the_same_job_however_many_race(store, client):
    def submit(number):
        return store.jobs.create(new_job(f"job-{number}"), idempotency=once())

    with ThreadPoolExecutor(50) as pool:
        ids = set(pool.map(submit, range(50)))
    assert len(ids) == 1
    assert client.llen(QUEUE) == 1
    assert store.figures.counts("ep")[0] == 1


def test_the_same_key_with_another_body_is_a_conflict(store):
    store.jobs.create(new_job("a"), idempotency=once("one"))
    with pytest.raises(IdempotencyConflict):
        store.jobs.create(new_job("b"), idempotency=once("two"))
    assert store.jobs.create(new_job("c"), idempotency=once("two", key="other")) == "c"


def test_a_full_queue_takes_no_more(store):
    store.jobs.create(new_job("a"), most_queued=2)
    store.jobs.create(new_job("b"), most_queued=2)
    with pytest.raises(QueueFull, match="maxQueueDepth"):
        store.jobs.create(new_job("c"), most_queued=2)
    claim(store, "a")
    store.jobs.create(new_job("c"), most_queued=2)


def listed(store, **options):
    options = {"status": None, "before": None, "limit": 100} | options
    jobs, end = store.listing.recent("ep", **options)
    return [found.job.id for found in jobs], end


def test_recent_jobs_come_newest_first_and_in_pages(store, client):
    began = now_ms()
    # Several in the same ms.
    ids = [f"j{number:03}" for number in range(25)]
    for number, job_id in enumerate(ids):
        store.jobs.create(new_job(job_id, created_ms=began + number // 4))
    store.jobs.create(new_job("elsewhere", endpoint="other"))
    pages, before = [], None
    while True:
        page, before = listed(store, before=before, limit=10)
        pages.append(page)
        if before is None:
            break
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [job_id for page in pages for job_id in page] == ids[::-1]


def test_recent_jobs_are_filtered_by_state_and_gone_ones_left_out(store, client):
    for job_id in ("a", "b", "c"):
        store.jobs.create(new_job(job_id))
    store.jobs.cancel("b", "ep", reason="x")
    client.delete(keys.job("c"))
    assert listed(store, status=JobStatus.CANCELLED) == (["b"], None)
    assert listed(store, status=JobStatus.IN_QUEUE) == (["a"], None)
    assert client.zcard(keys.recent("ep")) == 2


def test_a_webhook_is_owed_from_the_end_on_and_has_a_message(store, client):
    store.jobs.create(new_job(webhook="http://h"))
    assert client.llen("ownpod-housekeeping") == 0
    store.jobs.cancel("job-1", "ep", reason="x")
    assert client.llen("ownpod-housekeeping") == 1
    assert '[["job-1"], {}' in json.loads(client.lindex("ownpod-housekeeping", 0))["body"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_purge_of_100000_jobs_takes_seconds(store, client):
    began_ms = now_ms()
    with client.pipeline(transaction=False) as pipe:
        for number in range(100_000):
            job_id = f"j{number}"
            pipe.hset(f"ownpod:job:{job_id}", mapping=new_job(job_id, created_ms=began_ms).record())
            pipe.zadd(keys.queued("ep"), {job_id: began_ms})
            if number % 10_000 == 9_999:
                pipe.execute()
        pipe.lpush(QUEUE, *(f"message {number}" for number in range(100_000)))
        pipe.execute()
    client.config_set("slowlog-log-slower-than", 100_000)
    client.slowlog_reset()
    began = time.monotonic()
    assert store.queue.purge("ep", reason="purged") == 100_000
    assert time.monotonic() - began < 200
    # The queue is taken away at once, whatever its length: Redis serves others meanwhile.
    slow = [entry["command"] for entry in client.slowlog_get(100)]
    assert not [command for command in slow if b" purge " in command or b"DEL" in command]
    client.config_set("slowlog-log-slower-than", 10_000)
    assert client.llen(QUEUE) == 0
    assert store.jobs.get("j99999", "ep").status is JobStatus.CANCELLED


def test_the_history_of_attempts_has_where_and_why_they_ended(store):
    store.jobs.create(new_job(max_attempts=2))
    requeue(store, claim(store, token="0"), reason="refused")
    requeue(store, claim(store, token="1"), lost=True, reason="it died")
    requeue(store, claim(store, token="2"), lost=True, reason="it died again")
    (found,), _ = store.listing.recent("ep", status=JobStatus.FAILED, before=None, limit=1)
    assert [(e["attempt"], e["workerId"], e["lost"], e["reason"]) for e in found.attempts] == [
        (1, "w", False, "refused"),
        (2, "w", True, "it died"),
        (3, "w", True, "it died again"),
    ]
    assert all(e["startedMs"] <= e["endedMs"] <= now_ms() for e in found.attempts)


def test_a_history_that_grows_and_grows_keeps_its_end(store):
    store.jobs.create(new_job())
    for number in range(30):
        requeue(store, claim(store, token=str(number)))
    (found,), _ = store.listing.recent("ep", status=None, before=None, limit=1)
    assert [entry["attempt"] for entry in found.attempts] == list(range(11, 31))
