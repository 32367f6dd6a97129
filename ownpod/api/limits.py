"""CORS, rate limits and trusted proxies; each is off unless its setting is set."""

from typing import Any

from flask import Flask, request
from flask_cors import CORS
from flask_limiter import Limiter
from werkzeug.middleware.proxy_fix import ProxyFix

from ownpod.api.auth import known_caller
from ownpod.rules import redis_url
from ownpod.rules.affinity import HEADER
from ownpod.store import keys

VIEWS = {
    "run": ["jobs.run", "tasks.submit", "tasks.predefined", "tasks.custom", "sessions.prewarm"],
    "runsync": ["jobs.runsync", "openai.call"],
    "status": ["jobs.status", "jobs.status_sync", "tasks.task"],
    "stream": ["stream.stream", "tasks.events"],
    "cancel": ["jobs.cancel", "tasks.cancel"],
    "retry": ["jobs.retry"],
    "purge-queue": ["jobs.purge_queue"],
    "requests": ["jobs.requests"],
    "health": ["health.health"],
}
"""The views that each of :data:`ownpod.settings.kinds.OPERATIONS` counts."""


OPENAI = ("X-Request-ID", "X-OwnPod-Job-Id", "x-should-retry")
"""Headers that OpenAI's clients read in a browser, too."""

MANAGING = ("rest_v1.", "rest_v2.", "graphql.")
"""Beginnings of the names of views that count as the operation ``management``, all together, for each caller."""


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Allows pages of these origins to call ``/v2`` and ``/api``."""
    if origins:
        CORS(
            app,
            resources={r"/(v2|api)/.*": {"origins": list(origins)}},
            expose_headers=["ETag", "Retry-After", HEADER, "X-Task-Id", "X-Session-Id", *OPENAI],
            max_age=600,
        )


def limit_rates(app: Flask, rates: dict[str, str], storage_url: str) -> None:
    """Limits the calls of an operation for each endpoint and caller; Redis counts them for all hosts."""
    if not rates:
        return
    limiter = Limiter(
        _caller,
        app=app,
        storage_uri=redis_url.for_limits(storage_url),
        # Without these limits a request would wait without an end for a Redis that does not answer.
        storage_options={"socket_connect_timeout": 3, "socket_timeout": 5},
        key_prefix=f"{keys.PREFIX}rate",
        headers_enabled=True,
        retry_after="delta-seconds",
        # The operation itself answers 503 while Redis is away.
        swallow_errors=True,
    )
    for operation, rate in rates.items():
        shared = limiter.shared_limit(rate, scope=operation)
        for view in _views(app, operation):
            limited: Any = shared(app.view_functions[view])
            app.view_functions[view] = limited


def _views(app: Flask, operation: str) -> list[str]:
    if operation == "management":
        return [name for name in app.view_functions if name.startswith(MANAGING)]
    return VIEWS[operation]


def trust_proxies(app: Flask, count: int, *, behind_front: bool = False) -> None:
    """Reads the caller's address from the entries of ``X-Forwarded-For`` that the last ``count`` proxies wrote.

    With 0 the header is ignored, because any client can send it. ``behind_front``: the last entry is the front's.
    """
    application: Any = app
    if count or behind_front:
        entries = count + behind_front
        application.wsgi_app = ProxyFix(app.wsgi_app, x_for=entries, x_proto=0, x_host=0)
    if count and behind_front:
        # For a request that came past the proxies. Without this all such callers would have the front's address.
        application.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=0, x_host=0)


def _caller() -> str:
    """The endpoint and caller that a limit counts. An unknown key is no caller, because each new one would get a new limit."""
    endpoint = (request.view_args or {}).get("endpoint_id", "")
    return f"{endpoint}:{known_caller() or request.remote_addr}"
