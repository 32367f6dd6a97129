"""Finds what nobody looks after any more. Runs on the housekeeping node, one at a time."""

import logging
import threading
import time

from ownpod import keys, log
from ownpod.deliveries import Deliveries
from ownpod.errors import RedisUnavailable
from ownpod.jobs import JobStatus
from ownpod.pull import Pulls
from ownpod.recovery import Recovery
from ownpod.store import JobStore, now_ms, redis_errors

logger = logging.getLogger(__name__)

EVERY_S = 1.0
SAMPLE_EVERY_MS = 15_000
AT_ONCE = 1000
"""Jobs that one sweep ends or takes up again; the rest waits for the next."""


class Sweep(threading.Thread):
    """Every second: jobs whose ttl has passed, webhooks that are due, jobs of silent nodes,
    workers that pulled and are gone.

    Every ``lease_s``: what Celery has lost, see :mod:`ownpod.recovery`.
    """

    def __init__(
        self, store: JobStore, recovery: Recovery, pulls: Pulls, *, lease_s: float
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._store = store
        self._redis = store.client
        self._recovery = recovery
        self._pulls = pulls
        self._deliveries = Deliveries(store.client, store.messages)
        self._lease_s = lease_s
        self._recover_at = time.monotonic()
        self._looked = 0.0
        self._sampled = 0
        self._patient_until = 0.0

    def run(self) -> None:
        while True:
            time.sleep(EVERY_S)
            try:
                mine = self._is_mine()
                self._have_patience(time.time())
                if mine:
                    self.once()
            except RedisUnavailable as error:
                logger.warning("no sweep: %s", error)

    def once(self) -> None:
        """One sweep."""
        if self._recover_at <= time.monotonic():
            self._recover_at = time.monotonic() + self._lease_s
            self._recovery.once()
        period = now_ms() // SAMPLE_EVERY_MS
        if period != self._sampled:
            self._sampled = period
            for endpoint in self._recovery.endpoints():
                self._store.sample(endpoint)
        for worker_id in self._pulls.forget_gone():
            logger.info("worker %s, which pulled, is gone and forgotten", worker_id)
        for job_id in self._store.expire(limit=AT_ONCE):
            log.moved(job_id, JobStatus.TIMED_OUT, reason="it waited longer than its ttl")
        due = self._deliveries.due(limit=AT_ONCE)
        for job_id in due.queued:
            logger.debug("job %s: its webhook is due", job_id)
        for job_id in due.gone:
            logger.warning("job %s: its webhook is given up: the job's record is gone", job_id)
        if time.time() >= self._patient_until:
            self._take_up_the_lost()

    def _have_patience(self, now: float) -> None:
        """After a time in which this did not see Redis, nodes may not have seen it either: they get
        a lease's time to renew theirs. At a start, after an outage, after the host slept.
        """
        if now - self._looked > self._lease_s / 3 + 2 * EVERY_S:
            self._patient_until = now + self._lease_s
        self._looked = now

    def _take_up_the_lost(self) -> None:
        reason = "the node that ran the job fell silent and did not come back"
        for job in self._store.expired(limit=AT_ONCE):
            status = self._store.hand_back(
                job.id,
                job.endpoint,
                job.attempt,
                lost=True,
                reason=reason,
                expired_only=True,
            )
            if status is not None:
                log.moved(
                    job.id,
                    status,
                    level=logging.WARNING,
                    worker=job.worker_id,
                    attempt=job.attempt,
                    reason=f"lost: {reason}",
                )

    @redis_errors
    def _is_mine(self) -> bool:
        """One sweep at a time, whichever host's."""
        return bool(self._redis.set(keys.SWEEP_LOCK, "1", nx=True, px=int(EVERY_S * 900)))
