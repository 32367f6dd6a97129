"""The attempts a node has in hand: their leases, their deadlines, and the slots they keep.

An attempt that is over for the client (cancelled, timed out, handed back) keeps its slot until the
worker's own request has returned, so that a worker never has more jobs than its capacity.
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
    """An attempt that this node runs. ``began`` and ``deadline`` are on the monotonic clock, in s."""

    attempt: Attempt
    began: float
    deadline: float
    too_long: str
    """What a client is told when the deadline passes."""
    run_id: str | None = None
    over: bool = False
    """The job has moved on; only the slot is still taken."""


def _start(attempt: Attempt) -> Running:
    """Its deadline: the end of its ``executionTimeout`` or its ``ttl``, whichever comes first.

    Only durations on Redis's clock enter, so this host's clock may be wrong.
    """
    began = time.monotonic() - attempt.ran_ms / 1000
    longest_ms = attempt.execution_timeout_ms
    too_long = f"executionTimeout: the job ran longer than {longest_ms} ms"
    ttl_left_ms = attempt.expires_ms - attempt.started_ms
    if ttl_left_ms < longest_ms:
        longest_ms, too_long = ttl_left_ms, "ttl: the job was not done when its ttl had passed"
    return Running(attempt, began, began + longest_ms / 1000, too_long)


class Attempts(threading.Thread):
    """Renews leases every third of ``lease_s`` and ends attempts whose time is up.

    Args:
        store: where the jobs are.
        worker: told to stop what is over.
        lease_s: see ``OWNPOD_LEASE_S``.
        on_change: called when the number of slots held by ended jobs changes.
    """

    def __init__(
        self, store: Store, worker: Worker, *, lease_s: float, on_change: Callable[[], None]
    ) -> None:
        super().__init__(name="attempts", daemon=True)
        self._store = store
        self._worker = worker
        self._on_change = on_change
        self.lease_s = lease_s
        self.on_over: Callable[[Attempt], None] = lambda _: None
        """Called when a job is over before its run; from a thread of its own."""
        self._changed = threading.Condition()
        self._running: set[Running] = set()
        self._awaited: set[tuple[str, int]] = set()
        self._look = False
        self._sleeps_until = 0.0
        self.begun = 0
        """Attempts ever begun here."""

    @property
    def in_hand(self) -> int:
        """Slots taken."""
        return len(self._running) + len(self._awaited)

    @property
    def running(self) -> int:
        """Slots taken by jobs that are not over."""
        return self.in_hand - self.held

    @property
    def held(self) -> int:
        """Slots taken by runs whose job is over, or goes on elsewhere."""
        return sum(running.over for running in list(self._running)) + len(self._awaited)

    @contextlib.contextmanager
    def hold(self, attempt: Attempt) -> Iterator[Running]:
        """Takes a slot for the attempt and keeps its lease and deadline, until the block ends."""
        running = _start(attempt)
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

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs in hand, also of those that are over."""
        with self._changed:
            known = {r.attempt.job_id for r in self._running} | {name for name, _ in self._awaited}
        return sorted(known)

    @contextlib.contextmanager
    def keep_slot(self, job_id: str, number: int) -> Iterator[bool]:
        """Takes a slot for what an earlier node began; False: this one has it in hand already."""
        name = (job_id, number)
        with self._changed:
            known = {(r.attempt.job_id, r.attempt.number) for r in self._running} | self._awaited
            if name not in known:
                self._awaited.add(name)
        if name in known:
            yield False
            return
        self._on_change()
        try:
            yield True
        finally:
            with self._changed:
                self._awaited.discard(name)
            self._on_change()

    def knows(self, running: Running, run_id: str) -> bool:
        """Notes the worker's id of a run. False: it has given the same to another that still goes on."""
        with self._changed:
            if any(other.run_id == run_id for other in self._running):
                return False
            running.run_id = run_id
            return True

    def run(self) -> None:
        renew_at = time.monotonic() + self.lease_s / 3
        while True:
            with self._changed:
                due = [r.deadline for r in self._running if not r.over]
                self._sleeps_until = min([renew_at, *due])
                if not self._look:
                    self._changed.wait(max(0.0, self._sleeps_until - time.monotonic()))
                if self._look:
                    renew_at, self._look = time.monotonic(), False
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
                logger.warning("leases and deadlines wait: %s", error)
                time.sleep(RETRY_S)
            except Exception:
                # One record that Redis cannot read must not stop the renewal of the other leases.
                logger.exception("leases and deadlines are checked again in %g s", RETRY_S)
                time.sleep(RETRY_S)

    def look(self) -> None:
        """A job may have been cancelled: looks now instead of at the next renewal."""
        with self._changed:
            self._look = True
            self._changed.notify()

    def hand_over(self, reason: str) -> int:
        """The node ends: every job that still runs is left to its worker's next node, where the run
        outlives this one, or goes back to its queue. Answers how many there were.
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
        self._give_up(running)

    def _renew(self, alive: list[Running]) -> None:
        gone = self._store.jobs.renew((r.attempt for r in alive), lease_s=self.lease_s)
        for running in alive:
            if running.attempt.job_id in gone and running in self._running:
                self._give_up(running)

    def _give_up(self, running: Running) -> None:
        """The job has moved on: the worker is asked to stop, the slot stays until it has."""
        running.over = True
        self._on_change()
        # In a thread of its own: other leases must not wait for this worker's answer.
        threading.Thread(target=self._tell, args=(running,), name="over", daemon=True).start()

    def _tell(self, running: Running) -> None:
        try:
            if running.run_id is not None:
                self._worker.cancel(running.run_id)
            self.on_over(running.attempt)
        except Exception:
            # For example a record that Redis cannot read. A thread that dies would end the node.
            logger.exception(
                "job %s: its end was not sent to the worker and to Celery", running.attempt.job_id
            )
