"""The workers of each endpoint, merged from the configuration and from what Redis has. Pure.

A worker that came at run time and cannot be used is left out with a reason: one bad entry, of another version or
another host, must not end the processes that read it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from marshmallow import ValidationError

from ownpod.rules.endpoints import HOUSEKEEPING, Endpoint, WorkerSpec, pull_worker
from ownpod.validation import NAME, first_problem


class WorkerState(StrEnum):
    """How a worker is, as its node last said."""

    INITIALIZING = "initializing"
    """Its node has not reached it yet."""
    READY = "ready"
    BUSY = "busy"
    """It is still at something that began before its node did, and takes nothing else."""
    PAUSED = "paused"
    """Somebody wants it to take no jobs; what it has, it finishes."""
    UNHEALTHY = "unhealthy"
    """It does not answer, refuses jobs, or no node runs for it."""


@dataclass(frozen=True)
class WorkerStatus:
    """What a worker's node last said. ``held``: slots that jobs which have ended still take."""

    state: WorkerState
    reason: str = ""
    held: int = 0
    unattended: bool = False
    """No node speaks for it."""


LONGEST_REASON = 300
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class LeftOut:
    """A worker that came at run time and cannot be used."""

    id: str
    endpoint: str | None
    """Its endpoint, if that is configured."""
    reason: str


class _Unusable(Exception):
    """An entry cannot be used."""

    def __init__(self, reason: str, endpoint: str | None = None) -> None:
        super().__init__(" ".join(reason.split())[:LONGEST_REASON])
        self.endpoint = endpoint


def merge(
    configured: Mapping[str, Endpoint],
    added: Mapping[str, str],
    pulling: Mapping[str, str],
    make: Callable[[dict[str, Any]], WorkerSpec],
) -> tuple[dict[str, Endpoint], tuple[LeftOut, ...]]:
    """All endpoints with all their workers, and the entries that cannot be used.

    Args:
        configured: the endpoints of the configuration, which comes first.
        added: the entries of added workers, JSON texts by id.
        pulling: the entries of pulling workers, JSON texts by id.
        make: a worker of an added entry. It may raise ValidationError.
    """
    known = dict(configured)
    taken = {name for e in known.values() for w in e.workers for name in (w.id, w.url)}
    left_out = []
    entries = [("added", *entry) for entry in added.items()]
    entries += [("pulling", *entry) for entry in sorted(pulling.items())]
    for kind, worker_id, text in entries:
        try:
            values = _values(worker_id, text, known)
            spec = (
                _added(worker_id, values, make) if kind == "added" else _pulling(worker_id, values)
            )
            _check_free(spec, taken)
        except _Unusable as problem:
            left_out.append(LeftOut(worker_id, problem.endpoint, str(problem)))
            continue
        taken |= {spec.id, spec.url}
        endpoint = known[spec.endpoint]
        known[spec.endpoint] = replace(endpoint, workers=(*endpoint.workers, spec))
    return known, tuple(left_out)


def _values(worker_id: str, text: str, known: Mapping[str, Endpoint]) -> dict[str, Any]:
    """An entry's values; its endpoint is configured. Raises: _Unusable."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"its entry in Redis is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise _Unusable("its entry in Redis is no JSON object")
    endpoint = values.get("endpoint")
    if not isinstance(endpoint, str) or endpoint not in known:
        raise _Unusable(f"its endpoint {str(endpoint)[:80]!r} is not configured")
    if not NAME.fullmatch(worker_id) or worker_id == HOUSEKEEPING:
        raise _Unusable("its id cannot be used", endpoint)
    return values


def _added(
    worker_id: str, values: dict[str, Any], make: Callable[[dict[str, Any]], WorkerSpec]
) -> WorkerSpec:
    try:
        spec = make(values)
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


def _check_free(spec: WorkerSpec, taken: set[str]) -> None:
    if taken & {spec.id, spec.url}:
        raise _Unusable("its id or URL is another worker's", spec.endpoint)
