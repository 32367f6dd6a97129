"""The v2 API: requests become job records and Celery messages. It never talks to a worker."""

import json
from dataclasses import dataclass
from typing import Any

from flask import Flask, Response, current_app
from werkzeug.exceptions import HTTPException

from ownpod.broker import JobMessages
from ownpod.celery import app as celery_app
from ownpod.errors import OwnPodError
from ownpod.events import JobEvents
from ownpod.registry import Registry, load_endpoints
from ownpod.settings import Settings
from ownpod.store import JobStore, connect


@dataclass(frozen=True)
class Services:
    """What the routes work with; one for each application."""

    settings: Settings
    registry: Registry
    store: JobStore
    events: JobEvents


def services() -> Services:
    """The services of the application that answers this request."""
    found: Services = current_app.extensions["ownpod"]
    return found


def create_app(settings: Settings) -> Flask:
    """The WSGI application. Connects to nothing before the first request.

    Raises:
        ConfigurationError: the endpoints cannot be read.
    """
    from ownpod.api import health, jobs

    app = Flask("ownpod", static_folder=None)
    client = connect(settings.broker_url(), client_name="ownpod-api")
    messages = JobMessages(celery_app, description_prefix=settings.description_prefix)
    app.extensions["ownpod"] = Services(
        settings=settings,
        registry=Registry(load_endpoints(settings), client),
        store=JobStore(client, messages, result_ttl_s=settings.result_ttl_s),
        events=JobEvents(client),
    )
    app.register_error_handler(OwnPodError, _own_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.register_blueprint(jobs.blueprint)
    app.register_blueprint(health.blueprint)
    return app


def answer(body: dict[str, Any] | str, status: int = 200) -> Response:
    """A JSON answer; a text is JSON already.

    Success is always 200: RunPod's JavaScript client throws the body of a 201 or 202 away.
    """
    text = body if isinstance(body, str) else json.dumps(body)
    return Response(text, status, mimetype="application/json")


def _own_error(error: OwnPodError) -> Response:
    return answer({"error": error.message}, error.http_status)


def _http_error(error: HTTPException) -> Response:
    response = answer({"error": f"{error.name}: {error.description}"}, error.code or 500)
    # What the error adds, like Allow for a wrong method.
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers.add(name, value)
    return response


def _unexpected_error(error: Exception) -> Response:
    current_app.logger.error("unexpected", exc_info=error)
    return answer({"error": "OwnPod failed to answer this; its log says why"}, 500)
