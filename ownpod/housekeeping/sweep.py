"""Periodic maintenance of what no node takes care of: expired leases, jobs past their ttl, due webhooks.
Runs on the housekeeping node, one at a time.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable

from ownpod import log
from ownpod.errors import RedisUnavailable
from ownpod.housekeeping.recovery import Recovery
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.client import redis_errors
from ownpod.store.deliveries import Deliveries
from ownpod.store.jobs import Expired, JobStore
from ownpod.store.offers import Offers

logger = logging.getLogger(__name__)

EVERY_S = 1.0
ALIVE_S = 10
"""After so many seconds without a sweep the housekeeping node counts as dead, see :mod:`ownpod.tools.alive`."""
SAMPLE_EVERY_S = 5.0
"""Seconds between two attempts to add to the history; Redis keeps one entry each ``SAMPLE_MS``."""
AT_ONCE = 1000
"""Jobs that one sweep ends or takes up again; the rest waits for the next."""

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A monotonic clock that continues while the host sleeps, because nodes renew no lease meanwhile."""


def _now_s() -> float:
    return time.clock_gettime(CLOCK)


class Sweep(threading.Thread):
    """Every second: jobs whose ttl has passed, webhooks that are due, jobs of silent nodes,
    workers that pulled and are gone.

    Every ``lease_s``: what Celery has lost, see :mod:`ownpod.housekeeping.recovery`.
    """

    def __init__(
        self, store: JobStore, recovery: Recovery, pulls: Offers, *, lease_s: float
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._store = store
        self._redis = store.client
        self._recovery = recovery
        self._pulls = pulls
        self._deliveries = Deliveries(store.client, store.messages)
        self._lease_s = lease_s
        self._recover_at = time.monotonic()
        self._sample_at = 0.0
        self._seen: float | None = None
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
        """One sweep. A step that fails keeps no other one from being done.

        Raises:
            RedisUnavailable: Redis is away, or its records are of another version.
        """
        for step in (
            self._recover,
            self._sample,
            self._forget_workers,
            self._expire,
            self._send_webhooks,
            self._take_up_the_lost,
        ):
            self._try(step.__name__.strip("_"), step)

    @staticmethod
    def _try(what: str, step: Callable[[], None]) -> None:
        """One bad record must not stop what every job needs, so the step's error ends here."""
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
                    lambda endpoint=endpoint: self._store.sample(endpoint),  # type: ignore[misc]
                )

    def _forget_workers(self) -> None:
        for worker_id in self._pulls.forget_gone():
            logger.info("worker %s, which pulled, is gone and forgotten", worker_id)

    def _expire(self) -> None:
        for job_id in self._store.expire(limit=AT_ONCE):
            log.moved(job_id, JobStatus.TIMED_OUT, reason="it waited longer than its ttl")

    def _send_webhooks(self) -> None:
        due = self._deliveries.due(limit=AT_ONCE)
        for job_id in due.queued:
            logger.debug("job %s: its webhook is due", job_id)
        for job_id in due.gone:
            logger.warning("job %s: its webhook is given up: the job's record is gone", job_id)

    def _have_patience(self, now_s: float) -> None:
        """After a time in which the sweep did not see Redis, nodes may not have seen it either: they get
        a lease's time to renew theirs. At a start, after an outage, after the host slept.
        """
        if self._seen is None or self._is_late(now_s):
            self._patient_until = now_s + self._lease_s
        self._seen = now_s

    def _is_late(self, now_s: float) -> bool:
        """Redis has not answered for about the time between two renewals of a lease."""
        return self._seen is not None and now_s - self._seen > self._lease_s / 3 + 2 * EVERY_S

    def _take_up_the_lost(self) -> None:
        if _now_s() < self._patient_until:
            return
        expired = self._store.expired(limit=AT_ONCE)
        if self._is_late(_now_s()):
            # Redis stalled before this answer, so the nodes' renewals still wait. Attempts from an answer in
            # time are safe to requeue later, because a renewed lease ends at another time.
            return
        for attempt in expired:
            self._try(
                f"the requeue of job {attempt.id}",
                lambda attempt=attempt: self._requeue(attempt),  # type: ignore[misc]
            )

    def _requeue(self, attempt: Expired) -> None:
        reason = "the node that ran the job fell silent and did not come back"
        status = self._store.requeue(
            attempt.id,
            attempt.endpoint,
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
        """One sweep at a time, whichever host's. Each host's turn shows that its node is alive."""
        self._store.schema.check()
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._alive, "1", ex=ALIVE_S)
            pipe.set(keys.SWEEP_LOCK, "1", nx=True, px=int(EVERY_S * 900))
            return bool(pipe.execute()[1])
