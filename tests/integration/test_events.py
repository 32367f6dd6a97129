import threading
import time

import pytest
from helpers import RedisServer, job_store, new_job

from ownpod.errors import TooManyWaiting
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.listing import Listing
from ownpod.store.notices import Notices

LONG = "x" * 20_000


@pytest.fixture
def events(client):
    found = Notices(client)
    yield found
    found.stop()


def waited_s(wait, seconds):
    began = time.monotonic()
    wait(seconds)
    return time.monotonic() - began


def test_a_waiting_thread_is_woken_by_the_jobs_end_and_by_nothing_else(events, client):
    store = job_store(client)
    with events.subscribe("job-1", end_only=True) as wait:
        # The first wait ends as soon as the events are listened to.
        wait(60)
        store.jobs.create(new_job(), channel=events.channel)
        store.jobs.create(new_job("other"), channel=events.channel)
        store.jobs.cancel("other", "ep", reason="x")
        attempt = store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=9)
        assert waited_s(wait, 0.3) >= 0.3
        timer = threading.Timer(
            0.5, store.jobs.finish, (attempt, Outcome(JobStatus.COMPLETED, output="1"))
        )
        timer.start()
        assert waited_s(wait, 20) < 18
        timer.join()


def test_all_threads_that_wait_for_a_job_are_woken(events, client):
    store = job_store(client)
    store.jobs.create(new_job(), channel=events.channel)
    woken = []

    def waiter():
        with events.subscribe("job-1", end_only=True) as wait:
            ready.release()
            while not store.jobs.get("job-1", "ep").status.terminal:
                wait(20)
            woken.append(1)

    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=waiter) for _ in range(10)]
    for thread in threads:
        thread.start()
        ready.acquire()
    store.jobs.cancel("job-1", "ep", reason="x")
    for thread in threads:
        thread.join(60)
    assert len(woken) == 10
    assert events._waiting == {}


def test_only_channels_of_the_record_get_its_events(client):
    store = job_store(client)
    heard = []
    with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.psubscribe(**{"*": heard.append})
        store.jobs.create(new_job("unwatched"))
        store.jobs.create(new_job("ends"), channel="ends")
        store.jobs.create(new_job("both"), channel="ends")
        for _ in range(2):
            store.jobs.subscribe("both", "all", end_only=False)
        store.jobs.subscribe("gone", "all", end_only=False)
        for job_id in ("unwatched", "ends", "both"):
            attempt = store.jobs.claim(job_id, worker_id="w", claim="t", lease_s=9)
            store.chunks.add(job_id, 1, ["1"])
            store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="1"))
        client.publish("last", "")
        while not heard or heard[-1]["channel"] != "last":
            pubsub.get_message(timeout=5)
    body = [(one["channel"], *one["data"].split(" ", 2)) for one in heard[:-1]]
    assert [tuple(parts[:3]) for parts in body] == [
        ("ends", "ends", "COMPLETED"),
        ("all", "both", "IN_PROGRESS"),
        ("all", "both", "CHUNK"),
        ("all", "both", "COMPLETED"),
        ("ends", "both", "COMPLETED"),
    ]
    assert store.jobs.ended_job(body[-1][3]) == store.jobs.get("both", "ep")
    assert not client.exists(keys.job("gone"))
    assert not {"watched", "followed"} & Listing(client).details("both").keys()


@pytest.mark.parametrize(("output", "error"), [("1", ""), (f'"{LONG}"', ""), ("1", LONG)])
def test_the_event_of_the_end_has_the_answer_unless_that_is_long(events, client, output, error):
    store = job_store(client)
    with events.subscribe("job-1", end_only=True) as wait:
        store.jobs.create(new_job(), channel=events.channel)
        wait(60)
        attempt = store.jobs.claim("job-1", worker_id="w", claim="t", lease_s=9)
        store.jobs.finish(attempt, Outcome(JobStatus.FAILED, output=output, error=error))
        job = store.jobs.ended_job(wait(20))
    assert job == (None if LONG in output + error else store.jobs.get("job-1", "ep"))


@pytest.mark.slow
def test_a_broken_connection_wakes_all_and_is_mended(tmp_path):
    server = RedisServer(tmp_path)
    try:
        with connect(server.url) as client:
            events, store = Notices(client), job_store(client)
            with events.subscribe("job-1", end_only=True) as wait:
                # The first wait ends as soon as the events are listened to.
                wait(60)
                threading.Timer(0.1, server.stop).start()
                assert waited_s(wait, 20) < 18
            server.start()
            store.jobs.create(new_job(), channel=events.channel)
            with events.subscribe("job-1", end_only=True) as wait:
                threading.Timer(1.5, store.jobs.cancel, ("job-1", "ep"), {"reason": "x"}).start()
                began = time.monotonic()
                while not store.jobs.get("job-1", "ep").status.terminal:
                    wait(20)
                assert time.monotonic() - began < 18
            events.stop()
    finally:
        server.stop()


def test_no_thread_waits_in_a_process_that_ends(events):
    with events.subscribe("job-1", end_only=True) as wait:
        threading.Timer(0.1, events.stop).start()
        assert waited_s(wait, 20) < 18
        assert waited_s(wait, 20) < 18


def test_a_wait_beyond_the_limit_is_refused_until_another_has_ended(events):
    events.max_waiting = 2
    with events.subscribe("job-1", end_only=True):
        with events.subscribe("job-1", end_only=False):
            with pytest.raises(TooManyWaiting), events.subscribe("job-2", end_only=True):
                pass
            with pytest.raises(TooManyWaiting):
                events.check_room()
        with events.subscribe("job-2", end_only=True):
            pass
