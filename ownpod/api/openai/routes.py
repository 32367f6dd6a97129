"""``/v2/{endpoint}/openai/...``: requests of OpenAI's clients as jobs, and jobs' outputs as OpenAI's responses.

RunPod serves these paths for workers that take ``openai_route`` and ``openai_input``. Each worker answers in its own way,
see :mod:`ownpod.rules.openai`.
"""

import logging
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import MethodNotAllowed, RequestEntityTooLarge

from ownpod.api import schemas
from ownpod.api.jobs.routes import open_session, requested_pin, submission_of
from ownpod.api.jobs.session_pins import in_runpods_words
from ownpod.api.jobs.submissions import Submission
from ownpod.api.openai.exchange import ClientGone, Exchange, unknown
from ownpod.api.openai.models import keep, known_list
from ownpod.api.services import answer, event_stream, services
from ownpod.errors import AnswerLost, BadRequest
from ownpod.rules.affinity import HEADER
from ownpod.rules.endpoints import Endpoint, OnDisconnect
from ownpod.rules.openai import (
    MODELS_ROUTE,
    Rendering,
    Reply,
    error,
    job_input,
    route_of,
    sends_queries,
    wants_stream,
    with_query,
)
from ownpod.rules.payload import LONG, members

log = logging.getLogger(__name__)

blueprint = Blueprint("openai", __name__, url_prefix="/v2/<id:endpoint_id>/openai")

METHODS = ["GET", "POST"]

JOB_ID = "X-OwnPod-Job-Id"
"""The header with the id of a response's job. ``X-Request-ID`` has it, too, unless the client has sent its own."""

GONE = error(503, "the client has gone")
"""What is written to a connection that its client has closed."""


@blueprint.route("", methods=METHODS)
def base(endpoint_id: str) -> Response:
    """Answers a request that has no route, as one to a client's wrong base URL."""
    services().registry.endpoint(endpoint_id)
    right = f"/v2/{endpoint_id}/openai/v1"
    return respond(
        error(404, f"there is no route here: the base URL of an OpenAI client must end in {right}")
    )


@blueprint.route("/<rest:path>", methods=METHODS)
def call(endpoint_id: str, path: str) -> Response:
    """Runs a request as a job, and answers what its worker answers."""
    if request.method not in METHODS:
        # The routing takes HEAD where it takes GET, and a HEAD must not run a job.
        raise MethodNotAllowed(METHODS)
    if not path.strip("/"):
        return base(endpoint_id)
    endpoint = services().registry.endpoint(endpoint_id)
    try:
        route = route_of(path)
        is_models = request.method == "GET" and route == MODELS_ROUTE
        if not is_models:
            route = with_query(route, _query(endpoint))
    except ValueError as problem:
        raise BadRequest(str(problem)) from None
    pin = requested_pin()
    asks_models = is_models and pin is None
    if asks_models and (known := known_list(services(), endpoint)) is not None:
        return respond(known)
    session = open_session(endpoint_id, pin)
    text, streams = _body()
    body = submission_body(job_input(route, text))
    submission = submission_of(endpoint_id, body, pin, session)
    try:
        exchange = _begun(endpoint, submission, streams=streams)
    except AnswerLost:
        # The job may exist, so that the client must not make a second one by itself.
        return respond(unknown(has_key=submission.idempotency_key is not None))
    except ClientGone:
        return respond(GONE)
    if streams:
        return _streamed(exchange)
    reply = _ended(exchange)
    if asks_models:
        reply = keep(services(), endpoint, reply)
    return respond(reply, exchange)


def submission_body(text: str) -> dict[str, Any]:
    """What :class:`ownpod.api.schemas.RunSchema` loads of a body that has an input only."""
    return {"input": text, "webhook": None, "policy": {}, "s3_config": None}


def respond(reply: Reply, exchange: Exchange | None = None) -> Response:
    """A reply as a response, with the ids of its exchange's job and worker."""
    response = answer(reply.body, reply.status)
    if reply.should_retry is not None:
        response.headers["x-should-retry"] = "true" if reply.should_retry else "false"
    if reply.retry_after is not None:
        response.headers["Retry-After"] = str(reply.retry_after)
    if exchange is not None:
        _name(response, exchange)
    return response


def _name(response: Response, exchange: Exchange) -> None:
    # OpenAI's clients show X-Request-ID as the request's id, by which its job is found. A client's own replaces it.
    response.headers["X-Request-ID"] = response.headers[JOB_ID] = exchange.job_id
    if exchange.worker_id:
        response.headers[HEADER] = exchange.worker_id


def _query(endpoint: Endpoint) -> str:
    """The query of this request; "": there is none, or the endpoint's workers would not know the route with it."""
    managed = endpoint.managed
    if managed is None or not sends_queries(managed.template.image):
        return ""
    return request.query_string.decode("utf-8", errors="replace")


def _body() -> tuple[str, bool]:
    """The JSON text of this request's body, and whether it asks for events. Raises: BadRequest, RequestEntityTooLarge."""
    if request.method == "GET":
        return "", False
    limit_mb = services().settings.openai_body_mb
    request.max_content_length = limit_mb * 1024 * 1024
    too_large = RequestEntityTooLarge(f"the body is above {limit_mb} MiB (OWNPOD_OPENAI_BODY_MB)")
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge:
        raise too_large from None
    if request.content_length is None and len(data) >= request.max_content_length:
        # A body without a length, in chunks, is cut at the limit without an error.
        raise too_large
    if not data:
        return "", False
    try:
        # Text and not bytes is parsed, because Python takes bytes for other encodings, too.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRequest("the body must be JSON in UTF-8") from None
    # A long one, with images in it, is checked and not parsed.
    found = members(data, ("stream",)) if len(data) >= LONG else None
    if found is None:
        found = schemas.parse_json(text)
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return text, wants_stream(found)


def _begun(endpoint: Endpoint, submission: Submission, *, streams: bool) -> Exchange:
    svc = services()
    with in_runpods_words():
        return Exchange(
            svc,
            submission,
            streams=streams,
            keep=endpoint.on_disconnect is OnDisconnect.KEEP,
            peer=request.environ.get("gunicorn.socket"),
            wait_s=svc.settings.openai_timeout_s,
        )


def _ended(exchange: Exchange) -> Reply:
    try:
        return exchange.reply()
    except ClientGone:
        return GONE
    finally:
        finish(exchange)


def _streamed(exchange: Exchange) -> Response:
    rendering = Rendering()
    texts = exchange.texts(rendering)
    try:
        first = next(texts)
    except ClientGone:
        first = GONE
    except BaseException:
        finish(exchange)
        raise
    if isinstance(first, Reply):
        finish(exchange)
        return respond(first, exchange)
    response = event_stream(_events(exchange, rendering, first, texts))
    _name(response, exchange)
    # Also for a response that is closed before its first byte.
    response.call_on_close(lambda: finish(exchange))
    return response


def _events(
    exchange: Exchange, rendering: Rendering, first: str, texts: Iterator[str | Reply]
) -> Iterator[str]:
    try:
        yield first or rendering.comment()
        for text in texts:
            if isinstance(text, Reply):
                yield rendering.error(text.body)
                return
            if shown := text or rendering.comment():
                yield shown
    except ClientGone:
        log.debug("the client of job %s has gone", exchange.job_id)
    finally:
        finish(exchange)


def finish(exchange: Exchange) -> None:
    """Ends an exchange, however it ended. May be called again."""
    exchange.close()
