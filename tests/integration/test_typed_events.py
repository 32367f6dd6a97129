"""Journals in Redis, and the routes that show typed events."""

import json

import pytest
from helpers import job_store, new_job

from ownpod.rules.events import Connection, events_of
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome


@pytest.fixture
def store(client):
    found = job_store(client)
    found.jobs.create(new_job())
    return found


def claim(store, token="t"):
    return store.jobs.claim("job-1", worker_id="w", claim=token, lease_s=9)


def events(store, cursor=None, job_id="job-1"):
    return list(events_of(store.journal.read(job_id, "ep", cursor), Connection(position=1)))


def names(found):
    return [(event.event, json.loads(event.data).get("status")) for event in found]


def test_entries_and_chunks_are_one_stream_in_the_order_in_which_they_came(store):
    store.journal.tell("job-1", "worker", {"status": "created"})
    attempt = claim(store)
    store.journal.tell("job-1", "logs", {"log": "a"}, attempt=1)
    store.chunks.add("job-1", 1, ['"one"', '{"two": 2}'])
    store.journal.tell("job-1", "logs", {"log": "b"}, attempt=1)
    store.chunks.add("job-1", 1, ['"three"'])
    store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='["one", "three"]'))
    found = events(store)
    assert [(event.id, event.event) for event in found] == [
        ("0-0.0c", "connection"),
        ("0-0.1c", "worker"),
        ("1-0.1", "worker"),
        ("1-0.2", "logs"),
        ("1-1.2", "text_delta"),
        ("1-2.2", "output_delta"),
        ("1-2.3", "logs"),
        ("1-3.3", "text_delta"),
        ("1-3.3t", "text"),
        ("1-end", "task_finish"),
    ]
    assert json.loads(found[-2].data) == {"content": "onethree"}
