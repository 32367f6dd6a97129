"""The protocol of workers that pull: the requests that RunPod's SDK sends in production mode.

The SDK's loops (``runpod.serverless.modules.rp_scale``, ``rp_http``) determine the responses:

- A request for jobs is held, because after an immediate response an idle worker polls thousands of times a second.
- A request for jobs is refused with 429 only. The SDK then sleeps 5 s; after any other error it polls again at once.
- A response with jobs, and one to a result, closes its connection. While a sync handler runs, the SDK does not notice that an API process
  has ended and closed a kept one. It would post the next result there, once, and drop it, because it repeats a request after a 503 only.
- A result is never answered 4xx, because the SDK then drops it. After a 503 the SDK posts the result again, three
  times in all.
"""

import contextlib
import functools
import hmac
import json
import logging
import time
import uuid
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, request

from ownpod.api.auth import caller, check_managed_key, check_worker_key, managed_worker
from ownpod.api.bodies import read_body, skip_body
from ownpod.api.ids import retry_later
from ownpod.api.services import Services, answer, request_id, services
from ownpod.api.workers.managed import STOPPING_HOLD_S, StopCheck, most_workers, with_queue
from ownpod.api.workers.reports import KnownHeader
from ownpod.errors import (
    Forbidden,
    JobNotFound,
    OwnPodError,
    RedisUnavailable,
    Unauthorized,
    WorkerConflict,
)
from ownpod.rules.endpoints import HOUSEKEEPING, Endpoint, WorkerSpec
from ownpod.rules.jobs import JobStatus
from ownpod.rules.payload import chunk_of, posted, written
from ownpod.rules.runs import Outcome
from ownpod.store.chunks import call_token
from ownpod.store.offers import MOST_RUNS, Result, Taken
from ownpod.store.retry import until_available

log = logging.getLogger(__name__)

blueprint = Blueprint("worker_protocol", __name__, url_prefix="/v2/<id:endpoint_id>")

HOLD_S = 20.0
"""Maximum time in seconds for which a poll is held. The SDK times out after 90 s, and a worker that receives
SIGTERM waits for the response."""

RESULT_S = 60.0
"""Maximum time in seconds for which a result is held while Redis is unavailable, before it is answered 503."""

STOPPING_CHECK_S = 1.0
"""Interval in seconds at which a held request checks whether a worker that is to restart has finished its runs."""

OWN_RESPONSE = ("Origin", "Upgrade")
"""Headers of requests that get a response with headers of its own, which the short way of chunks does not send."""

OTHER_KEY = (
    "this worker received its jobs under another key, and its results are accepted under that key only: "
    "set that key in OWNPOD_WORKER_KEYS again, or restart the worker with its new RUNPOD_AI_API_KEY"
)


@blueprint.get("/job-take/<id:worker_id>")
def take(endpoint_id: str, worker_id: str) -> Response:
    """Responds with a job for the worker; 204: none within :data:`HOLD_S`."""
    jobs = _take(endpoint_id, worker_id, 1)
    return jobs if isinstance(jobs, Response) else _last(jobs[0])


@blueprint.get("/job-take-batch/<id:worker_id>")
def take_batch(endpoint_id: str, worker_id: str) -> Response:
    """Responds with jobs for the worker, at most ``?batch_size=``; 204: none within :data:`HOLD_S`."""
    given = request.args.get("batch_size", "1")
    # The length is checked first, because int() raises an error for thousands of digits.
    limit = (
        min(int(given), MOST_RUNS)
        if given.isascii() and given.isdecimal() and len(given) < 9
        else 1
    )
    jobs = _take(endpoint_id, worker_id, max(limit, 1))
    return jobs if isinstance(jobs, Response) else _last(f"[{', '.join(jobs)}]")


@blueprint.get("/job-stop/<id:worker_id>")
def stop(endpoint_id: str, worker_id: str) -> Response:
    """Responds with the ids of runs that the worker must stop; 204: none within :data:`HOLD_S`."""
    svc, channel = services(), f"stop:{worker_id}"
    try:
        _, managed = _check(svc, endpoint_id, worker_id)
        _check_key_of(svc, endpoint_id, worker_id)
        hold_s = STOPPING_HOLD_S if managed is not None and managed.stopping else _hold_s(svc)
        with (
            svc.notices.subscribe(channel, end_only=False) as wait,
            svc.held.watch(_peer(), lambda: svc.notices.wake(channel)) as connection,
        ):
            until = time.monotonic() + hold_s
            check = StopCheck(svc.registry, worker_id, managed=managed is not None)
            while (runs := svc.offers.stops(worker_id, endpoint_id)) == []:
                left_s = until - time.monotonic()
                if left_s <= 0 or svc.notices.stopped:
                    break
                wait_s = min(left_s, connection.check_s, check.due_s)
                woken_by = time.monotonic() + wait_s
                wait(wait_s)
                if connection.closed or check.is_stopped(notified=time.monotonic() < woken_by):
                    break
    except OwnPodError as error:
        return _refused(svc, endpoint_id, worker_id, error)
    return answer({"jobsToStop": runs}) if runs else Response(status=204)


@blueprint.get("/ping/<id:worker_id>")
def ping(endpoint_id: str, worker_id: str) -> Response:
    """Records the worker's heartbeat and the runs that it reports."""
    svc = services()
    # A replaced worker key must not end the runs that the worker received under the earlier one.
    _check_key_of(svc, endpoint_id, worker_id)
    with_queue(svc.registry, endpoint_id)
    # The SDK joins the ids with commas; other programs repeat the parameter.
    runs = [run for given in request.args.getlist("job_id") for run in given.split(",") if run]
    svc.offers.ping(worker_id, endpoint_id, runs)
    return answer({})


@blueprint.post("/job-stream/<id:worker_id>/<id:run_id>")
def chunk(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """Adds a chunk, which a generator handler has yielded, to the run's job."""
    svc = services()
    if (problem := _key_problem(svc, endpoint_id, worker_id, run_id)) is not None:
        return problem
    body = read_body(svc.settings.max_output_mb)
    arrival = getattr(_peer(), "arrival", None)
    # One token for all tries: a try whose response was lost must not add the chunk twice.
    token = (arrival and arrival.token) or call_token()

    def write() -> None:
        if body.whole is None:
            reason = _too_large(svc, "a chunk")
            svc.offers.spoil(worker_id, endpoint_id, run_id, reason)
            return
        attempt = svc.reports.job_of(worker_id, endpoint_id, run_id)
        if attempt is not None and svc.store.chunks.add(
            *attempt, [chunk_of(body.whole)], token=token
        ):
            run = (worker_id, endpoint_id, run_id)
            _remember_header(svc, arrival, KnownHeader(run, attempt, request_id()))

    until_available(write, longest_s=RESULT_S)
    return answer({})


def _remember_header(svc: Services, arrival: Any, header: KnownHeader) -> None:
    """Lets the next chunks go the short way, if their response depends on nothing that only this way does."""
    header_digest = None if arrival is None else arrival.header_digest
    if header_digest is None or any(name in request.headers for name in OWN_RESPONSE):
        return
    if request.headers.get("Connection", "keep-alive").lower() == "keep-alive":
        svc.reports.remember(header_digest, header)


@blueprint.post("/job-done/<id:worker_id>/<id:run_id>")
def done(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """Finishes a run, or records its progress: the SDK posts both here, and progress even after the result."""
    svc = services()
    if (problem := _key_problem(svc, endpoint_id, worker_id, run_id)) is not None:
        return problem
    body = read_body(svc.settings.max_output_mb)
    if body.whole is None:
        if body.head.replace(b" ", b"").startswith(b'{"status":"IN_PROGRESS"'):
            log.info(
                "run %s of worker %s: progress that is too large is dropped", run_id, worker_id
            )
            return answer({})
        content, outcome = None, _failed(_too_large(svc, "the worker's answer"))
    else:
        content = posted(body.whole)
        outcome = result_of(content)
    content = content if isinstance(content, dict) else {}
    result = Result(outcome, stopping=bool(content.get("stopPod")))

    def write() -> None:
        if content.get("status") == JobStatus.IN_PROGRESS:
            attempt = svc.offers.reported(worker_id, endpoint_id, run_id)
            if attempt is not None:
                svc.store.chunks.progress(*attempt, written(content.get("output")))
        else:
            _finish(svc, endpoint_id, worker_id, run_id, result)

    until_available(write, longest_s=RESULT_S)
    return _last({})


def _finish(svc: Services, endpoint_id: str, worker_id: str, run_id: str, result: Result) -> None:
    outcome = result.outcome
    if outcome.output == "[]" and request.args.get("isStream") == "true":
        # The SDK posts [] as the result of a generator: its chunks, which were posted before, are the output.
        attempt = svc.offers.reported(worker_id, endpoint_id, run_id)
        try:
            chunks = (
                svc.store.chunks.stream(attempt[0], endpoint_id, (0, 0)).chunks if attempt else []
            )
        except JobNotFound:
            chunks = []
        result = replace(result, outcome=replace(outcome, output=f"[{', '.join(chunks)}]"))
    if not svc.offers.done(worker_id, endpoint_id, run_id, result):
        log.info(
            "run %s of worker %s: the result is dropped: it came too late, or the run is another worker's",
            run_id,
            worker_id,
        )


def result_of(content: Any) -> Outcome:
    """The outcome of a run from the JSON that the SDK posts to job-done.

    ``{"output": X}`` completes the run; with ``"error"``, any JSON, it failed. The SDK posts ``{}`` for a handler
    that returned ``{}``.
    """
    if not isinstance(content, dict):
        return _failed("the worker's result is no JSON object")
    try:
        output = json.dumps(content["output"]) if "output" in content else None
        if (error := content.get("error")) is not None:
            text = error if isinstance(error, str) else json.dumps(error)
            # JSON may have one half of a surrogate pair, which UTF-8, so Redis, cannot store.
            text = text.encode("utf-8", "replace").decode()
            return Outcome(JobStatus.FAILED, output=output, error=text)
    except (RecursionError, ValueError):
        return _failed("the worker's result is JSON that cannot be read")
    return Outcome(JobStatus.COMPLETED, output="{}" if output is None else output)


def _take(endpoint_id: str, worker_id: str, limit: int) -> list[str] | Response:
    """At most ``limit`` jobs as JSON texts, or the response without jobs."""
    svc, token, channel = services(), str(uuid.uuid4()), f"take:{worker_id}"
    in_progress = request.args.get("job_in_progress", "0") != "0"
    jobs: list[str] = []
    leaves = False
    try:
        endpoint, managed = _check(svc, endpoint_id, worker_id)
        if managed is not None:
            if managed.stopping:
                with svc.notices.subscribe(channel, end_only=False) as wait:
                    wait(STOPPING_HOLD_S)
                return Response(status=204)
            svc.first_requests.report(svc.managed, worker_id)
        check = StopCheck(svc.registry, worker_id, managed=managed is not None)
        with (
            svc.notices.subscribe(channel, end_only=False) as wait,
            svc.held.watch(_peer(), lambda: svc.notices.wake(channel)) as connection,
        ):
            taken: Taken | None = svc.offers.take(
                worker_id,
                endpoint_id,
                token,
                limit=limit,
                in_progress=in_progress,
                key=caller(),
                max_workers=most_workers(endpoint, managed),
            )
            until = time.monotonic() + _hold_s(svc)
            while taken is not None and not (jobs := taken.jobs):
                left_s = until - time.monotonic()
                if left_s <= 0 or svc.notices.stopped:
                    break
                # A worker that is to restart gets jobs once its runs have ended, which is not notified.
                check_s = STOPPING_CHECK_S if taken.stopping else left_s
                wait_s = min(left_s, connection.check_s, check_s, check.due_s)
                woken_by = time.monotonic() + wait_s
                wait(wait_s)
                if connection.closed:
                    break
                taken = svc.offers.collect(worker_id, endpoint_id, token, limit=limit)
                if taken is not None and not taken.jobs:
                    notified = time.monotonic() < woken_by
                    if leaves := check.is_stopped(notified=notified):
                        break
            if connection.closed or leaves:
                # Also ends offers that were delivered to this request after the worker closed it.
                until_available(lambda: svc.offers.left(worker_id, token), longest_s=RESULT_S)
                return Response(status=204)
    except OwnPodError as error:
        return _refused(svc, endpoint_id, worker_id, error)
    return jobs or Response(status=204)


def _last(body: dict[str, Any] | str) -> Response:
    """The last response on its connection."""
    if (peer := _peer()) is not None:
        peer.close_after_response()
    return answer(body)


def _hold_s(svc: Services) -> float:
    """Seconds for which a poll is held: fewer than those after which a worker without requests is removed."""
    return min(HOLD_S, svc.settings.worker_gone_s / 2)


def _peer() -> Any:
    """The socket of this request; None under a server other than gunicorn."""
    return request.environ.get("gunicorn.socket")


def _check(svc: Services, endpoint_id: str, worker_id: str) -> tuple[Endpoint, WorkerSpec | None]:
    """The endpoint, if this worker may pull from it, and the worker, if OwnPod has started it.

    Raises:
        Unauthorized: the request has no worker key, or an unknown one.
        Forbidden: the key is bound to another endpoint or worker.
        EndpointNotFound: the endpoint does not exist.
        WorkerConflict: the endpoint is load-balanced; the id is reserved, or a pushed worker has it.
    """
    managed = check_worker_key(endpoint_id, worker_id)
    endpoint = with_queue(svc.registry, endpoint_id)
    if worker_id == HOUSEKEEPING:
        raise WorkerConflict(f"the worker id {HOUSEKEEPING!r} is taken")
    known = svc.registry.worker(worker_id)
    if known is not None and not known.pulls:
        raise WorkerConflict(f"{worker_id!r} is the id of a worker at {known.url}")
    return endpoint, managed


def _refused(svc: Services, endpoint_id: str, worker_id: str, error: OwnPodError) -> Response:
    """Answers 429. The SDK then sleeps 5 s and polls again. It logs nothing, so the API logs the reason."""
    level = logging.INFO if isinstance(error, RedisUnavailable) else logging.WARNING
    log.log(level, "worker %s gets no jobs: %s", worker_id[:100], error)
    _remember(svc, endpoint_id, worker_id, error.message)
    return retry_later(error.message, 429)


def _remember(svc: Services, endpoint_id: str, worker_id: str, reason: str) -> None:
    """Records why the worker is refused, for the endpoint's ``/health``; nothing if the endpoint does not exist."""
    with contextlib.suppress(OwnPodError):
        svc.offers.refuse(worker_id, svc.registry.endpoint(endpoint_id).id, reason)


def _check_key_of(
    svc: Services, endpoint_id: str, worker_id: str, run_id: str | None = None
) -> None:
    """Compares the request's key with the one under which the worker received the run, or last requested jobs. That
    key is valid even if it is no longer in the settings, and no other key is. A managed worker has one key only.

    Raises:
        Unauthorized: the key is another one; or the worker has requested no jobs yet, and its key is unknown.
        Forbidden: the worker has requested no jobs yet, and its key is bound to another endpoint or worker.
    """
    managed = managed_worker(svc, worker_id)
    if managed is not None:
        check_managed_key(managed, endpoint_id)
        return
    # A result must not be lost because this process has never read the endpoints.
    keys_needed = until_available(lambda: svc.keys_needed, longest_s=RESULT_S)
    if not (keys_needed or svc.settings.worker_keys):
        return
    known = until_available(lambda: svc.offers.key_of(worker_id, run_id), longest_s=RESULT_S)
    if known is None:
        check_worker_key(endpoint_id, worker_id)
    elif not hmac.compare_digest(known, caller()):
        raise Unauthorized(OTHER_KEY)


def _key_problem(svc: Services, endpoint_id: str, worker_id: str, run_id: str) -> Response | None:
    """The 503 to a result under another key, which is not stored; None: the key is right. The SDK posts a result
    again after a 503, and drops it after a 4xx.
    """
    try:
        _check_key_of(svc, endpoint_id, worker_id, run_id)
    except (Unauthorized, Forbidden) as error:
        reason = error.message
    else:
        return None
    skip_body()
    _log_other_key(worker_id, run_id, reason)
    _remember(svc, endpoint_id, worker_id, reason)
    return retry_later(reason, 503)


@functools.lru_cache(1000)
def _log_other_key(worker_id: str, run_id: str, reason: str) -> None:
    """Logs the refusal once a run, because the worker posts the result several times."""
    log.warning(
        "worker %s, run %s: the result is refused: %s", worker_id[:100], run_id[:100], reason
    )


def _failed(reason: str) -> Outcome:
    return Outcome(JobStatus.FAILED, error=reason)


def _too_large(svc: Services, part: str) -> str:
    return f"{part} is larger than {svc.settings.max_output_mb} MiB, see OWNPOD_MAX_OUTPUT_MB"
