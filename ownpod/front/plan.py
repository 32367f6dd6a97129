"""What HAProxy should have for a state of the front: entries of maps, and the commands for servers. Pure."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ownpod.front.layout import (
    ALIVE_PATH,
    ANY_KEY,
    FRONT_KEY,
    UNLIMITED_MS,
    Maps,
    is_address,
)
from ownpod.front.runtime import number, word
from ownpod.rules.balancing import FrontState, Route, Server
from ownpod.rules.credentials import digest_of
from ownpod.rules.homes import joined

MIB = 1024 * 1024

CHECK = "check inter 2s fastinter 500ms downinter 1s fall 3 rise 1 observe layer4 error-limit 3 on-error mark-down"
"""HAProxy's own checks, which begin when OwnPod's first probe has succeeded."""

POOL = "pool-purge-delay 1s"
"""Idle connections to a worker are closed within 2 s, before its server closes them (uvicorn: after 5 s): a request on
a connection that closes at that moment would fail."""

ANY = 1_000_000
"""The limit of a server that has none any more: with 0, requests that already wait would wait on."""

PAUSED_LENGTH = 500
"""Characters of a reason that clients get."""

MAINT, DRAIN = 0x01 | 0x02 | 0x04 | 0x20, 0x08 | 0x10
"""Bits of ``srv_admin_state``: the server gets no requests; it gets pinned requests only."""

_PATTERN_SIGNS = frozenset("*\\]?$^[]()")
"""Characters that make an origin a regular expression, as in ``rules/origins.py``."""

_SAFE = re.compile(r"[A-Za-z0-9_.:-]{1,255}")

KEEPER = Server(":keeper", "127.0.0.1", 9, capacity=1)
"""A server of each endpoint with a limit: it is always up and always full, so that requests go on waiting for a place
when the last worker has left. HAProxy answers them 503 at once where no server is up. It gets no request."""

PASSED = "@"
"""Suffix of an endpoint's id, which has no such character, for the backend through which it is passed on to its home."""


@dataclass(frozen=True)
class ActualServer:
    """A server that HAProxy has.

    Attributes:
        address, port: where it sends requests.
        admin: bits of its administrative state.
        capacity: its limit of requests at a time; 0: none.
        traits: what :func:`traits` returned when it was added.
    """

    backend: str
    name: str
    address: str
    port: int
    admin: int
    capacity: int
    traits: str

    @property
    def path(self) -> str:
        """Its name in commands."""
        return f"{self.backend}/{self.name}"


def is_remote(route: Route) -> bool:
    """Whether an endpoint's home is another front."""
    return any(server.is_front for server in route.servers)


def keeps(route: Route) -> bool:
    """Whether requests of an endpoint may wait in HAProxy's own queue, so that it needs :data:`KEEPER`."""
    return route.is_limited and not is_remote(route)


def owner_of(route: Route) -> str:
    """What a backend of the pool belongs to: an endpoint, or an endpoint as it is passed on.

    These have different backends, because a request that waits or is repeated is sent to any server of its backend: it must
    reach neither another front without the front's headers, nor a worker with them.
    """
    return f"{route.endpoint}{PASSED}" if is_remote(route) else route.endpoint


def endpoint_of(owner: str) -> str:
    """The endpoint of :func:`owner_of`."""
    return owner.removesuffix(PASSED)


def assign(
    routes: Mapping[str, Route], owners: Mapping[str, str], holds: Mapping[str, int]
) -> tuple[dict[str, str], list[str]]:
    """The backend of each endpoint, and the endpoints for which none is left.

    An endpoint keeps its backend. A new one gets a free backend whose time limit of the queue is its own, otherwise the
    next longer one, otherwise the longest that is left.

    ``holds`` has the seconds of the queue's time limit by backend, ``owners`` what :func:`owner_of` returned by backend, of all
    backends that are in use or not yet empty.
    """
    wanted = {owner_of(route): endpoint for endpoint, route in routes.items()}
    chosen = {wanted[owner]: backend for backend, owner in owners.items() if owner in wanted}
    free = [backend for backend in holds if backend not in owners]
    left_out = []
    for endpoint in sorted(routes):
        if endpoint in chosen:
            continue
        if not free:
            left_out.append(endpoint)
            continue
        hold_s = routes[endpoint].balancing.hold_s
        best = min(
            free, key=lambda backend: (holds[backend] < hold_s, abs(holds[backend] - hold_s))
        )
        free.remove(best)
        chosen[endpoint] = best
    return chosen, left_out


def maps_of(
    state: FrontState, chosen: Mapping[str, str], emptying: Mapping[str, str], domain: str
) -> dict[Maps, dict[str, str]]:
    """The entries of all maps but those of servers and of clients.

    ``chosen`` has the backend by endpoint; ``emptying`` the owner by backend, of backends that are not yet empty.
    """
    maps: dict[Maps, dict[str, str]] = {
        name: {} for name in Maps if name not in {Maps.SERVERS, Maps.GONE}
    }
    # The backend that an endpoint has left passes on what it still has as before.
    maps[Maps.REMOTE] = {b: "1" for b, owner in emptying.items() if owner.endswith(PASSED)}
    for endpoint in sorted(state.queues):
        maps[Maps.QUEUES][endpoint] = "1"
        maps[Maps.NAMES].setdefault(f"{endpoint}.{domain}".lower(), endpoint)
    for endpoint in sorted(state.routes.keys() - chosen.keys()):
        maps[Maps.LEFT_OUT][endpoint] = "1"
        maps[Maps.NAMES].setdefault(f"{endpoint}.{domain}".lower(), endpoint)
    maps[Maps.OWNERS] = dict(emptying)
    for endpoint, backend in sorted(chosen.items()):
        route = state.routes[endpoint]
        limits = route.balancing
        maps[Maps.ROUTES][endpoint] = backend
        maps[Maps.NAMES][f"{endpoint}.{domain}".lower()] = endpoint
        maps[Maps.OWNERS][backend] = owner_of(route)
        maps[Maps.HOLDS][endpoint] = str(limits.hold_s)
        maps[Maps.LIMITS][endpoint] = str(limits.limit_s * 1000 or UNLIMITED_MS)
        maps[Maps.BODIES][endpoint] = str(limits.body_mb * MIB)
        maps[Maps.HEALTH][backend] = ALIVE_PATH if is_remote(route) else limits.health_path
        if limits.passes_authorization:
            maps[Maps.PASSING][endpoint] = "1"
        if route.paused:
            maps[Maps.PAUSED][endpoint] = json.dumps(route.paused)[1:-1][:PAUSED_LENGTH]
        if is_remote(route):
            maps[Maps.REMOTE][backend] = "1"
        if keeps(route):
            maps[Maps.QUEUEING][backend] = "1"
    for endpoint, workers in state.lost.items():
        # What a client sends is no command: only the characters of names are wished, see the rule of `txn.wish`.
        maps[Maps.LOST] |= {f"{endpoint}|{worker}": "1" for worker in workers if is_name(worker)}
    _access(state, maps)
    return maps


def _access(state: FrontState, maps: dict[Maps, dict[str, str]]) -> None:
    maps[Maps.SWITCHES]["keys"] = "open" if state.keys is None else "needed"
    for endpoint, digests in (state.keys or {}).items():
        owner = ANY_KEY if endpoint == "*" else endpoint
        for digest in digests:
            maps[Maps.KEYS][f"{owner}|{digest.upper()}"] = "1"
    if state.secret:
        maps[Maps.SWITCHES]["secret"] = state.secret
        maps[Maps.KEYS][f"{FRONT_KEY}|{digest_of(state.secret).upper()}"] = "1"
    maps[Maps.HOSTS] = {host.lower(): "1" for host in state.hosts if _is_word(host)}
    for origin in state.origins:
        if not _is_word(origin):
            continue
        is_pattern = origin != "*" and not _PATTERN_SIGNS.isdisjoint(origin)
        if is_pattern:
            maps[Maps.PATTERNS][f"(?i)^(?:{origin})$"] = "1"
        else:
            maps[Maps.ORIGINS][origin.lower()] = "1"


def _is_word(text: str) -> bool:
    return bool(text) and re.search(r"\s|[\x00-\x1f]", text) is None


def is_name(text: str) -> bool:
    """Whether HAProxy accepts this as the name of a server."""
    return _SAFE.fullmatch(text) is not None and text != KEEPER.id


def traits(server: Server) -> str:
    """What HAProxy can change of a server only by removing it."""
    return f"{int(server.tls)}{int(server.verifies)}|{server.ca_bundle or ''}|{server.health_port or ''}|{server.host if server.tls else ''}"


def adding(backend: str, server: Server, address: str, authorities: str) -> list[str]:
    """The commands that add a server, which gets requests at once.

    ``address`` is the IP address of its host, ``authorities`` a file with the CA certificates of this host.
    """
    path = f"{backend}/{word(server.id)}"
    if server.id == KEEPER.id:
        # It is full because HAProxy compares its requests with the sum of both limits, which is 0.
        return [
            f"add server {path} {joined(address, server.port)} backup maxconn 1 maxqueue -1",
            f"add map {Maps.SERVERS} {path} {word(traits(server))}",
            f"set server {path} state ready",
        ]
    words = [f"add server {path} {joined(address, server.port)}", CHECK, POOL]
    if server.health_port is not None:
        words.append(f"port {server.health_port}")
    if server.capacity:
        words.append(f"maxconn {server.capacity}")
    if server.tls:
        words += ["ssl", "check-ssl"]
        if not is_address(server.host):
            words += [f"sni str({word(server.host)})", f"check-sni {word(server.host)}"]
        if server.verifies:
            words.append(f"verify required ca-file {word(server.ca_bundle or authorities)}")
            words.append(f"verifyhost {word(server.host)}")
        else:
            words.append("verify none")
    state = "drain" if server.draining else "ready"
    return [
        " ".join(words),
        # A server of this name may have been removed while the edge was not running.
        f"del map {Maps.SERVERS} {path}",
        f"add map {Maps.SERVERS} {path} {word(traits(server))}",
        f"enable health {path}",
        f"set server {path} state {state}",
    ]


def changing(actual: ActualServer, server: Server, address: str) -> list[str]:
    """The commands that make a server what it should be; its open requests continue."""
    commands = []
    if (actual.address, actual.port) != (address, server.port):
        commands.append(f"set server {actual.path} addr {address} port {server.port}")
    if (actual.capacity % ANY) != server.capacity:
        commands.append(f"set maxconn server {actual.path} {server.capacity or ANY}")
    is_off, is_draining = bool(actual.admin & MAINT), bool(actual.admin & DRAIN)
    if is_off or is_draining != server.draining:
        state = "drain" if server.draining else "ready"
        commands.append(f"set server {actual.path} state {state}")
    return commands


def servers_of(
    states: list[dict[str, str]], stats: list[dict[str, str]], known: Mapping[str, str]
) -> dict[tuple[str, str], ActualServer]:
    """The servers that HAProxy has in the pool, by backend and name.

    Args:
        states: rows of ``show servers state``.
        stats: rows of ``show stat``, of servers.
        known: the map of servers.
    """
    limits = {(row.get("pxname"), row.get("svname")): number(row, "slim") for row in stats}
    found = {}
    for row in states:
        backend, name = row.get("be_name", ""), row.get("srv_name", "")
        if not is_pooled(backend) or not name:
            continue
        found[backend, name] = ActualServer(
            backend,
            name,
            row.get("srv_addr", ""),
            number(row, "srv_port"),
            number(row, "srv_admin_state"),
            limits.get((backend, name), 0),
            known.get(f"{backend}/{name}", ""),
        )
    return found


def is_pooled(backend: str) -> bool:
    """Whether a backend is one of the pool."""
    return re.fullmatch(r"p[0-9]{3,}", backend) is not None


def unused(
    owners: Mapping[str, str],
    routes: Collection[str],
    occupied: Collection[str],
    counts: Mapping[str, Mapping[str, int]],
) -> tuple[set[str], dict[str, str]]:
    """Backends that can be given to another endpoint, and those (with their last endpoint) that are not yet empty.

    A request of the last endpoint that is still held or queued would otherwise reach the next endpoint's workers.

    Args:
        owners: what :func:`owner_of` returned, by backend.
        routes: the same of the endpoints that exist.
        occupied: backends that have servers.
        counts: the table of open requests, by endpoint.
    """
    free, emptying = set(), {}
    for backend, owner in owners.items():
        if owner in routes:
            continue
        if backend in occupied or counts.get(endpoint_of(owner), {}).get("conn_cur", 0):
            emptying[backend] = owner
        else:
            free.add(backend)
    return free, emptying
