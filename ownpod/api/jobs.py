"""The operations on jobs, as RunPod's clients use them."""

import json
import time
from collections.abc import Callable

from flask import Blueprint, Response, request

from ownpod.api import answer, schemas, services
from ownpod.jobs import Job, JobStatus, NewJob, new_job_id
from ownpod.store import now_ms

blueprint = Blueprint("jobs", __name__, url_prefix="/v2/<endpoint_id>")

RUN_LIMIT = 10 * 1024 * 1024
RUNSYNC_LIMIT = 20 * 1024 * 1024
"""RunPod's documented limits of a body, in bytes."""

_run_schema = schemas.RunSchema()


@blueprint.post("/run")
def run(endpoint_id: str) -> Response:
    """Queues a job and answers at once."""
    job_id = new_job_id(sync=False)
    _submit(endpoint_id, job_id, limit=RUN_LIMIT)
    return answer({"id": job_id, "status": JobStatus.IN_QUEUE})


@blueprint.post("/runsync")
def runsync(endpoint_id: str) -> Response:
    """Queues a job and waits for its end, at most ``?wait=`` ms; then answers how it is."""
    wait_s, job_id = _wait_s(), new_job_id(sync=True)
    deadline = time.monotonic() + wait_s
    with services().events.expect_end(job_id) as wait:
        _submit(endpoint_id, job_id, limit=RUNSYNC_LIMIT)
        wait(wait_s)
        return answer(_job_at_end(job_id, endpoint_id, wait, deadline).answer_json())


@blueprint.route("/status/<job_id>", methods=["GET", "POST"])
def status(endpoint_id: str, job_id: str) -> Response:
    """How a job is. ``?ttl=`` ms shortens how long a finished job's record stays."""
    here = services()
    here.registry.endpoint(endpoint_id)
    ttl = request.args.get("ttl")
    ttl_ms = None
    if ttl is not None:
        ttl_ms = schemas.milliseconds("ttl", ttl, (1, here.settings.result_ttl_s * 1000))
    job = here.store.job(job_id, endpoint_id)
    if ttl_ms is not None and job.status.terminal:
        here.store.shorten_ttl(job, ttl_ms)
    return answer(job.answer_json())


@blueprint.route("/status-sync/<job_id>", methods=["GET", "POST"])
def status_sync(endpoint_id: str, job_id: str) -> Response:
    """As ``/status``, but waits for the job's end, at most ``?wait=`` ms."""
    services().registry.endpoint(endpoint_id)
    deadline = time.monotonic() + _wait_s()
    with services().events.expect_end(job_id) as wait:
        return answer(_job_at_end(job_id, endpoint_id, wait, deadline).answer_json())


@blueprint.post("/cancel/<job_id>")
def cancel(endpoint_id: str, job_id: str) -> Response:
    """Cancels a job; one that has ended stays as it is, and the answer says how."""
    here = services()
    here.registry.endpoint(endpoint_id)
    state = here.store.cancel(job_id, endpoint_id, reason="cancelled by a client")
    return answer({"id": job_id, "status": state})


@blueprint.post("/purge-queue")
def purge_queue(endpoint_id: str) -> Response:
    """Cancels this endpoint's jobs that wait; running ones are untouched."""
    here = services()
    here.registry.endpoint(endpoint_id)
    removed = here.store.purge(endpoint_id, reason="removed from the queue by purge-queue")
    return answer({"removed": removed, "status": "completed"})


def _submit(endpoint_id: str, job_id: str, *, limit: int) -> None:
    here = services()
    endpoint = here.registry.endpoint(endpoint_id)
    request.max_content_length = limit
    body = schemas.parse(_run_schema, request.get_data(cache=False))
    policy = body["policy"] or {}
    s3_config = body["s3_config"]
    job = NewJob(
        id=job_id,
        endpoint=endpoint_id,
        input=json.dumps(body["input"]),
        s3_config=None if s3_config is None else json.dumps(s3_config),
        execution_timeout_ms=policy.get("execution_timeout_ms") or endpoint.execution_timeout_ms,
        max_attempts=endpoint.max_attempts,
        created_ms=now_ms(),
    )
    here.store.create(job)


def _wait_s() -> float:
    default_ms = services().settings.runsync_timeout_ms
    wait = request.args.get("wait")
    if wait is None:
        return default_ms / 1000
    return schemas.milliseconds("wait", wait, schemas.WAIT_MS) / 1000


def _job_at_end(
    job_id: str, endpoint_id: str, wait: Callable[[float], None], deadline: float
) -> Job:
    """The job when it has ended, or when the request's time or this process ends."""
    here = services()
    while True:
        job = here.store.job(job_id, endpoint_id)
        left_s = deadline - time.monotonic()
        if job.status.terminal or left_s <= 0 or here.events.stopped:
            return job
        wait(left_s)
