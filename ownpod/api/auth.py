"""Roles: which kind of key a route needs, and the check that a request has it.

An admin key opens everything except the workers' protocol, an API key the jobs of all endpoints, an endpoint's key
the jobs of that endpoint, a worker key the workers' protocol only, a managed worker's own key that protocol for its id.
"""

import contextlib
import hmac
from enum import StrEnum

from flask import Request, request

from ownpod.api.services import Services, services
from ownpod.configuration.custom import CUSTOM
from ownpod.errors import Forbidden, JobNotFound, RedisUnavailable, Unauthorized
from ownpod.rules import credentials
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.managed import WORKER_ID


class Access(StrEnum):
    """The kind of key that a route needs where keys are configured."""

    OPEN = "open"
    """No key: pages without data, the process's health, and callbacks, whose path has a token."""
    JOBS = "jobs"
    """A key of the endpoint in the URL."""
    LIST = "list"
    """Any key; the response depends on the key."""
    ALL = "all"
    """An API key, because the response shows all endpoints."""
    MANAGE = "manage"
    """An admin key."""
    CUSTOM = "custom"
    """An admin key, or one of ``OWNPOD_CUSTOM_TASK_KEYS``."""
    WORKER = "worker"
    """A worker key; each view calls :func:`check_worker_key`."""


BLUEPRINTS = {
    "ui": Access.OPEN,
    "openapi": Access.OPEN,
    "swagger_ui": Access.OPEN,
    "callbacks": Access.OPEN,
    "jobs": Access.JOBS,
    "stream": Access.JOBS,
    "openai": Access.JOBS,
    "health": Access.JOBS,
    "workers": Access.MANAGE,
    "rest_v1": Access.MANAGE,
    "rest_v2": Access.MANAGE,
    "graphql": Access.MANAGE,
    "hapi": Access.MANAGE,
    "logs": Access.MANAGE,
    "tasks": Access.LIST,
    "sessions": Access.LIST,
    "worker_protocol": Access.WORKER,
}
"""The kind of key by the blueprint of a view."""

VIEWS = {
    "health.liveness": Access.OPEN,
    "gpu_health.resources": Access.OPEN,
    "tasks.custom": Access.CUSTOM,
    "workers.listed": Access.JOBS,
    "endpoints.all_endpoints": Access.LIST,
    "metrics.metrics": Access.ALL,
    "agents.listed": Access.ALL,
    "models.listed": Access.ALL,
}
"""The kind of key by view; comes before :data:`BLUEPRINTS`."""

MANAGING_IS_OFF = (
    "managing workers over HTTP needs an admin key and none is configured: set OWNPOD_ADMIN_KEYS "
    "(`ownpod keys new --admin` makes one), or use `ownpod workers` on OwnPod's host"
)


def access_of(view: str | None) -> Access:
    """The kind of key that a view needs. A URL without a route needs any key, so that a client without a key cannot
    find out which routes exist.

    A view in neither table needs an admin key, so that a new route without an entry is not open by accident.
    """
    if view is None:
        return Access.LIST
    access = VIEWS.get(view) or BLUEPRINTS.get(view.partition(".")[0])
    return access or Access.MANAGE


def presented_key() -> str:
    """The key of this request; "" without one. RunPod's clients send ``Bearer <key>`` or only the key. Those of the GPU service
    send it as ``X-API-Key``.
    """
    header = request.headers.get("Authorization", "").strip()
    if not header:
        header = request.headers.get("X-API-Key", "").strip()
    if not header and request.endpoint == "graphql.graphql":
        # Older clients of RunPod's GraphQL API send their key in the URL only.
        return request.args.get("api_key", "")
    scheme, _, rest = header.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header


def caller() -> str:
    """The digest of the request's key, configured or not; "" without a key."""
    key = presented_key()
    return credentials.digest_of(key) if key else ""


def session_owner() -> str:
    """The owner of a session or task that this request makes: the digest of its key; "": no key is needed."""
    return caller() if services().keys_needed or known_caller() else ""


def seen_owner() -> str | None:
    """The owner whose sessions this request may see, use and end; None: those of all, because its key is a global one, or no
    key is needed.
    """
    svc, key = services(), presented_key()
    config = svc.settings
    if not svc.keys_needed or credentials.matches(key, (*config.admin_keys, *config.api_keys)):
        return None
    return caller()


def is_admin() -> bool:
    """Whether this request has an admin key."""
    return bool(credentials.matches(presented_key(), services().settings.admin_keys))


def check_opens(endpoint_id: str) -> None:
    """Checks that this request's key opens an endpoint that is not in the URL. Raises: Forbidden."""
    if endpoint_id not in opened_endpoints():
        raise Forbidden


def check_owner(job_id: str) -> None:
    """Checks that this request's key is that of a task's client, or a global one. Other jobs belong to their endpoint.

    Raises:
        JobNotFound: it is not, because the id alone opens nothing.
    """
    sees = seen_owner()
    if sees is not None and services().store.listing.owner(job_id) not in {None, sees}:
        raise JobNotFound(job_id)


def known_caller() -> str:
    """The digest of the request's key if it is configured as any kind of key; otherwise ""."""
    svc, key = services(), presented_key()
    config = svc.settings
    known = (*config.admin_keys, *config.api_keys, *config.worker_keys)
    if not credentials.matches(key, known) and not _endpoints_of(svc, key):
        return ""
    return credentials.digest_of(key)


def opened_endpoints() -> list[str]:
    """Ids of the endpoints that this request's key opens."""
    svc, key = services(), presented_key()
    all_ids = sorted(svc.registry.endpoints)
    config = svc.settings
    if not svc.keys_needed or credentials.matches(key, (*config.admin_keys, *config.api_keys)):
        return all_ids
    return _endpoints_of(svc, key)


def _endpoints_of(svc: Services, key: str) -> list[str]:
    """Ids of the endpoints that have this key as their own."""
    known = [(e.id, e.api_keys) for e in svc.registry.endpoints.values()]
    if svc.settings.custom_tasks:
        known.append((CUSTOM, svc.settings.custom_task_keys))
    return sorted({name for name, keys in known if credentials.matches(key, keys)})


def check_key() -> None:
    """Checks the key before each request, because keys may be added at run time.

    Raises:
        Unauthorized: the request has no key, or an unknown one.
        Forbidden: the key does not open this route.
    """
    access = access_of(request.endpoint)
    if access in {Access.OPEN, Access.WORKER} or request.method == "OPTIONS":
        return
    if request.endpoint is None and not request.path.startswith("/v2/"):
        # A 404 outside the API has no information to protect.
        return
    svc = services()
    if is_admin():
        return
    if access is Access.MANAGE:
        _refuse_managing(svc)
    elif access is Access.CUSTOM:
        _check_custom(svc)
    elif svc.keys_needed:
        _check_jobs(svc, access, request)


def _refuse_managing(svc: Services) -> None:
    """Refuses managing without an admin key. Where no key is configured, managing is open."""
    if not svc.keys_needed and not svc.settings.admin_keys:
        return
    if not known_caller():
        raise Unauthorized
    if not svc.settings.admin_keys:
        raise Forbidden(MANAGING_IS_OFF)
    raise Forbidden("managing workers needs an admin key, one of OWNPOD_ADMIN_KEYS")


def _check_custom(svc: Services) -> None:
    """Refuses custom tasks without a key for them. Where no key is configured, they are open as managing is."""
    config = svc.settings
    if not (svc.keys_needed or config.admin_keys or config.custom_task_keys):
        return
    if credentials.matches(presented_key(), config.custom_task_keys):
        return
    if not known_caller():
        raise Unauthorized
    raise Forbidden("custom tasks need an admin key, or one of OWNPOD_CUSTOM_TASK_KEYS")


def _check_jobs(svc: Services, access: Access, req: Request) -> None:
    if credentials.matches(presented_key(), svc.settings.api_keys):
        return
    opened = opened_endpoints()
    if not opened:
        raise Unauthorized
    if access is Access.ALL:
        raise Forbidden("this shows all endpoints and needs a key for all of them")
    values = req.view_args or {}
    if access is Access.JOBS and values.get("endpoint_id") not in opened:
        raise Forbidden
    if access is Access.JOBS and "job_id" in values:
        check_owner(values["job_id"])


def check_worker_key(endpoint_id: str, worker_id: str) -> WorkerSpec | None:
    """Checks the key of a worker that pulls. A managed worker's id needs the key that OwnPod made for that worker, and
    that key opens nothing else. For other ids a key is needed where worker keys or API keys are configured.

    Returns:
        The managed worker; None: the id is not one's.

    Raises:
        Unauthorized: the request has none of ``OWNPOD_WORKER_KEYS``, or not the managed worker's own key.
        Forbidden: the key is bound to another endpoint or worker.
    """
    svc = services()
    managed = managed_worker(svc, worker_id)
    if managed is not None:
        check_managed_key(managed, endpoint_id)
        return managed
    keys = svc.settings.worker_keys
    if not keys and not svc.keys_needed:
        return None
    matching = credentials.matches(presented_key(), keys)
    if not matching:
        raise Unauthorized(
            "a worker needs one of OWNPOD_WORKER_KEYS as its RUNPOD_AI_API_KEY; "
            "see `ownpod worker-env`"
        )
    if not any(credential.permits(endpoint_id, worker_id) for credential in matching):
        raise Forbidden("this worker key is bound to another endpoint or worker")
    return None


def managed_worker(svc: Services, worker_id: str) -> WorkerSpec | None:
    """The worker of this id that OwnPod has started; None: it has started none that runs now."""
    worker = svc.registry.worker(worker_id)
    if presented_key() and _may_be_newer(worker, worker_id):
        with contextlib.suppress(RedisUnavailable):
            svc.registry.refresh()
        worker = svc.registry.worker(worker_id)
    return worker if worker is not None and worker.is_managed else None


def _may_be_newer(worker: WorkerSpec | None, worker_id: str) -> bool:
    """Whether an agent may have started this worker, or made its key, after this process last read the registry. A worker
    that is refused because of that would ask again after 5 s only.
    """
    if worker is None:
        return WORKER_ID.fullmatch(worker_id) is not None
    return worker.is_managed and not has_own_key(worker)


def check_managed_key(worker: WorkerSpec, endpoint_id: str) -> None:
    """Checks that this request has a managed worker's own key, which is valid for its endpoint only.

    Raises:
        Unauthorized: the key is another one.
        Forbidden: the worker belongs to another endpoint.
    """
    if not has_own_key(worker):
        raise Unauthorized("OwnPod has started this worker, and accepts its own key only")
    if worker.endpoint != endpoint_id:
        raise Forbidden(f"this worker belongs to the endpoint {worker.endpoint!r}")


def has_own_key(worker: WorkerSpec) -> bool:
    """Whether this request has the managed worker's own key. A worker without one gets nothing."""
    return worker.key_digest is not None and hmac.compare_digest(caller(), worker.key_digest)
