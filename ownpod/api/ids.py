"""Ids in URLs: one converter checks all of them while a request is routed, before anything else."""

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest
from werkzeug.routing import BaseConverter

from ownpod.api.services import answer
from ownpod.validation import NAME

log = logging.getLogger(__name__)

RETRY_AFTER_S = "5"
"""Seconds, for workers that poll: the SDK sleeps so long after a 429, and polls again at once after a 400."""

POLLS = ("job-take", "job-take-batch", "job-stop")
"""Last part but one of the paths that RunPod's SDK polls in a loop."""


class InvalidId(BadRequest):
    """An id in a URL has characters that no id has."""

    def __init__(self) -> None:
        super().__init__(
            "the URL has an id that cannot be one: ids have 1 to 255 letters, digits, - and _"
        )


class IdConverter(BaseConverter):
    """An endpoint's, job's, run's or worker's id; in a route ``<id:name>``.

    Redis keys, queues and node names are built from ids, so no other text may come in.
    """

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        """Raises: InvalidId."""
        if not NAME.fullmatch(value):
            raise InvalidId
        return value


def check_ids(app: Flask) -> None:
    """Adds the converter ``id``. Call before any route is added, and before other request hooks."""
    app.url_map.converters["id"] = IdConverter
    app.before_request(_refuse)


def _refuse() -> Response | None:
    """400 before keys or rate limits are checked; 429 for a worker that polls."""
    error = request.routing_exception
    if not isinstance(error, InvalidId):
        return None
    message = f"{error.name}: {error.description}"
    if not is_poll():
        return answer({"error": message}, 400)
    log.warning("a worker polls with an id that cannot be used: %r", request.path[:200])
    return retry_later(message, 429)


def is_poll() -> bool:
    """Whether this request's path is one that RunPod's SDK polls in a loop."""
    return request.path.split("/")[-2] in POLLS


def retry_later(message: str, status: int) -> Response:
    """A refusal after which a worker sends its request again, after :data:`RETRY_AFTER_S`."""
    response = answer({"error": message}, status)
    response.headers["Retry-After"] = RETRY_AFTER_S
    return response
