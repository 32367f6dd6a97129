"""Cancels tasks whose clients have gone, where their requests have ``on_disconnect: cancel``."""

import logging
import time
from collections.abc import Callable

from ownpod import log
from ownpod.rules.jobs import JobStatus
from ownpod.store.attended import Attended
from ownpod.store.store import Store

logger = logging.getLogger(__name__)

GONE_S = 10.0
"""Seconds without a reader after which a task is cancelled: time for its client to read again."""

REASON = "cancelled because its client has gone"


class Unattended:
    """The step of the sweep.

    Args:
        store: the job records.
        attended: the readers.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self, store: Store, attended: Attended, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._attended = attended
        self._clock = clock
        self._since: dict[str, float] = {}
        """When this process first saw that a task has no reader. Its own clock counts, because after an outage of Redis no reader
        could be renewed."""

    def once(self) -> None:
        """Cancels the tasks that have had no reader for :data:`GONE_S`. Raises: RedisUnavailable."""
        now_s = self._clock()
        overdue = self._attended.overdue()
        self._since = {job_id: self._since.get(job_id, now_s) for job_id in overdue}
        for job_id, since_s in self._since.items():
            job = self._store.listing.find(job_id)
            if job is None or job.status.terminal:
                self._attended.forget(job_id)
            elif now_s - since_s >= GONE_S:
                state = self._store.jobs.cancel(job_id, job.endpoint, reason=REASON)
                if state is JobStatus.CANCELLED:
                    log.moved(job_id, state, reason=REASON)
                self._attended.forget(job_id)
