"""Without keys, the API answers 403 to a request under a foreign host name or from a web page of another site.

Such a page runs in a browser that can reach the API. With DNS rebinding, a page can also use a host name of its own.
"""

import contextlib
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request

from ownpod.api.auth import has_own_key, known_caller, managed_worker
from ownpod.api.ids import is_poll, retry_later
from ownpod.api.services import Services, answer, services, services_of
from ownpod.errors import RedisUnavailable
from ownpod.rules.origins import host_name, is_foreign_page, is_own_host

log = logging.getLogger(__name__)

PAGES = ("ui", "swagger_ui")
"""Blueprints of files without data. Links on pages of other sites may lead there."""

_OWN = "ownpod_own_hosts"
"""Key of ``app.extensions`` for the host names under which the API answers without keys."""


def guard_source(app: Flask) -> None:
    """Installs the check. It must be installed before the check of keys, which would answer first."""
    config = services_of(app).settings
    names = set(config.hosts)
    if config.callback_url is not None:
        # Workers post results under this host name; without it their results would be answered 403.
        names.add(urlsplit(config.callback_url).hostname or "")
    app.extensions[_OWN] = names
    app.before_request(_refuse)


def add_own_hosts(app: Flask, hosts: Iterable[str]) -> None:
    """Adds the names and addresses on which the server listens."""
    names = {host_name(host) for host in hosts} - {None, "", "0.0.0.0"}  # noqa: S104 - left out
    app.extensions[_OWN] = app.extensions[_OWN] | names


def _refuse() -> Response | None:
    svc = services()
    # While Redis has never answered, the check applies: it is the stricter one, and pages must answer.
    with contextlib.suppress(RedisUnavailable):
        if svc.keys_needed:
            return None
    problem = _problem(svc.settings.cors_origins)
    # A request with a configured key does not come from a page of another site, which has no key.
    if problem is None or known_caller():
        return None
    if request.blueprint == "worker_protocol" and _is_managed_worker(svc):
        # A container requests its host under a name of its engine's.
        return None
    if request.blueprint == "worker_protocol" and is_poll():
        # The SDK logs no reason, and after a status other than 429 polls again at once.
        log.warning("a worker gets no jobs: %s", problem)
        return retry_later(problem, 429)
    return answer({"error": problem}, 403)


def _is_managed_worker(svc: Services) -> bool:
    """Whether a managed worker sends this request: no page of another site has its key."""
    worker = managed_worker(svc, str((request.view_args or {}).get("worker_id", "")))
    return worker is not None and has_own_key(worker)


def _problem(allowed: tuple[str, ...]) -> str | None:
    """The reason to refuse this request; None: it is accepted."""
    host = request.environ.get("HTTP_HOST")
    origin = request.headers.get("Origin")
    if not is_own_host(host, current_app.extensions[_OWN]):
        return (
            f"without keys OwnPod answers under its own names only, and {_shown(host)} is not one of them: "
            "set OWNPOD_HOSTS to that name, or OWNPOD_API_KEYS"
        )
    if request.blueprint in PAGES and request.method in {"GET", "HEAD"}:
        return None
    if is_foreign_page(origin, request.headers.get("Sec-Fetch-Site"), host, allowed):
        return (
            f"without keys no page of another site may call OwnPod, but {_shown(origin or 'one')} did: "
            "set OWNPOD_CORS_ORIGINS to that origin, or OWNPOD_API_KEYS"
        )
    return None


def _shown(text: str | None) -> str:
    return repr((text or "")[:100])
