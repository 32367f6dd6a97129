"""Load-balanced endpoints (RunPod's type LB): clients' requests go through the front straight to a worker. Pure.

The defaults are RunPod's. The front is HAProxy: these values are what it should have, and what was read from it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

DEFAULT_PORT = 80
"""RunPod's default of ``PORT``, on which a worker serves."""

DEFAULT_HEALTH_PATH = "/ping"
"""RunPod's default of ``HEALTH_CHECK_PATH``."""

DEFAULT_HOLD_S = 120
"""Seconds for which RunPod holds a request until a worker is ready."""

STRICT_HOLD_S = 300
"""Seconds for which RunPod holds a request that names its worker (``strict``)."""

DEFAULT_LIMIT_S = 330
"""Seconds after which RunPod ends a request that its worker still processes."""

DEFAULT_BODY_MB = 30
"""MiB of the largest request that RunPod accepts."""

DEFAULT_INIT_TIMEOUT_S = 480
"""RunPod's 8 minutes from the start of a worker to its first healthy answer."""

DEFAULT_REQUEST_COUNT = 4
"""RunPod's default of ``scalerValue``: requests for each worker."""


@dataclass(frozen=True)
class Balancing:
    """What makes an endpoint a load-balanced one.

    Attributes:
        port: the port on which a worker that OwnPod starts serves, its variable ``PORT``.
        health_port: the port of its health check, ``PORT_HEALTH``; None: ``port``.
        health_path: the path of its health check, ``HEALTH_CHECK_PATH``.
        capacity: requests that one worker gets at a time; 0: any number. Further ones wait in the front.
        hold_s: longest wait in seconds of a request for a worker.
        limit_s: longest time in seconds of one request at its worker, streams and WebSockets excepted; 0: none.
        body_mb: MiB of the largest body of a request.
        passes_authorization: whether workers get the header ``Authorization`` of the client. RunPod's do not.
    """

    port: int = DEFAULT_PORT
    health_port: int | None = None
    health_path: str = DEFAULT_HEALTH_PATH
    capacity: int = 0
    hold_s: int = DEFAULT_HOLD_S
    limit_s: int = DEFAULT_LIMIT_S
    body_mb: int = DEFAULT_BODY_MB
    passes_authorization: bool = False


@dataclass(frozen=True)
class Server:
    """A worker as the front should have it. It gets requests only once its health check was answered with 200.

    Attributes:
        id: the worker's id, which the response has as ``X-Runpod-Worker-Id``.
        host: a name or an address; an IPv6 address without brackets.
        capacity: requests at a time; 0: any number.
        draining: it gets no more requests, and finishes those that are open.
        tls: it serves HTTPS.
        verifies: its certificate is verified, with the CAs of ``ca_bundle``, or of the host if that is None.
        health_port: None: ``port``.
        is_front: it is another front, which is the home of the endpoint.
    """

    id: str
    host: str
    port: int
    capacity: int = 0
    draining: bool = False
    tls: bool = False
    verifies: bool = True
    ca_bundle: str | None = None
    health_port: int | None = None
    is_front: bool = False


@dataclass(frozen=True)
class Route:
    """A load-balanced endpoint as the front should have it, with those of its workers that were healthy."""

    endpoint: str
    balancing: Balancing = Balancing()
    servers: tuple[Server, ...] = ()
    paused: str = ""
    """Why it takes no requests now, in words: each is answered at once. "": it takes them."""
    is_limited: bool = False
    """Whether a worker of it gets a limited number of requests at a time, so that further ones wait for a place."""


@dataclass(frozen=True)
class FrontState:
    """All that the front should have.

    Attributes:
        routes: the load-balanced endpoints, by id.
        queues: ids of the other endpoints, whose addresses are answered "not allowed for QB API".
        keys: digests (64 hexadecimal digits) that open an endpoint, by its id; "*": that open all. None: no key is needed.
        hosts: host names under which the front answers while no key is needed, besides those of this machine.
        origins: origins whose pages may call it then.
        secret: what fronts send to each other instead of a key; None: there is no other front.
        lost: ids of workers that requests with ``strict-resume`` wait for and that cannot come back, by the endpoint's id.
    """

    routes: Mapping[str, Route] = field(default_factory=dict)
    queues: Collection[str] = frozenset()
    keys: Mapping[str, Collection[str]] | None = field(default=None, repr=False)
    hosts: Collection[str] = frozenset()
    origins: Collection[str] = frozenset()
    secret: str | None = field(repr=False, default=None)
    lost: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerReading:
    """A worker as the front last had it.

    Attributes:
        open: requests, streams and WebSockets that are open.
        waiting: requests that wait for this very worker.
        total: requests that it has got since the front's start.
        up: the front sends it requests.
        problem: what the front's last check found; "" if that was well.
        draining: the front gave it no more requests when it was read.
    """

    open: int = 0
    waiting: int = 0
    total: int = 0
    up: bool = True
    problem: str = ""
    draining: bool = False


@dataclass(frozen=True)
class RouteReading:
    """A load-balanced endpoint as the front last had it.

    Attributes:
        requests: requests, streams and WebSockets that wait or are open; those that are held for a worker included.
        servers: its workers, by id.
        wishes: ids of workers that are not there, for which a request with ``strict-resume`` waits.
        total: requests since the front's start.
        passes: the front passes the requests on to another one, which is the endpoint's home.
        problem: why the front serves none of its requests; "": it does.
    """

    requests: int = 0
    servers: Mapping[str, ServerReading] = field(default_factory=dict)
    wishes: tuple[str, ...] = ()
    total: int = 0
    passes: bool = False
    problem: str = ""

    @property
    def running(self) -> int:
        """Requests, streams and WebSockets that are open at a worker."""
        return sum(server.open for server in self.servers.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker, or for a place at one."""
        return max(0, self.requests - self.running)
