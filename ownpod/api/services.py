"""What the routes share: the services of their application, and how they answer."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, current_app, request

from ownpod.api.held import HeldConnections
from ownpod.api.submissions import Submissions
from ownpod.api.waiting import Waiting
from ownpod.registry import Registry
from ownpod.settings import Settings
from ownpod.store.deliveries import Deliveries
from ownpod.store.listing import Listing
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.store.store import Store

_NAME = "ownpod"

REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""Visible ASCII, as it comes into a log and a header."""


@dataclass(frozen=True)
class Services:
    """The parts that the routes use; one set for each application."""

    settings: Settings
    registry: Registry
    store: Store
    events: Notices
    waiting: Waiting
    pulls: Offers
    listing: Listing
    deliveries: Deliveries
    submissions: Submissions
    held: HeldConnections = field(default_factory=HeldConnections)

    @property
    def keys_needed(self) -> bool:
        """Calls need an API key: the settings or an endpoint have one, which may change at run time."""
        return bool(self.settings.api_keys) or self.registry.has_keys


def provide(app: Flask, services: Services) -> None:
    """Gives an application its services."""
    app.extensions[_NAME] = services


def services_of(app: Flask) -> Services:
    """The services of an application."""
    found: Services = app.extensions[_NAME]
    return found


def services() -> Services:
    """The services of the application that answers this request."""
    return services_of(current_app)


def request_id() -> str | None:
    """The client's ``X-Request-ID``, if it is one."""
    given = request.headers.get("X-Request-ID")
    return given if given and REQUEST_ID.fullmatch(given) else None


def answer(body: dict[str, Any] | str, status: int = 200) -> Response:
    """A JSON answer; a text is JSON already.

    Success is always 200: RunPod's JavaScript client throws the body of a 201 or 202 away.
    """
    text = body if isinstance(body, str) else json.dumps(body)
    return Response(text, status, mimetype="application/json")
