"""One bad record keeps no other job from its lease, its ttl, its webhook or its recovery; what would take
Redis long or fill it has a bound.
"""

import pytest
from helpers import job_message, job_store, load_settings, new_job, now_ms, wait_until

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import Sweep
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.chunks import parse_cursor
from ownpod.store.common import CHUNK_BYTES
from ownpod.store.jobs import Idempotency
from ownpod.store.offers import Offers

QUEUE = "ownpod.ep"


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def recovery(store):
    return Recovery(store, lambda: ["bad", "ep"], lease_s=1)


@pytest.fixture
def sweep(store, client, recovery):
    return Sweep(store, recovery, Offers(client, gone_s=1), lease_s=1)


@pytest.fixture
def api(redis_server, client):
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS="http://w:1"))
    yield app.test_client()
    services_of(app).notices.stop()


def claim(store, job_id="job-1", token="t", lease_s=15.0):
    return store.jobs.claim(job_id, worker_id="w", claim=token, lease_s=lease_s)


def test_a_key_of_a_wrong_type_stops_one_step_of_the_sweep_only(store, client, sweep, caplog):
    # What made the housekeeping node end again and again.
    client.zadd(keys.HEARD, {"zz": 1})
    client.hset(f"{keys.PULL}zz:out", "x", "1")
    client.zadd(f"{keys.ENDPOINT}bad:purging", {"x": 1})
    client.set(keys.queued("bad"), "no zset")
    client.set(keys.of_endpoint("bad", "history"), "no list")
    store.jobs.create(new_job("silent"))
    claim(store, "silent", lease_s=0.01)
    store.jobs.create(
        new_job("old", created_ms=now_ms() - 20_000, ttl_ms=10_000, webhook="http://h")
    )
    wait_until(lambda: store.queue.expired(limit=1))
    sweep.once()
    assert store.jobs.get("silent", "ep").status is JobStatus.IN_QUEUE
    assert store.jobs.get("old", "ep").status is JobStatus.TIMED_OUT
    client.zadd(keys.WEBHOOKS, {"old": 1})
    sweep.once()
    assert client.zscore(keys.WEBHOOKS, "old") > 1
    assert len(store.figures.history("ep")) == 1
    failures = [record for record in caplog.records if record.exc_info]
    assert any("WRONGTYPE" in str(record.exc_info[1]) for record in failures)


def test_a_record_that_cannot_be_read_keeps_no_other_job_waiting(store, client, sweep):
    client.set(keys.job("broken"), "no hash")
    client.zadd(keys.EXPIRIES, {"broken": 1})
    client.zadd(keys.LEASES, {"broken": 1})
    store.jobs.create(new_job("old", created_ms=now_ms() - 20_000, ttl_ms=10_000))
    store.jobs.create(new_job("silent"))
    silent = claim(store, "silent", lease_s=0.01)
    assert store.queue.expire(limit=1) == []
    assert store.queue.expire(limit=1) == ["old"]
    assert store.queue.expired(limit=1) == []
    assert wait_until(lambda: store.queue.expired(limit=1))[0].id == "silent"
    # Nor from the renewal of its lease.
    client.hset(keys.job("other"), mapping={"status": "IN_PROGRESS", "attempt": 1})
    broken = silent.__class__(**{**vars(silent), "job_id": "broken"})
    assert store.jobs.renew([broken, silent], lease_s=60) == set()
    assert store.queue.expired(limit=1) == []


@pytest.mark.parametrize("figure", [10**400, -5, 10**19])
def test_any_figure_of_a_worker_ends_the_job_well(store, client, figure):
    store.jobs.create(new_job())
    assert store.jobs.finish(
        claim(store), Outcome(JobStatus.COMPLETED, output="1", execution_ms=figure)
    )
    assert 0 <= int(client.hget(keys.of_endpoint("ep", "execution"), "sum")) <= 8 * 86_400_000
    assert 0 <= store.jobs.get("job-1", "ep").execution_ms <= 8 * 86_400_000


@pytest.mark.parametrize("text", ["1e300", "nan", "-inf", "-5", "soon"])
def test_redis_itself_takes_any_figure_of_a_process(store, client, text):
    store.jobs.create(new_job())
    claim(store)
    # As a process of another version may send it.
    figure = ("execution_ms", text)
    assert store.scripts("finish", "", "job-1", 1, "w", JobStatus.COMPLETED, 60, *figure) == 1
    assert 0 <= int(client.hget(keys.of_endpoint("ep", "execution"), "sum")) <= 8 * 86_400_000


def test_a_job_that_yields_more_than_64_mib_is_failed_with_the_reason(store, client):
    store.jobs.create(new_job(webhook="http://h"))
    attempt = claim(store)
    megabyte = f'"{"x" * (1024 * 1024 - 2)}"'
    for _ in range(CHUNK_BYTES // 1024 // 1024 // 4):
        assert store.chunks.add("job-1", attempt.number, [megabyte] * 4)
    assert not store.chunks.add("job-1", attempt.number, ["1"])
    job = store.jobs.get("job-1", "ep")
    assert job.status is JobStatus.FAILED
    assert job.error == (
        "the handler yielded more than 64 MiB of chunks, the most that is kept of a job"
    )
    assert client.llen(keys.chunks("job-1")) == CHUNK_BYTES // 1024 // 1024
    assert 0 < client.ttl(keys.chunks("job-1")) <= 1800
    assert store.jobs.renew([attempt], lease_s=15) == {"job-1"}
    assert client.llen("ownpod-housekeeping") == 1


@pytest.mark.slow
def test_the_bound_of_chunks_is_each_attempts(store):
    store.jobs.create(new_job())
    first = claim(store)
    text = f'"{"x" * (CHUNK_BYTES - 1000)}"'
    assert store.chunks.add("job-1", 1, [text])
    store.jobs.requeue("job-1", first.number, lost=True, reason="x")
    second = claim(store, token="2")
    assert store.chunks.add("job-1", second.number, [text])


def once(body="b"):
    return Idempotency(key="k", body=body, ttl_s=60)


def test_a_key_whose_record_has_gone_makes_a_new_job(store, client):
    assert store.jobs.create(new_job("a"), idempotency=once()) == "a"
    assert store.jobs.create(new_job("b"), idempotency=once()) == "a"
    client.delete(keys.job("a"))
    assert store.jobs.create(new_job("c"), idempotency=once("other")) == "c"
    assert store.jobs.create(new_job("d"), idempotency=once("other")) == "c"


def test_a_repeated_key_is_answered_with_the_jobs_true_state(api, client):
    def run():
        headers = {"Idempotency-Key": "k"}
        return api.post("/v2/local-ep/run", json={"input": {}}, headers=headers).json

    first = run()
    store = job_store(client)
    store.jobs.finish(claim(store, first["id"]), Outcome(JobStatus.COMPLETED, output="1"))
    assert run() == {"id": first["id"], "status": "COMPLETED"}
    client.delete(keys.job(first["id"]))
    again = run()
    assert again["status"] == "IN_QUEUE"
    assert again["id"] != first["id"]
    assert api.get(f"/v2/local-ep/status/{again['id']}").status_code == 200


@pytest.mark.parametrize(
    "text", ["1-99999999999999999999", "1" * 5000 + "-1", "1-" + "1" * 5000, "1-²"]
)
def test_a_cursor_of_huge_numbers_is_none_and_the_stream_begins_at_its_start(api, client, text):
    assert parse_cursor(text) is None
    job_id = api.post("/v2/local-ep/run", json={"input": {}}).json["id"]
    store = job_store(client)
    attempt = claim(store, job_id)
    store.chunks.add(job_id, attempt.number, ["1", "2"])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED))
    headers = {"Accept": "text/event-stream", "Last-Event-ID": text.encode()}
    answer = api.get(f"/v2/local-ep/stream/{job_id}", headers=headers)
    assert answer.status_code == 200
    assert [line for line in answer.text.split("\n") if line.startswith("id:")] == [
        "id: 1-0",
        "id: 1-1",
        "id: 1-end",
    ]


def fill(client, count):
    """Waiting jobs without records, older than all others, or newer."""
    with client.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.lpush(QUEUE, job_message(f"n{number}")[1] if number == 0 else f"message {number}")
            pipe.zadd(keys.queued("ep"), {f"n{number}": now_ms()})
        pipe.execute()


def test_a_cancel_deep_in_a_long_queue_leaves_its_message_to_the_claim(store, client, recovery):
    fill(client, 10_100)
    store.jobs.create(new_job("deep"))
    fill(client, 10_100)
    client.zadd(keys.queued("ep"), {f"m{number}": now_ms() for number in range(10_100)})
    waiting = client.llen(QUEUE)
    assert store.jobs.cancel("deep", "ep", reason="x") is JobStatus.CANCELLED
    assert client.llen(QUEUE) == waiting
    # Recovery counts it: no job waits for this message.
    assert client.zrange(keys.left("ep"), 0, -1) == ["deep"]
    assert claim(store, "deep") is None
    assert client.zcard(keys.left("ep")) == 0


def test_the_messages_of_cancelled_jobs_hide_no_loss(store, client, recovery):
    for job_id in ("a", "b"):
        store.jobs.create(new_job(job_id, created_ms=now_ms() - 60_000))
    lost = job_message("a")
    client.lrem(lost[0], 1, lost[1])
    # A message of a job that was cancelled is still in the list, and known.
    client.lpush(QUEUE, job_message("gone")[1])
    client.zadd(keys.left("ep"), {"gone": 1, "dropped": 1})
    assert [recovery.once() for _ in range(2)] == [0, 1]
    assert client.zrange(keys.left("ep"), 0, -1) == ["gone"]


@pytest.mark.parametrize("job_id", ["first", "middle", "last"])
def test_a_cancelled_job_near_an_end_takes_its_message_along(store, client, job_id):
    for name in ("first", "middle", "last"):
        store.jobs.create(new_job(name))
    store.jobs.cancel(job_id, "ep", reason="x")
    assert client.llen(QUEUE) == 2
    assert job_message(job_id)[1] not in client.lrange(QUEUE, 0, -1)
    assert client.zcard(keys.left("ep")) == 0


def test_a_purge_waits_for_an_earlier_one_that_broke_off(store, client):
    store.jobs.create(new_job("a"))
    client.rename(keys.queued("ep"), keys.of_endpoint("ep", "purging"))
    store.jobs.create(new_job("b"))
    assert store.queue.purge("ep", reason="purged") == 1
    for job_id in ("a", "b"):
        assert store.jobs.get(job_id, "ep").status is JobStatus.CANCELLED
    assert client.llen(QUEUE) == 0


@pytest.mark.slow
def test_a_whole_queue_is_not_compared_in_every_round_that_finds_nothing(store, client, recovery):
    # Young jobs whose message is on its way, so the counts differ for long.
    store.jobs.create(new_job())
    client.delete(QUEUE)
    client.zadd(keys.queued("ep"), {"job-1": now_ms() + 600_000})
    client.config_resetstat()
    for _ in range(12):
        recovery.once()
    ranges = client.info("commandstats").get("cmdstat_lrange", {"calls": 0})["calls"]
    # Two lists, after the rounds 2, 4 and 8.
    assert ranges == 6


def test_a_retry_copies_no_output(store, client):
    store.jobs.create(new_job())
    store.jobs.finish(claim(store), Outcome(JobStatus.FAILED, output='"big"', error="boom"))
    client.config_resetstat()
    store.jobs.retry("job-1", "ep", "job-2")
    stats = client.info("commandstats")
    assert "cmdstat_hkeys" not in stats
    assert not client.hexists(keys.job("job-2"), "output")
    assert client.hget(keys.job("job-2"), "input") == "{}"
