"""Runs one job on one worker: claim, start, wait, finish. Knows nothing of Celery."""

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ownpod import log
from ownpod.errors import AttemptLost, JobRejected, WorkerUnavailable
from ownpod.node.slots import Attempts, Running
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.store.chunks import call_token
from ownpod.store.retry import until_available
from ownpod.store.store import Store
from ownpod.workers import Worker

logger = logging.getLogger(__name__)

LONGEST_LOOK_S = 1.0
"""Looks whether a run has ended come after pauses of a tenth of the time waited, up to this."""

CALLBACK_S = 5.0
"""After a worker is done: its callback comes within this, or not any more."""


class Health(Protocol):
    """Told how the worker took a job."""

    def trip(self, reason: str) -> None:
        """The worker takes no jobs: stop fetching any, now."""

    def worked(self) -> None:
        """The worker took a job."""


class _Watch:
    """Writes down what a worker tells while it runs an attempt."""

    def __init__(
        self, store: Store, attempt: Attempt, run: Run, on_over: Callable[[], None]
    ) -> None:
        self._store = store
        self._on_over = on_over
        self._attempt = attempt
        self.run = run

    def chunks(self, texts: list[str]) -> None:
        attempt, token = self._attempt, call_token()
        added = until_available(
            lambda: self._store.chunks.add(attempt.job_id, attempt.number, texts, token=token)
        )
        if not added:
            # The job was cancelled, or has too many chunks: the worker is asked to stop now.
            self._on_over()

    def look(self, look: RunCheck) -> None:
        self.run = run = replace(self.run, check=look)
        until_available(lambda: self._store.runs.record(run, self._attempt.worker_id))


class JobRunner:
    """Runs jobs on one worker, any number at a time.

    However often a job's message comes, the job runs once for each attempt: whoever claims it.

    Args:
        store: where the jobs are.
        worker: what runs them.
        attempts: keeps their leases, deadlines and slots.
        health: is told how the worker took them.
        worker_id: the worker's id.
        callbacks: the worker is told where to post its results, too.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        attempts: Attempts,
        health: Health,
        *,
        worker_id: str,
        callbacks: bool = False,
    ) -> None:
        self._store = store
        self._listing = store.listing
        self._worker = worker
        self._attempts = attempts
        self._health = health
        self._worker_id = worker_id
        self._callbacks = callbacks

    def run(self, job_id: str) -> Outcome | None:
        """Runs the job to its end, if it waits. Returns when the worker is free of it.

        Returns:
            How the job is then, if that has ended or waits again; None if it is gone.
        """
        outcome: Outcome | None = None
        claim = str(uuid.uuid4())
        found = until_available(
            lambda: self._store.jobs.claim(
                job_id, worker_id=self._worker_id, claim=claim, lease_s=self._attempts.lease_s
            )
        )
        match found:
            case Attempt():
                log.moving(
                    job_id,
                    JobStatus.IN_PROGRESS,
                    worker=self._worker_id,
                    attempt=found.number,
                    requestId=found.request_id,
                )
                with self._attempts.hold(found) as running:
                    outcome = self._run(running)
            case Run():
                self.await_run(job_id, found.attempt)
            case None:
                logger.info("job %s: nothing to do, it does not wait any more", job_id)
        if outcome is None and (job := until_available(lambda: self._listing.find(job_id))):
            outcome = Outcome(job.status, error=job.error)
        return outcome

    def await_run(self, job_id: str, attempt: int) -> None:
        """Keeps a slot until the worker is done with a run that nobody waits for."""
        with self._attempts.keep_slot(job_id, attempt) as kept:
            if not kept:
                return
            run = until_available(lambda: self._store.runs.get(self._worker_id, job_id, attempt))
            if run is None:
                return
            logger.info("job %s: attempt %d may still run in the worker, waiting", job_id, attempt)
            self._settle(run)

    def adopt(self, endpoint: str) -> None:
        """Settles what an earlier node of this worker left. Before this one takes any job."""
        reason = "its node ended"
        for job_id, attempt in until_available(lambda: self._store.runs.orphans(self._worker_id)):
            what = until_available(
                lambda job_id=job_id, attempt=attempt: self._store.runs.adopt(  # type: ignore[misc]
                    job_id,
                    endpoint,
                    attempt,
                    self._worker_id,
                    reason=reason,
                    lease_s=self._attempts.lease_s,
                )
            )
            logger.warning(
                "job %s: attempt %d was left by an earlier node: %s", job_id, attempt, what
            )

    def _run(self, running: Running) -> Outcome | None:
        """The outcome, if it is the job's."""
        attempt = running.attempt
        watch: _Watch | None = None
        try:
            watch = self._begun(running)
            if attempt.run is None or watch.run.check is RunCheck.POLL:
                outcome = self._worker.wait(watch.run.id, watch, resumed=attempt.run is not None)
            else:
                self._await_callback(running, watch.run)
                return None
        except JobRejected as error:
            outcome = Outcome(JobStatus.FAILED, error=str(error))
        except WorkerUnavailable as error:
            # First stop fetching: the next one to take the job must be another node.
            self._health.trip(str(error))
            self._requeue(attempt, lost=False, reason=str(error), freed=True)
            return None
        except AttemptLost as error:
            self._health.trip(str(error))
            self._requeue(attempt, lost=True, reason=str(error), freed=watch is None)
            running.over = True
            if watch is not None:
                run = watch.run
                if run.check is RunCheck.UNKNOWN:
                    # The connection was this node's: as a rule it ends with what was at the run.
                    run = replace(run, check=RunCheck.HEALTH)
                self._settle(run)
            return None
        if until_available(lambda: self._store.jobs.finish(attempt, outcome)):
            log.moved(
                attempt.job_id,
                outcome.status,
                worker=self._worker_id,
                attempt=attempt.number,
                ms=int((time.monotonic() - running.began) * 1000),
                requestId=attempt.request_id,
            )
            return outcome
        logger.info("job %s: attempt %d ended too late", attempt.job_id, attempt.number)
        return None

    def _begun(self, running: Running) -> _Watch:
        """The run: begun now, or by an earlier node."""
        attempt, run = running.attempt, running.attempt.run
        if run is None:
            run_id = self._worker.start(attempt)
            self._health.worked()
            run = Run(
                job_id=attempt.job_id,
                attempt=attempt.number,
                id=run_id,
                check=RunCheck.UNKNOWN,
                execution_timeout_ms=attempt.execution_timeout_ms,
                callback=self._callbacks,
            )
        else:
            logger.info("job %s: going on with attempt %d", attempt.job_id, attempt.number)
        if not self._attempts.knows(running, run.id):
            raise AttemptLost(f"the worker gave the id {run.id[:80]!r} to two runs at a time")
        return _Watch(self._store, attempt, run, self._attempts.look)

    def _await_callback(self, running: Running, run: Run) -> None:
        """The worker's callback brings the result, or nothing does: then the job is tried again."""
        attempt = running.attempt
        self._settle(run, release=False)
        until = time.monotonic() + CALLBACK_S
        while not self._has_ended(attempt) and time.monotonic() < until:
            time.sleep(LONGEST_LOOK_S / 10)
        reason = "its node ended, and no callback brought the result"
        self._requeue(attempt, lost=True, reason=reason, freed=True)

    def _has_ended(self, attempt: Attempt) -> bool:
        return until_available(lambda: self._store.jobs.has_ended(attempt.job_id))

    def _settle(self, run: Run, *, release: bool = True) -> None:
        """Returns when the worker is done with a run that nobody waits for, or its time is over."""
        began = time.monotonic()
        until = began + run.execution_timeout_ms / 1000
        while (left_s := until - time.monotonic()) > 0 and self._worker.is_at(run, left_s):
            time.sleep(min((time.monotonic() - began) / 10 + 0.01, LONGEST_LOOK_S, left_s))
        if release:
            until_available(
                lambda: self._store.runs.clear(self._worker_id, run.job_id, run.attempt)
            )

    def _requeue(self, attempt: Attempt, *, lost: bool, reason: str, freed: bool) -> None:
        status = until_available(
            lambda: self._store.jobs.requeue(
                attempt.job_id,
                attempt.number,
                lost=lost,
                reason=reason,
                freed=self._worker_id if freed else "",
            )
        )
        log.moved(
            attempt.job_id,
            status or "another attempt's",
            level=logging.WARNING,
            worker=self._worker_id,
            attempt=attempt.number,
            reason=f"{'lost' if lost else 'not begun'}: {reason}",
            requestId=attempt.request_id,
        )
