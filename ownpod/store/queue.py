"""Queues as a whole: what the sweep, the recovery and purges do to many jobs; the commands are in ``queue.lua``."""

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ownpod.rules.jobs import Job
from ownpod.store import keys
from ownpod.store.client import clock_ms, redis_errors, redis_reads
from ownpod.store.common import Part, log_broken
from ownpod.store.retry import unrepeatable

PURGE_STEP = 1000
"""Number of jobs that one call of the script cancels, in some 10 ms in which Redis serves no other command."""

PAGE = 10_000
"""Number of messages that are read at a time, in some 20 ms of Redis's time."""

_ID = re.compile(r'"correlation_id": "([^"]+)"')


@dataclass(frozen=True)
class Expired:
    """A running attempt whose lease expired at ``lease_end_ms``, on Redis's clock."""

    id: str
    endpoint: str
    attempt: int
    worker_id: str
    lease_end_ms: int


@dataclass(frozen=True)
class Place:
    """Where a job waits.

    Attributes:
        position: in its queue, from 1.
        worker_id: the worker in whose own queue it waits; None: it waits in its endpoint's.
    """

    position: int
    worker_id: str | None


class Queue(Part):
    """The queues of endpoints, and workers' own queues for pinned jobs."""

    @unrepeatable
    def purge(self, endpoint: str, *, reason: str) -> int:
        """Cancels the jobs that wait at this moment, pinned ones too; running and later ones are untouched.

        Returns:
            How many were cancelled.
        """
        # Not the sum of what is cancelled here, because the sweep finishes purges that broke off.
        token = str(uuid.uuid4())
        while (removed := int(self._call("purge", token, endpoint))) < 0:
            self.finish_purge(endpoint, reason=reason)
        self.finish_purge(endpoint, reason=reason)
        return removed

    def finish_purge(self, endpoint: str, *, reason: str) -> int:
        """Cancels the jobs that a purge took out of the queue, also if that purge broke off; returns how many."""
        removed, left = 0, True
        while left:
            step = ("purge_some", "", endpoint, PURGE_STEP, self._result_ttl_s, reason)
            cancelled, left = self._call(*step)
            removed += cancelled
        return removed

    def expire(self, *, limit: int) -> list[str]:
        """Ends jobs that waited longer than their ttl; returns their ids."""
        ended, broken = self._call("expire", "", limit, self._result_ttl_s)
        log_broken(broken)
        return list(ended)

    def expired(self, *, limit: int) -> list[Expired]:
        """Running jobs whose lease has expired, the oldest first."""
        attempts, broken = self._call("expired", "", limit)
        log_broken(broken)
        return [
            Expired(job_id, endpoint, int(attempt), worker_id, int(float(lease_end)))
            for job_id, endpoint, attempt, worker_id, lease_end in attempts
        ]

    def republish(self, job_id: str, endpoint: str, queue: str) -> bool:
        """Gives a waiting job another message, in its own queue. False: it does not wait, or gets a
        message when its pause is over.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            queue: the queue in whose index the job is. A job that does not wait is removed from a worker's own.
        """
        return bool(self._call("republish", "", job_id, endpoint, queue))

    def publish_delayed(self, *, limit: int) -> int:
        """Publishes requeued pinned jobs whose pause is over; returns how many."""
        published, broken = self._call("publish_delayed", "", limit)
        log_broken(broken)
        return int(published)

    def own(self, endpoint: str, worker_id: str) -> str:
        """The queue that only this worker consumes."""
        return self._messages.own_queue(endpoint, worker_id)

    def release_preferring(self, *, limit: int) -> int:
        """Puts jobs that have waited for a worker that they only prefer into their endpoint's queue; returns how many."""
        released, broken = self._call("release_preferring", "", limit)
        log_broken(broken)
        return int(released)

    def abandon(self, job_id: str, queue: str, *, reason: str) -> bool:
        """Ends a job that waits in a worker's own queue as FAILED. False: it does not wait there."""
        return bool(self._call("abandon", "", job_id, queue, reason, self._result_ttl_s))

    @redis_reads
    def pinned(self, endpoints: Iterable[str]) -> dict[str, dict[str, list[str]]]:
        """Ids of the workers in whose own queues jobs of these endpoints wait, by endpoint, and those jobs' ids."""
        found: dict[str, dict[str, list[str]]] = {}
        with self._redis.pipeline(transaction=False) as pipe:
            names = list(endpoints)
            for name in names:
                pipe.hkeys(keys.of_endpoint(name, "queues"))
            queues = dict(zip(names, pipe.execute(), strict=True))
            for name, own in queues.items():
                for queue in own:
                    found.setdefault(name, {})[self._messages.worker_of(name, queue)] = []
                    pipe.zrange(keys.waiting(queue), 0, -1)
            waiting = iter(pipe.execute())
        return {
            name: {worker: next(waiting) for worker in workers} for name, workers in found.items()
        }

    @redis_reads
    def affinities(self, job_ids: Sequence[str]) -> list[str | None]:
        """How much each of these jobs needs its worker."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(keys.job(job_id), "affinity")
            return list(pipe.execute())

    # Stopped workers that are to be started again.

    @redis_errors
    def resume(self, endpoint: str, worker_id: str) -> None:
        """Records that jobs of the endpoint wait for a stopped worker."""
        self._redis.sadd(keys.resumes(endpoint), worker_id)

    @redis_errors
    def unresume(self, endpoint: str, worker_ids: Iterable[str]) -> None:
        """Ends :meth:`resume`."""
        self._redis.srem(keys.resumes(endpoint), *worker_ids)

    @redis_reads
    def resumes(self, endpoints: Iterable[str]) -> dict[str, set[str]]:
        """Stopped workers for which jobs wait, by endpoint; endpoints without any are left out."""
        names = list(endpoints)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.smembers(keys.resumes(name))
            return {name: ids for name, ids in zip(names, pipe.execute(), strict=True) if ids}

    @redis_reads
    def names(self, endpoint: str) -> list[str]:
        """The endpoint's queue, and those workers' own queues in which jobs of the endpoint wait."""
        own: Any = self._redis.hkeys(keys.of_endpoint(endpoint, "queues"))
        return [self._messages.queue(endpoint), *own]

    @redis_reads
    def lacks_messages(self, endpoint: str, queue: str) -> bool:
        """Whether a queue has fewer messages than jobs. Cheap for any queue; ``left`` messages are of
        cancelled jobs.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self._messages.lists_of(queue):
                pipe.llen(name)
            if queue == self._messages.queue(endpoint):
                pipe.zcard(keys.queued(endpoint))
                pipe.zcard(keys.of_endpoint(endpoint, "pinned"))
                pipe.zcard(keys.left(endpoint))
            else:
                pipe.zcard(keys.waiting(queue))
            normal, low, waiting, *others = pipe.execute()
        pinned, left = others or (0, 0)
        return bool(waiting - pinned > normal + low - left)

    @redis_reads
    def without_message(self, endpoint: str, queue: str, *, age_ms: int) -> list[str]:
        """Ids of jobs that were submitted at least ``age_ms`` ago and wait in a queue without a
        message, the oldest first. Reads the whole queue.
        """
        shared = queue == self._messages.queue(endpoint)
        until = clock_ms(self._redis) - age_ms
        index = keys.queued(endpoint) if shared else keys.waiting(queue)
        old: Any = self._redis.zrange(index, "-inf", until, byscore=True)
        listed = self._listed(queue)
        if shared:
            pinned: Any = self._redis.zrange(keys.of_endpoint(endpoint, "pinned"), 0, -1)
            left: Any = self._redis.zrange(keys.left(endpoint), 0, -1)
            if gone := [job_id for job_id in left if job_id not in listed]:
                self._redis.zrem(keys.left(endpoint), *gone)
            listed |= set(pinned)
        return [job_id for job_id in old if job_id not in listed]

    def _listed(self, queue: str) -> set[str]:
        """Ids of the tasks whose message is in one of the queue's lists."""
        ids: set[str] = set()
        for name in self._messages.lists_of(queue):
            start = 0
            while True:
                page: Any = self._redis.lrange(name, start, start + PAGE - 1)
                ids.update(match[1] for text in page if (match := _ID.search(text)))
                if len(page) < PAGE:
                    break
                start += PAGE
        return ids

    def position(self, job: Job) -> int | None:
        """The place of a waiting job in its queue, from 1; None: it waits no more."""
        place = self.place(job)
        return None if place is None else place.position

    def place(self, job: Job) -> Place | None:
        """Where a job waits; None: it waits no more. Cheap for any queue."""
        return self.places([job])[0]

    @redis_reads
    def places(self, jobs: Sequence[Job]) -> list[Place | None]:
        """Where each of these jobs waits, in two round trips; None: it waits no more. Jobs of other queues and priorities that were made
        in the same millisecond may count on either side.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(keys.job(job.id), "queue")
            queues = pipe.execute() if jobs else []
        own = [
            None if queue in {None, self._messages.queue(job.endpoint)} else str(queue)
            for job, queue in zip(jobs, queues, strict=True)
        ]
        with self._redis.pipeline(transaction=False) as pipe:
            for job, queue in zip(jobs, own, strict=True):
                _ask_place(pipe, job, queue)
            figures = iter(pipe.execute() if jobs else ())
        return [
            self._place(job, queue, [next(figures) for _ in range(_FIGURES)])
            for job, queue in zip(jobs, own, strict=True)
        ]

    def _place(self, job: Job, queue: str | None, figures: Sequence[Any]) -> Place | None:
        rank, low_rank, lower, all_waiting, all_low, pinned_before, all_pinned = figures
        worker_id = None
        if queue is not None:
            worker_id = self._messages.worker_of(job.endpoint, queue)
            pinned_before = all_pinned = 0
        if rank is None:
            return None
        if low_rank is None:
            before = rank - lower - pinned_before
        else:
            before = all_waiting - all_pinned - all_low + low_rank
        return Place(int(max(0, before)) + 1, worker_id)


_FIGURES = 7
"""Number of answers for :func:`_ask_place`."""


def _ask_place(pipe: Any, job: Job, queue: str | None) -> None:
    """Asks for a job's rank among all of a queue and among those of low priority, for the numbers of both, and for those of the
    endpoint's jobs that wait in other queues. ``queue``: a worker's own; None: the endpoint's.
    """
    waiting, low = keys.queued(job.endpoint), keys.of_endpoint(job.endpoint, "low")
    if queue is not None:
        waiting = keys.waiting(queue)
        low = f"{waiting}:low"
    elsewhere = keys.of_endpoint(job.endpoint, "pinned")
    pipe.zrank(waiting, job.id)
    pipe.zrank(low, job.id)
    pipe.zcount(low, "-inf", job.created_ms)
    pipe.zcard(waiting)
    pipe.zcard(low)
    pipe.zcount(elsewhere, "-inf", job.created_ms)
    pipe.zcard(elsewhere)
