"""Finds what nobody looks after any more. Runs on the housekeeping node, one at a time."""

import logging
import threading
import time

import redis

from ownpod import keys
from ownpod.errors import RedisUnavailable
from ownpod.recovery import Recovery
from ownpod.store import JobStore, redis_errors

log = logging.getLogger(__name__)

EVERY_S = 1.0
AT_ONCE = 1000
"""Jobs that one sweep ends or takes up again; the rest waits for the next."""


class Sweep(threading.Thread):
    """Every second: jobs whose ttl has passed, webhooks that are due, jobs of silent nodes.

    Every ``recover_every_s``: what Celery has lost, see :mod:`ownpod.recovery`.
    """

    def __init__(
        self, store: JobStore, client: redis.Redis, recovery: Recovery, *, recover_every_s: float
    ) -> None:
        super().__init__(name="sweep", daemon=True)
        self._store = store
        self._redis = client
        self._recovery = recovery
        self._recover_every_s = recover_every_s
        self._recover_at = time.monotonic()

    def run(self) -> None:
        while True:
            time.sleep(EVERY_S)
            try:
                if self._is_mine():
                    self.once()
            except RedisUnavailable as error:
                log.warning("no sweep: %s", error)

    def once(self) -> None:
        """One sweep."""
        if self._recover_at <= time.monotonic():
            self._recover_at = time.monotonic() + self._recover_every_s
            self._recovery.once()
        for job_id in self._store.expire(limit=AT_ONCE):
            log.info("job %s TIMED_OUT: it waited longer than its ttl", job_id)
        for job_id in self._store.webhooks_due(limit=AT_ONCE):
            log.debug("job %s: its webhook is due", job_id)
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
                log.warning(
                    "job %s: attempt %d lost, %s; now %s", job.id, job.attempt, reason, status
                )

    @redis_errors
    def _is_mine(self) -> bool:
        """One sweep at a time, whichever host's."""
        return bool(self._redis.set(keys.SWEEP_LOCK, "1", nx=True, px=int(EVERY_S * 900)))
