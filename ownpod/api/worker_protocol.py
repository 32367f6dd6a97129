"""What workers in production mode ask for: RunPod's side of the SDK's protocol.

The SDK's loops decide the answers: a request for jobs is held, as an answer at once makes an idle
worker ask thousands of times a second; refused with 429 only, after which it sleeps 5 s, as any other
error makes it ask again at once; a result is never answered 4xx, as that loses it: 503 makes the SDK
post it again, three times in all.
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

from ownpod.api.auth import caller, check_worker_key
from ownpod.api.bodies import read_body, skip_body
from ownpod.api.ids import retry_later
from ownpod.api.services import Services, answer, services
from ownpod.errors import (
    Forbidden,
    JobNotFound,
    OwnPodError,
    RedisUnavailable,
    Unauthorized,
    WorkerConflict,
)
from ownpod.rules.endpoints import HOUSEKEEPING, Endpoint
from ownpod.rules.jobs import JobStatus
from ownpod.rules.payload import loads, output_of
from ownpod.rules.runs import Outcome
from ownpod.store.chunks import call_token
from ownpod.store.offers import MOST_RUNS, Result, Taken
from ownpod.store.retry import until_available

log = logging.getLogger(__name__)

blueprint = Blueprint("pull", __name__, url_prefix="/v2/<id:endpoint_id>")

HOLD_S = 20.0
"""A request for jobs, or for what to stop, is held so long at most; the SDK leaves after 90 s,
and a worker that is told to end waits for the answer."""

RESULT_S = 60.0
"""A result is held so long while Redis is away, before the worker is told to try again."""

STOPPING_LOOK_S = 1.0

OTHER_KEY = (
    "this worker took its jobs with another key, and results count only with that: put that one back into "
    "OWNPOD_WORKER_KEYS, or restart the worker with its new RUNPOD_AI_API_KEY"
)


@blueprint.get("/job-take/<id:worker_id>")
def take(endpoint_id: str, worker_id: str) -> Response:
    """A job for a worker, or 204."""
    jobs = _take(endpoint_id, worker_id, 1)
    return jobs if isinstance(jobs, Response) else answer(jobs[0])


@blueprint.get("/job-take-batch/<id:worker_id>")
def take_batch(endpoint_id: str, worker_id: str) -> Response:
    """Jobs for a worker, or 204."""
    asked = request.args.get("batch_size", "1")
    # No more digits than the limit has: int() of thousands of them is an error.
    most = (
        min(int(asked), MOST_RUNS)
        if asked.isascii() and asked.isdecimal() and len(asked) < 9
        else 1
    )
    jobs = _take(endpoint_id, worker_id, max(most, 1))
    return jobs if isinstance(jobs, Response) else answer(f"[{', '.join(jobs)}]")


@blueprint.get("/job-stop/<id:worker_id>")
def stop(endpoint_id: str, worker_id: str) -> Response:
    """Runs that a worker is to stop, or 204."""
    here, channel = services(), f"stop:{worker_id}"
    try:
        _check(here, endpoint_id, worker_id)
        _check_key_of(here, endpoint_id, worker_id)
        with (
            here.events.subscribe(channel, end_only=False) as wait,
            here.held.watch(_peer(), lambda: here.events.wake(channel)) as connection,
        ):
            until = time.monotonic() + _hold_s(here)
            while (runs := here.pulls.stops(worker_id, endpoint_id)) == []:
                left_s = until - time.monotonic()
                if left_s <= 0 or here.events.stopped:
                    break
                wait(min(left_s, connection.check_s))
                if connection.closed:
                    break
    except OwnPodError as error:
        return _refused(here, endpoint_id, worker_id, error)
    return answer({"jobsToStop": runs}) if runs else Response(status=204)


@blueprint.get("/ping/<id:worker_id>")
def ping(endpoint_id: str, worker_id: str) -> Response:
    """A worker lives, and says what it has in hand."""
    here = services()
    # The worker's runs continue also when its key was replaced since it took them.
    _check_key_of(here, endpoint_id, worker_id)
    here.registry.endpoint(endpoint_id)
    # The SDK joins them with commas; requests may send the parameter several times.
    runs = [run for given in request.args.getlist("job_id") for run in given.split(",") if run]
    here.pulls.ping(worker_id, endpoint_id, runs)
    return answer({})


@blueprint.post("/job-stream/<id:worker_id>/<id:run_id>")
def chunk(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """What a generator has yielded."""
    here = services()
    if (problem := _key_problem(here, endpoint_id, worker_id, run_id)) is not None:
        return problem
    body, token = read_body(here.settings.max_output_mb), call_token()

    def write() -> None:
        if body.whole is None:
            reason = _too_large(here, "a chunk")
            here.pulls.spoil(worker_id, endpoint_id, run_id, reason)
            return
        found = here.pulls.heard_of(worker_id, endpoint_id, run_id)
        if found is not None:
            here.store.chunks.add(*found, [_text(output_of(_parsed(body.whole)))], token=token)

    until_available(write, longest_s=RESULT_S)
    return answer({})


@blueprint.post("/job-done/<id:worker_id>/<id:run_id>")
def done(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """A result, or progress: the SDK posts that to the same place, also after the result."""
    here = services()
    if (problem := _key_problem(here, endpoint_id, worker_id, run_id)) is not None:
        return problem
    body = read_body(here.settings.max_output_mb)
    if body.whole is None:
        if body.head.replace(b" ", b"").startswith(b'{"status":"IN_PROGRESS"'):
            log.info(
                "run %s of worker %s: progress that is too large is dropped", run_id, worker_id
            )
            return answer({})
        said, outcome = None, _failed(_too_large(here, "the worker's answer"))
    else:
        said = _parsed(body.whole)
        outcome = result_of(said)
    said = said if isinstance(said, dict) else {}
    result = Result(outcome, stopping=bool(said.get("stopPod")))

    def write() -> None:
        if said.get("status") == JobStatus.IN_PROGRESS:
            found = here.pulls.heard_of(worker_id, endpoint_id, run_id)
            if found is not None:
                here.store.chunks.progress(*found, _text(said.get("output")))
        else:
            _finish(here, endpoint_id, worker_id, run_id, result)

    until_available(write, longest_s=RESULT_S)
    return answer({})


def _finish(here: Services, endpoint_id: str, worker_id: str, run_id: str, result: Result) -> None:
    outcome = result.outcome
    if outcome.output == "[]" and request.args.get("isStream") == "true":
        # The parts that were posted before are the result.
        found = here.pulls.heard_of(worker_id, endpoint_id, run_id)
        try:
            chunks = here.store.chunks.stream(found[0], endpoint_id, (0, 0)).chunks if found else []
        except JobNotFound:
            chunks = []
        result = replace(result, outcome=replace(outcome, output=f"[{', '.join(chunks)}]"))
    if not here.pulls.done(worker_id, endpoint_id, run_id, result):
        log.info(
            "run %s of worker %s: its result came too late, or is another's", run_id, worker_id
        )


def result_of(said: Any) -> Outcome:
    """How a run ended, by the body of the SDK's job-done.

    ``{"output": X}``; with ``"error"``, any JSON, it failed; ``{}`` of a handler that returned ``{}``.
    """
    if not isinstance(said, dict):
        return _failed("the worker's result is no JSON object")
    try:
        output = json.dumps(said["output"]) if "output" in said else None
        if (error := said.get("error")) is not None:
            text = error if isinstance(error, str) else json.dumps(error)
            # Half a surrogate pair is JSON, and no text that Redis takes.
            text = text.encode("utf-8", "replace").decode()
            return Outcome(JobStatus.FAILED, output=output, error=text)
    except (RecursionError, ValueError):
        return _failed("the worker's result is JSON that cannot be read")
    return Outcome(JobStatus.COMPLETED, output="{}" if output is None else output)


def _take(endpoint_id: str, worker_id: str, most: int) -> list[str] | Response:
    here, token, channel = services(), str(uuid.uuid4()), f"take:{worker_id}"
    in_progress = request.args.get("job_in_progress", "0") != "0"
    jobs: list[str] = []
    try:
        endpoint = _check(here, endpoint_id, worker_id)
        with (
            here.events.subscribe(channel, end_only=False) as wait,
            here.held.watch(_peer(), lambda: here.events.wake(channel)) as connection,
        ):
            taken: Taken | None = here.pulls.take(
                worker_id,
                endpoint_id,
                token,
                most=most,
                in_progress=in_progress,
                key=caller(),
                max_workers=endpoint.max_workers,
            )
            until = time.monotonic() + _hold_s(here)
            while taken is not None and not (jobs := taken.jobs):
                left_s = until - time.monotonic()
                if left_s <= 0 or here.events.stopped:
                    break
                # Of one that is to be restarted the end is looked for.
                wait(min(left_s, connection.check_s, STOPPING_LOOK_S if taken.stopping else left_s))
                if connection.closed:
                    break
                taken = here.pulls.collect(worker_id, endpoint_id, token, most=most)
            if connection.closed:
                # Jobs that were just handed out to this request are requeued too.
                until_available(lambda: here.pulls.left(worker_id, token), longest_s=RESULT_S)
                return Response(status=204)
    except OwnPodError as error:
        return _refused(here, endpoint_id, worker_id, error)
    return jobs or Response(status=204)


def _hold_s(here: Services) -> float:
    """Shorter than the time after which a worker that asks for nothing is forgotten."""
    return min(HOLD_S, here.settings.worker_gone_s / 2)


def _peer() -> Any:
    """The socket of this request; None where another server than gunicorn answers it."""
    return request.environ.get("gunicorn.socket")


def _check(here: Services, endpoint_id: str, worker_id: str) -> Endpoint:
    """Raises: Unauthorized, Forbidden, EndpointNotFound, WorkerConflict."""
    check_worker_key(endpoint_id, worker_id)
    endpoint = here.registry.endpoint(endpoint_id)
    if worker_id == HOUSEKEEPING:
        raise WorkerConflict(f"the worker id {HOUSEKEEPING!r} is taken")
    known = here.registry.worker(worker_id)
    if known is not None and not known.pulls:
        raise WorkerConflict(f"{worker_id!r} is the id of a worker at {known.url}")
    return endpoint


def _refused(here: Services, endpoint_id: str, worker_id: str, error: OwnPodError) -> Response:
    """Answers 429. The SDK then sleeps 5 s and asks again, without a log line, so the API logs the reason."""
    level = logging.INFO if isinstance(error, RedisUnavailable) else logging.WARNING
    log.log(level, "worker %s gets no jobs: %s", worker_id[:100], error)
    _remember(here, endpoint_id, worker_id, error.message)
    return retry_later(error.message, 429)


def _remember(here: Services, endpoint_id: str, worker_id: str, reason: str) -> None:
    """Shows in ``/health`` of the endpoint why a worker is refused, if the endpoint exists."""
    with contextlib.suppress(OwnPodError):
        here.pulls.refuse(worker_id, here.registry.endpoint(endpoint_id).id, reason)


def _check_key_of(
    here: Services, endpoint_id: str, worker_id: str, run_id: str | None = None
) -> None:
    """Checks the request's key against the one with which the worker took the run, or last asked for jobs. That key
    counts even if it is no longer in the settings, and no other key counts.

    Raises:
        Unauthorized: the request has another key; or the worker has asked for nothing yet, and its key is unknown.
        Forbidden: the worker has asked for nothing yet, and its key is bound to another endpoint or worker.
    """
    if not (here.keys_needed or here.settings.worker_keys):
        return
    known = until_available(lambda: here.pulls.key_of(worker_id, run_id), longest_s=RESULT_S)
    if known is None:
        check_worker_key(endpoint_id, worker_id)
    elif not hmac.compare_digest(known, caller()):
        raise Unauthorized(OTHER_KEY)


def _key_problem(here: Services, endpoint_id: str, worker_id: str, run_id: str) -> Response | None:
    """The answer to a result under another key, of which nothing is written; None: the key is right. The SDK posts
    a result again after a 503, and would drop the result after a 4xx.
    """
    try:
        _check_key_of(here, endpoint_id, worker_id, run_id)
    except (Unauthorized, Forbidden) as error:
        reason = error.message
    else:
        return None
    skip_body()
    _log_other_key(worker_id, run_id, reason)
    _remember(here, endpoint_id, worker_id, reason)
    return retry_later(reason, 503)


@functools.lru_cache(1000)
def _log_other_key(worker_id: str, run_id: str, reason: str) -> None:
    """Logs the refusal once for each run."""
    log.warning("worker %s, run %s: not taken: %s", worker_id[:100], run_id[:100], reason)


def _failed(reason: str) -> Outcome:
    return Outcome(JobStatus.FAILED, error=reason)


def _too_large(here: Services, what: str) -> str:
    return f"{what} is larger than {here.settings.max_output_mb} MiB, see OWNPOD_MAX_OUTPUT_MB"


def _parsed(body: bytes) -> Any:
    """The JSON of a result, which the SDK labels as a form."""
    try:
        return loads(body)
    except (ValueError, RecursionError):
        return None


def _text(value: Any) -> str:
    try:
        return json.dumps(value)
    except (RecursionError, ValueError):
        return "null"
