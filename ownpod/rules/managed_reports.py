"""A managed worker and its output as the API and the commands show them. Pure."""

from typing import Any, Protocol

from ownpod.rules.managed import LOG_LINES, ManagedWorker
from ownpod.rules.managed_states import with_exit_code


class KeptLine(Protocol):
    """A line of a worker's output."""

    @property
    def id(self) -> str: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def run(self) -> str | None: ...


def report(worker: ManagedWorker) -> dict[str, Any]:
    """All that is known of a worker, also of one that has ended. Times in ms since the epoch; None: not yet."""
    return {
        "id": worker.id,
        "endpoint": worker.endpoint,
        "phase": worker.phase.value,
        "reason": with_exit_code(worker.reason, worker.exit_code),
        "release": worker.release,
        "host": worker.host,
        "devices": list(worker.devices),
        "createdAt": worker.created_ms,
        "placedAt": worker.placed_ms,
        "startedAt": worker.started_ms,
        "readyAt": worker.ready_ms,
        "stoppedAt": worker.stopped_ms,
        "exitCode": worker.exit_code,
        "outOfMemory": worker.out_of_memory,
        "endedIn": worker.ended_in,
        "endedBadly": worker.ended_badly,
    }


def post_mortem(worker: ManagedWorker) -> dict[str, Any]:
    """A worker that has ended, with its last lines of output."""
    return report(worker) | {"log": worker.log.splitlines()[-LOG_LINES:]}


def described_line(line: KeptLine) -> dict[str, Any]:
    """A line of output. ``run``: the job's id, with ``-`` and the number of the attempt from the second on."""
    return {"id": line.id, "at": line.at_ms, "run": line.run, "text": line.text}
