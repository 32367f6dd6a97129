"""``/stream``: the chunks that a job's handler has yielded, as JSON for RunPod's clients or as server-sent events."""

import json
import logging
import time
from collections.abc import Iterator

from flask import Blueprint, Response, request, stream_with_context

from ownpod.api import schemas
from ownpod.api.jobs import typed_events
from ownpod.api.jobs.following import Following
from ownpod.api.services import answer, event_stream, services
from ownpod.errors import BadRequest, JobNotFound, RedisUnavailable
from ownpod.store.chunks import Stream, parse_cursor

blueprint = Blueprint("stream", __name__, url_prefix="/v2/<id:endpoint_id>")

log = logging.getLogger(__name__)

HELD_S = 5.0
"""Seconds for which a JSON request waits for a chunk. RunPod's Python client times out after 10 s, and the JavaScript
and Go clients poll again without a pause, so a shorter wait would cost more requests."""

KEEP_ALIVE_S = 15.0
"""Seconds between comments on an event stream without events; proxies close a connection that is silent for long."""

END = "end"


@blueprint.route("/stream/<id:job_id>", methods=["GET", "POST"])
def stream(endpoint_id: str, job_id: str) -> Response:
    """Chunks: the next ones at each call, all from ``?from=`` on, or server-sent events; ``?events=typed``: typed ones."""
    services().registry.endpoint(endpoint_id)
    if (events := request.args.get("events")) is not None:
        if events != "typed":
            raise BadRequest("events: must be typed")
        return typed_events.respond(job_id, endpoint_id, typed_events.requested_cursor())
    if _wants_events():
        return _events(endpoint_id, job_id)
    return _json(endpoint_id, job_id)


def _wants_events() -> bool:
    """Whether the response is an event stream: for ``Accept: text/event-stream``, and for a bare request as of ``curl -N``."""
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
    part = _held(endpoint_id, job_id, start, time.monotonic() + held_s)
    chunks = ", ".join(f'{{"output": {chunk}}}' for chunk in part.chunks)
    body = f'{{"status": "{part.job.status}", "stream": [{chunks}]}}'.encode()
    if start is not None or not part.chunks:
        return answer(body.decode())

    def written() -> Iterator[bytes]:
        yield body[:-1]
        # A response that was not written is sent again at the next call. A client that has the whole of it may
        # ask again at once: the cursor is saved before the last byte.
        services().store.chunks.save_cursor(part)
        yield body[-1:]

    response = Response(stream_with_context(written()), mimetype="application/json")
    response.content_length = len(body)
    return response


def _from() -> int | None:
    text = request.args.get("from")
    return None if text is None else schemas.whole_number("from", text, (0, 2**31))


def _held(endpoint_id: str, job_id: str, start: int | None, deadline: float) -> Stream:
    """The job's stream, as soon as it has a chunk or has ended, or when the time is over."""
    svc = services()
    with svc.notices.subscribe(job_id, end_only=False) as wait:
        svc.store.jobs.subscribe(job_id, svc.notices.channel, end_only=False)
        while True:
            part = svc.store.chunks.stream(
                job_id, endpoint_id, None if start is None else (None, start)
            )
            left_s = deadline - time.monotonic()
            if part.chunks or part.job.status.terminal or left_s <= 0 or svc.notices.stopped:
                return part
            wait(left_s)


def _events(endpoint_id: str, job_id: str) -> Response:
    last = request.headers.get("Last-Event-ID", "")
    svc = services()
    svc.notices.check_room()
    job = svc.store.listing.get(job_id, endpoint_id)
    if last.endswith(f"-{END}") and job.status.terminal:
        # A browser reconnects after the end of a stream; 204 is the status that ends its reconnects (HTML standard, EventSource).
        return Response(status=204)
    svc.store.jobs.subscribe(job_id, svc.notices.channel, end_only=False)
    seen = parse_cursor(last)
    start = (0, 0) if seen is None else (seen[0], seen[1] + 1)
    return event_stream(stream_with_context(_event_texts(endpoint_id, job_id, start)))


def _event_texts(endpoint_id: str, job_id: str, start: tuple[int, int]) -> Iterator[str]:
    """The events: one for each chunk, with the id "<attempt>-<index>", and one for each state."""
    svc = services()
    sent = None
    with svc.notices.subscribe(job_id, end_only=False) as wait:
        following = Following(svc.store.chunks, job_id, endpoint_id, wait)
        while not svc.notices.stopped:
            try:
                part = following.read(start)
            except (JobNotFound, RedisUnavailable) as error:
                log.info("stream of job %s ends: %s", job_id, error)
                return
            job, is_silent = part.job, not part.chunks
            state = (job.status, job.attempt)
            if state != sent and not job.status.terminal:
                yield f"event: status\ndata: {json.dumps(job.answer())}\n\n"
                sent, is_silent = state, False
            for index, chunk in enumerate(part.chunks, part.start):
                yield f'id: {job.attempt}-{index}\ndata: {{"output": {chunk}}}\n\n'
            start = (job.attempt, part.start + len(part.chunks))
            if job.status.terminal:
                yield f"id: {job.attempt}-{END}\nevent: status\ndata: {job.answer_json()}\n\n"
                return
            if is_silent:
                yield ": keep-alive\n\n"
            wait(KEEP_ALIVE_S)
