"""Tasks that are cancelled when their client has gone (`on_disconnect: cancel`)."""

import socket

import pytest
from helpers import job_store, new_job, wait_until

from ownpod.api.jobs.readers import Readers, Reading, read_by
from ownpod.api.workers.held import HeldConnections
from ownpod.housekeeping.unattended import GONE_S, Unattended
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store.attended import Attended


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def attended(client):
    return Attended(client)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def sweep(store, attended, clock):
    return Unattended(store, attended, clock=clock)


@pytest.fixture
def readers(attended):
    return Readers(attended)


def status(store, job_id="job-1"):
    return store.listing.get(job_id).status


def test_a_task_is_cancelled_some_seconds_after_its_last_reader_has_gone(
    store, sweep, readers, clock
):
    store.jobs.create(new_job())
    store.jobs.create(new_job("other"))
    readers.enter("job-1")
    sweep.once()
    readers.leave("job-1")
    sweep.once()
    clock.now_s += GONE_S - 0.1
    sweep.once()
    assert status(store) is JobStatus.IN_QUEUE
    clock.now_s += 0.2
    sweep.once()
    assert status(store) is JobStatus.CANCELLED
    assert status(store, "other") is JobStatus.IN_QUEUE


def test_a_client_that_reads_again_in_time_saves_its_task(store, sweep, readers, clock):
    store.jobs.create(new_job())
    readers.enter("job-1")
    readers.leave("job-1")
    sweep.once()
    clock.now_s += GONE_S - 0.1
    readers.enter("job-1")
    clock.now_s += GONE_S
    sweep.once()
    assert status(store) is JobStatus.IN_QUEUE
    # The time begins again.
    readers.leave("job-1")
    sweep.once()
    clock.now_s += GONE_S - 0.1
    sweep.once()
    assert status(store) is JobStatus.IN_QUEUE


def test_a_task_with_another_reader_goes_on(store, sweep, readers, attended, clock):
    store.jobs.create(new_job())
    readers.enter("job-1")
    readers.enter("job-1")
    readers.leave("job-1")
    sweep.once()
    clock.now_s += GONE_S
    sweep.once()
    assert status(store) is JobStatus.IN_QUEUE
    # A reader of another process renews what this one has left.
    readers.leave("job-1")
    sweep.once()
    attended.renew(["job-1"])
    clock.now_s += GONE_S
    sweep.once()
    assert status(store) is JobStatus.IN_QUEUE


def test_a_task_that_has_ended_stays_as_it_is(store, sweep, readers, client, clock):
    store.jobs.create(new_job())
    attempt = store.jobs.claim("job-1", worker_id="w", claim="c", lease_s=60)
    readers.enter("job-1")
    readers.enter("gone")
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"))
    for job_id in ("job-1", "gone"):
        readers.leave(job_id)
    sweep.once()
    clock.now_s += GONE_S
    sweep.once()
    assert status(store) is JobStatus.COMPLETED
    assert client.zcard("ownpod:attended") == 0


def test_a_client_that_closes_its_connection_leaves_although_nothing_is_sent(
    store, readers, attended
):
    store.jobs.create(new_job())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        readers.enter("job-1")
        parts = read_by(iter([b"a", b"b"]), Reading(readers, "job-1"), HeldConnections(), ours)
        assert next(parts) == b"a"
        assert attended.overdue() == []
        theirs.close()
        wait_until(lambda: attended.overdue() == ["job-1"])
        # It leaves once.
        assert list(parts) == [b"b"]
    assert attended.overdue() == ["job-1"]


def test_a_stream_that_is_closed_before_its_first_byte_leaves(readers, attended):
    readers.enter("job-1")
    reading = Reading(readers, "job-1")
    reading.end()
    reading.end()
    assert attended.overdue() == ["job-1"]
