"""What Celery on Redis loses is made good, and nothing is done where nothing was lost."""

import threading

import pytest
from helpers import job_message, job_messages, job_store, new_job, now_ms

from ownpod.housekeeping.recovery import Recovery
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys

OLD_MS = 60_000


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def recovery(store, client):
    return Recovery(store, lambda: ["other", "ep"], lease_s=15)


def create(store, job_id, *, low=False, age_ms=OLD_MS):
    store.jobs.create(new_job(job_id, low_priority=low, created_ms=now_ms() - age_ms))


def lose(client, job_id, *, low=False):
    queue, message = job_message(job_id, low=low)
    assert client.lrem(queue, 1, message) == 1
    return message


@pytest.mark.parametrize("low", [False, True])
def test_a_lost_message_is_republished_when_its_loss_was_seen_twice(store, client, recovery, low):
    for job_id in ("a", "b", "c"):
        create(store, job_id, low=low)
    message = lose(client, "b", low=low)
    assert recovery.once() == 0
    assert recovery.once() == 1
    queue = job_messages().lists("ep")[low]
    # In front: it has waited longest.
    assert client.lindex(queue, -1) == message
    assert client.llen(queue) == 3
    assert recovery.once() == recovery.once() == 0


def test_where_nothing_was_lost_nothing_is_done(store, client, recovery):
    for number in range(10):
        create(store, str(number))
    assert [recovery.once() for _ in range(4)] == [0] * 4
    assert client.llen("ownpod.ep") == 10


def test_messages_on_their_way_are_no_loss(store, client, recovery):
    create(store, "a")
    for _ in range(4):
        message = lose(client, "a")
        claimed = threading.Timer(0.03, client.lpush, ("ownpod.ep", message))
        claimed.start()
        assert recovery.once() == 0
        claimed.join()
    assert client.llen("ownpod.ep") == 1


def test_a_young_job_is_left_alone(store, client, recovery):
    create(store, "a", age_ms=0)
    lose(client, "a")
    assert [recovery.once() for _ in range(4)] == [0] * 4


@pytest.mark.slow
def test_many_lost_messages_come_back_in_their_order(store, client, recovery):
    for number in range(2500):
        create(store, f"{number:04}", age_ms=OLD_MS - number)
    client.delete("ownpod.ep")
    recovery.once()
    assert [recovery.once() for _ in range(3)] == [1000, 1000, 500]
    assert client.llen("ownpod.ep") == 2500


def test_a_purge_that_broke_off_is_finished(store, client, recovery):
    for job_id in ("a", "b"):
        create(store, job_id)
    # As it is when the process dies after the first step.
    client.rename(keys.queued("ep"), f"{keys.ENDPOINT}ep:purging")
    client.delete("ownpod.ep")
    recovery.once()
    for job_id in ("a", "b"):
        job = store.jobs.get(job_id, "ep")
        assert (job.status, job.error) == (
            JobStatus.CANCELLED,
            "removed from the queue by a purge",
        )
    assert recovery.once() == recovery.once() == 0
