"""Roles: which key a route needs, and whether a request has it.

An admin key opens everything but the workers' protocol, an API key the jobs of all endpoints, an endpoint's key its
jobs, a worker key the workers' protocol only.
"""

from enum import StrEnum

from flask import Request, request

from ownpod.api.services import Services, services
from ownpod.errors import Forbidden, Unauthorized
from ownpod.rules import credentials


class Access(StrEnum):
    """What a route needs, where keys are configured."""

    OPEN = "open"
    """Nothing: pages without data, the process's health, and callbacks, which have a token of their own."""
    JOBS = "jobs"
    """A key of the endpoint in the URL."""
    LIST = "list"
    """Any key; the answer depends on the key."""
    ALL = "all"
    """An API key: the answer shows all endpoints."""
    MANAGE = "manage"
    """An admin key."""
    WORKER = "worker"
    """A worker key; each view calls :func:`check_worker_key`."""


BLUEPRINTS = {
    "ui": Access.OPEN,
    "openapi": Access.OPEN,
    "swagger_ui": Access.OPEN,
    "callbacks": Access.OPEN,
    "jobs": Access.JOBS,
    "stream": Access.JOBS,
    "health": Access.JOBS,
    "workers": Access.MANAGE,
    "pull": Access.WORKER,
}
"""By the blueprint of a view."""

VIEWS = {
    "health.liveness": Access.OPEN,
    "workers.listed": Access.JOBS,
    "endpoints.all_endpoints": Access.LIST,
    "metrics.metrics": Access.ALL,
}
"""By view; comes before :data:`BLUEPRINTS`."""

MANAGING_IS_OFF = (
    "managing workers over HTTP needs an admin key and none is configured: set OWNPOD_ADMIN_KEYS "
    "(`ownpod keys new --admin` makes one), or use `ownpod workers` on OwnPod's host"
)


def access_of(view: str | None) -> Access:
    """What a view needs. A URL that no route has needs any key, so that a caller without one learns nothing.

    A view that is in neither table needs an admin key: one that was forgotten stays closed.
    """
    if view is None:
        return Access.LIST
    found = VIEWS.get(view) or BLUEPRINTS.get(view.partition(".")[0])
    return found or Access.MANAGE


def presented_key() -> str:
    """The key of this request: RunPod's clients send ``Bearer <key>`` or the bare key."""
    header = request.headers.get("Authorization", "").strip()
    scheme, _, rest = header.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header


def caller() -> str:
    """The digest of the presented key, known or not; "" without a key."""
    key = presented_key()
    return credentials.digest_of(key) if key else ""


def known_caller() -> str:
    """The digest of the presented key if it is configured, as any kind of key; else ""."""
    here, key = services(), presented_key()
    config = here.settings
    known = (*config.admin_keys, *config.api_keys, *config.worker_keys)
    if not credentials.matches(key, known) and not _endpoints_of(here, key):
        return ""
    return credentials.digest_of(key)


def opened_endpoints() -> list[str]:
    """The endpoints that this request's key is for."""
    here, key = services(), presented_key()
    every = sorted(here.registry.endpoints)
    config = here.settings
    if not here.keys_needed or credentials.matches(key, (*config.admin_keys, *config.api_keys)):
        return every
    return _endpoints_of(here, key)


def _endpoints_of(here: Services, key: str) -> list[str]:
    """The endpoints that a key of single endpoints is for."""
    known = here.registry.endpoints.values()
    return sorted(e.id for e in known if credentials.matches(key, e.api_keys))


def check_key() -> None:
    """Checks the key before each request; whether keys are needed may change at run time.

    Raises:
        Unauthorized: the request has no key, or an unknown one.
        Forbidden: its key is for something else.
    """
    access = access_of(request.endpoint)
    if access in {Access.OPEN, Access.WORKER} or request.method == "OPTIONS":
        return
    if request.endpoint is None and not request.path.startswith("/v2/"):
        return
    here = services()
    if credentials.matches(presented_key(), here.settings.admin_keys):
        return
    if access is Access.MANAGE:
        _refuse_managing(here)
    elif here.keys_needed:
        _check_jobs(here, access, request)


def _refuse_managing(here: Services) -> None:
    """Refuses managing to a request without an admin key. Without any configured key, managing is open."""
    if not here.keys_needed and not here.settings.admin_keys:
        return
    if not known_caller():
        raise Unauthorized
    if not here.settings.admin_keys:
        raise Forbidden(MANAGING_IS_OFF)
    raise Forbidden("managing workers needs an admin key, one of OWNPOD_ADMIN_KEYS")


def _check_jobs(here: Services, access: Access, asked: Request) -> None:
    if credentials.matches(presented_key(), here.settings.api_keys):
        return
    opened = opened_endpoints()
    if not opened:
        raise Unauthorized
    if access is Access.ALL:
        raise Forbidden("this shows all endpoints and needs a key for all of them")
    if access is Access.JOBS and (asked.view_args or {}).get("endpoint_id") not in opened:
        raise Forbidden


def check_worker_key(endpoint_id: str, worker_id: str) -> None:
    """Checks the key of a worker that pulls; the SDK sends the bare key. A key is needed where there are
    worker keys or API keys.

    Raises:
        Unauthorized: the request has none of ``OWNPOD_WORKER_KEYS``.
        Forbidden: its key is bound to another endpoint or worker.
    """
    here = services()
    keys = here.settings.worker_keys
    if not keys and not here.keys_needed:
        return
    found = credentials.matches(presented_key(), keys)
    if not found:
        raise Unauthorized(
            "a worker needs one of OWNPOD_WORKER_KEYS as its RUNPOD_AI_API_KEY; "
            "see `ownpod worker-env`"
        )
    if not any(known.permits(endpoint_id, worker_id) for known in found):
        raise Forbidden("this worker key is bound to another endpoint or worker")
