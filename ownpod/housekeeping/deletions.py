"""Cancels the jobs of endpoints that were deleted through a management API (RunPod's REST v2: deleting cancels jobs)."""

import logging

from ownpod.errors import JobNotFound
from ownpod.rules.jobs import JobStatus
from ownpod.store.catalog import Catalog
from ownpod.store.store import Store

log = logging.getLogger(__name__)

REASON = "its endpoint was deleted"

LATE_S = 5.0
"""Seconds after a deletion in which a job may still arrive, because processes read the endpoints once a second."""


def cancel_jobs(catalog: Catalog, store: Store) -> None:
    """Cancels what waits and runs of deleted endpoints. Raises: RedisUnavailable; the next call continues."""
    for endpoint, deleted_s in catalog.deleted().items():
        cancelled = store.queue.purge(endpoint, reason=REASON)
        for job_id in store.figures.counts(endpoint)[1]:
            try:
                cancelled += (
                    store.jobs.cancel(job_id, endpoint, reason=REASON) is JobStatus.CANCELLED
                )
            except JobNotFound:
                log.debug("job %s of endpoint %s has expired", job_id, endpoint)
        if cancelled:
            log.info("endpoint %s was deleted: %d of its jobs are cancelled", endpoint, cancelled)
        if deleted_s > LATE_S:
            catalog.forget_deleted(endpoint)
