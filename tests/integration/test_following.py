"""Readers of a running job's chunks get them from notices, and from Redis where the notices do not have all."""

import json

import pytest
from helpers import job_store, new_job, wait_until

from ownpod.api.jobs.following import Following
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys
from ownpod.store.common import ANSWER_BYTES
from ownpod.store.notices import MOST_KEPT, Notices


class World:
    """A job with a reader, which reads from where it is."""

    def __init__(self, client, notices, wait):
        self.client, self.notices, self.wait = client, notices, wait
        self.store = job_store(client)
        self.store.jobs.create(new_job())
        self.store.jobs.subscribe("job-1", notices.channel, end_only=False)
        self.following = Following(self.store.chunks, "job-1", "ep", wait)
        self.start, self.had = (0, 0), []
        self.claim()

    def claim(self):
        attempt = self.store.jobs.claim("job-1", worker_id="w", claim="c", lease_s=60)
        self.attempt = attempt

    def add(self, *texts):
        assert self.store.chunks.add("job-1", self.attempt.number, [*map(json.dumps, texts)])

    def read(self):
        part = self.following.read(self.start)
        self.start = (part.job.attempt, part.start + len(part.chunks))
        chunks = [json.loads(chunk) for chunk in part.chunks]
        self.had += chunks
        return chunks

    def await_notices(self, text):
        """Waits until all events up to a chunk with this text have arrived in the process."""
        (waiter,) = self.notices._waiting["job-1"]
        wait_until(lambda: text in waiter.text, 20, text)

    def settle(self):
        """Reads until the reader has all, so that the next chunk is read from its notice."""
        self.add("settled")
        self.await_notices("settled")
        self.read()
        self.read()
        self.had.clear()

    def reads(self):
        """The number of times that Redis was asked for the chunks."""
        found = self.client.info("commandstats").get("cmdstat_lrange", {"calls": 0})
        return found["calls"]


@pytest.fixture
def world(client):
    notices = Notices(client)
    with notices.subscribe("job-1", end_only=False) as wait:
        wait_until(lambda: client.pubsub_numsub(notices.channel)[0][1], 20, "the subscription")
        found = World(client, notices, wait)
        found.settle()
        yield found
    notices.stop()


def test_chunks_of_notices_are_not_read_from_redis(world):
    reads = world.reads()
    for text in ("a", 'b "é" \n', "c"):
        world.add(text)
    world.await_notices('"c"')
    assert world.read() == ["a", 'b "é" \n', "c"]
    world.add("d")
    world.await_notices('"d"')
    assert world.read() == ["d"]
    assert world.reads() == reads


@pytest.mark.parametrize(
    "texts", [["a", "x" * ANSWER_BYTES, "b"], [f"{n} {'x' * 9000}" for n in range(10)]]
)
def test_what_notices_do_not_have_is_read_from_redis(world, texts):
    for text in texts:
        world.add(text)
    world.add("last")
    world.await_notices('"last"')
    (waiter,) = world.notices._waiting["job-1"]
    assert waiter.kept < MOST_KEPT + ANSWER_BYTES
    while world.had[-1:] != ["last"]:
        world.read()
    assert world.had == [*texts, "last"]


def test_chunks_of_one_call_are_read_from_redis(world):
    world.add("a", "b")
    world.add("c")
    world.await_notices('"c"')
    assert world.read() == ["a", "b", "c"]


def test_a_chunk_that_was_read_from_redis_does_not_come_again_by_its_notice(world):
    world.add("a")
    world.await_notices('"a"')
    world.wait.chunks()
    assert world.read() == ["a"]
    world.add("b")
    world.await_notices('"b"')
    assert world.read() == ["b"]
    # The notice of a chunk comes late: Redis was asked before.
    late = f"job-1 CHUNK {world.attempt.number} {world.start[1] - 1} {json.dumps('b')}"
    world.client.publish(world.notices.channel, late)
    world.add("c")
    world.await_notices('"c"')
    assert world.read() == ["c"]


def test_a_gap_in_the_notices_is_read_from_redis(world):
    world.client.rpush(keys.chunks("job-1"), '"without notice"')
    world.add("b")
    world.await_notices('"b"')
    assert world.read() == ["without notice", "b"]


def test_the_end_and_another_attempt_are_read_from_redis(world):
    world.add("a")
    world.store.jobs.requeue("job-1", world.attempt.number, lost=True, reason="gone")
    world.claim()
    world.add("of the second")
    world.await_notices("of the second")
    part = world.following.read(world.start)
    assert (part.job.attempt, part.chunks) == (2, ['"of the second"'])
    world.store.jobs.finish(world.attempt, Outcome(JobStatus.COMPLETED, output="1"))
    wait_until(lambda: world.following.read((2, 1)).job.status is JobStatus.COMPLETED)


def test_nothing_is_kept_for_a_reader_that_takes_no_chunks(client, world):
    with world.notices.subscribe("job-1", end_only=False):
        world.add("a")
        waiters = world.notices._waiting["job-1"]
        wait_until(lambda: all('"a"' in w.text for w in waiters))
        wait_until(lambda: sorted(len(w.chunks) for w in waiters) == [0, 1])
