"""Two hosts whose clocks are minutes apart: Redis's clock decides."""

import os
import subprocess
import sys

import pytest
from helpers import HERE, job_store, new_job, wait_until

from ownpod.rules.jobs import JobStatus
from ownpod.store import keys

CLAIM = """
import sys, time
shift = {shift}
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + shift
time.time_ns = lambda: real_ns() + shift * 10**9
from helpers import connect, job_store, new_job
client = connect({url!r})
store = job_store(client)
store.jobs.create(new_job("skewed", ttl_ms=60_000))
attempt = store.jobs.claim("skewed", worker_id="w", claim="t", lease_s=15)
assert attempt.ran_ms < 1000
assert store.jobs.renew([attempt], lease_s=15) == set()
assert store.queue.expired(limit=9) == [] and store.queue.expire(limit=9) == []
store.figures.sample("ep")
assert len(store.figures.history("ep")) == 1
store.jobs.create(new_job("waiting", ttl_ms=60_000))
"""


@pytest.mark.slow
@pytest.mark.parametrize("shift", [-600, 600])
def test_a_host_whose_clock_is_wrong_writes_and_reads_redis_time(redis_server, client, shift):
    code = CLAIM.format(shift=shift, url=redis_server.url)
    environ = {**os.environ, "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, env=environ)
    store = job_store(client)
    now_ms = store.now_ms()
    # To the host with the right clock neither the lease nor the ttl has run out.
    assert store.queue.expired(limit=9) == []
    assert store.queue.expire(limit=9) == []
    job = store.jobs.get("skewed", "ep")
    for ms in (job.created_ms, job.started_ms):
        assert now_ms - 30_000 < ms <= now_ms
    assert now_ms < client.zscore(keys.LEASES, "skewed") <= now_ms + 15_000
    assert now_ms < client.zscore(keys.EXPIRIES, "waiting") <= now_ms + 60_000
    assert [job.status, len(store.figures.history("ep"))] == [JobStatus.IN_PROGRESS, 1]


def test_a_lease_without_a_record_is_removed_and_hides_no_other(client):
    store = job_store(client)
    client.zadd(keys.LEASES, {f"gone-{number}": number for number in range(5)})
    store.jobs.create(new_job())
    store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=0.01)
    assert store.queue.expired(limit=5) == []
    (found,) = wait_until(lambda: store.queue.expired(limit=5))
    assert (found.id, found.worker_id) == ("job-1", "w")
    assert client.zcard(keys.LEASES) == 1


def test_a_lease_that_was_renewed_since_it_ran_out_is_not_taken(client):
    store = job_store(client)
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=0.01)
    (found,) = wait_until(lambda: store.queue.expired(limit=5))
    # Redis stood still in between: the node's renewal came first.
    store.jobs.renew([attempt], lease_s=0.01)
    options = {"lost": True, "reason": "silent", "lease_end_ms": found.lease_end_ms}
    assert store.jobs.requeue("job-1", 1, **options) is None
    (again,) = wait_until(lambda: store.queue.expired(limit=5))
    options["lease_end_ms"] = again.lease_end_ms
    assert store.jobs.requeue("job-1", 1, **options) is JobStatus.IN_QUEUE
