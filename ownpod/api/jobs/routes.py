"""The operations on jobs, as RunPod's clients use them: HTTP only, :mod:`ownpod.api.jobs.submissions` does the rest."""

import hashlib
import json
import logging
import re
import time
from typing import Any

from flask import Blueprint, Response, request

from ownpod import log
from ownpod.api import schemas
from ownpod.api.auth import caller, seen_owner, session_owner
from ownpod.api.hops import requested_hops
from ownpod.api.jobs.session_pins import in_runpods_words, session_of
from ownpod.api.jobs.submissions import Submission
from ownpod.api.services import Services, answer, request_id, services
from ownpod.broker.messages import notify_node
from ownpod.celery import app as celery_app
from ownpod.errors import BadRequest
from ownpod.rules.affinity import HEADER, Pin, parse_pin
from ownpod.rules.jobs import Job, JobStatus
from ownpod.store.listing import JobEntry

logger = logging.getLogger(__name__)

blueprint = Blueprint("jobs", __name__, url_prefix="/v2/<id:endpoint_id>")

RUN_LIMIT = 10 * 1024 * 1024
RUNSYNC_LIMIT = 20 * 1024 * 1024
"""Sizes in bytes of the largest bodies of ``/run`` and ``/runsync``, as RunPod documents them."""

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")

PAGE = (1, 1000)
DEFAULT_PAGE = 100
"""Number of jobs in a response of ``/requests``: the limits of ``?limit=``, and its default."""

_run_schema = schemas.RunSchema()


@blueprint.post("/run")
def run(endpoint_id: str) -> Response:
    """Queues a job and answers at once."""
    svc = services()
    submission = _submission(endpoint_id, limit=RUN_LIMIT)
    with in_runpods_words():
        submitted = svc.submissions.submit(submission)
    status = JobStatus.IN_QUEUE
    if submitted.earlier and (job := svc.store.listing.find(submitted.job_id)) is not None:
        # The earlier request's job may have ended.
        status = job.status
    return answer({"id": submitted.job_id, "status": status})


@blueprint.post("/runsync")
def runsync(endpoint_id: str) -> Response:
    """Queues a job and waits for its end, at most ``?wait=`` ms; then answers its state."""
    wait_s = _wait_s()
    submission = _submission(endpoint_id, limit=RUNSYNC_LIMIT)
    with in_runpods_words():
        job = services().submissions.submit_and_wait(submission, wait_s)
    return _of_worker(job)


@blueprint.route("/status/<id:job_id>", methods=["GET", "POST"])
def status(endpoint_id: str, job_id: str) -> Response:
    """The job's state and output. ``?ttl=`` shortens the time, in ms, for which a finished job's record stays."""
    svc = services()
    svc.registry.endpoint(endpoint_id)
    ttl = request.args.get("ttl")
    ttl_ms = None
    if ttl is not None:
        ttl_ms = schemas.whole_number("ttl", ttl, (1, svc.settings.result_ttl_s * 1000))
    job = svc.store.jobs.get(job_id, endpoint_id)
    if ttl_ms is not None and job.status.terminal:
        svc.store.deliveries.shorten_ttl(job_id, ttl_ms)
    response = _of_worker(job, _with_reason(job))
    response.set_etag(hashlib.sha256(response.get_data()).hexdigest())
    response.make_conditional(request)
    return response


@blueprint.route("/status-sync/<id:job_id>", methods=["GET", "POST"])
def status_sync(endpoint_id: str, job_id: str) -> Response:
    """As ``/status``, after the job's end or after ``?wait=`` ms."""
    svc = services()
    svc.registry.endpoint(endpoint_id)
    deadline = time.monotonic() + _wait_s()
    return _of_worker(svc.submissions.await_end(job_id, endpoint_id, deadline))


@blueprint.post("/cancel/<id:job_id>")
def cancel(endpoint_id: str, job_id: str) -> Response:
    """Cancels a job. A job that has ended does not change, and the response has its state."""
    services().registry.endpoint(endpoint_id)
    return answer({"id": job_id, "status": cancel_job(job_id, endpoint_id)})


def cancel_job(job_id: str, endpoint_id: str) -> JobStatus:
    """Cancels a job for this request's client. Returns: its state then; a job that has ended does not change."""
    return cancel_for(
        services(), job_id, endpoint_id, reason="cancelled by a client", request_id=request_id()
    )


def cancel_for(
    svc: Services, job_id: str, endpoint_id: str, *, reason: str, request_id: str | None
) -> JobStatus:
    """As :func:`cancel_job`, also outside of a request. ``request_id``: for the log."""
    state = svc.store.jobs.cancel(job_id, endpoint_id, reason=reason)
    if state is JobStatus.CANCELLED:
        log.moved(job_id, state, reason=reason, requestId=request_id)
        _notify_node(svc, svc.store.listing.get(job_id, endpoint_id))
    return state


@blueprint.post("/retry/<id:job_id>")
def retry(endpoint_id: str, job_id: str) -> Response:
    """Submits a FAILED or TIMED_OUT job again."""
    new_id = services().submissions.retry(job_id, endpoint_id)
    log.moving(new_id, JobStatus.IN_QUEUE, retryOf=job_id, requestId=request_id())
    return answer({"id": new_id, "status": JobStatus.IN_QUEUE})


@blueprint.post("/purge-queue")
def purge_queue(endpoint_id: str) -> Response:
    """Cancels the endpoint's waiting jobs; running jobs continue."""
    svc = services()
    svc.registry.endpoint(endpoint_id)
    removed = svc.store.queue.purge(endpoint_id, reason="removed from the queue by purge-queue")
    logger.info("endpoint %s purged, %d jobs CANCELLED", endpoint_id, removed)
    return answer({"removed": removed, "status": "completed"})


@blueprint.get("/requests")
def requests(endpoint_id: str) -> Response:
    """The endpoint's last jobs, newest first, filtered by ``?status=``; ``?limit=`` and ``?before=`` are the page.

    An endpoint's key does not see the tasks of other keys.
    """
    svc = services()
    svc.registry.endpoint(endpoint_id)
    limit = schemas.whole_number("limit", request.args.get("limit", str(DEFAULT_PAGE)), PAGE)
    status = schemas.one_of("status", request.args.get("status"), JobStatus)
    jobs, end = svc.store.listing.recent(
        endpoint_id, status=status, before=_before(), limit=limit, sees=seen_owner()
    )
    next_page = None if end is None else "-".join(map(str, end))
    return answer({"requests": [_summary(entry) for entry in jobs], "next": next_page})


@blueprint.get("/requests/<id:job_id>")
def request_details(endpoint_id: str, job_id: str) -> Response:
    """A whole job: input, output, every attempt, every try of its webhook."""
    svc = services()
    svc.store.listing.get(job_id, svc.registry.endpoint(endpoint_id).id)
    return answer(svc.store.listing.details(job_id))


def _before() -> tuple[int, str] | None:
    before = request.args.get("before")
    if before is None:
        return None
    if not re.fullmatch(schemas.PLACE, before):
        raise BadRequest("before: must be the `next` of an earlier response")
    created_ms, _, job_id = before.partition("-")
    return int(created_ms), job_id


def _summary(entry: JobEntry) -> dict[str, Any]:
    body = entry.job.answer() | {"createdAt": entry.job.created_ms}
    if entry.deliveries:
        body["webhook"] = entry.deliveries
    if entry.attempts:
        body["attempts"] = entry.attempts
    return body


def _submission(endpoint_id: str, *, limit: int) -> Submission:
    """The request as a submission.

    Args:
        endpoint_id: checked first, so that an unknown or paused one costs no reading of the body.
        limit: bytes of the body.
    """
    pin = requested_pin()
    session = open_session(endpoint_id, pin)
    request.max_content_length = limit
    body = schemas.parse(_run_schema, request.get_data(cache=False), text="input")
    return submission_of(endpoint_id, body, pin, session)


def open_session(endpoint_id: str, pin: Pin | None) -> str | None:
    """The session that a request names; None: none, and its endpoint takes jobs now.

    Raises:
        As :func:`ownpod.api.jobs.session_pins.session_of` and :meth:`ownpod.api.jobs.submissions.Submissions.check_open`.
    """
    session = session_of(endpoint_id, pin)
    if session is None:
        services().submissions.check_open(endpoint_id)
    return session


def submission_of(
    endpoint_id: str, body: dict[str, Any], pin: Pin | None, session: str | None
) -> Submission:
    """This request's submission. ``body``: what :class:`ownpod.api.schemas.RunSchema` loads. Raises: BadRequest."""
    return Submission(
        endpoint=endpoint_id,
        body=body,
        request_id=request_id(),
        idempotency_key=idempotency_key(),
        caller=caller(),
        pin=pin if session is None else None,
        private=session,
        owner=None if session is None else session_owner(),
        hops=requested_hops(),
    )


def idempotency_key() -> str | None:
    """The ``Idempotency-Key`` of this request; None: there is none. Raises: BadRequest."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise BadRequest("Idempotency-Key: must be 1 to 255 visible ASCII characters")
    return key


def requested_pin() -> Pin | None:
    """The worker that this request names. Raises: BadRequest."""
    try:
        return parse_pin(request.headers.get(HEADER, ""))
    except ValueError as error:
        raise BadRequest(f"{HEADER}: {error}") from None


def _of_worker(job: Job, body: str | None = None) -> Response:
    """A job's state, with the worker that runs it or ran it in RunPod's header; ``body`` None: the usual one."""
    response = answer(job.answer_json() if body is None else body)
    if job.worker_id:
        response.headers[HEADER] = job.worker_id
    return response


def _with_reason(job: Job) -> str:
    """The body of ``/status``. A waiting job has two more keys, which RunPod does not send: its position and the reason."""
    body = job.answer_json()
    svc = services()
    place = svc.store.queue.place(job) if job.status is JobStatus.IN_QUEUE else None
    if place is None:
        return body
    reason = svc.waiting.reason(job.endpoint)
    if place.worker_id is not None:
        reason = f"it waits for worker {place.worker_id}, which it names; {reason}"
    why = {"queuePosition": place.position, "waitingReason": reason}
    return f"{body[:-1]}, {json.dumps(why)[1:]}"


def _notify_node(svc: Services, job: Job) -> None:
    """Makes the worker's node forward a cancel at once; without a notice it does so when it renews the job's lease."""
    node = svc.registry.fleet.node_of(job.worker_id) if job.worker_id else None
    if node is not None:
        notify_node(celery_app, node)


def _wait_s() -> float:
    default_ms = services().settings.runsync_timeout_ms
    wait = request.args.get("wait")
    if wait is None:
        return default_ms / 1000
    return schemas.whole_number("wait", wait, schemas.WAIT_MS) / 1000
