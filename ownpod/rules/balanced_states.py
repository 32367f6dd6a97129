"""Load-balanced endpoints and their workers as clients see them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.endpoints import Endpoint, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.managed_states import ManagedView, count_workers, shown

NO_FRONT = "no front runs: see ownpod doctor"
NOT_CHECKED = "the front has not checked it yet"

ANY_NUMBER = "any"
"""How people see the capacity of a worker without a limit."""


@dataclass(frozen=True)
class BalancedView:
    """What is known of a load-balanced endpoint.

    Attributes:
        fronts: number of fronts that run.
        reading: the sum over them.
        statuses: what they have published of the workers, by worker id.
        managed: the workers that OwnPod starts.
    """

    fronts: int
    reading: RouteReading
    statuses: Mapping[str, WorkerStatus]
    managed: ManagedView

    @property
    def problem(self) -> str:
        """Why no request reaches a worker; "": a front runs, and serves the endpoint."""
        return self.reading.problem if self.fronts else NO_FRONT

    def server(self, worker_id: str) -> ServerReading:
        """A worker as the fronts have it; without requests, if they do not have it."""
        return self.reading.servers.get(worker_id, ServerReading())

    def status(self, worker: WorkerSpec) -> WorkerStatus:
        """A worker's status as clients see it. The front's reason is kept for one that starts, because it states what the
        health check found.
        """
        record = self.managed.by_id().get(worker.id)
        status = self._published(worker.id)
        found = shown(status, record, self.managed)
        if status.reason not in found.reason and _is_checked(record):
            found = replace(found, reason=f"{found.reason}: {status.reason}")
        return found

    def _published(self, worker_id: str) -> WorkerStatus:
        status = self.statuses[worker_id]
        if not status.has_no_node:
            return status
        if self.fronts:
            return WorkerStatus(WorkerState.INITIALIZING, NOT_CHECKED)
        return replace(status, reason=NO_FRONT)


def _is_checked(record: ManagedWorker | None) -> bool:
    """Whether the front checks a worker that is not ready yet."""
    return record is not None and record.phase is Phase.STARTING


def count_balanced(endpoint: Endpoint, view: BalancedView) -> dict[str, int]:
    """Numbers of a load-balanced endpoint's workers by RunPod's words: a ready one gets requests, and a running one has
    some that are open.
    """
    statuses = {worker.id: view.status(worker) for worker in endpoint.workers}
    opened = {name: server.open for name, server in view.reading.servers.items()}
    # `lingering` of these workers also counts requests that have ended since the front last published.
    statuses = {name: replace(status, lingering=0) for name, status in statuses.items()}
    return count_workers(endpoint, statuses, opened, view.managed)


def job_counts(reading: RouteReading) -> dict[str, int]:
    """RunPod's counts of jobs. Requests leave no record, so none has ended."""
    ended = dict.fromkeys(("completed", "failed", "retried"), 0)
    return {**ended, "inProgress": reading.running, "inQueue": reading.waiting}


def describe_front(view: BalancedView) -> dict[str, Any]:
    """The fronts as ``/health`` shows them."""
    return {
        "alive": view.fronts,
        "problem": view.problem or None,
        "open": view.reading.running,
        "waiting": view.reading.waiting,
        "total": view.reading.total,
    }


def describe_balanced(workers: Sequence[WorkerSpec], view: BalancedView) -> list[dict[str, Any]]:
    """The workers of a load-balanced endpoint as the API shows them."""
    return [_described(worker, view.status(worker), view.server(worker.id)) for worker in workers]


def _described(worker: WorkerSpec, status: WorkerStatus, server: ServerReading) -> dict[str, Any]:
    return {
        "id": worker.id,
        "url": worker.url,
        "capacity": worker.capacity or None,
        "state": status.state,
        "reason": status.reason,
        "running": server.open,
        "open": server.open,
        "waiting": server.waiting,
        "total": server.total,
        "jobs": [],
        "held": 0,
    }


def busy_text(busy: int, capacity: int | None) -> str:
    """How many slots or requests a worker has, of how many; ``capacity`` None or 0: any number."""
    return f"{busy}/{capacity or ANY_NUMBER}"
