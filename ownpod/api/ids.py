"""Ids in URLs: one converter checks all of them during routing, before any other check."""

import logging

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest
from werkzeug.routing import BaseConverter

from ownpod.api.management import v2 as rest_v2
from ownpod.api.services import answer
from ownpod.validation import NAME

log = logging.getLogger(__name__)

RETRY_AFTER_S = "5"
"""Seconds for workers that poll. RunPod's SDK sleeps for this time after a 429, and polls again at once after a 400."""

POLLS = ("job-take", "job-take-batch", "job-stop")
"""Second last part of the paths that RunPod's SDK polls in a loop."""


class InvalidId(BadRequest):
    """An id in a URL does not match :data:`ownpod.validation.NAME`."""

    def __init__(self) -> None:
        super().__init__("the URL has an invalid id: ids have 1 to 255 letters, digits, - and _")


class IdConverter(BaseConverter):
    """An id of an endpoint, job, run or worker; in a route ``<id:name>``.

    Names of Redis keys, queues and nodes contain ids, so that other characters could form the name of another key.
    """

    regex = "[^/]+"

    def to_python(self, value: str) -> str:
        """The id, unchanged.

        Raises:
            InvalidId: the value is no id.
        """
        if not NAME.fullmatch(value):
            raise InvalidId
        return value


class RestConverter(BaseConverter):
    """The rest of a path, with any slashes; in a route ``<rest:name>``. Werkzeug's ``path`` redirects where there are two."""

    regex = ".*?"
    part_isolating = False
    weight = 300


def check_ids(app: Flask) -> None:
    """Adds the converters ``id`` and ``rest``. Call this before any route is added, because routes need the converter, and before
    other request hooks, because they read ids.
    """
    app.url_map.converters["id"] = IdConverter
    app.url_map.converters["rest"] = RestConverter
    app.before_request(_refuse)


def _refuse() -> Response | None:
    """Answers an invalid id 400 before keys and rate limits are checked, and 429 if the request is a worker's poll."""
    error = request.routing_exception
    if not isinstance(error, InvalidId):
        return None
    if rest_v2.is_managing(request.path):
        return rest_v2.http_error(error)
    message = f"{error.name}: {error.description}"
    if not is_poll():
        return answer({"error": message}, 400)
    log.warning("a worker polls with an invalid id: %r", request.path[:200])
    return retry_later(message, 429)


def is_poll() -> bool:
    """Whether this request's path is one that RunPod's SDK polls in a loop."""
    return request.path.split("/")[-2] in POLLS


def retry_later(message: str, status: int) -> Response:
    """A refusal with ``Retry-After``: the worker sends its request again after :data:`RETRY_AFTER_S` seconds."""
    response = answer({"error": message}, status)
    response.headers["Retry-After"] = RETRY_AFTER_S
    return response
