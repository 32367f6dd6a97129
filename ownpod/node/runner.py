"""Runs one job on one worker: claim, start, wait, finish or requeue. Knows no Celery."""

import functools
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from ownpod import log
from ownpod.errors import AttemptLost, JobRejected, WorkerUnavailable
from ownpod.node.breaker import Breaker
from ownpod.node.slots import Running, Slots
from ownpod.rules.backoff import poll_pause_s
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.store.chunks import call_token
from ownpod.store.retry import patient
from ownpod.store.store import Store
from ownpod.workers import Place, Worker

logger = logging.getLogger(__name__)

FIRST_CHECK_S, LONGEST_CHECK_S = 0.01, 1.0
"""Shortest and longest pause in seconds between checks whether a run of an earlier node has ended."""

CALLBACK_S = 5.0
"""Seconds for which a node waits for a worker's callback after the run has ended."""

CALLBACK_CHECK_S = 0.1
"""Seconds between checks whether a callback has ended the job."""


class _Recorder:
    """Writes to Redis the chunks and the check of a run, while a worker executes an attempt.

    Args:
        store: the jobs.
        attempt: the attempt.
        run: the run as it is known.
        on_over: called when the job is over for the client.
        on_begun: called when the run of a cloud worker has begun there.
    """

    def __init__(
        self,
        store: Store,
        attempt: Attempt,
        run: Run,
        on_over: Callable[[], None],
        on_begun: Callable[[], None],
    ) -> None:
        self._store = store
        self._on_over = on_over
        self._on_begun = on_begun
        self._attempt = attempt
        self.run = run

    def chunks(self, texts: list[str]) -> None:
        job_id, number = self._attempt.job_id, self._attempt.number
        if not self._store.chunks.add(job_id, number, texts, token=call_token()):
            # The job was cancelled, or has too many chunks: the worker is asked to stop now.
            self._on_over()

    def set_check(self, check: RunCheck) -> None:
        self.run = replace(self.run, check=check)
        self._store.runs.record(self.run, self._attempt.worker_id)

    def remote(self, place: Place) -> None:
        found = {"url": place.url, "endpoint": place.url.rpartition("/")[2], "id": place.run_id}
        if place.worker_id is not None:
            found["workerId"] = place.worker_id
        job_id, number = self._attempt.job_id, self._attempt.number
        runs = self._store.overflow.remote(
            job_id,
            number,
            found,
            begun=place.begun,
            ran_ms=place.ran_ms,
            progress=place.progress,
        )
        if not runs:
            self._on_over()
        elif place.begun:
            self._on_begun()


class JobRunner:
    """Runs jobs on one worker, any number at a time.

    A job runs once for each attempt, however often its message comes, because an attempt is claimed once.
    Every call of Redis waits while Redis is away.

    Args:
        store: the jobs.
        worker: executes them.
        slots: keeps leases, deadlines and slots.
        breaker: is opened when the worker takes no jobs.
        worker_id: the worker's id.
        callbacks: the worker gets a URL to which it posts its results, too.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        slots: Slots,
        breaker: Breaker,
        *,
        worker_id: str,
        callbacks: bool = False,
    ) -> None:
        self._store = patient(store)
        self._worker = worker
        self._slots = slots
        self._breaker = breaker
        self._worker_id = worker_id
        self._callbacks = callbacks

    def run(self, job_id: str) -> Outcome | None:
        """Runs the job to its end, if it waits. Returns when the worker is free of it.

        Returns:
            The job's state afterwards, if it has ended or waits again; None if it is gone.
        """
        outcome: Outcome | None = None
        claimed = self._store.jobs.claim(
            job_id,
            worker_id=self._worker_id,
            claim=str(uuid.uuid4()),
            lease_s=self._slots.lease_s,
        )
        match claimed:
            case Attempt():
                outcome = self._run(claimed)
            case Run():
                self.await_run(job_id, claimed.attempt)
            case None:
                logger.info("job %s: message dropped, the job does not wait any more", job_id)
        if outcome is None and (job := self._store.listing.find(job_id)):
            outcome = Outcome(job.status, error=job.error)
        return outcome

    def await_run(self, job_id: str, attempt: int) -> None:
        """Keeps a slot until the worker is done with a run of an earlier node."""
        with self._slots.linger(job_id, attempt) as taken:
            run = self._store.runs.get(self._worker_id, job_id, attempt) if taken else None
            if run is not None:
                logger.info("job %s: attempt %d may still run, waiting for it", job_id, attempt)
                self._await_end(run)
                self._clear(run)

    def adopt(self, endpoint: str) -> bool:
        """Adopts or requeues the jobs of an earlier node of this worker. Call before this node takes any job.

        Returns:
            Whether the worker may still run one of them, so that its own queue has a message.
        """
        left = False
        for job_id, number in self._store.runs.orphans(self._worker_id):
            what = self._store.runs.adopt(
                job_id,
                endpoint,
                number,
                self._worker_id,
                reason="its node ended",
                lease_s=self._slots.lease_s,
            )
            left |= what != "free"
            logger.warning(
                "job %s: attempt %d was left by an earlier node: %s", job_id, number, what
            )
        return left

    def _run(self, attempt: Attempt) -> Outcome | None:
        """From the claim to the end of the run. The outcome, if it is the job's."""
        log.moving(
            attempt.job_id,
            JobStatus.IN_PROGRESS,
            worker=self._worker_id,
            attempt=attempt.number,
            requestId=attempt.request_id,
        )
        recorder: _Recorder | None = None
        with self._slots.occupy(attempt) as running:
            try:
                recorder = self._start(running)
                if attempt.run is not None and recorder.run.check is not RunCheck.POLL:
                    self._await_callback(attempt, recorder.run)
                    return None
                outcome = self._worker.wait(
                    recorder.run.id, recorder, adopted=attempt.run is not None
                )
            except JobRejected as error:
                outcome = Outcome(JobStatus.FAILED, error=str(error))
            except WorkerUnavailable as error:
                # First the breaker: the next node to take the job must be another one.
                self._breaker.refuse(error)
                self._requeue(attempt, lost=False, reason=str(error), freed=True)
                return None
            except AttemptLost as error:
                self._breaker.open(str(error))
                self._requeue(attempt, lost=True, reason=str(error), freed=recorder is None)
                running.over = True
                if recorder is not None:
                    self._outlast(recorder.run)
                return None
            return self._finish(running, outcome)

    def _start(self, running: Running) -> _Recorder:
        """Starts the run in the worker, unless an earlier node has. Raises as :meth:`Worker.start` does."""
        attempt, run = running.attempt, running.attempt.run
        if run is None:
            run_id = self._worker.start(attempt)
            self._breaker.succeed()
            run = Run(
                job_id=attempt.job_id,
                attempt=attempt.number,
                id=run_id,
                check=RunCheck.UNKNOWN,
                execution_timeout_ms=attempt.execution_timeout_ms,
                callback=self._callbacks,
            )
        else:
            logger.info("job %s: attempt %d adopted", attempt.job_id, attempt.number)
        if not self._slots.name_run(running, run.id):
            raise AttemptLost(f"the worker gave the id {run.id[:80]!r} to two runs at a time")
        on_begun = functools.partial(self._slots.begin, running)
        return _Recorder(self._store, attempt, run, self._slots.check_runs, on_begun)

    def _finish(self, running: Running, outcome: Outcome) -> Outcome | None:
        """Writes the outcome. None: the job was over before."""
        attempt = running.attempt
        if not self._store.jobs.finish(attempt, outcome):
            logger.info("job %s: attempt %d ended too late", attempt.job_id, attempt.number)
            return None
        log.moved(
            attempt.job_id,
            outcome.status,
            worker=self._worker_id,
            attempt=attempt.number,
            ms=int((time.monotonic() - running.began) * 1000),
            requestId=attempt.request_id,
        )
        return outcome

    def _requeue(self, attempt: Attempt, *, lost: bool, reason: str, freed: bool) -> None:
        status = self._store.jobs.requeue(
            attempt.job_id,
            attempt.number,
            lost=lost,
            reason=reason,
            freed=self._worker_id if freed else "",
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

    def _await_callback(self, attempt: Attempt, run: Run) -> None:
        """Waits for the worker's callback, which ends the job; requeues the job if none comes."""
        self._await_end(run)
        until = time.monotonic() + CALLBACK_S
        while not self._store.jobs.has_ended(attempt.job_id) and time.monotonic() < until:
            time.sleep(CALLBACK_CHECK_S)
        reason = "its node ended, and no callback brought the result"
        self._requeue(attempt, lost=True, reason=reason, freed=True)

    def _outlast(self, run: Run) -> None:
        """Keeps the slot of a lost run until the worker is done with it."""
        if run.check is RunCheck.UNKNOWN:
            # The connection was this node's: as a rule the run ends with it.
            run = replace(run, check=RunCheck.HEALTH)
        self._await_end(run)
        self._clear(run)

    def _await_end(self, run: Run) -> None:
        """Returns when the worker is done with a run that has no waiting request, or its time is over."""
        began = time.monotonic()
        until = began + run.execution_timeout_ms / 1000
        while (left_s := until - time.monotonic()) > 0 and self._worker.is_running(run, left_s):
            waited_s = time.monotonic() - began
            time.sleep(min(poll_pause_s(waited_s, FIRST_CHECK_S, LONGEST_CHECK_S), left_s))

    def _clear(self, run: Run) -> None:
        self._store.runs.clear(self._worker_id, run.job_id, run.attempt)
