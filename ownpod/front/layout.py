"""What HAProxy's configuration depends on, and the names in it. Pure."""

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum

SOCKET = "haproxy.sock"
"""The runtime socket, mode 0600, in the directory."""

FILE = "haproxy.cfg"
LUA = "place.lua"

ALIVE_PATH = "/.ownpod/front"
"""A path that the front itself answers with 200 while it runs; other fronts probe it."""

FRONT_HEADER, ENDPOINT_HEADER, OPENAI_HEADER = (
    "x-ownpod-front",
    "x-ownpod-endpoint",
    "x-ownpod-openai",
)
"""Headers from front to front: the shared secret, the endpoint's id, and whether its client knows OpenAI's errors."""

FRONT_KEY, ANY_KEY = "<front>", "*"
"""What is in front of a digest in the map of keys instead of an endpoint's id, which has no such characters."""

BUFFER_BYTES, REWRITE_BYTES, HEADERS = 81_920, 8_192, 256
"""The largest header that passes is the difference, above the 64 KiB that the API accepts; and the number of its lines."""

HOT_BYTES = 4 * 1024 * 1024
"""Bytes of free memory that each of HAProxy's threads keeps for itself: some 50 buffers. Its default has room for six, so that
threads exchange buffers for each request, which costs a sixth of HAProxy's CPU."""

UNLIMITED_MS = 1_728_000_000
"""20 days, for requests without a processing limit. HAProxy's largest time is 24 days."""

API_WAIT_S = 60
"""Seconds for which a request waits for an API that is not reachable."""

HOLD_CLASSES_S = (120, 10, 30, 60, 300, 600, 1800, 3600)
"""HAProxy 2.8 has one time limit of the queue for each backend, so the backends of the pool differ in it."""


class Maps(StrEnum):
    """The maps, by the names of their files. Keys are endpoints' ids unless another key is named."""

    ROUTES = "maps/routes.map"
    """The backend of a load-balanced endpoint."""
    NAMES = "maps/names.map"
    """The id of any endpoint by its host name, in lower case."""
    QUEUES = "maps/queues.map"
    """The endpoints that are not load-balanced."""
    HOLDS = "maps/holds.map"
    """Seconds for which a request is held."""
    LIMITS = "maps/limits.map"
    """Milliseconds of the processing limit."""
    BODIES = "maps/bodies.map"
    """Bytes of the largest body."""
    PASSING = "maps/passing.map"
    """The endpoints whose workers get ``Authorization``."""
    REMOTE = "maps/remote.map"
    """The backends through which endpoints are passed on to other fronts."""
    HEALTH = "maps/health.map"
    """The path of the health check, by backend."""
    OWNERS = "maps/owners.map"
    """What last had a backend (``plan.owner_of``), by backend: kept until nothing of that is left in it."""
    SERVERS = "maps/servers.map"
    """What cannot be read back of a server, by ``<backend>/<server>``."""
    KEYS = "maps/keys.map"
    """``<endpoint>|<digest>``, ``*|<digest>`` and, for other fronts, ``<front>|<digest>``; digests in upper case."""
    SWITCHES = "maps/switches.map"
    """``keys``: "needed" or "open"; ``secret``: what this front sends to other fronts."""
    HOSTS = "maps/hosts.map"
    """Host names of this installation, in lower case."""
    ORIGINS = "maps/origins.map"
    """Origins whose pages may call while no key is needed, in lower case."""
    GONE = "maps/gone.map"
    """Clients (``<address>:<port>``) that have closed their connection, see ``front/clients.py``."""
    LEFT_OUT = "maps/left-out.map"
    """The load-balanced endpoints for which no backend is left."""
    LOST = "maps/lost.map"
    """``<endpoint>|<worker>``: the worker cannot come back, see ``FrontState.lost``."""
    QUEUEING = "maps/queueing.map"
    """The backends that have the server ``plan.KEEPER``."""
    PAUSED = "maps/paused.map"
    """Why an endpoint takes no requests now, as the inside of a JSON string."""
    PATTERNS = "maps/patterns.map"
    """Regular expressions of such origins."""


@dataclass(frozen=True)
class Layout:
    """What the configuration depends on. A change of it needs another HAProxy.

    Attributes:
        binds: addresses and ports on which the front listens.
        api: address and port of the API's own server.
        domain: an endpoint's host name is ``<endpoint>.<domain>``.
        timeout_status: status of "timed out waiting for worker"; RunPod's is 400.
        certificate: PEM file with certificate, chain and key; None: no TLS.
        tls_port: port of HTTPS, on the addresses of ``binds``.
        pool: number of backends, which is the largest number of load-balanced endpoints.
        trusted_proxies: proxies before the front whose ``X-Forwarded-*`` are kept.
        max_connections: connections of clients at a time; each needs two file descriptors.
        metrics: address and port of HAProxy's own metrics for Prometheus (``/metrics``); None: none. They need no
            key, so the address should be loopback.
        version: HAProxy's, major and minor.
        holds: seconds of the time limits of queues; half of the pool has the first.
    """

    binds: tuple[tuple[str, int], ...]
    api: tuple[str, int]
    domain: str = "localhost"
    timeout_status: int = 400
    certificate: str | None = None
    tls_port: int | None = None
    pool: int = 128
    trusted_proxies: int = 0
    max_connections: int = 8_000
    metrics: tuple[str, int] | None = None
    version: tuple[int, int] = (2, 8)
    holds: tuple[int, ...] = HOLD_CLASSES_S


def backends(pool: int, holds: tuple[int, ...] = HOLD_CLASSES_S) -> dict[str, int]:
    """The seconds of the queue's time limit by the name of the backend. Half of the pool has the first time limit."""
    classes = [holds[0]] * (pool - pool // 2)
    classes += [holds[number % len(holds)] for number in range(pool // 2)]
    return {f"p{number:03}": seconds for number, seconds in enumerate(classes)}


def full(pool: int) -> str:
    """Why an endpoint is not served where all ``pool`` backends belong to others."""
    return f"the front has room for {pool} load-balanced endpoints"


def digest(text: str) -> str:
    """Identifies a configuration: HAProxy reports it as its ``description``."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


JSON, PROBLEM = "application/json", "application/problem+json"


def problem(status: int, title: str, detail: str, **more: str) -> str:
    """A body in the shape of RunPod's edge."""
    body = {"status": status, "title": title, "detail": detail, **more}
    return json.dumps(body, separators=(",", ":"))


def api_error(message: str) -> str:
    """A body in the shape of OwnPod's API."""
    return json.dumps({"error": message}, separators=(",", ":"))


def refusal(
    status: int,
    body: str,
    condition: str,
    *,
    kind: str = PROBLEM,
    retry_s: int | None = None,
    form: str = "string",
) -> str:
    """A rule that answers a request."""
    retry = "" if retry_s is None else f" hdr Retry-After {retry_s}"
    return (
        f"  http-request return status {status} content-type {kind} {form} '{body}' hdr Cache-Control no-store{retry}"
        f" if {condition}"
    )


def is_address(host: str) -> bool:
    """Whether a host is an IP address."""
    return ":" in host or re.fullmatch(r"[0-9.]+", host) is not None


def error(status: int, body: str, retry_s: int | None = None, form: str = "string") -> str:
    """The response to an error of HAProxy's own."""
    retry = "" if retry_s is None else f" hdr Retry-After {retry_s}"
    return f"  http-error status {status} content-type {PROBLEM} {form} '{body}' hdr Cache-Control no-store{retry}"


def quoted(text: str) -> str:
    """A path as one word of the configuration."""
    return "'" + text.replace("'", "'\\''") + "'"
