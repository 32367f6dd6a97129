"""The response to an error of OwnPod."""

from flask import Response, current_app

from ownpod.api.services import answer
from ownpod.errors import OwnPodError, QueueFull, RedisUnavailable, TooManyWaiting, Unauthorized

RETRY_AFTER_S = {QueueFull: "5", TooManyWaiting: "5", RedisUnavailable: "2"}
"""Whole seconds for ``Retry-After`` by error. The header never has a date, which RunPod's clients cannot parse."""

UNREACHABLE = ("Redis cannot be reached:", "Redis did not answer:")
"""Beginnings of the messages that contain Redis's address."""


def own_error(error: OwnPodError) -> Response:
    """The error's status and body, with the headers that clients need."""
    body = error.body
    if isinstance(error, RedisUnavailable) and error.message.startswith(UNREACHABLE):
        # The driver's message contains Redis's address, which is not for callers.
        current_app.logger.info("answered 503: %s", error.message)
        body = type(error)().body
    response = answer(body, error.http_status)
    for kind, seconds in RETRY_AFTER_S.items():
        if isinstance(error, kind):
            response.headers["Retry-After"] = seconds
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
