"""Runs one job on one worker: claim, start, wait, finish. Knows nothing of Celery."""

import logging
import time
import uuid
from collections.abc import Callable
from typing import Protocol, TypeVar

from ownpod.attempts import RETRY_S, Attempts, Running
from ownpod.errors import AttemptLost, JobRejected, RedisUnavailable, WorkerUnavailable
from ownpod.jobs import JobStatus, Outcome
from ownpod.store import JobStore
from ownpod.workers import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")


class Health(Protocol):
    """Told how the worker took a job."""

    def trip(self, reason: str) -> None:
        """The worker takes no jobs: stop fetching any, now."""

    def worked(self) -> None:
        """The worker took a job."""


class JobRunner:
    """Runs jobs on one worker, any number at a time.

    However often a job's message comes, the job runs once for each attempt: whoever claims it.
    """

    def __init__(
        self, store: JobStore, worker: Worker, attempts: Attempts, health: Health, *, worker_id: str
    ) -> None:
        self._store = store
        self._worker = worker
        self._attempts = attempts
        self._health = health
        self._worker_id = worker_id

    def run(self, job_id: str) -> None:
        """Runs the job to its end, if it waits. Returns when the worker is free of it."""
        claim = str(uuid.uuid4())
        attempt = until_redis_answers(
            lambda: self._store.claim(
                job_id, worker_id=self._worker_id, claim=claim, lease_s=self._attempts.lease_s
            )
        )
        if attempt is None:
            log.info("job %s: nothing to do, it does not wait any more", job_id)
            return
        with self._attempts.hold(attempt) as running:
            try:
                running.run_id = self._worker.start(attempt)
                self._health.worked()
                outcome = self._worker.wait(
                    running.run_id,
                    lambda chunks: until_redis_answers(
                        lambda: self._store.add_chunks(attempt, chunks)
                    ),
                )
            except JobRejected as error:
                outcome = Outcome(JobStatus.FAILED, error=str(error))
            except WorkerUnavailable as error:
                # First stop fetching: the next one to take the job must be another node.
                self._health.trip(str(error))
                self._hand_back(running, lost=False, reason=str(error))
                return
            except AttemptLost as error:
                self._health.trip(str(error))
                self._hand_back(running, lost=True, reason=str(error))
                return
            if until_redis_answers(lambda: self._store.finish(attempt, outcome)):
                log.info(
                    "job %s %s on %s, attempt %d, after %d ms",
                    job_id,
                    outcome.status,
                    self._worker_id,
                    attempt.number,
                    time.time_ns() // 1_000_000 - attempt.started_ms,
                )
            else:
                log.info("job %s: attempt %d ended too late", job_id, attempt.number)

    def _hand_back(self, running: Running, *, lost: bool, reason: str) -> None:
        attempt = running.attempt
        status = until_redis_answers(
            lambda: self._store.hand_back(
                attempt.job_id,
                attempt.endpoint,
                attempt.number,
                lost=lost,
                reason=reason,
            )
        )
        log.warning(
            "job %s: attempt %d on %s %s (%s); now %s",
            attempt.job_id,
            attempt.number,
            self._worker_id,
            "lost" if lost else "not begun",
            reason,
            status or "another attempt's",
        )


def until_redis_answers(call: Callable[[], T]) -> T:
    """Repeats a call that changes nothing when repeated, until Redis is back."""
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            log.warning("waiting for Redis: %s", error)
            time.sleep(RETRY_S)
