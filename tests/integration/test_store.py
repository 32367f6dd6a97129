"""Job records on a real Redis: each move, its fence, and what it leaves."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import job_messages, job_store, new_job, wait_until

from ownpod import keys
from ownpod.errors import JobNotFound, RedisUnavailable
from ownpod.jobs import MOVES, JobStatus, Outcome
from ownpod.store import connect

DONE = Outcome(JobStatus.COMPLETED, output='{"a": 1}', execution_ms=7)
QUEUE = "ownpod.ep"


@pytest.fixture
def store(client):
    return job_store(client)


def claim(store, job_id="job-1", token="t"):
    return store.claim(job_id, worker_id="w", claim=token, lease_s=15)


def hand_back(store, attempt, **changes):
    options = {"lost": False, "reason": "why"} | changes
    return store.hand_back(attempt.job_id, attempt.endpoint, attempt.number, **options)


def test_a_new_job_waits_with_its_message(store, client):
    store.create(new_job())
    assert store.job("job-1", "ep").status is JobStatus.IN_QUEUE
    assert client.lrange(QUEUE, 0, -1) == [job_messages().for_job("job-1", "ep")[1]]
    assert store.counts("ep") == (1, {}, {})


def test_creating_twice_is_creating_once(store, client):
    job = new_job()
    store.create(job)
    store.create(job)
    assert client.llen(QUEUE) == 1


def test_a_claim_begins_the_first_attempt(store, client):
    store.create(new_job(input='{"x": 1}', s3_config='{"b": 2}', execution_timeout_ms=9000))
    attempt = claim(store)
    assert (attempt.number, attempt.input, attempt.s3_config) == (1, '{"x": 1}', '{"b": 2}')
    assert attempt.execution_timeout_ms == 9000
    job = store.job("job-1", "ep")
    assert (job.status, job.worker_id, job.attempt) == (JobStatus.IN_PROGRESS, "w", 1)
    assert store.counts("ep") == (0, {"job-1": "w"}, {})
    assert client.zscore(keys.LEASES, "job-1") > job.started_ms


def test_one_of_many_claims_wins(store):
    store.create(new_job())
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: claim(store, token=f"t{n}"), range(50)))
    assert len([attempt for attempt in found if attempt]) == 1


def test_the_same_claim_repeated_is_the_same_attempt(store):
    store.create(new_job())
    assert claim(store, token="t") == claim(store, token="t")
    assert claim(store, token="other") is None


def test_a_job_that_is_not_there_cannot_be_claimed(store):
    assert claim(store) is None


def test_a_finished_job_has_output_and_goes_after_its_time(store, client):
    store.create(new_job())
    assert store.finish(claim(store), DONE)
    job = store.job("job-1", "ep")
    assert (job.status, job.output, job.execution_ms) == (JobStatus.COMPLETED, '{"a": 1}', 7)
    assert 1700 < client.ttl(keys.job("job-1")) <= 1800
    assert store.counts("ep") == (0, {}, {"COMPLETED": 1})
    assert client.zcard(keys.LEASES) == 0


def test_a_finished_job_stays_finished(store):
    store.create(new_job())
    attempt = claim(store)
    store.finish(attempt, DONE)
    assert not store.finish(attempt, Outcome(JobStatus.FAILED, error="late"))
    assert store.cancel("job-1", "ep", reason="late") is JobStatus.COMPLETED
    assert hand_back(store, attempt) is None
    assert claim(store, token="again") is None
    assert store.job("job-1", "ep").error is None


def test_the_table_of_moves_is_what_redis_allows(store, client):
    def takes_to(old, new):
        job_id = f"{old}-{new}"
        store.create(new_job(job_id))
        if old is not JobStatus.IN_QUEUE:
            attempt = claim(store, job_id)
            if old is not JobStatus.IN_PROGRESS:
                store.finish(attempt, Outcome(old, error="x"))
        attempt = attempt if old is not JobStatus.IN_QUEUE else None
        if new is JobStatus.IN_PROGRESS:
            return claim(store, job_id, "next") is not None
        if new is JobStatus.IN_QUEUE:
            return attempt is not None and hand_back(store, attempt) is new
        if new is JobStatus.CANCELLED:
            store.cancel(job_id, "ep", reason="x")
            return old is not new and store.job(job_id, "ep").status is new
        return attempt is not None and store.finish(attempt, Outcome(new, error="y"))

    # A job that waits can end by FAILED and TIMED_OUT too, but no call does it yet.
    for old in JobStatus:
        for new in JobStatus:
            if old is JobStatus.IN_QUEUE and new in {JobStatus.FAILED, JobStatus.TIMED_OUT}:
                continue
            if old is JobStatus.IN_QUEUE and new is JobStatus.COMPLETED:
                continue
            assert takes_to(old, new) == (new in MOVES[old]), (old, new)


def test_a_late_answer_of_an_abandoned_attempt_changes_nothing(store):
    store.create(new_job())
    first = claim(store, token="1")
    assert hand_back(store, first, lost=True) is JobStatus.IN_QUEUE
    second = claim(store, token="2")
    assert second.number == 2
    assert not store.finish(first, DONE)
    assert hand_back(store, first) is None
    assert store.renew([first, second], lease_s=15) == {"job-1"}
    assert store.job("job-1", "ep").status is JobStatus.IN_PROGRESS


def test_a_job_handed_back_is_the_next_to_be_taken(store, client):
    store.create(new_job("a"))
    attempt = claim(store, "a")
    client.delete(QUEUE)
    store.create(new_job("b"))
    hand_back(store, attempt)
    assert client.lindex(QUEUE, -1) == job_messages().for_job("a", "ep")[1]
    job = store.job("a", "ep")
    assert (job.status, job.worker_id, job.started_ms) == (JobStatus.IN_QUEUE, None, None)


def test_attempts_that_were_not_begun_do_not_count(store):
    store.create(new_job(max_attempts=2))
    for number in range(1, 6):
        assert hand_back(store, claim(store, token=str(number))) is JobStatus.IN_QUEUE
    assert store.job("job-1", "ep").lost == 0
    assert store.counts("ep")[2] == {}


def test_the_last_lost_attempt_ends_in_failed_with_the_reason(store):
    store.create(new_job(max_attempts=2))
    assert hand_back(store, claim(store, token="1"), lost=True) is JobStatus.IN_QUEUE
    second = claim(store, token="2")
    assert hand_back(store, second, lost=True, reason="it died") is JobStatus.FAILED
    job = store.job("job-1", "ep")
    assert (job.status, job.error, job.lost) == (JobStatus.FAILED, "it died", 2)
    assert store.counts("ep")[2] == {"retried": 1, "FAILED": 1}


def test_a_waiting_job_is_cancelled_with_its_message(store, client):
    store.create(new_job("a"))
    store.create(new_job("b"))
    assert store.cancel("a", "ep", reason="no more") is JobStatus.CANCELLED
    assert client.llen(QUEUE) == 1
    assert store.job("a", "ep").error == "no more"
    assert claim(store, "a") is None


def test_a_running_job_is_cancelled_and_its_node_told(store):
    store.create(new_job())
    attempt = claim(store)
    assert store.cancel("job-1", "ep", reason="x") is JobStatus.CANCELLED
    assert store.renew([attempt], lease_s=15) == {"job-1"}


def test_another_endpoints_job_is_not_found(store):
    store.create(new_job())
    for call in (
        lambda: store.job("job-1", "other"),
        lambda: store.cancel("job-1", "other", reason="x"),
        lambda: store.job("none", "ep"),
    ):
        with pytest.raises(JobNotFound):
            call()


def test_a_purge_takes_this_endpoints_waiting_jobs_and_only_those(store, client):
    for number in range(2500):
        store.create(new_job(f"w{number}"))
    store.create(new_job("running"))
    running = claim(store, "running")
    store.create(new_job("elsewhere", endpoint="other"))

    assert store.purge("ep", reason="purged") == 2500

    assert store.job("w7", "ep").status is JobStatus.CANCELLED
    assert store.job("w7", "ep").error == "purged"
    assert client.exists(*job_messages().lists("ep")) == 0
    assert store.counts("ep") == (0, {"running": "w"}, {"CANCELLED": 2500})
    assert store.finish(running, DONE)
    assert store.job("elsewhere", "other").status is JobStatus.IN_QUEUE
    assert store.purge("ep", reason="purged") == 0


def test_jobs_submitted_during_a_purge_keep_their_messages(store, client):
    for number in range(300):
        store.create(new_job(f"w{number}"))
    with ThreadPoolExecutor(2) as pool:
        purge = pool.submit(store.purge, "ep", reason="purged")
        pool.submit(lambda: [store.create(new_job(f"n{n}")) for n in range(200)]).result()
        purge.result()
    waiting = [n for n in range(200) if store.job(f"n{n}", "ep").status is JobStatus.IN_QUEUE]
    assert client.llen(QUEUE) == len(waiting) == store.counts("ep")[0]


def test_only_leases_that_ran_out_are_found_and_taken_up(store):
    store.create(new_job("dead"))
    store.create(new_job("alive"))
    store.claim("dead", worker_id="w", claim="1", lease_s=0.05)
    alive = store.claim("alive", worker_id="w", claim="2", lease_s=60)
    (found,) = wait_until(lambda: store.expired(limit=10))
    assert found.id == "dead"
    options = {"lost": True, "reason": "silent", "expired_only": True}
    assert store.hand_back("alive", "ep", alive.number, **options) is None
    assert store.hand_back("dead", "ep", found.attempt, **options) is JobStatus.IN_QUEUE
    assert store.expired(limit=10) == []


def test_a_renewed_lease_does_not_run_out(store):
    store.create(new_job())
    attempt = store.claim("job-1", worker_id="w", claim="1", lease_s=0.05)
    wait_until(lambda: store.expired(limit=10))
    assert store.renew([attempt], lease_s=60) == set()
    assert store.expired(limit=10) == []


def test_a_shorter_stay_of_a_record_is_never_a_longer_one(store, client):
    store.create(new_job())
    store.finish(claim(store), DONE)
    job = store.job("job-1", "ep")
    store.shorten_ttl(job, 5_000)
    assert client.pttl(keys.job("job-1")) <= 5_000
    store.shorten_ttl(job, 60_000)
    assert client.pttl(keys.job("job-1")) <= 5_000


def test_a_redis_that_is_away_is_an_error_of_ownpods_own():
    with pytest.raises(RedisUnavailable, match="cannot be reached"):
        job_store(connect("redis://127.0.0.1:1/0")).create(new_job())


def test_a_redis_that_refuses_writes_is_unavailable_and_keeps_what_it_has(store, client):
    store.create(new_job("before"))
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailable, match="refuses"):
            store.create(new_job("after"))
    finally:
        client.config_set("maxmemory", 0)
    assert store.job("before", "ep").status is JobStatus.IN_QUEUE
    with pytest.raises(JobNotFound):
        store.job("after", "ep")
