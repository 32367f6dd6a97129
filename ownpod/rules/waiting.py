"""The reason for which a job waits in the queue, in words for clients. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import Phase
from ownpod.rules.scaling import unhealthy

LONGEST_LINE = 200
"""Characters of a worker's last line of output that are shown."""


class RefusedWorker(Protocol):
    """A worker that asked for jobs and was refused; see :class:`ownpod.store.offers.Refusal`."""

    @property
    def worker_id(self) -> str: ...
    @property
    def reason(self) -> str: ...


class FailedStarts(Protocol):
    """An endpoint's failed starts in a row."""

    @property
    def count(self) -> int: ...
    @property
    def pause_s(self) -> float: ...
    @property
    def reason(self) -> str: ...
    @property
    def exit_code(self) -> int | None: ...
    @property
    def log(self) -> str: ...


@dataclass(frozen=True)
class ManagedState:
    """A managed worker as a client is shown it.

    Attributes:
        reason: why it is in its phase: the progress of a pull, or why no agent has taken it.
        age_s: seconds since it came into its phase.
        usual_s: seconds that workers of this endpoint usually are in this phase; None: unknown.
    """

    id: str
    phase: Phase
    reason: str = ""
    age_s: float = 0.0
    usual_s: float | None = None


def explain(
    endpoint: Endpoint,
    statuses: dict[str, WorkerStatus],
    refused: Sequence[RefusedWorker] = (),
    managed: Sequence[ManagedState] = (),
    failures: FailedStarts | None = None,
) -> str:
    """The reason, in one line.

    Args:
        endpoint: the endpoint of the job.
        statuses: the statuses of its workers, by worker id.
        refused: workers that asked for its jobs and were refused.
        managed: the endpoint's managed workers that are not STOPPED.
        failures: its failed starts, if there are any.
    """
    if endpoint.paused:
        return "the endpoint is paused: workersMax is 0"
    current = [statuses[worker.id] for worker in endpoint.workers]
    able = [s for s in current if s.state in {WorkerState.READY, WorkerState.BUSY}]
    if not able and endpoint.managed is not None:
        text = _of_managed(managed, failures)
        if text:
            return text
    if current and all(status.state is WorkerState.PAUSED for status in current):
        return "the endpoint is paused: all of its workers are paused"
    if able:
        return f"it waits for a free worker: {len(able)} of {len(current)} are healthy"
    reasons = sorted({s.reason for s in current if s.state is not WorkerState.PAUSED})
    text = f"no healthy worker: {reasons[0]}" if current else "the endpoint has no workers"
    if refused:
        more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        text += f"; worker {refused[0].worker_id!r} is refused: {refused[0].reason}{more}"
    return text


def _of_managed(managed: Sequence[ManagedState], failures: FailedStarts | None) -> str:
    """Why no managed worker takes jobs; "": because of something else."""
    failed = failures is not None and failures.count > 0
    if failed and failures is not None and unhealthy(failures.count):
        return failing(failures)
    for phase in (Phase.READY, Phase.STARTING, Phase.PREPARING, Phase.WANTED):
        found = sorted((w for w in managed if w.phase is phase), key=lambda w: -w.age_s)
        if found and phase is Phase.READY:
            return ""
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            return describe(found[0]) + more
    if failed and failures is not None:
        return failing(failures)
    leaving = [w for w in managed if w.phase in {Phase.DRAINING, Phase.STOPPING}]
    if leaving:
        return f"{describe(leaving[0])}, and its successor starts when it has stopped"
    return "no worker is wanted yet: the scaler in housekeeping starts one within seconds"


def describe(worker: ManagedState) -> str:
    """A managed worker's phase in words."""
    name = f"worker {worker.id}"
    match worker.phase:
        case Phase.WANTED:
            return worker.reason or f"{name} waits for an agent"
        case Phase.PREPARING:
            return worker.reason or f"{name} is prepared, {worker.age_s:.0f} s"
        case Phase.STARTING:
            usual = f" (usually {worker.usual_s:.0f} s)" if worker.usual_s else ""
            return f"{name} starts, {worker.age_s:.0f} s{usual}"
        case Phase.DRAINING:
            return f"{name} finishes its jobs, because {worker.reason or 'it is drained'}"
        case _:
            return f"{name} is {worker.phase.value}"


def failing(failures: FailedStarts) -> str:
    """An endpoint's failed starts in words."""
    why = failures.reason
    if failures.exit_code is not None and not why:
        why = f"exit code {failures.exit_code}"
    times = "once" if failures.count == 1 else f"{failures.count} times"
    text = f"its workers do not start: {why or 'for an unknown reason'}, {times}"
    lines = [line.strip() for line in failures.log.splitlines() if line.strip()]
    if lines:
        text += f"; last: {lines[-1][:LONGEST_LINE]}"
    return text
