"""Why an endpoint's jobs wait, or its workers do not start, as a list that programs can read. Pure."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import LOG_LINES, ManagedWorker, Phase
from ownpod.rules.managed_states import ManagedView, in_words
from ownpod.rules.managed_states import failure_in_words as failures_in_words


class Code(StrEnum):
    """What a reason is about."""

    PAUSED = "PAUSED"
    """The endpoint takes no jobs: ``workersMax`` is 0, by itself, by its hours, or because it has expired."""
    START_FAILS = "START_FAILS"
    """Its workers end before they are ready."""
    ROLLOUT = "ROLLOUT"
    """A new release is on its way."""
    NO_PLACE = "NO_PLACE"
    """A worker waits for a host or for devices."""
    PREPARING = "PREPARING"
    """A worker's image is being got."""
    STARTING = "STARTING"
    """A worker's container runs, and has not asked for a job yet."""
    NO_FRONT = "NO_FRONT"
    """No front runs, so no request reaches a worker of a load-balanced endpoint."""
    UNHEALTHY = "UNHEALTHY"
    """A worker runs, and its health check fails."""
    DRAINING = "DRAINING"
    """A worker finishes its job and leaves."""


_BY_PHASE = {
    Phase.WANTED: Code.NO_PLACE,
    Phase.PREPARING: Code.PREPARING,
    Phase.STARTING: Code.STARTING,
    Phase.DRAINING: Code.DRAINING,
    Phase.STOPPING: Code.DRAINING,
}

_BY_STATE = {
    WorkerState.INITIALIZING: Code.STARTING,
    WorkerState.UNHEALTHY: Code.UNHEALTHY,
}


def why(
    view: ManagedView,
    *,
    paused: str,
    queued: int,
    rollout: str,
    front: str = "",
    statuses: Mapping[str, WorkerStatus] = MappingProxyType({}),
) -> dict[str, Any]:
    """The reasons, the most important first.

    Args:
        view: the endpoint's workers and failed starts.
        paused: why the endpoint is paused; "": it is not.
        queued: number of waiting jobs, or requests.
        rollout: where its releases are, in words; "": none is on its way.
        front: of a load-balanced endpoint, why no request reaches a worker; "": a front runs.
        statuses: of a load-balanced endpoint, the statuses of its workers, by id.
    """
    found = _reasons(view, paused, rollout)
    if front:
        return {"queued": queued, "reasons": [{"code": Code.NO_FRONT, "message": front}, *found]}
    placed = {worker.id for worker in view.workers if worker.phase in _BY_PHASE}
    others = {name: status for name, status in statuses.items() if name not in placed}
    return {"queued": queued, "reasons": [*found, *_unready(others)]}


def _unready(statuses: Mapping[str, WorkerStatus]) -> Iterator[dict[str, Any]]:
    """Workers that get no requests, because of what the front has found."""
    for worker_id, status in statuses.items():
        code = _BY_STATE.get(status.state)
        if code is not None:
            because = f": {status.reason}" if status.reason else ""
            yield {
                "code": code,
                "message": f"worker {worker_id} is {status.state}{because}",
                "worker": worker_id,
                "detail": status.reason,
            }


def _reasons(view: ManagedView, paused: str, rollout: str) -> Iterator[dict[str, Any]]:
    if paused:
        yield {"code": Code.PAUSED, "message": f"the endpoint is paused: {paused}"}
    if view.failing is not None:
        yield {
            "code": Code.START_FAILS,
            "message": failures_in_words(view.failing),
            "worker": view.failing.worker,
            "exitCode": view.failing.exit_code,
            "log": view.failing.log.splitlines()[-LOG_LINES:],
        }
    if rollout:
        yield {"code": Code.ROLLOUT, "message": rollout}
    for worker in view.workers:
        code = _BY_PHASE.get(worker.phase)
        if code is not None:
            yield _of_worker(code, worker, view)


def _of_worker(code: Code, worker: ManagedWorker, view: ManagedView) -> dict[str, Any]:
    return {
        "code": code,
        "message": f"worker {worker.id} {in_words(worker, view)}",
        "worker": worker.id,
        "host": worker.host,
        "detail": worker.reason,
    }
