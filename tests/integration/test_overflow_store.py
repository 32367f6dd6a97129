"""Which jobs go to a cloud worker's own queue, and its money; a real Redis."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import job_store, new_job, now_ms

from ownpod.rules.jobs import JobStatus
from ownpod.rules.overflow import LARGEST_INPUT, Spent
from ownpod.rules.runs import Attempt, Outcome
from ownpod.store.budgets import KEPT_S, Budgets
from ownpod.store.common import PREFER_MS

SHARED, OWN = "ownpod.ep", "ownpod.ep.runpod"


@pytest.fixture
def store(client):
    return job_store(client)


def create(store, name, **changes):
    values = {"created_ms": now_ms() - 60_000} | changes
    store.jobs.create(new_job(name, **values))


def take(store, capacity=1, *, after_s=30, secrets=False):
    return store.overflow.take("ep", "runpod", after_s=after_s, secrets=secrets, capacity=capacity)


def seen(store, *, after_s=30, secrets=False):
    return store.overflow.seen("ep", "runpod", after_s=after_s, secrets=secrets)


def claim(store, name, worker="runpod"):
    return store.jobs.claim(name, worker_id=worker, claim=f"{name}-{worker}", lease_s=10)


def test_the_oldest_job_that_has_waited_long_enough_goes(store, client):
    create(store, "new", created_ms=None)
    create(store, "old", created_ms=now_ms() - 40_000)
    create(store, "oldest", execution_timeout_ms=7000)
    found = seen(store)
    assert 60 <= found.oldest_wait_s < 90
    assert (found.execution_timeout_ms, found.spent, found.waiting) == (7000, Spent(), 0)
    assert take(store) == ["oldest"]
    assert (client.llen(SHARED), client.llen(OWN)) == (2, 1)
    # It has no further slot.
    assert (take(store), seen(store).waiting) == ([], 1)
    attempt = claim(store, "oldest")
    assert isinstance(attempt, Attempt)
    assert take(store) == []
    assert take(store, 3) == ["old"]


def test_low_priority_waits_behind_normal_priority(store):
    create(store, "low", low_priority=True)
    create(store, "normal", created_ms=now_ms() - 40_000)
    assert take(store, 2) == ["normal", "low"]


def test_what_must_stay_stays(store):
    create(store, "pinned", queue="ownpod.ep.gpu-1", affinity="strict")
    create(store, "never", stays=True)
    create(store, "came", hops=1)
    create(store, "large", input=f'"{"x" * LARGEST_INPUT}"')
    create(store, "secret", s3_config='{"accessKey": "x"}')
    assert (take(store, 10), seen(store).oldest_wait_s) == ([], None)
    assert take(store, 10, secrets=True) == ["secret"]


def test_a_job_that_is_kept_is_not_chosen_again_and_a_retry_keeps_that(store):
    create(store, "a")
    store.overflow.keep("a")
    store.overflow.keep("gone")
    assert take(store) == []
    store.jobs.finish(claim(store, "a", "w"), Outcome(JobStatus.FAILED, error="x"))
    store.jobs.retry("a", "ep", "b")
    assert claim(store, "b", "w").stays


def test_a_job_whose_message_is_on_its_way_to_another_worker_stays(store, client):
    create(store, "a")
    client.rpop(SHARED)
    assert take(store) == []
    assert isinstance(claim(store, "a", "local"), Attempt)


def test_a_job_that_the_node_does_not_claim_returns_to_the_endpoints_queue(store, client):
    create(store, "a")
    assert take(store) == ["a"]
    client.zadd("ownpod:preferring", {"a": now_ms() - PREFER_MS})
    assert store.queue.release_preferring(limit=10) == 1
    assert (client.llen(SHARED), client.llen(OWN)) == (1, 0)
    assert isinstance(claim(store, "a", "local"), Attempt)


def test_a_requeued_job_is_in_front_of_the_endpoints_queue(store, client):
    create(store, "a")
    create(store, "b", created_ms=now_ms() - 40_000)
    take(store)
    client.rpop(OWN)
    claim(store, "a")
    store.jobs.requeue("a", 1, lost=False, reason="busy", freed="runpod")
    assert client.llen(OWN) == 0
    assert "a" in client.lrange(SHARED, -1, -1)[0]


def test_where_a_run_is_becomes_part_of_the_record(store, client):
    create(store, "a")
    take(store)
    claim(store, "a")
    place = {"url": "https://x/v2/e", "endpoint": "e", "id": "r1"}
    assert store.overflow.remote("a", 1, place, begun=False, progress='{"remote": "IN_QUEUE"}')
    waiting = store.jobs.get("a", "ep")
    assert json.loads(waiting.progress) == {"remote": "IN_QUEUE"}
    assert store.overflow.remote("a", 1, place | {"workerId": "w1"}, begun=True)
    running = store.jobs.get("a", "ep")
    assert running.progress is None
    assert running.started_ms >= waiting.started_ms
    details = store.listing.details("a")
    assert details["remote"] == place | {"workerId": "w1"}
    assert "remote_begun" not in details
    entries = [json.loads(entry) for entry in client.lrange("ownpod:journal:a", 0, -1)]
    assert [(e[3], e[4]["status"], e[4]["worker_id"]) for e in entries] == [
        ("connection", "overflow", "runpod")
    ]
    store.jobs.requeue("a", 1, lost=True, reason="cut off", freed="runpod")
    details = store.listing.details("a")
    assert details["attempts"][0]["remote"] == place | {"workerId": "w1"}
    assert "remote" not in details
    assert not store.overflow.remote("a", 1, place, begun=True)


def test_the_time_of_an_adopted_run_counts_from_its_begin_there(store, client):
    create(store, "a")
    take(store)
    assert not claim(store, "a").remote_begun
    client.hset("ownpod:job:a", "started_ms", now_ms() - 50_000)
    store.overflow.remote("a", 1, {"id": "r"}, begun=True, ran_ms=2000)
    store.overflow.remote("a", 1, {"id": "r"}, begun=True, ran_ms=0)
    again = claim(store, "a")
    assert again.remote_begun
    assert 2000 <= again.ran_ms < 40_000


# Money.


@pytest.fixture
def budgets(client):
    return Budgets(client)


def test_a_budget_is_kept_to_the_micro_unit_by_32_parallel_starts(budgets):
    def reserve(number):
        return budgets.reserve("runpod", f"job-{number}:1", 330_001, limit=5_000_000).done

    with ThreadPoolExecutor(32) as pool:
        done = list(pool.map(reserve, range(32)))
    assert sum(done) == 15
    assert budgets.spent(["runpod", "other"]) == {
        "runpod": Spent(0, 15 * 330_001),
        "other": Spent(),
    }
    assert not budgets.reserve("runpod", "x:1", 49_986, limit=5_000_000).done
    assert budgets.reserve("runpod", "x:1", 49_985, limit=5_000_000).done
    with ThreadPoolExecutor(32) as pool:
        runs = [f"job-{n}:1" for n in range(32)]
        settled = list(
            pool.map(lambda run: budgets.settle("runpod", run, 7, limit=5_000_000).done, runs)
        )
    assert sum(settled) == 15
    assert budgets.spent(["runpod"])["runpod"] == Spent(15 * 7, 49_985)


def test_a_run_is_reserved_once_and_settled_once(budgets):
    for _ in range(2):
        assert budgets.reserve("runpod", "a:1", 100, limit=100).done
    assert budgets.settle("runpod", "a:1", None, limit=100).done
    assert not budgets.settle("runpod", "a:1", None, limit=100).done
    assert budgets.spent(["runpod"])["runpod"] == Spent(100, 0)
    assert not budgets.reserve("runpod", "b:1", 1, limit=100).done
    assert budgets.reserve("runpod", "b:1", 1, limit=None).done


def test_a_run_may_cost_nothing(budgets):
    assert budgets.reserve("runpod", "a:1", 0, limit=0).done
    assert budgets.settle("runpod", "a:1", 0, limit=0).done
    assert budgets.spent(["runpod"])["runpod"] == Spent()


def test_the_warning_comes_once_a_day(budgets):
    assert not budgets.reserve("runpod", "a:1", 79, limit=100).warns
    assert budgets.reserve("runpod", "b:1", 1, limit=100).warns
    assert not budgets.settle("runpod", "b:1", 15, limit=100).warns


def test_a_days_figures_expire(budgets, client):
    budgets.reserve("runpod", "a:1", 5, limit=None)
    keys = client.keys("ownpod:budget:*")
    assert len(keys) == 2
    assert all(0 < client.ttl(key) <= KEPT_S for key in keys)
