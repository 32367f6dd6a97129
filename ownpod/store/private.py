"""The jobs of private workers, as housekeeping settles them when their worker ends; the commands are in ``private.lua``."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.store import Store


@dataclass(frozen=True)
class WaitingJob:
    """A job that waits for a private worker.

    Attributes:
        movable: its client did not name the session.
        moves: how often it has moved to another session.
    """

    id: str
    worker_id: str
    movable: bool
    moves: int


class PrivateJobs:
    """The jobs of sessions and of one-off tasks' workers. Any call may raise RedisUnavailable.

    Args:
        store: the jobs.
        result_ttl_s: seconds for which a finished job's record is kept.
    """

    def __init__(self, store: Store, *, result_ttl_s: int) -> None:
        self._redis = store.client
        self._call = store.scripts
        self._result_ttl_s = result_ttl_s

    def end(
        self, job_id: str, worker_id: str, error: str, code: str, *, running: bool = True
    ) -> bool:
        """Ends a job of a private worker as FAILED. False: it has ended, or is not this worker's.

        Args:
            job_id: the job.
            worker_id: the private worker.
            error: for the client.
            code: the word for programs, the record's ``code``.
            running: also if it runs.
        """
        arguments = (job_id, worker_id, error, code, self._result_ttl_s, int(running))
        return bool(self._call("end_job", "", *arguments))

    def move(self, job_id: str, old: str, new: str) -> bool:
        """Moves a waiting job from one private worker to another of the same endpoint. False: it does not wait for the
        first, or the other one takes no jobs.
        """
        return bool(self._call("move_private", "", job_id, old, new))

    @redis_reads
    def waiting(self, endpoints: Iterable[str]) -> dict[str, list[WaitingJob]]:
        """The jobs that wait for private workers, the oldest first, by endpoint; endpoints without any are left out."""
        names = list(endpoints)
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zrange(keys.private(name), 0, -1)
            ids = {name: found for name, found in zip(names, pipe.execute(), strict=True) if found}
            for found in ids.values():
                for job_id in found:
                    pipe.hmget(keys.job(job_id), "private", "movable", "moves")
            values = iter(pipe.execute() if ids else ())
        jobs: dict[str, list[WaitingJob]] = {}
        for name, found in ids.items():
            for job_id in found:
                private, movable, moves = next(values)
                if private is not None:
                    job = WaitingJob(job_id, private, movable == "1", _number(moves))
                    jobs.setdefault(name, []).append(job)
        return jobs

    @redis_reads
    def over(self, job_ids: Sequence[str]) -> list[bool | None]:
        """Whether these jobs have ended; None: there is no such job."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(keys.job(job_id), "status", "finished_ms")
            found = pipe.execute()
        return [None if status is None else finished is not None for status, finished in found]

    @redis_reads
    def lingering(self, worker_ids: Sequence[str]) -> set[str]:
        """Those of these workers whose handler still runs although its job has ended."""
        with self._redis.pipeline(transaction=False) as pipe:
            for worker_id in worker_ids:
                pipe.hget(keys.worker(worker_id), "held")
            found = pipe.execute()
        return {i for i, held in zip(worker_ids, found, strict=True) if held and held != "0"}

    @redis_reads
    def workers_of(self, job_ids: Sequence[str]) -> list[str | None]:
        """The private worker of each of these jobs; None: it has none, or there is no such job."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(keys.job(job_id), "private")
            return list(pipe.execute())


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,9}", text) else 0
