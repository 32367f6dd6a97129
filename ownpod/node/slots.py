"""The slots of a node: its attempts, their leases and deadlines.

An attempt whose job is over for the client (cancelled, timed out, requeued) keeps its slot until the worker's own
request has returned, because a worker must never have more jobs than its capacity. Such a slot is *lingering*.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ownpod import log
from ownpod.errors import RedisUnavailable
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome
from ownpod.store.retry import RETRY_S
from ownpod.store.store import Store
from ownpod.workers import Worker

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Running:
    """An attempt that this node runs. ``began`` and ``deadline`` are seconds on the monotonic clock."""

    attempt: Attempt
    began: float
    deadline: float
    too_long: str
    """The error that a client gets when the deadline passes."""
    run_id: str | None = None
    over: bool = False
    """The job has ended or is queued again; only the slot is still taken."""
    ended: bool = False
    """The worker is to stop the run."""
    begun: bool = True
    """Its run has begun, so its ``executionTimeout`` counts."""


def _start(attempt: Attempt, *, begun: bool = True) -> Running:
    """Sets the deadline: the end of the ``executionTimeout`` or of the ``ttl``, whichever comes first.

    This host's clock may be wrong, so only durations on Redis's clock are used.

    Args:
        attempt: the attempt.
        begun: its run has begun; otherwise only the ``ttl`` counts.
    """
    began = time.monotonic() - attempt.ran_ms / 1000
    longest_ms = attempt.execution_timeout_ms
    too_long = f"executionTimeout: the job ran longer than {longest_ms} ms"
    ttl_left_ms = attempt.expires_ms - attempt.started_ms
    if ttl_left_ms < longest_ms or not begun:
        longest_ms, too_long = ttl_left_ms, "ttl: the job was not done when its ttl had passed"
    return Running(attempt, began, began + longest_ms / 1000, too_long, begun=begun)


class Slots(threading.Thread):
    """Renews leases every third of ``lease_s`` and ends attempts whose time is over.

    Args:
        store: the jobs.
        worker: stops a run whose job is over, on request.
        lease_s: see ``OWNPOD_LEASE_S``.
        on_change: called from any thread when the number of lingering slots changes.
        on_over: called when a job is over before its run has ended, from a thread of its own.
        begins_later: runs begin when :meth:`begin` is called, because they may wait at the worker first.
    """

    def __init__(
        self,
        store: Store,
        worker: Worker,
        *,
        lease_s: float,
        on_change: Callable[[], None],
        on_over: Callable[[Attempt], None] = lambda _: None,
        begins_later: bool = False,
    ) -> None:
        super().__init__(name="slots", daemon=True)
        self._store = store
        self._worker = worker
        self._on_change = on_change
        self._on_over = on_over
        self._begins_later = begins_later
        self.lease_s = lease_s
        self._changed = threading.Condition()
        self._running: set[Running] = set()
        self._adopted: set[tuple[str, int]] = set()
        """Job and attempt of runs of an earlier node that the worker may still execute."""
        self._check_now = False
        self._sleeps_until = 0.0
        self.begun = 0
        """Number of attempts that this node has ever begun."""

    @property
    def taken(self) -> int:
        """Number of slots taken."""
        return len(self._running) + len(self._adopted)

    @property
    def running(self) -> int:
        """Number of slots taken by jobs that are not over."""
        return self.taken - self.lingering

    @property
    def lingering(self) -> int:
        """Number of slots taken by runs whose job is over, or is queued or runs elsewhere."""
        return sum(running.over for running in list(self._running)) + len(self._adopted)

    @contextlib.contextmanager
    def occupy(self, attempt: Attempt) -> Iterator[Running]:
        """Takes a slot for the attempt until the block ends; its lease is renewed and its deadline kept."""
        running = _start(attempt, begun=attempt.remote_begun or not self._begins_later)
        with self._changed:
            self._running.add(running)
            self.begun += 1
            if running.deadline < self._sleeps_until:
                self._changed.notify()
        try:
            yield running
        finally:
            with self._changed:
                self._running.discard(running)
            if running.over:
                self._on_change()

    def begin(self, running: Running) -> None:
        """The run has begun at the worker: its ``executionTimeout`` counts from now on."""
        with self._changed:
            if running.begun:
                return
            longest_ms = running.attempt.execution_timeout_ms
            deadline = time.monotonic() + longest_ms / 1000
            running.begun = True
            if deadline < running.deadline:
                running.deadline = deadline
                running.too_long = f"executionTimeout: the job ran longer than {longest_ms} ms"
                self._changed.notify()

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs that take a slot, also of those that are over."""
        with self._changed:
            known = {r.attempt.job_id for r in self._running} | {name for name, _ in self._adopted}
        return sorted(known)

    @contextlib.contextmanager
    def linger(self, job_id: str, number: int) -> Iterator[bool]:
        """Takes a slot for a run of an earlier node until the block ends. False: it has one already."""
        name = (job_id, number)
        with self._changed:
            known = {(r.attempt.job_id, r.attempt.number) for r in self._running} | self._adopted
            if name not in known:
                self._adopted.add(name)
        if name in known:
            yield False
            return
        self._on_change()
        try:
            yield True
        finally:
            with self._changed:
                self._adopted.discard(name)
            self._on_change()

    def name_run(self, running: Running, run_id: str) -> bool:
        """Records the worker's id of a run. False: the worker gave the same id to a run that has not ended."""
        with self._changed:
            if any(other.run_id == run_id for other in self._running):
                return False
            running.run_id = run_id
        if running.ended:
            # The job was cancelled before the worker had answered with the id, so that there was nothing to stop then.
            threading.Thread(target=self._cancel, args=(running,), name="over", daemon=True).start()
        return True

    def run(self) -> None:
        renew_at = time.monotonic() + self.lease_s / 3
        while True:
            with self._changed:
                due = [r.deadline for r in self._running if not r.over]
                self._sleeps_until = min([renew_at, *due])
                if not self._check_now:
                    self._changed.wait(max(0.0, self._sleeps_until - time.monotonic()))
                if self._check_now:
                    renew_at, self._check_now = time.monotonic(), False
                alive = [running for running in self._running if not running.over]
            now = time.monotonic()
            try:
                for running in alive:
                    if running.deadline <= now:
                        self._time_out(running)
                if renew_at <= now:
                    self._renew([running for running in alive if not running.over])
                    renew_at = time.monotonic() + self.lease_s / 3
            except RedisUnavailable as error:
                logger.warning("leases and deadlines wait for Redis: %s", error)
                time.sleep(RETRY_S)
            except Exception:
                # One record that Redis cannot read must not stop the renewal of the other leases.
                logger.exception("leases and deadlines are checked again in %g s", RETRY_S)
                time.sleep(RETRY_S)

    def check_runs(self) -> None:
        """Renews the leases now instead of at their time, because the answer names jobs that were cancelled."""
        with self._changed:
            self._check_now = True
            self._changed.notify()

    def hand_over(self, reason: str) -> int:
        """The node ends: a run that outlives the node is left to the worker's next node, any other job is
        requeued. Returns how many jobs there were.
        """
        count = 0
        for running in list(self._running):
            if not running.over:
                attempt = running.attempt
                self._store.runs.hand_over(
                    attempt.job_id,
                    attempt.number,
                    attempt.worker_id,
                    reason=reason,
                    lease_s=self.lease_s,
                )
                running.over = True
                count += 1
        return count

    def _time_out(self, running: Running) -> None:
        outcome = Outcome(JobStatus.TIMED_OUT, error=running.too_long)
        if self._store.jobs.finish(running.attempt, outcome, slot_free=False):
            attempt = running.attempt
            log.moved(
                attempt.job_id,
                JobStatus.TIMED_OUT,
                worker=attempt.worker_id,
                attempt=attempt.number,
                reason=running.too_long,
                requestId=attempt.request_id,
            )
        self._end(running)

    def _renew(self, alive: list[Running]) -> None:
        gone = self._store.jobs.renew((r.attempt for r in alive), lease_s=self.lease_s)
        for running in alive:
            if running.attempt.job_id in gone and running in self._running:
                self._end(running)

    def _end(self, running: Running) -> None:
        """The job is over: the worker is asked to stop, and the slot lingers until the worker has."""
        running.over = running.ended = True
        self._on_change()
        # In a thread of its own, because other leases must not wait for this worker's answer.
        threading.Thread(target=self._stop_run, args=(running,), name="over", daemon=True).start()

    def _cancel(self, running: Running) -> None:
        try:
            if running.run_id is not None:
                self._worker.cancel(running.run_id)
        except Exception:
            # As in _stop_run.
            logger.exception("job %s: its worker was not asked to stop", running.attempt.job_id)

    def _stop_run(self, running: Running) -> None:
        try:
            if running.run_id is not None:
                self._worker.cancel(running.run_id)
            self._on_over(running.attempt)
        except Exception:
            # An exception that leaves a thread ends the node, for example after a record that Redis cannot read.
            logger.exception(
                "job %s: its end was not sent to the worker and to Celery", running.attempt.job_id
            )
