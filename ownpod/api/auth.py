"""Who may call: API keys, for all endpoints or for one."""

import hashlib
import hmac

from flask import request

from ownpod.api.services import services
from ownpod.errors import Forbidden, Unauthorized

LIST = "/v2/"
"""Answers any key, with what that is for."""

PROTECTED = ("/v2/", "/metrics")
"""Beginnings of paths that need a key."""


def presented_key() -> str:
    """The key of this request: RunPod's clients send ``Bearer <key>`` or the bare key."""
    header = request.headers.get("Authorization", "").strip()
    scheme, _, rest = header.partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else header


def caller() -> str:
    """Who calls, without telling the key: its digest; "" for nobody in particular."""
    key = presented_key()
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


def opened_endpoints() -> list[str]:
    """The endpoints that this request's key is for."""
    here, key = services(), presented_key()
    known = here.registry.endpoints.values()
    if not here.keys_needed or _is_one_of(key, here.settings.api_keys):
        return sorted(endpoint.id for endpoint in known)
    return sorted(endpoint.id for endpoint in known if _is_one_of(key, endpoint.api_keys))


def check_key() -> None:
    """Before each request, where keys are needed.

    Raises:
        Unauthorized: it has no key, or one that nobody knows.
        Forbidden: its key is for other endpoints.
    """
    if not request.path.startswith(PROTECTED) or request.method == "OPTIONS":
        return
    if request.blueprint == "pull":
        # Workers have keys of their own, see check_worker_key.
        return
    here = services()
    asked = (request.view_args or {}).get("endpoint_id")
    key = presented_key()
    if _is_one_of(key, here.settings.api_keys):
        return
    of_endpoints = opened_endpoints()
    if not of_endpoints:
        raise Unauthorized
    if asked not in of_endpoints and request.path != LIST:
        raise Forbidden


def check_worker_key() -> None:
    """Of a worker that pulls; it sends the bare key. Where API keys are needed, this is, too.

    Raises:
        Unauthorized: it has none of ``OWNPOD_WORKER_KEYS``.
    """
    here = services()
    keys = here.settings.worker_keys
    if (keys or here.keys_needed) and not _is_one_of(presented_key(), keys):
        raise Unauthorized(
            "a worker needs one of OWNPOD_WORKER_KEYS as its RUNPOD_AI_API_KEY; "
            "see `ownpod worker-env`"
        )


def _is_one_of(key: str, keys: tuple[str, ...]) -> bool:
    """Looks at all of them, each in constant time."""
    given = key.encode()
    return sum(hmac.compare_digest(given, known.encode()) for known in keys) > 0
