"""Finds what nobody looks after any more. Runs on the housekeeping node, one at a time."""

import logging
import threading
import time

import redis

from ownpod import keys
from ownpod.errors import RedisUnavailable
from ownpod.store import JobStore, redis_errors

log = logging.getLogger(__name__)

AT_ONCE = 100
"""Jobs taken up again by one sweep; the rest waits for the next."""


class Sweep(threading.Thread):
    """Every third of a lease: takes up jobs whose node fell silent."""

    def __init__(self, store: JobStore, client: redis.Redis, *, lease_s: float) -> None:
        super().__init__(name="sweep", daemon=True)
        self._store = store
        self._redis = client
        self._every_s = lease_s / 3

    def run(self) -> None:
        while True:
            time.sleep(self._every_s)
            try:
                if self._is_mine():
                    self.once()
            except RedisUnavailable as error:
                log.warning("no sweep: %s", error)

    def once(self) -> None:
        """One sweep."""
        reason = "the node that ran the job fell silent and did not come back"
        for job in self._store.expired(limit=AT_ONCE):
            status = self._store.hand_back(
                job.id, job.endpoint, job.attempt, lost=True, reason=reason, expired_only=True
            )
            if status is not None:
                log.warning(
                    "job %s: attempt %d lost, %s; now %s", job.id, job.attempt, reason, status
                )

    @redis_errors
    def _is_mine(self) -> bool:
        """One sweep at a time, whichever host's."""
        lock_ms = int(self._every_s * 900)
        return bool(self._redis.set(keys.SWEEP_LOCK, "1", nx=True, px=lock_ms))
