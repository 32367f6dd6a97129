"""What a front should have, made from endpoints, workers, keys and health checks; and what it reports about workers. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from ownpod.errors import EndpointPaused
from ownpod.rules.balancing import (
    FrontState,
    Route,
    RouteReading,
    Server,
    ServerReading,
)
from ownpod.rules.credentials import Credential
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front, home_of, is_limited
from ownpod.rules.managed import ManagedWorker, Phase, is_resumable
from ownpod.rules.probing import UNASKED, Target, Verdict, target_of

FRONT = "front-"
"""Prefix of the name of a server that is another front."""


@dataclass(frozen=True)
class View:
    """What a front knows from the configuration and from Redis.

    Attributes:
        endpoints: the load-balanced endpoints, by id.
        queues: ids of the other endpoints.
        keys: see :class:`ownpod.rules.balancing.FrontState`.
        paused: why a worker gets no more requests, by its id.
        paused_endpoints: why an endpoint takes no requests, by its id.
        fronts: the fronts that live.
        elsewhere: requests that are open at a worker through other fronts which send them there themselves.
        claimed: endpoints that another front, which is not their home, still sends to their workers itself.
        lost: see :class:`ownpod.rules.balancing.FrontState`.
        is_complete: Redis has been read at least once.
    """

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    queues: frozenset[str] = frozenset()
    keys: Mapping[str, Collection[str]] | None = field(default_factory=dict, repr=False)
    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()
    secret: str = field(default="", repr=False)
    paused: Mapping[str, str] = field(default_factory=dict)
    paused_endpoints: Mapping[str, str] = field(default_factory=dict)
    fronts: tuple[Front, ...] = ()
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    claimed: frozenset[str] = frozenset()
    lost: Mapping[str, Collection[str]] = field(default_factory=dict)
    is_complete: bool = True


def keys_of(
    endpoints: Iterable[Endpoint], keys: Iterable[Credential], *, needed: bool
) -> Mapping[str, Collection[str]] | None:
    """The digests that open endpoints, as :class:`ownpod.rules.balancing.FrontState` has them.

    Args:
        endpoints: all endpoints.
        keys: those that open all endpoints.
        needed: whether calls need a key, because there is one anywhere.
    """
    if not needed:
        return None
    found = {"*": frozenset(key.digest for key in keys)}
    for endpoint in endpoints:
        if endpoint.is_balanced and endpoint.api_keys:
            found[endpoint.id] = frozenset(key.digest for key in endpoint.api_keys)
    return found


def pauses_of(endpoints: Iterable[Endpoint], now_ms: int) -> dict[str, str]:
    """Why endpoints take no requests at a moment, in ms since the epoch, in the words of a paused queue."""
    found = {endpoint.id: endpoint.pause_at(now_ms) for endpoint in endpoints}
    return {i: EndpointPaused(pause.detail).message for i, pause in found.items() if pause}


def server_of(worker: WorkerSpec, *, draining: bool = False) -> Server | None:
    """A worker as the front should have it; None: its URL cannot be used."""
    try:
        parts = urlsplit(worker.url)
        port = parts.port
    except ValueError:
        return None
    tls = parts.scheme == "https"
    if not parts.hostname:
        return None
    port = port or (443 if tls else 80)
    return Server(
        id=worker.id,
        host=parts.hostname,
        port=port,
        capacity=worker.capacity,
        draining=draining,
        tls=tls,
        # A bundle has precedence, as for the workers of queues.
        verifies=worker.verify_tls or worker.ca_bundle is not None,
        ca_bundle=worker.ca_bundle,
        health_port=None if worker.health_port == port else worker.health_port,
    )


def drains(worker: WorkerSpec, paused: Mapping[str, str]) -> bool:
    """Whether a worker gets no more requests."""
    return worker.draining or worker.stopping or worker.id in paused


def lost_of(
    endpoint: Endpoint,
    wishes: Iterable[str],
    records: Mapping[str, ManagedWorker],
    release: str | None,
) -> frozenset[str]:
    """Those of the wished workers that cannot come back, for which RunPod answers ``affinity_worker_gone``.

    Args:
        endpoint: the endpoint.
        wishes: ids of workers for which requests with ``strict-resume`` wait.
        records: the records of those that OwnPod once started, by id.
        release: the endpoint's release; None: not known, so a worker of any release may come back.
    """
    there = {worker.id for worker in endpoint.workers}

    def may_come(worker_id: str) -> bool:
        record = records.get(worker_id)
        if worker_id in there or record is None:
            return worker_id in there
        if record.phase is not Phase.STOPPED:
            return record.endpoint == endpoint.id
        return is_resumable(record, endpoint.id, record.release if release is None else release)

    return frozenset(worker_id for worker_id in wishes if not may_come(worker_id))


def targets(view: View, me: Front) -> dict[str, Target]:
    """The health checks of all workers to which this front sends requests itself, by worker id."""
    found = {}
    for endpoint in view.endpoints.values():
        if endpoint.balancing is None or home_of(endpoint, me, view.fronts).id != me.id:
            continue
        for worker in endpoint.workers:
            server = server_of(worker)
            # The limit and the drain are no part of the check, so that their change does not begin it again.
            if server is not None:
                found[worker.id] = target_of(
                    replace(server, capacity=0), endpoint.balancing, managed=worker.is_managed
                )
    return found


def state_of(view: View, me: Front, verdicts: Mapping[str, Verdict]) -> FrontState:
    """All that the front should have.

    Args:
        view: endpoints, keys and fronts.
        me: this front.
        verdicts: of the workers' health checks, by worker id.
    """
    routes = {}
    for endpoint in view.endpoints.values():
        if endpoint.balancing is not None:
            servers = tuple(_servers(endpoint, view, me, verdicts))
            paused = view.paused_endpoints.get(endpoint.id, "")
            routes[endpoint.id] = Route(
                endpoint.id, endpoint.balancing, servers, paused, is_limited(endpoint)
            )
    return FrontState(
        routes=routes,
        queues=view.queues,
        keys=view.keys,
        hosts=view.hosts,
        origins=view.origins,
        secret=view.secret or None,
        lost=view.lost,
    )


def _servers(
    endpoint: Endpoint,
    view: View,
    me: Front,
    verdicts: Mapping[str, Verdict],
) -> Iterable[Server]:
    home = home_of(endpoint, me, view.fronts)
    if home.id != me.id:
        if other := _passed_to(home):
            yield other
        return
    if endpoint.id in view.claimed:
        # The home before this one has not passed the endpoint on yet: its requests wait for a moment.
        return
    for worker in endpoint.workers:
        server = server_of(worker, draining=drains(worker, view.paused))
        # A worker that is stopped has no request, and a strict one must not reach what does not listen any more.
        if server is None or worker.stopping or not verdicts.get(worker.id, UNASKED).ready:
            continue
        open_elsewhere = view.elsewhere.get(worker.id, 0)
        if server.capacity and open_elsewhere:
            left = server.capacity - open_elsewhere
            server = replace(server, capacity=max(1, left), draining=server.draining or left < 1)
        yield server


def _passed_to(home: Front) -> Server | None:
    place = home.place
    return None if place is None else Server(f"{FRONT}{home.id}", *place, is_front=True)


def reported(
    readings: Mapping[str, RouteReading], state: FrontState, view: View
) -> dict[str, RouteReading]:
    """What this front reports to the others: each worker of each endpoint, with whether it drains, and without other fronts,
    because the endpoint's home counts the requests that are passed on.

    A worker that HAProxy does not have is reported, too: HAProxy may get it at any moment, unless it drains. After the home has
    moved, a worker is drained once no request waits here, because what waits there is still sent to it.

    Args:
        readings: of HAProxy, by the endpoint's id.
        state: what HAProxy had when it was read.
        view: what this state was made from.
    """
    found = {}
    for name, route in state.routes.items():
        reading = readings.get(name, RouteReading())
        wanted = {server.id: server for server in route.servers}
        passed = {
            i
            for i in reading.servers
            if i.startswith(FRONT) and (i not in wanted or wanted[i].is_front)
        }
        passes = any(server.is_front for server in route.servers)
        here = {i: r for i, r in reading.servers.items() if i not in passed}
        ended = not passes or reading.requests <= sum(r.open for r in here.values())
        endpoint = view.endpoints.get(name)
        drained = {w.id: drains(w, view.paused) for w in (endpoint.workers if endpoint else ())}
        servers = {
            i: replace(r, draining=ended if passes else drained.get(i, True))
            for i, r in here.items()
        }
        for worker_id, is_drained in drained.items():
            absent = ServerReading(up=False, draining=passes or is_drained)
            servers.setdefault(worker_id, absent)
        found[name] = replace(reading, servers=servers, passes=passes)
    return found


def summed(readings: Iterable[Mapping[str, RouteReading]]) -> dict[str, RouteReading]:
    """The sum over several fronts, by endpoint id."""
    found = dict[str, RouteReading]()
    for one in readings:
        for name, reading in one.items():
            found[name] = _sum(found[name], reading) if name in found else reading
    return found


def completed(readings: Mapping[str, RouteReading], view: View) -> dict[str, RouteReading]:
    """Readings with each worker of a newer view. HAProxy may have got it since, before it was read again."""
    found = {}
    for name, reading in readings.items():
        endpoint = view.endpoints.get(name)
        absent = ServerReading(up=False, draining=reading.passes)
        added = {w.id: absent for w in (endpoint.workers if endpoint else ())}
        found[name] = replace(reading, servers={**added, **reading.servers})
    return found


_UNKNOWN = ServerReading(up=False, draining=True)
"""A worker that a front has not reported. It knows it only with its drain, if at all, see :func:`completed`."""


def _sum(a: RouteReading, b: RouteReading) -> RouteReading:
    servers = {
        name: _sum_of_server(a.servers.get(name, _UNKNOWN), b.servers.get(name, _UNKNOWN))
        for name in {**a.servers, **b.servers}
    }
    return RouteReading(
        requests=a.requests + b.requests,
        servers=servers,
        wishes=tuple(sorted({*a.wishes, *b.wishes})),
        total=a.total + b.total,
        passes=a.passes and b.passes,
        problem=a.problem or b.problem,
    )


def _sum_of_server(a: ServerReading, b: ServerReading) -> ServerReading:
    return ServerReading(
        open=a.open + b.open,
        waiting=a.waiting + b.waiting,
        total=a.total + b.total,
        up=a.up or b.up,
        problem=a.problem or b.problem,
        draining=a.draining and b.draining,
    )


def status_of(
    worker: WorkerSpec,
    *,
    paused: Mapping[str, str],
    verdict: Verdict,
    reading: ServerReading,
    was_used: bool,
) -> WorkerStatus:
    """The state of a worker that the front publishes. Its open requests are ``lingering``, so that the worker counts as busy.

    Args:
        worker: the worker.
        paused: why workers get no more requests.
        verdict: of its health check.
        reading: the sum over all fronts; not draining while one of them has not read its HAProxy yet.
        was_used: it got a request within the last moments, which may have ended.
    """
    if drains(worker, paused):
        # A front that does not drain it yet may send one more request.
        used = max(reading.open, 0 if reading.draining else 1)
        reason = paused.get(worker.id) or "it is drained"
        return WorkerStatus(WorkerState.PAUSED, reason, used)
    used = max(reading.open, int(was_used))
    if verdict.ready:
        return WorkerStatus(WorkerState.READY, "", used)
    if worker.is_managed and not verdict.lost:
        return WorkerStatus(WorkerState.INITIALIZING, verdict.reason, used)
    state = WorkerState.INITIALIZING if verdict.starting else WorkerState.UNHEALTHY
    return WorkerStatus(state, verdict.reason, used)


KEPT_TOTALS = 10_000
"""Most totals of workers that are not there that :class:`Totals` keeps."""


class Totals:
    """Totals that go on when HAProxy restarts, whose own begin with 0 again."""

    def __init__(self) -> None:
        self._last = dict[tuple[str, str], int]()
        self._base = dict[tuple[str, str], int]()

    def grow(self, readings: Mapping[str, RouteReading]) -> dict[str, RouteReading]:
        """The readings with totals that never fall."""
        found = {
            name: replace(
                reading,
                total=self._one((name, ""), reading.total),
                servers={
                    i: replace(server, total=self._one((name, i), server.total))
                    for i, server in reading.servers.items()
                },
            )
            for name, reading in readings.items()
        }
        for key in [key for key in self._last if key[0] not in found]:
            self._drop(key)
        # A worker that is not ready for a while comes back with its total. But each new worker has an id of its own, so
        # those of years would add up.
        away = [key for key in self._last if key[1] and key[1] not in found[key[0]].servers]
        for key in away[: max(0, len(away) - KEPT_TOTALS)]:
            self._drop(key)
        return found

    def _drop(self, key: tuple[str, str]) -> None:
        del self._last[key]
        self._base.pop(key, None)

    def _one(self, key: tuple[str, str], total: int) -> int:
        last = self._last.get(key, 0)
        if total < last:
            self._base[key] = self._base.get(key, 0) + last
        self._last[key] = total
        return total + self._base.get(key, 0)
