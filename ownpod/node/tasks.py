"""The Celery tasks of a worker's node. A job is one task, under the job's id."""

import logging
import time
from typing import Any

from celery.exceptions import Ignore, Reject, Retry

from ownpod.broker import names
from ownpod.broker.process import current
from ownpod.celery import app
from ownpod.errors import JobNotCompleted
from ownpod.node.node import Node
from ownpod.rules.jobs import JobStatus

log = logging.getLogger(__name__)


@app.task(name=names.RUN_JOB, bind=True, throws=(JobNotCompleted,))  # type: ignore[untyped-decorator]
def run_job(self: Any, job_id: str) -> None:
    """Runs a job on this node's worker. The task's state follows the job's record: a FAILED or TIMED_OUT job
    fails the task, a CANCELLED one revokes it, a requeued one retries it.
    """
    node = current(Node)
    if node is None:
        log.error("job %s came to a node without a worker; its message is requeued", job_id)
        time.sleep(1)
        raise Reject("this node has no worker", requeue=True)
    outcome = node.runner.run(job_id)
    match outcome.status if outcome else None:
        case JobStatus.COMPLETED:
            return
        case JobStatus.FAILED | JobStatus.TIMED_OUT:
            raise JobNotCompleted(f"{outcome.status}: {outcome.error}")  # type: ignore[union-attr]
        case JobStatus.IN_QUEUE:
            raise Retry("requeued")
        case JobStatus.CANCELLED:
            self.send_event("task-revoked", terminated=False, signum=None, expired=False)
    raise Ignore


@app.task(name=names.AWAIT_RUN)  # type: ignore[untyped-decorator]
def await_run(run: str) -> None:
    """Keeps a slot until the worker is done with a run of an earlier node, "<job id>:<attempt>"."""
    if (node := current(Node)) is not None:
        job_id, _, attempt = run.rpartition(":")
        node.runner.await_run(job_id, int(attempt))
