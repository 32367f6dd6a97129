"""The positions of waiting jobs, which one thread reads for all streams of a process."""

import contextlib
import threading

import pytest
from helpers import job_store, new_job, wait_until

from ownpod.api.jobs.positions import Positions
from ownpod.errors import RedisUnavailable
from ownpod.rules.waiting import look_again_s


@pytest.fixture
def store(client):
    found = job_store(client)
    for number in range(1, 4):
        found.jobs.create(new_job(f"job-{number}"))
    return found


class Queue:
    """Answers what jobs' places are, and remembers which were asked."""

    def __init__(self, places):
        self._places = places
        self.asked = []

    def places(self, jobs):
        self.asked.append([job.id for job in jobs])
        return self._places(jobs)


def test_all_streams_of_a_job_cost_one_read(store):
    queue, woken = (
        Queue(store.queue.places),
        {"job-2": threading.Event(), "job-3": threading.Event()},
    )
    positions = Positions(queue, lambda job_id: woken[job_id].set(), least_s=0.01)
    jobs = {job_id: store.listing.get(job_id) for job_id in woken}
    with contextlib.ExitStack() as stack:
        followers = [
            (stack.enter_context(positions.follow()), job_id) for job_id in jobs for _ in range(50)
        ]
        for follower, job_id in followers:
            follower.has(jobs[job_id], int(job_id[-1]))
        wait_until(lambda: len(queue.asked) > 2)
        assert not any(event.is_set() for event in woken.values())
        assert all(follower.follows(jobs[job_id]) for follower, job_id in followers)
        store.jobs.cancel("job-1", "ep", reason="x")
        assert all(event.wait(30) for event in woken.values())
        # Their streams read the new position, and show it.
        wait_until(lambda: not any(follower.follows(jobs[i]) for follower, i in followers))
    assert all(len(asked) == len(set(asked)) for asked in queue.asked)


def test_a_stream_that_has_gone_or_whose_job_has_its_worker_costs_nothing(store):
    queue = Queue(store.queue.places)
    positions = Positions(queue, lambda _: None, least_s=0.01)
    other, job = store.listing.get("job-2"), store.listing.get("job-3")
    with positions.follow() as follower:
        with positions.follow() as gone:
            gone.has(other, 2)
        follower.has(job, 2)
        follower.has(job, 0)
        assert not follower.follows(job)
        follower.has(job, 3)
        wait_until(lambda: queue.asked)
    assert all(asked == ["job-3"] for asked in queue.asked)


def test_positions_are_read_again_when_redis_is_back(store, monkeypatch):
    monkeypatch.setattr("ownpod.api.jobs.positions.MOST_S", 0.01)
    answers, woken = [RedisUnavailable("away"), OSError("any"), [None]], threading.Event()

    def places(_jobs):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    positions = Positions(Queue(places), lambda _: woken.set(), least_s=0.01)
    with positions.follow() as follower:
        follower.has(store.listing.get("job-2"), 2)
        assert woken.wait(30)
    assert answers == []


def test_a_near_position_is_read_more_often_than_a_far_one():
    times = [look_again_s(position, 0.5, 5) for position in (1, 2, 5, 25, 50, 5000)]
    assert times == [5, 0.5, 0.5, 2.5, 5, 5]


def test_places_of_all_queues_come_together(store):
    own = store.messages.own_queue("ep", "w")
    # Later than the others: in which order the jobs of one millisecond count is not known.
    later_ms = store.now_ms() + 1
    store.jobs.create(new_job("low", low_priority=True, created_ms=later_ms))
    store.jobs.create(new_job("pinned-1", queue=own, created_ms=later_ms))
    store.jobs.create(new_job("pinned-2", queue=own, created_ms=later_ms))
    store.jobs.cancel("job-2", "ep", reason="x")
    ids = ["job-1", "job-2", "job-3", "low", "pinned-2"]
    jobs = [store.listing.get(job_id) for job_id in ids]
    found = store.queue.places(jobs)
    assert [place and (place.position, place.worker_id) for place in found] == [
        *((1, None), None, (2, None), (3, None), (2, "w"))
    ]
    assert found == [store.queue.place(job) for job in jobs]
    assert store.queue.places([]) == []
