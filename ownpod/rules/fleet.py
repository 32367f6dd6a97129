"""The endpoints and their workers, merged from the configuration and from the entries in Redis. Pure.

An entry that cannot be used is left out with a reason, because one bad entry, of another version or another host,
must not end the processes that read it.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from marshmallow import ValidationError

from ownpod.rules.balancing import Balancing
from ownpod.rules.endpoints import (
    HOUSEKEEPING,
    Endpoint,
    WorkerKind,
    WorkerSource,
    WorkerSpec,
    pull_worker,
)
from ownpod.validation import NAME, check_http_url, first_problem


class WorkerState(StrEnum):
    """A worker's state, as its node last published it."""

    INITIALIZING = "initializing"
    """Its node has not reached the worker yet."""
    READY = "ready"
    BUSY = "busy"
    """The worker still runs a job that began before its node did, and takes no other."""
    PAUSED = "paused"
    """The worker was drained or paused: it takes no jobs, and finishes those that run."""
    STANDBY = "standby"
    """The cloud worker gets no jobs now: none needs it, or its hours or its budget do not allow it. Nothing is wrong with it."""
    UNHEALTHY = "unhealthy"
    """The worker does not answer, refuses jobs, or has no node."""


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker's node last published. ``lingering``: slots that jobs which have ended still take."""

    state: WorkerState
    reason: str = ""
    lingering: int = 0
    has_no_node: bool = False
    """Nothing is published of the worker: it has no node, or, if it gets no jobs, no front has checked it."""


MOST_PORTS = 65_535

LONGEST_REASON = 300
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class LeftOut:
    """A worker of run time that cannot be used."""

    id: str
    endpoint: str | None
    """Its endpoint, if that exists."""
    reason: str


@dataclass(frozen=True)
class LeftOutEndpoint:
    """An endpoint of run time that cannot be used."""

    id: str
    reason: str
    may_have_keys: bool = False
    """Whether the entry has API keys, or may have: calls need a key then, so that a broken entry opens nothing."""


@dataclass(frozen=True)
class Entries:
    """The entries in Redis: JSON texts by id, as they were found."""

    endpoints: Mapping[str, str] = field(default_factory=dict)
    """Endpoints that were added at run time."""
    added: Mapping[str, str] = field(default_factory=dict)
    """Workers that were added at run time."""
    pulling: Mapping[str, str] = field(default_factory=dict)
    """Workers that registered themselves by polling."""
    managed: Mapping[str, str] = field(default_factory=dict)
    """Workers that OwnPod has started."""
    endpoints_unreadable: bool = False
    """The key of the endpoints is no hash, so any of them may have API keys."""


@dataclass(frozen=True)
class Merged:
    """All endpoints with all their workers, and what is left out."""

    endpoints: Mapping[str, Endpoint]
    workers_left_out: tuple[LeftOut, ...] = ()
    endpoints_left_out: tuple[LeftOutEndpoint, ...] = ()

    @functools.cached_property
    def workers(self) -> Mapping[str, WorkerSpec]:
        """All workers of all endpoints, by id."""
        return {worker.id: worker for e in self.endpoints.values() for worker in e.workers}


class _Unusable(Exception):
    """An entry cannot be used."""

    def __init__(self, reason: str, endpoint: str | None = None) -> None:
        super().__init__(" ".join(reason.split())[:LONGEST_REASON])
        self.endpoint = endpoint


def merge(
    configured: Mapping[str, Endpoint],
    entries: Entries,
    make_endpoint: Callable[[str, dict[str, Any]], Endpoint],
    make_worker: Callable[[dict[str, Any], Endpoint], WorkerSpec],
) -> Merged:
    """All endpoints with all their workers, and the entries that cannot be used.

    Args:
        configured: the endpoints of the configuration file, which wins over an entry with the same id.
        entries: the entries in Redis.
        make_endpoint: makes an endpoint of its id and its entry. It may raise ValidationError.
        make_worker: makes a worker of an added entry, and of its endpoint. It may raise ValidationError.
    """
    known, endpoints_left_out = _endpoints(configured, entries.endpoints, make_endpoint)
    taken = {name for e in known.values() for w in e.workers for name in (w.id, w.url)}
    left_out = []
    workers = [("added", *entry) for entry in entries.added.items()]
    workers += [("managed", *entry) for entry in sorted(entries.managed.items())]
    workers += [
        ("pulling", worker_id, text)
        for worker_id, text in sorted(entries.pulling.items())
        if worker_id not in entries.managed
    ]
    for kind, worker_id, text in workers:
        try:
            values = _worker_values(worker_id, text, known)
            if kind == "added":
                spec = _added(worker_id, values, known[values["endpoint"]], make_worker)
            elif kind == "pulling":
                spec = _balanced(_pulling(worker_id, values), known[values["endpoint"]].balancing)
            else:
                spec = _managed(worker_id, values, entries.pulling.get(worker_id))
                spec = _balanced(spec, known[spec.endpoint].balancing)
                if spec.kind is not WorkerKind.PULL and not spec.url:
                    continue
            _check_free(spec, taken)
        except _Unusable as problem:
            left_out.append(LeftOut(worker_id, problem.endpoint, str(problem)))
            continue
        taken |= {spec.id, spec.url}
        endpoint = known[spec.endpoint]
        known[spec.endpoint] = replace(endpoint, workers=(*endpoint.workers, spec))
    return Merged(known, tuple(left_out), tuple(endpoints_left_out))


def _endpoints(
    configured: Mapping[str, Endpoint],
    entries: Mapping[str, str],
    make: Callable[[str, dict[str, Any]], Endpoint],
) -> tuple[dict[str, Endpoint], list[LeftOutEndpoint]]:
    known, left_out = dict(configured), []
    for endpoint_id, text in sorted(entries.items()):
        # An entry that cannot be read may have keys.
        values: dict[str, Any] | None = None
        try:
            values = _values(text)
            _check_endpoint_id(endpoint_id, configured)
            known[endpoint_id] = make(endpoint_id, values)
        except ValidationError as error:
            reason = str(_Unusable(": ".join(first_problem(error.normalized_messages()))))
        except _Unusable as problem:
            reason = str(problem)
        else:
            continue
        keys = endpoint_id not in configured and (values is None or bool(values.get("apiKeys")))
        left_out.append(LeftOutEndpoint(endpoint_id, reason, may_have_keys=keys))
    return known, left_out


def _check_endpoint_id(endpoint_id: str, configured: Mapping[str, Endpoint]) -> None:
    if endpoint_id in configured:
        raise _Unusable("its id is defined in the configuration file")
    if not NAME.fullmatch(endpoint_id):
        raise _Unusable("its id cannot be used")


def _values(text: str) -> dict[str, Any]:
    """An entry's values. Raises: _Unusable."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"its entry in Redis is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise _Unusable("its entry in Redis is no JSON object")
    return values


def endpoint_in(text: str) -> str | None:
    """The endpoint that a worker's entry names; None: the entry cannot be read."""
    try:
        endpoint = _values(text).get("endpoint")
    except _Unusable:
        return None
    return endpoint if isinstance(endpoint, str) else None


def _worker_values(worker_id: str, text: str, known: Mapping[str, Endpoint]) -> dict[str, Any]:
    """The values of a worker's entry, whose endpoint exists. Raises: _Unusable."""
    values = _values(text)
    endpoint = values.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in known:
        raise _Unusable(f"its endpoint {str(endpoint)[:80]!r} does not exist")
    if not NAME.fullmatch(worker_id) or worker_id == HOUSEKEEPING:
        raise _Unusable("its id cannot be used", endpoint)
    return values


def _added(
    worker_id: str,
    values: dict[str, Any],
    endpoint: Endpoint,
    make: Callable[[dict[str, Any], Endpoint], WorkerSpec],
) -> WorkerSpec:
    try:
        spec = make(values, endpoint)
    except ValidationError as error:
        reason = ": ".join(first_problem(error.normalized_messages()))
        raise _Unusable(reason, values["endpoint"]) from None
    if spec.id != worker_id:
        raise _Unusable(f"its entry has another id, {spec.id!r}", spec.endpoint)
    return spec


def _pulling(worker_id: str, values: dict[str, Any]) -> WorkerSpec:
    endpoint, capacity = values["endpoint"], values.get("capacity")
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise _Unusable("its capacity is no whole number from 1 on", endpoint)
    return pull_worker(endpoint, worker_id, capacity)


def _managed(worker_id: str, values: dict[str, Any], polls: str | None) -> WorkerSpec:
    """A worker that OwnPod has started. The URL of one that is pushed to is "" until its container runs.

    Args:
        worker_id: its id.
        values: its entry.
        polls: its entry as a pulling worker, whose capacity is that of its last request; None: it has not asked yet.
    """
    endpoint, url, key = values["endpoint"], values.get("url") or "", values.get("key")
    if values.get("kind") not in list(WorkerKind):
        raise _Unusable("its kind is none of this version", endpoint)
    # Digests are compared in constant time, which takes ASCII.
    if key is not None and not (isinstance(key, str) and key.isascii()):
        raise _Unusable("its key is no digest", endpoint)
    spec = replace(
        _pulling(worker_id, {"capacity": 1, **values}),
        source=WorkerSource.MANAGED,
        key_digest=key,
        draining=values.get("draining") is True,
        stopping=values.get("stopping") is True,
        private=values.get("private") is True,
    )
    if values["kind"] == WorkerKind.CONTAINER:
        return replace(spec, kind=WorkerKind.CONTAINER, url=f"container:{worker_id}")
    if values["kind"] == WorkerKind.PULL:
        with contextlib.suppress(_Unusable):
            asked = _values(polls or "")
            if asked.get("endpoint") == endpoint:
                spec = replace(spec, capacity=_pulling(worker_id, asked).capacity)
        return spec
    try:
        if url:
            check_http_url(str(url))
    except ValidationError as error:
        raise _Unusable(f"url: {error.messages[0]}", endpoint) from None
    health_port = values.get("healthPort")
    if health_port is not None and not (type(health_port) is int and 0 < health_port <= MOST_PORTS):
        raise _Unusable("its healthPort is no port", endpoint)
    return replace(
        spec, kind=WorkerKind(values["kind"]), url=str(url).rstrip("/"), health_port=health_port
    )


def _balanced(spec: WorkerSpec, balancing: Balancing | None) -> WorkerSpec:
    """A worker with its endpoint's limit of requests. Raises: _Unusable, if it is one for the other type of endpoints."""
    if (spec.kind is WorkerKind.HTTP) != (balancing is not None):
        did = "was started" if spec.is_managed else "asked for jobs"
        raise _Unusable(f"it {did} for another type of endpoint", spec.endpoint)
    return spec if balancing is None else replace(spec, capacity=balancing.capacity)


def _check_free(spec: WorkerSpec, taken: set[str]) -> None:
    if taken & {spec.id, spec.url}:
        raise _Unusable("its id or URL is another worker's", spec.endpoint)
