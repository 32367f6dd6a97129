"""Webhooks, sent to a small receiver over HTTP."""

import hashlib
import hmac
import json

import pytest
from helpers import Answer, FakeWorker, job_store, load_settings, new_job, wait_until

from ownpod import keys
from ownpod.jobs import JobStatus, Outcome
from ownpod.processes import free_port
from ownpod.webhooks import Webhooks


@pytest.fixture
def receiver():
    with FakeWorker({"POST /hook": Answer(body={})}).serving() as found:
        yield found


@pytest.fixture
def store(client):
    return job_store(client)


def ended(store, url, outcome=None):
    store.create(new_job(webhook=url))
    attempt = store.claim("job-1", worker_id="w", claim="t", lease_s=9)
    store.finish(attempt, outcome or Outcome(JobStatus.COMPLETED, output='{"a": 1}'))


def log_of(client):
    return json.loads(client.hget(keys.job("job-1"), "deliveries"))


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
def test_a_webhook_says_what_status_says_at_every_end(store, client, receiver, outcome):
    ended(store, f"{receiver.url}/hook", outcome)
    Webhooks(store, load_settings()).send("job-1")
    ((_, path, body),) = receiver.seen
    assert path == "/hook"
    assert body == json.loads(store.job("job-1", "ep").answer_json())
    assert next_try_s(client) is None
    (entry,) = log_of(client)
    assert (entry["try"], entry["httpStatus"], entry["error"]) == (1, 200, None)


def test_three_tries_10_s_apart_and_no_more(store, client, receiver):
    receiver.routes["POST /hook"] = Answer(500, {})
    ended(store, f"{receiver.url}/hook")
    webhooks = Webhooks(store, load_settings())
    pauses = []
    for _ in range(3):
        webhooks.send("job-1")
        pauses.append(next_try_s(client))
    assert pauses[0] == pytest.approx(10, abs=1)
    assert pauses[1] == pytest.approx(10, abs=1)
    assert pauses[2] is None
    assert [entry["error"] for entry in log_of(client)] == ["HTTP 500"] * 3


def test_beyond_three_the_pauses_double_and_the_record_stays_for_them(store, client):
    ended(store, f"http://127.0.0.1:{free_port()}/hook")
    webhooks = Webhooks(store, load_settings(OWNPOD_WEBHOOK_TRIES=6, OWNPOD_WEBHOOK_DELAY_S=1000))
    pauses = []
    for _ in range(6):
        webhooks.send("job-1")
        pauses.append(next_try_s(client))
    assert [round(pause, -2) for pause in pauses[:5]] == [1000, 1000, 2000, 4000, 8000]
    assert pauses[5] is None
    assert client.ttl(keys.job("job-1")) > 8000
    assert log_of(client)[0]["error"] == "ConnectionError"


def test_a_redirect_is_not_followed(store, client, receiver):
    receiver.routes["POST /hook"] = Answer(307, {})
    ended(store, f"{receiver.url}/hook")
    Webhooks(store, load_settings()).send("job-1")
    assert log_of(client)[0]["error"] == "HTTP 307"


def test_a_webhook_is_signed_over_time_stamp_and_body(store):
    with FakeWorker({"POST /hook": Answer(body={})}).serving() as receiver:
        ended(store, f"{receiver.url}/hook")
        Webhooks(store, load_settings(OWNPOD_WEBHOOK_SECRET="s3cret")).send("job-1")
        ((headers, raw),) = receiver.raw
    stamp = headers["X-OwnPod-Timestamp"]
    expected = hmac.new(b"s3cret", stamp.encode() + b"." + raw, hashlib.sha256).hexdigest()
    assert headers["X-OwnPod-Signature"] == expected


def test_a_job_retried_under_its_own_id_owes_no_webhook(store, client, receiver):
    ended(store, f"{receiver.url}/hook", Outcome(JobStatus.FAILED, error="x"))
    store.retry("job-1", "ep", "job-1")
    Webhooks(store, load_settings()).send("job-1")
    assert receiver.seen == []
    assert next_try_s(client) is None


def test_a_job_that_is_gone_owes_none_either(store, client, receiver):
    ended(store, f"{receiver.url}/hook")
    client.delete(keys.job("job-1"))
    Webhooks(store, load_settings()).send("job-1")
    assert wait_until(lambda: next_try_s(client) is None)
