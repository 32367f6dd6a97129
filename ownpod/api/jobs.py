"""The operations on jobs, as RunPod's clients use them."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from ownpod import log
from ownpod.api import schemas
from ownpod.api.auth import caller
from ownpod.api.services import answer, request_id, services
from ownpod.broker.messages import notify_node
from ownpod.celery import app as celery_app
from ownpod.errors import BadRequest
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.jobs import Job, JobStatus, NewJob, new_job_id
from ownpod.rules.payload import readable
from ownpod.store.jobs import Idempotency
from ownpod.store.listing import JobEntry

logger = logging.getLogger(__name__)

blueprint = Blueprint("jobs", __name__, url_prefix="/v2/<id:endpoint_id>")

RUN_LIMIT = 10 * 1024 * 1024
RUNSYNC_LIMIT = 20 * 1024 * 1024
"""RunPod's documented limits of a body, in bytes."""

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")

PAGE = (1, 1000)
DEFAULT_PAGE = 100
"""Jobs in an answer of ``/requests``."""

_run_schema = schemas.RunSchema()


@blueprint.post("/run")
def run(endpoint_id: str) -> Response:
    """Queues a job and answers at once."""
    new_id, status = new_job_id(sync=False), JobStatus.IN_QUEUE
    job_id = _submit(endpoint_id, new_id, limit=RUN_LIMIT)
    if job_id != new_id and (earlier := services().listing.find(job_id)) is not None:
        # Another request's job, by its Idempotency-Key: it may have ended.
        status = earlier.status
    return answer({"id": job_id, "status": status})


@blueprint.post("/runsync")
def runsync(endpoint_id: str) -> Response:
    """Queues a job and waits for its end, at most ``?wait=`` ms; then answers how it is."""
    wait_s, new_id = _wait_s(), new_job_id(sync=True)
    deadline = time.monotonic() + wait_s
    events = services().events
    with events.subscribe(new_id, end_only=True) as wait:
        job_id = _submit(endpoint_id, new_id, limit=RUNSYNC_LIMIT, channel=events.channel)
        if job_id == new_id:
            news = wait(wait_s)
            return answer(_job_at_end(job_id, endpoint_id, wait, deadline, news).answer_json())
    # Another request's job, by its Idempotency-Key.
    return answer(_awaited(job_id, endpoint_id, deadline).answer_json())


@blueprint.route("/status/<id:job_id>", methods=["GET", "POST"])
def status(endpoint_id: str, job_id: str) -> Response:
    """How a job is. ``?ttl=`` ms shortens how long a finished job's record stays."""
    here = services()
    here.registry.endpoint(endpoint_id)
    ttl = request.args.get("ttl")
    ttl_ms = None
    if ttl is not None:
        ttl_ms = schemas.whole_number("ttl", ttl, (1, here.settings.result_ttl_s * 1000))
    job = here.store.jobs.get(job_id, endpoint_id)
    if ttl_ms is not None and job.status.terminal:
        here.deliveries.shorten_ttl(job_id, ttl_ms)
    response = answer(_with_reason(job))
    response.set_etag(hashlib.sha256(response.get_data()).hexdigest())
    response.make_conditional(request)
    return response


@blueprint.route("/status-sync/<id:job_id>", methods=["GET", "POST"])
def status_sync(endpoint_id: str, job_id: str) -> Response:
    """As ``/status``, but waits for the job's end, at most ``?wait=`` ms."""
    services().registry.endpoint(endpoint_id)
    deadline = time.monotonic() + _wait_s()
    return answer(_awaited(job_id, endpoint_id, deadline).answer_json())


@blueprint.post("/cancel/<id:job_id>")
def cancel(endpoint_id: str, job_id: str) -> Response:
    """Cancels a job; one that has ended stays as it is, and the answer says how."""
    here = services()
    here.registry.endpoint(endpoint_id)
    state = here.store.jobs.cancel(job_id, endpoint_id, reason="cancelled by a client")
    if state is JobStatus.CANCELLED:
        log.moved(job_id, state, reason="cancelled by a client", requestId=request_id())
        _tell_node(here.listing.get(job_id, endpoint_id))
    return answer({"id": job_id, "status": state})


@blueprint.post("/retry/<id:job_id>")
def retry(endpoint_id: str, job_id: str) -> Response:
    """Submits a FAILED or TIMED_OUT job again."""
    here = services()
    here.registry.endpoint(endpoint_id)
    new_id = job_id if here.settings.retry_same_id else new_job_id(sync=False)
    here.store.jobs.retry(job_id, endpoint_id, new_id)
    log.moving(new_id, JobStatus.IN_QUEUE, retryOf=job_id, requestId=request_id())
    return answer({"id": new_id, "status": JobStatus.IN_QUEUE})


@blueprint.post("/purge-queue")
def purge_queue(endpoint_id: str) -> Response:
    """Cancels this endpoint's jobs that wait; running ones are untouched."""
    here = services()
    here.registry.endpoint(endpoint_id)
    removed = here.store.queue.purge(endpoint_id, reason="removed from the queue by purge-queue")
    logger.info("endpoint %s purged, %d jobs CANCELLED", endpoint_id, removed)
    return answer({"removed": removed, "status": "completed"})


@blueprint.get("/requests")
def requests(endpoint_id: str) -> Response:
    """The endpoint's last jobs, the newest first: ``?status=``, ``?limit=``, ``?before=``."""
    here = services()
    here.registry.endpoint(endpoint_id)
    limit = schemas.whole_number("limit", request.args.get("limit", str(DEFAULT_PAGE)), PAGE)
    jobs, end = here.listing.recent(
        endpoint_id, status=_wanted_status(), before=_before(), limit=limit
    )
    following = None if end is None else "-".join(map(str, end))
    return answer({"requests": [_listed(found) for found in jobs], "next": following})


@blueprint.get("/requests/<id:job_id>")
def request_details(endpoint_id: str, job_id: str) -> Response:
    """All that is known of a job: input, output, each attempt, each try of its webhook."""
    here = services()
    here.listing.get(job_id, here.registry.endpoint(endpoint_id).id)
    return answer(here.listing.details(job_id))


def _wanted_status() -> JobStatus | None:
    wanted = request.args.get("status")
    if wanted is None:
        return None
    try:
        return JobStatus(wanted)
    except ValueError:
        states = ", ".join(JobStatus)
        raise BadRequest(f"status: must be one of {states}, not {wanted[:40]!r}") from None


def _before() -> tuple[int, str] | None:
    before = request.args.get("before")
    if before is None:
        return None
    if not re.fullmatch(schemas.PLACE, before):
        raise BadRequest("before: must be the `next` of an earlier answer")
    created_ms, _, job_id = before.partition("-")
    return int(created_ms), job_id


def _listed(found: JobEntry) -> dict[str, Any]:
    said = found.job.answer() | {"createdAt": found.job.created_ms}
    if found.deliveries:
        said["webhook"] = found.deliveries
    if found.attempts:
        said["attempts"] = found.attempts
    return said


def _submit(endpoint_id: str, job_id: str, *, limit: int, channel: str | None = None) -> str:
    """The id of the job, or of the earlier one with the same ``Idempotency-Key``.

    ``channel`` is told of its end, see :class:`ownpod.store.notices.Notices`.
    """
    here = services()
    endpoint = here.registry.endpoint(endpoint_id)
    request.max_content_length = limit
    body = schemas.parse(_run_schema, request.get_data(cache=False), text="input")
    job = _new_job(job_id, endpoint, body)
    created = here.store.jobs.create(
        job,
        most_queued=endpoint.max_queue_depth,
        idempotency=_idempotency(endpoint_id, body),
        channel=channel,
    )
    if created == job_id:
        log.moving(job_id, JobStatus.IN_QUEUE, endpoint=endpoint_id, requestId=job.request_id)
    return created


def _new_job(job_id: str, endpoint: Endpoint, body: dict[str, Any]) -> NewJob:
    policy = body["policy"] or {}
    s3_config = body["s3_config"]
    return NewJob(
        id=job_id,
        endpoint=endpoint.id,
        input=body["input"],
        s3_config=None if s3_config is None else json.dumps(s3_config),
        webhook=body["webhook"],
        execution_timeout_ms=policy.get("execution_timeout_ms") or endpoint.execution_timeout_ms,
        ttl_ms=policy.get("ttl_ms") or endpoint.ttl_ms,
        low_priority=policy.get("low_priority") or False,
        max_attempts=endpoint.max_attempts,
        request_id=request_id(),
    )


def _idempotency(endpoint_id: str, body: dict[str, Any]) -> Idempotency | None:
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise BadRequest("Idempotency-Key: must be 1 to 255 visible ASCII characters")
    owner = json.dumps([endpoint_id, caller(), key])
    # The same job, however it is written.
    said = body | {"input": readable(body["input"])}
    return Idempotency(
        key=hashlib.sha256(owner.encode()).hexdigest(),
        body=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
        ttl_s=services().settings.idempotency_ttl_s,
    )


def _with_reason(job: Job) -> str:
    """What ``/status`` says, and of a job that waits, why; under keys of OwnPod's own."""
    said = job.answer_json()
    here = services()
    position = here.store.queue.position(job) if job.status is JobStatus.IN_QUEUE else None
    if position is None:
        return said
    why = {"queuePosition": position, "waitingReason": here.waiting.reason(job.endpoint)}
    return f"{said[:-1]}, {json.dumps(why)[1:]}"


def _tell_node(job: Job) -> None:
    """Its worker's node forwards the cancel now; without this it would at the next renewal."""
    node = services().registry.node_of(job.worker_id) if job.worker_id else None
    if node is not None:
        notify_node(celery_app, node)


def _wait_s() -> float:
    default_ms = services().settings.runsync_timeout_ms
    wait = request.args.get("wait")
    if wait is None:
        return default_ms / 1000
    return schemas.whole_number("wait", wait, schemas.WAIT_MS) / 1000


def _awaited(job_id: str, endpoint_id: str, deadline: float) -> Job:
    """A job that was there before, at its end."""
    here = services()
    with here.events.subscribe(job_id, end_only=True) as wait:
        here.store.jobs.subscribe(job_id, here.events.channel, end_only=True)
        return _job_at_end(job_id, endpoint_id, wait, deadline)


def _job_at_end(
    job_id: str, endpoint_id: str, wait: Callable[[float], str], deadline: float, news: str = ""
) -> Job:
    """The job when it has ended, or when the request's time or this process ends.

    ``wait`` and ``news`` are of :meth:`ownpod.store.notices.Notices.subscribe`.
    """
    here = services()
    while True:
        job = here.store.jobs.ended_job(news) or here.store.jobs.get(job_id, endpoint_id)
        left_s = deadline - time.monotonic()
        if job.status.terminal or left_s <= 0 or here.events.stopped:
            return job
        news = wait(left_s)
