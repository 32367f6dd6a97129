"""Periodic maintenance that belongs to no worker's node: expired leases, expired jobs, due webhooks.

One housekeeping node runs it at a time.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable

from ownpod import log
from ownpod.errors import RedisUnavailable
from ownpod.housekeeping.deletions import cancel_jobs
from ownpod.housekeeping.left_pins import LeftPins
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.unattended import Unattended
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.catalog import Catalog
from ownpod.store.client import redis_errors
from ownpod.store.offers import Offers
from ownpod.store.queue import Expired
from ownpod.store.store import Store

logger = logging.getLogger(__name__)

EVERY_S = 1.0
"""Seconds between two sweeps."""
ALIVE_S = 10
"""Seconds without a sweep after which the housekeeping node counts as dead, see :mod:`ownpod.tools.alive`."""
SAMPLE_EVERY_S = 5.0
"""Seconds between two additions to the history that the sweep tries; Redis keeps one entry each ``SAMPLE_MS``."""
AT_ONCE = 1000
"""Number of jobs that one step of a sweep handles; the rest waits for the next sweep."""

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A monotonic clock that continues while the host sleeps, because nodes renew no lease meanwhile."""


def _now_s() -> float:
    return time.clock_gettime(CLOCK)


class Sweep(threading.Thread):
    """The thread of the sweep.

    Each second it handles jobs whose ttl has expired, due webhooks, jobs whose lease has expired, requeued
    pinned jobs, jobs that wait for a worker that has left, and pulling workers that are gone. Every ``lease_s`` seconds it runs the recovery of messages
    that Celery has lost.

    Args:
        store: job records.
        recovery: republishes lost messages, and names the endpoints.
        offers: workers that pull.
        lease_s: see ``OWNPOD_LEASE_S``.
        left_pins: ends jobs whose worker has left; None: no job names its worker.
        unattended: cancels tasks whose clients have gone; None: no task is cancelled so.
    """

    def __init__(
        self,
        store: Store,
        recovery: Recovery,
        offers: Offers,
        *,
        lease_s: float,
        left_pins: LeftPins | None = None,
        unattended: Unattended | None = None,
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._store = store
        self._redis = store.client
        self._recovery = recovery
        self._offers = offers
        self._left_pins = left_pins
        self._unattended = unattended
        self._lease_s = lease_s
        self._catalog = Catalog(store.client)
        self._recover_at = time.monotonic()
        self._sample_at = 0.0
        self._answered: float | None = None
        """When Redis last answered."""
        self._patient_until = 0.0
        self._alive = keys.housekeeping(socket.gethostname())

    def run(self) -> None:
        while True:
            time.sleep(EVERY_S)
            try:
                mine = self._is_mine()
                self._have_patience(_now_s())
                if mine:
                    self.once()
            except RedisUnavailable as error:
                logger.warning("no sweep: %s", error)
            except Exception:
                logger.exception("the sweep failed")

    def once(self) -> None:
        """One sweep. A step that fails does not stop the steps after it.

        Raises:
            RedisUnavailable: Redis is away, or its records are of another version.
        """
        for step in (
            self._recover,
            self._sample,
            self._forget_workers,
            self._expire,
            self._send_webhooks,
            self._publish_delayed,
            self._release_preferring,
            self._end_left_pins,
            self._cancel_unattended,
            self._requeue_expired,
            self._cancel_deleted,
        ):
            self._try(step.__name__.strip("_"), step)

    @staticmethod
    def _try(what: str, step: Callable[[], None]) -> None:
        """Logs the step's error, because one bad record must not stop the other steps."""
        try:
            step()
        except RedisUnavailable:
            raise
        except Exception:
            logger.exception("sweep: %s failed", what)

    def _recover(self) -> None:
        if self._recover_at <= time.monotonic():
            self._recover_at = time.monotonic() + self._lease_s
            self._recovery.once()

    def _sample(self) -> None:
        if self._sample_at <= time.monotonic():
            self._sample_at = time.monotonic() + SAMPLE_EVERY_S
            for endpoint in self._recovery.endpoints():
                self._try(
                    f"the sample of endpoint {endpoint}",
                    lambda endpoint=endpoint: self._store.figures.sample(endpoint),  # type: ignore[misc]
                )

    def _forget_workers(self) -> None:
        for worker_id in self._offers.forget_gone():
            logger.info("worker %s, which pulled, is gone and forgotten", worker_id)

    def _expire(self) -> None:
        for job_id in self._store.queue.expire(limit=AT_ONCE):
            log.moved(job_id, JobStatus.TIMED_OUT, reason="it waited longer than its ttl")

    def _send_webhooks(self) -> None:
        due = self._store.deliveries.due(limit=AT_ONCE)
        for job_id in due.queued:
            logger.debug("job %s: its webhook is due", job_id)
        for job_id in due.gone:
            logger.warning("job %s: its webhook is given up: the job's record is gone", job_id)

    def _publish_delayed(self) -> None:
        if published := self._store.queue.publish_delayed(limit=AT_ONCE):
            logger.debug("%d pinned jobs have a message again", published)

    def _release_preferring(self) -> None:
        if released := self._store.queue.release_preferring(limit=AT_ONCE):
            logger.debug("%d jobs wait for any worker now", released)

    def _end_left_pins(self) -> None:
        if self._left_pins is not None:
            self._left_pins.once()

    def _cancel_unattended(self) -> None:
        if self._unattended is not None:
            self._unattended.once()

    def _cancel_deleted(self) -> None:
        cancel_jobs(self._catalog, self._store)

    def _have_patience(self, now_s: float) -> None:
        """Leases are not enforced for ``lease_s`` seconds after the start, a Redis outage or a sleep of the host,
        because nodes could not renew them.
        """
        if self._answered is None or self._is_late(now_s):
            self._patient_until = now_s + self._lease_s
        self._answered = now_s

    def _is_late(self, now_s: float) -> bool:
        """Redis has not answered for about the time between two renewals of a lease."""
        late_s = self._lease_s / 3 + 2 * EVERY_S
        return self._answered is not None and now_s - self._answered > late_s

    def _requeue_expired(self) -> None:
        if _now_s() < self._patient_until:
            return
        expired = self._store.queue.expired(limit=AT_ONCE)
        if self._is_late(_now_s()):
            # Redis stalled before this answer, so the nodes' renewals still wait. Attempts of an answer in
            # time can be requeued later, because a renewed lease ends at another time.
            return
        for attempt in expired:
            self._try(
                f"the requeue of job {attempt.id}",
                lambda attempt=attempt: self._requeue(attempt),  # type: ignore[misc]
            )

    def _requeue(self, attempt: Expired) -> None:
        reason = "the node that ran the job has not renewed its lease"
        status = self._store.jobs.requeue(
            attempt.id,
            attempt.attempt,
            lost=True,
            reason=reason,
            lease_end_ms=attempt.lease_end_ms,
        )
        if status is not None:
            log.moved(
                attempt.id,
                status,
                level=logging.WARNING,
                worker=attempt.worker_id,
                attempt=attempt.attempt,
                reason=f"lost: {reason}",
            )

    @redis_errors
    def _is_mine(self) -> bool:
        """Acquires the lock of this sweep, which one host gets. Each try also shows that the host's node is alive."""
        self._store.schema.check()
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._alive, "1", ex=ALIVE_S)
            pipe.set(keys.SWEEP_LOCK, "1", nx=True, px=int(EVERY_S * 900))
            return bool(pipe.execute()[1])
