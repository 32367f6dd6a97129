"""The services that all routes share, and the shape of their responses."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, current_app, request

from ownpod.api.fronts import FrontReadings, NoFronts
from ownpod.api.jobs.estimates import Estimates
from ownpod.api.jobs.positions import Positions
from ownpod.api.jobs.readers import Readers
from ownpod.api.jobs.submissions import Submissions
from ownpod.api.jobs.waiting import Waiting
from ownpod.api.tasks.submission import Tasks
from ownpod.api.workers.held import HeldConnections
from ownpod.api.workers.managed import FirstRequests, ManagedWorkers, NoManagedWorkers
from ownpod.api.workers.reports import Reports
from ownpod.management import Management
from ownpod.management.models import ModelCalls
from ownpod.registry import Registry
from ownpod.settings import Settings
from ownpod.store.agents import Agents
from ownpod.store.model_lists import ModelLists
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.store.outputs import Outputs
from ownpod.store.releases import Releases
from ownpod.store.replies import Replies
from ownpod.store.sessions import Sessions
from ownpod.store.store import Store

_NAME = "ownpod"

REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""Allowed values of ``X-Request-ID``: visible ASCII, because the id appears in logs and in the response's header."""


@dataclass(frozen=True)
class Services:
    """The parts that the routes use; one set for each application."""

    settings: Settings
    registry: Registry
    store: Store
    notices: Notices
    waiting: Waiting
    offers: Offers
    submissions: Submissions
    agents: Agents
    management: Management
    outputs: Outputs
    releases: Releases
    models: ModelCalls
    sessions: Sessions
    tasks: Tasks
    readers: Readers
    model_lists: ModelLists
    replies: Replies
    positions: Positions
    estimates: Estimates
    reports: Reports
    held: HeldConnections = field(default_factory=HeldConnections)
    managed: ManagedWorkers = field(default_factory=NoManagedWorkers)
    first_requests: FirstRequests = field(default_factory=FirstRequests)
    fronts: FrontReadings = field(default_factory=NoFronts)

    @property
    def keys_needed(self) -> bool:
        """Calls need an API key: the settings or an endpoint have one, which may change at run time.

        Raises:
            RedisUnavailable: this process has never read the endpoints of run time.
        """
        return bool(self.settings.api_keys) or self.registry.has_keys


def provide(app: Flask, services: Services) -> None:
    """Stores the services in an application."""
    app.extensions[_NAME] = services


def services_of(app: Flask) -> Services:
    """The services of an application."""
    services: Services = app.extensions[_NAME]
    return services


def services() -> Services:
    """The services of the application that handles this request."""
    return services_of(current_app)


def request_id() -> str | None:
    """The client's ``X-Request-ID``; None if there is none, or if :data:`REQUEST_ID` does not allow the value."""
    client_id = request.headers.get("X-Request-ID")
    return client_id if client_id and REQUEST_ID.fullmatch(client_id) else None


def answer(body: dict[str, Any] | str, status: int = 200) -> Response:
    """A JSON response. ``body`` is JSON text, or an object to serialize.

    Every success is 200, because RunPod's JavaScript client drops the body of a 201 or 202.
    """
    text = body if isinstance(body, str) else json.dumps(body)
    return Response(text, status, mimetype="application/json")


def event_stream(texts: Iterator[str]) -> Response:
    """A response of server-sent events, which no proxy keeps or holds back."""
    response = Response(texts, mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    return response
