"""Webhooks, sent to a small receiver over HTTP: their tries, and the leases of senders."""

import hashlib
import hmac
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import (
    Answer,
    FakeWorker,
    Process,
    RedisServer,
    job_store,
    load_settings,
    new_job,
    wait_until,
)

from ownpod.housekeeping.webhooks import Webhooks
from ownpod.processes import free_port
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.deliveries import Deliveries

QUEUE = "ownpod-housekeeping"


@pytest.fixture
def receiver():
    with FakeWorker({"POST /hook": Answer(body={})}).serving() as found:
        yield found


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def deliveries(client, store):
    return Deliveries(client, store.messages)


@pytest.fixture
def make_webhooks(deliveries):
    return lambda **environ: Webhooks(deliveries, load_settings(**environ))


def ended(store, url, outcome=None, job_id="job-1"):
    store.jobs.create(new_job(job_id, webhook=url))
    end_of(store, outcome, job_id)


def end_of(store, outcome=None, job_id="job-1"):
    attempt = store.jobs.claim(job_id, worker_id="w", claim="t", lease_s=9)
    store.jobs.finish(attempt, outcome or Outcome(JobStatus.COMPLETED, output='{"a": 1}'))


def log_of(client, job_id="job-1"):
    return json.loads(client.hget(keys.job(job_id), "deliveries") or "[]")


def pause_over(client, job_id="job-1"):
    """Makes the next try due, as after its pause or after the lease of the current try."""
    try_ = json.loads(client.hget(keys.job(job_id), "webhook_try") or "{}")
    client.hset(keys.job(job_id), "webhook_try", json.dumps(try_ | {"until_ms": 1}))
    client.zadd(keys.WEBHOOKS, {job_id: 1})


def take(client):
    """Pops the next message, as a node does; returns its job id."""
    message = client.rpop(QUEUE)
    return message and json.loads(json.loads(message)["body"])[0][0]


def next_try_s(client):
    due = client.zscore(keys.WEBHOOKS, "job-1")
    seconds, micro = client.time()
    return None if due is None else due / 1000 - seconds - micro / 1e6


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(JobStatus.COMPLETED, output='{"a": 1}'),
        Outcome(JobStatus.FAILED, error="boom"),
        Outcome(JobStatus.TIMED_OUT, error="slow"),
        Outcome(JobStatus.CANCELLED, error="no"),
    ],
)
def test_a_webhook_has_the_body_of_status_at_every_end(
    store, client, receiver, make_webhooks, outcome
):
    ended(store, f"{receiver.url}/hook", outcome)
    make_webhooks().send("job-1")
    ((_, path, body),) = receiver.seen
    assert path == "/hook"
    assert body == json.loads(store.jobs.get("job-1", "ep").answer_json())
    assert next_try_s(client) is None
    (entry,) = log_of(client)
    assert (entry["try"], entry["httpStatus"], entry["error"]) == (1, 200, None)


def test_three_tries_10_s_apart_and_no_more(store, client, receiver, make_webhooks):
    receiver.routes["POST /hook"] = Answer(500, {})
    ended(store, f"{receiver.url}/hook")
    webhooks = make_webhooks()
    pauses = []
    for _ in range(3):
        webhooks.send("job-1")
        pauses.append(next_try_s(client))
        if pauses[-1] is not None:
            pause_over(client)
    # Some of it has passed, on a loaded machine more than a second.
    assert 4 < pauses[0] <= 10.1
    assert 4 < pauses[1] <= 10.1
    assert pauses[2] is None
    assert [entry["error"] for entry in log_of(client)] == ["HTTP 500"] * 3


def test_beyond_three_the_pauses_double_and_the_record_stays_for_them(store, client, make_webhooks):
    ended(store, f"http://127.0.0.1:{free_port()}/hook")
    webhooks = make_webhooks(OWNPOD_WEBHOOK_TRIES=6, OWNPOD_WEBHOOK_DELAY_S=1000)
    pauses = []
    for _ in range(6):
        webhooks.send("job-1")
        pauses.append(next_try_s(client))
        if pauses[-1] is not None:
            pause_over(client)
    assert [round(pause, -2) for pause in pauses[:5]] == [1000, 1000, 2000, 4000, 8000]
    assert pauses[5] is None
    assert log_of(client)[0]["error"] == "unreachable"


def test_a_redirect_is_not_followed(store, client, receiver, make_webhooks):
    receiver.routes["POST /hook"] = Answer(307, {})
    ended(store, f"{receiver.url}/hook")
    make_webhooks().send("job-1")
    assert log_of(client)[0]["error"] == "HTTP 307"


def test_a_webhook_is_signed_over_time_stamp_and_body(store, make_webhooks):
    with FakeWorker({"POST /hook": Answer(body={})}).serving() as receiver:
        ended(store, f"{receiver.url}/hook")
        make_webhooks(OWNPOD_WEBHOOK_SECRET="s3cret").send("job-1")
        ((headers, raw),) = receiver.raw
    stamp = headers["X-OwnPod-Timestamp"]
    expected = hmac.new(b"s3cret", stamp.encode() + b"." + raw, hashlib.sha256).hexdigest()
    assert headers["X-OwnPod-Signature"] == expected


def test_the_record_stays_while_its_webhook_is_owed_and_then_for_its_usual_time(
    store, client, receiver, make_webhooks
):
    receiver.routes["POST /hook"] = Answer(500, {})
    ended(store, f"{receiver.url}/hook")
    webhooks = make_webhooks(OWNPOD_WEBHOOK_TRIES=2, OWNPOD_WEBHOOK_DELAY_S=3600)
    assert client.ttl(keys.job("job-1")) > 80_000
    webhooks.send("job-1")
    assert client.ttl(keys.job("job-1")) > 83_600
    pause_over(client)
    webhooks.send("job-1")
    assert 1790 < client.ttl(keys.job("job-1")) <= 1800


# --- The tries that are made


def test_a_webhook_is_owed_from_the_end_on_and_has_a_message(store, client, deliveries):
    store.jobs.create(new_job(webhook="http://h"))
    assert client.llen(QUEUE) == 0
    store.jobs.cancel("job-1", "ep", reason="x")
    assert client.llen(QUEUE) == 1
    assert deliveries.due(limit=10).queued == []
    assert take(client) == "job-1"
    # The node that fetched the message was killed.
    client.zadd(keys.WEBHOOKS, {"job-1": 1})
    assert deliveries.due(limit=10).queued == ["job-1"]
    assert deliveries.due(limit=10).queued == []
    assert (take(client), take(client)) == ("job-1", None)


def test_a_message_that_comes_twice_sends_one_webhook(store, client, receiver, make_webhooks):
    receiver.routes["POST /hook"] = Answer(500, {})
    ended(store, f"{receiver.url}/hook")
    webhooks = make_webhooks()
    for _ in range(3):
        # For the second and third message no try is due before the pause is over.
        webhooks.send("job-1")
    assert len(receiver.seen) == len(log_of(client)) == 1
    pause_over(client)
    receiver.routes["POST /hook"] = Answer(200, {})
    for _ in range(3):
        webhooks.send("job-1")
    assert [entry["try"] for entry in log_of(client)] == [1, 2]
    assert len(receiver.seen) == 2


def test_a_message_that_waits_in_the_queue_is_not_doubled_and_a_lost_one_is_made_again(
    store, client, deliveries
):
    for number in range(6):
        ended(store, "http://h/", job_id=f"job-{number}")
        # Each job in another millisecond.
        time.sleep(0.002)
    # The first two were popped by a node that was killed before it claimed them.
    assert [take(client), take(client)] == ["job-0", "job-1"]
    for _ in range(3):
        client.zadd(keys.WEBHOOKS, dict.fromkeys((f"job-{number}" for number in range(6)), 1))
        deliveries.due(limit=10)
    assert [take(client) for _ in range(7)] == [
        *(f"job-{number}" for number in (2, 3, 4, 5, 0, 1)),
        None,
    ]


@pytest.mark.slow
def test_a_try_whose_sender_was_killed_is_made_again_after_its_lease(
    store, client, redis_server, receiver, tmp_path
):
    hold = threading.Event()
    receiver.routes["POST /hook"] = Answer(200, {}, hold=hold)
    ended(store, f"{receiver.url}/hook")
    # Long enough to try it once more before its end, also on a loaded machine.
    short = Deliveries(client, store.messages, lease_s=6)
    code = (
        "import sys; from helpers import job_store, load_settings\n"
        "from ownpod.store.deliveries import Deliveries; from ownpod.housekeeping.webhooks import Webhooks\n"
        "from ownpod.store.client import connect; store = job_store(connect(sys.argv[1]))\n"
        "deliveries = Deliveries(store.client, store.messages, lease_s=6)\n"
        "Webhooks(deliveries, load_settings()).send(sys.argv[2])\n"
    )
    sender = Process(
        *(sys.executable, "-c", code, redis_server.url, take(client)),
        log=tmp_path / "sender.log",
        PYTHONPATH=":".join(sys.path),
        REDIS_URL=redis_server.url,
    )
    wait_until(lambda: receiver.seen or not sender.running, 30, "the first try")
    assert sender.running, sender.output
    sender.kill()
    hold.set()
    webhooks = Webhooks(short, load_settings())
    webhooks.send("job-1")
    assert len(receiver.seen) == 1
    assert wait_until(lambda: short.due(limit=10).queued) == ["job-1"]
    webhooks.send(take(client))
    assert len(receiver.seen) == 2
    (entry,) = log_of(client)
    assert (entry["try"], entry["httpStatus"]) == (1, 200)


def test_a_result_after_the_lease_changes_nothing_once_another_sender_has_the_try(
    store, client, deliveries
):
    ended(store, "http://h/")
    options = {"again_s": None, "result": "delivered", "result_ttl_s": 60}
    late = deliveries.claim("job-1", "late")
    assert deliveries.claim("job-1", "other") is None
    # The same claim again: its answer was lost on the way.
    assert deliveries.claim("job-1", "late") == late
    pause_over(client)
    other = deliveries.claim("job-1", "other")
    assert not deliveries.settle(late, {"try": 1, "by": "late"}, **options)
    assert next_try_s(client) > 50
    for _ in range(2):
        assert deliveries.settle(other, {"try": 1, "by": "other"}, **options)
    assert log_of(client) == [{"try": 1, "by": "other"}]
    assert client.hget(keys.of_endpoint("ep", "webhooks"), "delivered") == "1"


@pytest.mark.slow
def test_300_webhooks_to_slow_receivers_are_sent_once_each_while_all_of_them_are_due(
    store, client, redis_server, receiver
):
    def slowly(_path, _body):
        time.sleep(0.1)
        return Answer(200, {})

    receiver.routes["POST /hook"] = slowly
    ids = [f"job-{number}" for number in range(300)]
    for job_id in ids:
        ended(store, f"{receiver.url}/hook", job_id=job_id)
    done, most = threading.Event(), 0

    def work():
        with connect(redis_server.url) as own:
            webhooks = Webhooks(Deliveries(own, store.messages), load_settings())
            while not done.is_set():
                if (job_id := take(own)) is None:
                    time.sleep(0.02)
                else:
                    webhooks.send(job_id)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(16)]
    for worker in workers:
        worker.start()
    deliveries = Deliveries(client, store.messages)
    try:

        def a_minute_later():
            nonlocal most
            # Each webhook is due again, as after a minute in the queue.
            owed = dict.fromkeys(client.zrange(keys.WEBHOOKS, 0, -1), 1)
            if owed:
                client.zadd(keys.WEBHOOKS, owed, xx=True)
            deliveries.due(limit=1000)
            most = max(most, client.llen(QUEUE))
            return not owed

        wait_until(a_minute_later, 60, "the end of the backlog")
        wait_until(lambda: client.llen(QUEUE) == 0)
    finally:
        done.set()
        for worker in workers:
            worker.join(100)
    assert most <= 300
    sent = Counter(body["id"] for _, _, body in receiver.seen)
    assert sent == Counter(ids)
    assert all(len(log_of(client, job_id)) == 1 for job_id in ids)
    assert client.hget(keys.of_endpoint("ep", "webhooks"), "delivered") == "300"


@pytest.mark.slow
def test_a_redis_that_is_away_during_a_try_costs_no_second_one(receiver, tmp_path):
    server, hold = RedisServer(tmp_path), threading.Event()
    receiver.routes["POST /hook"] = Answer(200, {}, hold=hold)
    with connect(server.url) as client, ThreadPoolExecutor(1) as pool:
        store = job_store(client)
        ended(store, f"{receiver.url}/hook")
        webhooks = Webhooks(Deliveries(client, store.messages), load_settings())
        sent = pool.submit(webhooks.send, take(client))
        wait_until(lambda: receiver.seen)
        server.stop()
        hold.set()
        server.start()
        sent.result(100)
        assert len(receiver.seen) == len(log_of(client)) == 1
        assert next_try_s(client) is None
    server.stop()


# --- Jobs that are retried, and records that expire


def test_a_job_retried_under_its_own_id_owes_no_webhook(store, client, receiver, make_webhooks):
    ended(store, f"{receiver.url}/hook", Outcome(JobStatus.FAILED, error="x"))
    store.jobs.retry("job-1", "ep", "job-1")
    make_webhooks().send("job-1")
    assert receiver.seen == []
    assert next_try_s(client) is None
    assert log_of(client) == []


def test_the_webhook_of_a_retrys_end_has_all_its_tries_whatever_the_old_messages_do(
    store, client, receiver, make_webhooks, deliveries
):
    failed = Outcome(JobStatus.FAILED, error="x")
    ended(store, f"{receiver.url}/hook", failed)
    old = deliveries.claim("job-1", "old")
    store.jobs.retry("job-1", "ep", "job-1")
    options = {"again_s": None, "result": "given_up", "result_ttl_s": 60}
    assert not deliveries.settle(old, {"try": 1, "by": "old"}, **options)
    end_of(store, failed)
    # The old try had a lease, which must neither end nor delay the new webhook.
    assert not deliveries.settle(old, {"try": 1, "by": "old"}, **options)
    assert log_of(client) == []
    assert next_try_s(client) > 50
    for _ in range(2):
        make_webhooks().send(take(client))
    ((_, _, body),) = receiver.seen
    assert (body["retries"], body["error"]) == (1, "x")
    assert [entry["try"] for entry in log_of(client)] == [1]


def test_a_record_that_is_to_go_sooner_stays_until_its_webhook_is_delivered(
    store, client, receiver, make_webhooks, deliveries
):
    ended(store, f"{receiver.url}/hook")
    deliveries.shorten_ttl("job-1", 1)
    deliveries.shorten_ttl("job-1", 5000)
    assert client.pttl(keys.job("job-1")) > 80_000_000
    receiver.routes["POST /hook"] = Answer(500, {})
    make_webhooks().send("job-1")
    pause_over(client)
    receiver.routes["POST /hook"] = Answer(200, {})
    make_webhooks().send("job-1")
    assert len(receiver.seen) == 2
    wait_until(lambda: not client.exists(keys.job("job-1")))


def test_a_record_outlives_a_result_ttl_of_a_second_until_its_webhook_is_sent(
    client, receiver, deliveries
):
    store = job_store(client, result_ttl_s=1)
    ended(store, f"{receiver.url}/hook")
    client.zadd(keys.WEBHOOKS, {"job-1": 1})
    deliveries.due(limit=10)
    assert client.ttl(keys.job("job-1")) > 80_000
    Webhooks(deliveries, load_settings(OWNPOD_RESULT_TTL_SEC=1)).send("job-1")
    assert len(receiver.seen) == 1
    assert client.ttl(keys.job("job-1")) <= 1


def test_a_job_whose_record_is_gone_owes_no_webhook_and_is_reported(
    store, client, receiver, make_webhooks, deliveries
):
    ended(store, f"{receiver.url}/hook")
    client.delete(keys.job("job-1"))
    make_webhooks().send("job-1")
    assert receiver.seen == []
    client.zadd(keys.WEBHOOKS, {"job-1": 1})
    assert deliveries.due(limit=10).gone == ["job-1"]
    assert next_try_s(client) is None


def test_an_older_process_may_write_results_beside_this_one(store, client, receiver, deliveries):
    ended(store, f"{receiver.url}/hook")
    made = deliveries.claim("job-1", "t")
    # The same commands as `delivered` of the previous version.
    client.zrem(keys.WEBHOOKS, "job-1")
    client.hset(keys.job("job-1"), "deliveries", '[{"try": 1}]')
    assert deliveries.claim("job-1", "other") is None
    options = {"again_s": None, "result": "delivered", "result_ttl_s": 60}
    assert deliveries.settle(made, {"try": 1}, **options)
    assert next_try_s(client) is None
