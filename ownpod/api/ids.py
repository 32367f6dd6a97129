"""Ids in URLs: one converter checks all of them while Flask routes a request, before any other check."""

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest
from werkzeug.routing import BaseConverter

from ownpod.api.services import answer
from ownpod.validation import NAME

log = logging.getLogger(__name__)

RETRY_AFTER_S = "5"
"""Seconds in ``Retry-After`` for workers that poll. RunPod's SDK sleeps 5 s after a 429, and polls again at once
after any other error."""

POLLS = ("job-take", "job-take-batch", "job-stop")
"""Second last parts of the paths that RunPod's SDK polls in a loop."""


class InvalidId(BadRequest):
    """An id in a URL has characters that ids cannot have."""

    def __init__(self) -> None:
        super().__init__("the URL has an invalid id: ids have 1 to 255 letters, digits, - and _")


class IdConverter(BaseConverter):
    """An endpoint's, job's, run's or worker's id; ``<id:name>`` in a route.

    Names of Redis keys, queues and nodes contain ids, so an id with other characters could name another key.
    """

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        """Raises: InvalidId."""
        if not NAME.fullmatch(value):
            raise InvalidId
        return value


def check_ids(app: Flask) -> None:
    """Adds the converter ``id``. Call this before adding routes, and before adding other request hooks."""
    app.url_map.converters["id"] = IdConverter
    app.before_request(_refuse)


def _refuse() -> Response | None:
    """Answers 400 before the checks of keys and rate limits; 429 to a worker that polls."""
    error = request.routing_exception
    if not isinstance(error, InvalidId):
        return None
    message = f"{error.name}: {error.description}"
    if not is_poll():
        return answer({"error": message}, 400)
    log.warning("a worker polls with an invalid id: %r", request.path[:200])
    return retry_later(message, 429)


def is_poll() -> bool:
    """Whether RunPod's SDK polls this request's path in a loop."""
    return request.path.split("/")[-2] in POLLS


def retry_later(message: str, status: int) -> Response:
    """A refusal with ``Retry-After``, after which the worker sends its request again."""
    response = answer({"error": message}, status)
    response.headers["Retry-After"] = RETRY_AFTER_S
    return response
