"""The Celery tasks. A job is one task, under the job's id."""

import logging
import time
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from ownpod.broker import names
from ownpod.celery import app
from ownpod.errors import JobNotCompleted
from ownpod.housekeeping.webhooks import Webhooks
from ownpod.node.runner import JobRunner
from ownpod.rules.jobs import JobStatus

log = logging.getLogger(__name__)

_runner: JobRunner | None = None
_webhooks: Webhooks | None = None


def run_jobs_with(runner: JobRunner) -> None:
    """Makes this process a worker's node."""
    global _runner  # noqa: PLW0603 - one node, one worker
    _runner = runner


def send_webhooks_with(webhooks: Webhooks) -> None:
    """Makes this process one that can send webhooks."""
    global _webhooks  # noqa: PLW0603 - as above
    _webhooks = webhooks


@app.task(name=names.SEND_WEBHOOK)  # type: ignore[untyped-decorator]
def send_webhook(job_id: str) -> None:
    """One try of a finished job's webhook. A lost task is made anew by the sweep."""
    if _webhooks is not None:
        _webhooks.send(job_id)


@app.task(name=names.RUN_JOB, bind=True, throws=(JobNotCompleted,))  # type: ignore[untyped-decorator]
def run_job(self: Any, job_id: str) -> None:
    """Runs a job on this node's worker. The job record says how it ends, and the task's state agrees:
    what is FAILED or TIMED_OUT fails, what is CANCELLED is revoked, what goes back to its queue is
    retried.
    """
    if _runner is None:
        log.error("job %s came to a node without a worker; it goes back to its queue", job_id)
        time.sleep(1)
        raise Reject("this node has no worker", requeue=True)
    outcome = _runner.run(job_id)
    match outcome.status if outcome else None:
        case JobStatus.COMPLETED:
            return
        case JobStatus.FAILED | JobStatus.TIMED_OUT:
            raise JobNotCompleted(f"{outcome.status}: {outcome.error}")  # type: ignore[union-attr]
        case JobStatus.IN_QUEUE:
            raise Retry("back in its queue")
        case JobStatus.CANCELLED:
            self.send_event("task-revoked", terminated=False, signum=None, expired=False)
    raise Ignore


@app.task(name=names.AWAIT_RUN)  # type: ignore[untyped-decorator]
def await_run(run: str) -> None:
    """Keeps a slot until the worker is done with a run of an earlier node, "<job id>:<attempt>"."""
    if _runner is not None:
        job_id, _, attempt = run.rpartition(":")
        _runner.await_run(job_id, int(attempt))
