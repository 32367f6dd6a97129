"""The addresses of load-balanced endpoints. Pure."""

import ipaddress
import json
import re
from urllib.parse import urlsplit

from ownpod.rules.balancing import DEFAULT_HEALTH_PATH
from ownpod.rules.catalog import EndpointRow

HEALTH_PATH = "HEALTH_CHECK_PATH"
"""RunPod's variable of a worker with the path of its health check."""

LOCAL = "localhost"
"""A domain of this machine. Many programs do not resolve the names below it."""

_LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""An id that can be the first label of a host name."""


def base_url(endpoint_id: str, root: str, domain: str) -> str:
    """The URL of a load-balanced endpoint, without a slash at its end.

    The host form ``<id>.<domain>``, as RunPod's, where its name can be resolved: the domain is not ``localhost``, or the
    caller's own name is below it. Otherwise the path form, which works under every name.

    Args:
        endpoint_id: the endpoint.
        root: OwnPod's URL as the caller reaches it, without a slash at its end.
        domain: ``OWNPOD_LB_DOMAIN``.
    """
    parts = urlsplit(root)
    domain = domain.lower().rstrip(".")
    host = (parts.hostname or "").rstrip(".")
    resolves = domain != LOCAL or host.endswith(f".{LOCAL}")
    if not resolves or _is_address(domain) or not _LABEL.fullmatch(endpoint_id):
        return f"{root}/lb/{endpoint_id}"
    port = parts.netloc.removeprefix(f"{parts.username}@").rpartition("]")[2].partition(":")[2]
    return f"{parts.scheme}://{endpoint_id}.{domain}{':' if port else ''}{port}"


def _is_address(domain: str) -> bool:
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        return False
    return True


def health_path(row: EndpointRow) -> str:
    """The path of the health check of the endpoint's workers: its own key, its variable, or RunPod's default."""
    own = row.own.get("healthPath")
    return (json.loads(own) if own else row.container.env.get(HEALTH_PATH)) or DEFAULT_HEALTH_PATH
