"""Load-balanced endpoints: their requests go to the front, so here are only their states and the refusals."""

import contextlib

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from ownpod.api.auth import opened_endpoints
from ownpod.api.management import v2 as rest_v2
from ownpod.api.openai import errors as openai_errors
from ownpod.api.services import answer, services
from ownpod.errors import NotForLoadBalancer, OwnPodError
from ownpod.rules.openai_replies import error_body

QUEUE_BLUEPRINTS = ("jobs", "stream", "openai")
"""Blueprints whose routes need a queue. The front has those of ``openai`` for load-balanced endpoints."""

LB = "/lb/"
"""Beginning of the paths that the front serves."""

NO_FRONT_HERE = (
    "requests to /lb/ are served by the front, and this is the API without one: "
    "use the address of a front, or see `ownpod doctor` why none runs"
)


OPENAI_BY_FRONT = (
    "the OpenAI routes of a load-balanced endpoint are served by the front, and this is the API without one: "
    "use the address of a front, or see `ownpod doctor` why none runs"
)

OPENAI_RETRY_S = 1
"""A front learns of a new endpoint within a second; until then it passes the endpoint's requests to the API."""


def refuse_queue_routes(app: Flask) -> None:
    """Answers routes that need a queue 400, if their endpoint is load-balanced. Install this after the check of keys."""
    app.before_request(_refuse)


def _refuse() -> Response | None:
    endpoint_id = _endpoint_id()
    if endpoint_id is None:
        return None
    endpoint = services().registry.endpoints.get(endpoint_id)
    if endpoint is None or not endpoint.is_balanced:
        return None
    if openai_errors.is_below(request.path):
        return _no_front_for_openai()
    error = NotForLoadBalancer()
    return answer(error.body, error.http_status)


def _no_front_for_openai() -> Response:
    response = answer(error_body(503, OPENAI_BY_FRONT, code="no_front"), 503)
    response.headers["Retry-After"] = str(OPENAI_RETRY_S)
    return response


def _endpoint_id() -> str | None:
    """The endpoint of a request that needs a queue, or of a path below an endpoint that has no route."""
    if request.blueprint in QUEUE_BLUEPRINTS:
        return (request.view_args or {}).get("endpoint_id")
    parts = request.path.split("/")
    if not isinstance(request.routing_exception, NotFound) or rest_v2.is_managing(request.path):
        return None
    if len(parts) < 4 or parts[1] != "v2" or not parts[3]:
        return None
    with contextlib.suppress(OwnPodError):
        # Any key opens a path without a route, but not what is known of its endpoint.
        return parts[2] if parts[2] in opened_endpoints() else None
    return None


def no_front(path: str) -> Response | None:
    """The response to a path of the front; None: the path is another one."""
    if not path.startswith(LB):
        return None
    return answer({"status": 404, "title": "Not Found", "detail": NO_FRONT_HERE}, 404)
