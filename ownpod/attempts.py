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

from ownpod.errors import RedisUnavailable
from ownpod.jobs import Attempt, JobStatus, Outcome
from ownpod.store import JobStore, now_ms
from ownpod.workers import Worker

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Pause before Redis is asked again after it did not answer."""


@dataclass(eq=False)
class Running:
    """An attempt in hand. ``deadline`` is on the monotonic clock, in s."""

    attempt: Attempt
    deadline: float
    too_long: str
    """What a client is told when the deadline passes."""
    run_id: str | None = None
    over: bool = False
    """The job has moved on; only the slot is still taken."""


def _start(attempt: Attempt) -> Running:
    """Its deadline: the ``executionTimeout``, or what is left of the ``ttl`` if that is less."""
    limit_ms, left_ms = attempt.execution_timeout_ms, attempt.expires_ms - now_ms()
    too_long = f"executionTimeout: the job ran longer than {limit_ms} ms"
    if left_ms < limit_ms:
        limit_ms, too_long = left_ms, "ttl: the job was not done when its ttl had passed"
    return Running(attempt, time.monotonic() + limit_ms / 1000, too_long)


class Attempts(threading.Thread):
    """Renews leases every third of ``lease_s`` and ends attempts whose time is up.

    Args:
        store: where the jobs are.
        worker: told to stop what is over.
        lease_s: see ``OWNPOD_LEASE_S``.
        on_change: called when the number of slots held by ended jobs changes.
    """

    def __init__(
        self, store: JobStore, worker: Worker, *, lease_s: float, on_change: Callable[[], None]
    ) -> None:
        super().__init__(name="attempts", daemon=True)
        self._store = store
        self._worker = worker
        self._on_change = on_change
        self.lease_s = lease_s
        self._changed = threading.Condition()
        self._running: set[Running] = set()
        self._look = False
        self._sleeps_until = 0.0
        self.begun = 0
        """Attempts ever begun here."""

    @property
    def in_hand(self) -> int:
        """Slots taken."""
        return len(self._running)

    @property
    def running(self) -> int:
        """Slots taken by jobs that are not over."""
        return self.in_hand - self.held

    @property
    def held(self) -> int:
        """Slots taken by jobs that are over."""
        return sum(running.over for running in list(self._running))

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
                log.warning("leases and deadlines wait: %s", error)
                time.sleep(RETRY_S)

    def look(self) -> None:
        """A job may have been cancelled: looks now instead of at the next renewal."""
        with self._changed:
            self._look = True
            self._changed.notify()

    def hand_back(self, reason: str) -> int:
        """Gives every job that still runs back to its queue; answers how many."""
        count = 0
        for running in list(self._running):
            if not running.over:
                attempt = running.attempt
                self._store.hand_back(
                    attempt.job_id,
                    attempt.endpoint,
                    attempt.number,
                    lost=False,
                    reason=reason,
                )
                running.over = True
                count += 1
        return count

    def _time_out(self, running: Running) -> None:
        outcome = Outcome(JobStatus.TIMED_OUT, error=running.too_long)
        if self._store.finish(running.attempt, outcome):
            log.info("job %s TIMED_OUT: %s", running.attempt.job_id, running.too_long)
        self._give_up(running)

    def _renew(self, alive: list[Running]) -> None:
        gone = self._store.renew((r.attempt for r in alive), lease_s=self.lease_s)
        for running in alive:
            if running.attempt.job_id in gone and running in self._running:
                self._give_up(running)

    def _give_up(self, running: Running) -> None:
        """The job has moved on: the worker is asked to stop, the slot stays until it has."""
        running.over = True
        self._on_change()
        if running.run_id is not None:
            # In a thread of its own: other leases must not wait for this worker's answer.
            threading.Thread(
                target=self._worker.cancel, args=(running.run_id,), name="cancel", daemon=True
            ).start()
