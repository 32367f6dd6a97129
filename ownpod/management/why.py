"""Why an endpoint's jobs wait, or its workers do not start, as a list that programs can read. Pure."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

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
    DRAINING = "DRAINING"
    """A worker finishes its job and leaves."""


_BY_PHASE = {
    Phase.WANTED: Code.NO_PLACE,
    Phase.PREPARING: Code.PREPARING,
    Phase.STARTING: Code.STARTING,
    Phase.DRAINING: Code.DRAINING,
    Phase.STOPPING: Code.DRAINING,
}


def why(view: ManagedView, *, paused: str, queued: int, rollout: str) -> dict[str, Any]:
    """The reasons, the most important first.

    Args:
        view: the endpoint's workers and failed starts.
        paused: why the endpoint is paused; "": it is not.
        queued: number of waiting jobs.
        rollout: where its releases are, in words; "": none is on its way.
    """
    return {"queued": queued, "reasons": [*_reasons(view, paused, rollout)]}


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
