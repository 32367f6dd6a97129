"""``/stream``: what a job's handler has yielded, as JSON for RunPod's clients or as events."""

import json
import logging
import time
from collections.abc import Iterator

from flask import Blueprint, Response, request, stream_with_context

from ownpod.api import schemas
from ownpod.api.services import answer, services
from ownpod.errors import JobNotFound, RedisUnavailable
from ownpod.store.chunks import Stream, parse_cursor

blueprint = Blueprint("stream", __name__, url_prefix="/v2/<id:endpoint_id>")

log = logging.getLogger(__name__)

HELD_S = 5.0
"""How long JSON is held for a chunk: Python's client gives up after 10 s, and JavaScript's and Go's
ask again without a pause."""

KEEP_ALIVE_S = 15.0
"""Between comments on a silent event stream, so that no proxy takes it for dead."""

END = "end"


@blueprint.route("/stream/<id:job_id>", methods=["GET", "POST"])
def stream(endpoint_id: str, job_id: str) -> Response:
    """Chunks: the next ones for each call, all from ``?from=`` on, or events as they come."""
    services().registry.endpoint(endpoint_id)
    if _wants_events():
        return _events(endpoint_id, job_id)
    return _json(endpoint_id, job_id)


def _wants_events() -> bool:
    """Asked for by ``Accept``, or a bare request: the plain ``curl -N`` of a quick start."""
    accept = request.headers.get("Accept", "")
    if "text/event-stream" in accept:
        return True
    labels = accept + request.headers.get("Content-Type", "")
    return not ("json" in labels or "Authorization" in request.headers or "from" in request.args)


def _json(endpoint_id: str, job_id: str) -> Response:
    start = _from()
    wait = request.args.get("wait")
    held_s = HELD_S
    if wait is not None:
        held_s = schemas.whole_number("wait", wait, schemas.WAIT_MS) / 1000
    found = _held(endpoint_id, job_id, start, time.monotonic() + held_s)
    chunks = ", ".join(f'{{"output": {chunk}}}' for chunk in found.chunks)
    body = f'{{"status": "{found.job.status}", "stream": [{chunks}]}}'.encode()
    if start is not None or not found.chunks:
        return answer(body.decode())

    def written() -> Iterator[bytes]:
        yield body
        # Only now: what was not written is answered again.
        services().store.chunks.save_cursor(found)

    response = Response(stream_with_context(written()), mimetype="application/json")
    response.content_length = len(body)
    return response


def _from() -> int | None:
    text = request.args.get("from")
    return None if text is None else schemas.whole_number("from", text, (0, 2**31))


def _held(endpoint_id: str, job_id: str, start: int | None, deadline: float) -> Stream:
    """What there is, as soon as there is a chunk or an end, or when the time is over."""
    here = services()
    with here.events.subscribe(job_id, end_only=False) as wait:
        here.store.jobs.subscribe(job_id, here.events.channel, end_only=False)
        while True:
            found = here.store.chunks.stream(
                job_id, endpoint_id, None if start is None else (None, start)
            )
            left_s = deadline - time.monotonic()
            if found.chunks or found.job.status.terminal or left_s <= 0 or here.events.stopped:
                return found
            wait(left_s)


def _events(endpoint_id: str, job_id: str) -> Response:
    last = request.headers.get("Last-Event-ID", "")
    here = services()
    here.events.check_room()
    job = here.listing.get(job_id, endpoint_id)
    if last.endswith(f"-{END}") and job.status.terminal:
        # A browser that was told the end comes again; 204 makes it stay away.
        return Response(status=204)
    here.store.jobs.subscribe(job_id, here.events.channel, end_only=False)
    seen = parse_cursor(last)
    start = (0, 0) if seen is None else (seen[0], seen[1] + 1)
    response = Response(
        stream_with_context(_told(endpoint_id, job_id, start)), mimetype="text/event-stream"
    )
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _told(endpoint_id: str, job_id: str, start: tuple[int, int]) -> Iterator[str]:
    """The events: a chunk each, with the id "<attempt>-<index>", and one for each state."""
    here = services()
    told = None
    with here.events.subscribe(job_id, end_only=False) as wait:
        while not here.events.stopped:
            try:
                found = here.store.chunks.stream(job_id, endpoint_id, start)
            except (JobNotFound, RedisUnavailable) as error:
                log.info("stream of job %s ends: %s", job_id, error)
                return
            job, news = found.job, bool(found.chunks)
            state = (job.status, job.attempt)
            if state != told and not job.status.terminal:
                yield f"event: status\ndata: {json.dumps(job.answer())}\n\n"
                told, news = state, True
            for index, chunk in enumerate(found.chunks, found.start):
                yield f'id: {job.attempt}-{index}\ndata: {{"output": {chunk}}}\n\n'
            start = (job.attempt, found.start + len(found.chunks))
            if job.status.terminal:
                yield f"id: {job.attempt}-{END}\nevent: status\ndata: {job.answer_json()}\n\n"
                return
            if not news:
                yield ": keep-alive\n\n"
            wait(KEEP_ALIVE_S)
