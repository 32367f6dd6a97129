"""What workers in production mode ask for: RunPod's side of the SDK's protocol.

The SDK's loops decide the answers: a request for jobs is held, as an answer at once makes an idle
worker ask thousands of times a second; refused with 429 only, after which it sleeps 5 s, as any other
error makes it ask again at once; a result is never answered 4xx, as that loses it.
"""

import json
import logging
import socket
import time
import uuid
from typing import Any

from flask import Blueprint, Response, request

from ownpod.api.auth import check_worker_key
from ownpod.api.services import Services, answer, services
from ownpod.broker import HOUSEKEEPING
from ownpod.errors import JobNotFound, OwnPodError, RedisUnavailable, WorkerConflict
from ownpod.jobs import JobStatus, Outcome
from ownpod.patience import until_redis_answers
from ownpod.payload import loads, output_of
from ownpod.pull import Result

log = logging.getLogger(__name__)

blueprint = Blueprint("pull", __name__, url_prefix="/v2/<id:endpoint_id>")

HOLD_S = 20.0
"""A request for jobs, or for what to stop, is held so long at most; the SDK leaves after 90 s,
and a worker that is told to end waits for the answer."""

RESULT_S = 60.0
"""A result is held so long while Redis is away, before the worker is told to try again."""

MOST = 1000
"""Largest batch that is taken for real."""

STOPPING_LOOK_S = 1.0


@blueprint.get("/job-take/<id:worker_id>")
def take(endpoint_id: str, worker_id: str) -> Response:
    """A job for a worker, or 204."""
    jobs = _take(endpoint_id, worker_id, 1)
    return jobs if isinstance(jobs, Response) else answer(jobs[0])


@blueprint.get("/job-take-batch/<id:worker_id>")
def take_batch(endpoint_id: str, worker_id: str) -> Response:
    """Jobs for a worker, or 204."""
    asked = request.args.get("batch_size", "1")
    most = min(int(asked), MOST) if asked.isdecimal() and int(asked) else 1
    jobs = _take(endpoint_id, worker_id, most)
    return jobs if isinstance(jobs, Response) else answer(f"[{', '.join(jobs)}]")


@blueprint.get("/job-stop/<id:worker_id>")
def stop(endpoint_id: str, worker_id: str) -> Response:
    """Runs that a worker is to stop, or 204."""
    here = services()
    try:
        _check(here, endpoint_id, worker_id)
        with here.events.expect(f"stop:{worker_id}", end_only=False) as wait:
            until = time.monotonic() + _hold_s(here)
            while (runs := here.pulls.stops(worker_id)) == []:
                left_s = until - time.monotonic()
                if left_s <= 0 or here.events.stopped:
                    break
                wait(left_s)
    except OwnPodError as error:
        return _refused(worker_id, error)
    return answer({"jobsToStop": runs}) if runs else Response(status=204)


@blueprint.get("/ping/<id:worker_id>")
def ping(endpoint_id: str, worker_id: str) -> Response:
    """A worker lives, and says what it has in hand."""
    check_worker_key(endpoint_id, worker_id)
    here = services()
    here.registry.endpoint(endpoint_id)
    # The SDK joins them with commas; requests may send the parameter several times.
    runs = [run for given in request.args.getlist("job_id") for run in given.split(",") if run]
    here.pulls.ping(worker_id, runs)
    return answer({})


@blueprint.post("/job-stream/<id:worker_id>/<id:run_id>")
def chunk(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """What a generator has yielded."""
    said = _body(endpoint_id, worker_id)
    here = services()

    def write() -> None:
        found = here.pulls.heard_of(worker_id, run_id)
        if found is not None:
            here.store.add_chunks(*found, [json.dumps(output_of(said))])

    until_redis_answers(write, longest_s=RESULT_S)
    return answer({})


@blueprint.post("/job-done/<id:worker_id>/<id:run_id>")
def done(endpoint_id: str, worker_id: str, run_id: str) -> Response:
    """A result, or progress: the SDK posts that to the same place, also after the result."""
    said = _body(endpoint_id, worker_id)
    here = services()
    until_redis_answers(
        lambda: _write(here, endpoint_id, worker_id, run_id, said), longest_s=RESULT_S
    )
    return answer({})


def _write(here: Services, endpoint_id: str, worker_id: str, run_id: str, said: Any) -> None:
    if isinstance(said, dict) and said.get("status") == JobStatus.IN_PROGRESS:
        if (found := here.pulls.heard_of(worker_id, run_id)) is not None:
            here.store.progress(*found, json.dumps(said.get("output")))
        return
    result = result_of(said)
    if result.output == "[]" and request.args.get("isStream") == "true":
        # The parts that were posted before are the result.
        found = here.pulls.heard_of(worker_id, run_id)
        try:
            chunks = here.store.stream(found[0], endpoint_id, (0, 0)).chunks if found else []
        except JobNotFound:
            chunks = []
        result = Outcome(result.status, output=f"[{', '.join(chunks)}]")
    stopping = isinstance(said, dict) and bool(said.get("stopPod"))
    if not here.pulls.done(worker_id, run_id, Result(result, stopping=stopping)):
        log.info("run %s of worker %s: its result came too late", run_id, worker_id)


def result_of(said: Any) -> Outcome:
    """How a run ended, by the body of the SDK's job-done.

    ``{"output": X}``; with ``"error"``, any JSON, it failed; ``{}`` of a handler that returned ``{}``.
    """
    if not isinstance(said, dict):
        return Outcome(JobStatus.FAILED, error="the worker's result is no JSON object")
    output = json.dumps(said["output"]) if "output" in said else None
    if (error := said.get("error")) is not None:
        text = error if isinstance(error, str) else json.dumps(error)
        return Outcome(JobStatus.FAILED, output=output, error=text)
    return Outcome(JobStatus.COMPLETED, output="{}" if output is None else output)


def _take(endpoint_id: str, worker_id: str, most: int) -> list[str] | Response:
    here, token = services(), str(uuid.uuid4())
    in_progress = request.args.get("job_in_progress", "0") != "0"
    jobs: list[str] | None = None
    try:
        _check(here, endpoint_id, worker_id)
        with here.events.expect(f"take:{worker_id}", end_only=False) as wait:
            taken = here.pulls.take(
                worker_id, endpoint_id, token, most=most, in_progress=in_progress
            )
            if taken is None:
                raise WorkerConflict(f"a worker of another endpoint goes by the id {worker_id!r}")
            until = time.monotonic() + _hold_s(here)
            while taken is not None and not (jobs := taken.jobs):
                left_s = until - time.monotonic()
                if left_s <= 0 or here.events.stopped:
                    break
                # Of one that is to be restarted the end is looked for.
                wait(min(left_s, STOPPING_LOOK_S) if taken.stopping else left_s)
                if _has_left():
                    here.pulls.left(worker_id, token)
                    break
                taken = here.pulls.collect(worker_id, token, most=most)
    except OwnPodError as error:
        return _refused(worker_id, error)
    return jobs or Response(status=204)


def _hold_s(here: Services) -> float:
    """Shorter than the time after which a worker that asks for nothing is forgotten."""
    return min(HOLD_S, here.settings.worker_gone_s / 2)


def _has_left() -> bool:
    """Whoever asked has closed the connection: a job for it would be lost on the way."""
    peer: socket.socket | None = request.environ.get("gunicorn.socket")
    if peer is None:
        return False
    try:
        return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _check(here: Services, endpoint_id: str, worker_id: str) -> None:
    """Raises: Unauthorized, Forbidden, EndpointNotFound, WorkerConflict."""
    check_worker_key(endpoint_id, worker_id)
    here.registry.endpoint(endpoint_id)
    if worker_id == HOUSEKEEPING:
        raise WorkerConflict(f"the worker id {HOUSEKEEPING!r} is taken")
    known = here.registry.worker(worker_id)
    if known is not None and not known.pulls:
        raise WorkerConflict(f"{worker_id!r} is the id of a worker at {known.url}")


def _refused(worker_id: str, error: OwnPodError) -> Response:
    """The worker sleeps 5 s, says nothing, and asks again; so the reason is told here."""
    level = logging.INFO if isinstance(error, RedisUnavailable) else logging.WARNING
    log.log(level, "worker %s gets no jobs: %s", worker_id[:100], error)
    response = answer({"error": error.message}, 429)
    response.headers["Retry-After"] = "5"
    return response


def _body(endpoint_id: str, worker_id: str) -> Any:
    """The JSON of a result, which the SDK labels as a form."""
    check_worker_key(endpoint_id, worker_id)
    request.max_content_length = services().settings.max_output_mb * 1024 * 1024
    try:
        return loads(request.get_data(cache=False))
    except (ValueError, RecursionError):
        return None
