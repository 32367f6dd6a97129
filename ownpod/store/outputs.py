"""Output of managed workers in Redis: their last lines, also after their end, and how far an agent has read."""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import redis

from ownpod.rules.event_data import is_debug, log_data
from ownpod.rules.managed import STOPPED_KEPT_S
from ownpod.rules.output import BURST_BYTES, BURST_LINES, Line, is_of_job
from ownpod.store import keys
from ownpod.store.client import redis_errors, redis_reads
from ownpod.store.journal import JOURNAL_CONSTANTS, OTHER_CONSTANTS
from ownpod.store.loads import broken_managed, check_worker_id
from ownpod.store.scripts import Scripts, constants

MOST_LINES, MOST_BYTES = BURST_LINES, BURST_BYTES
"""Number of lines, and bytes of their texts, that are kept of a worker."""

LONGEST_WAIT_S = 2.0
"""Seconds for which one read waits for lines; shorter than the client waits for an answer."""


class Kept(Enum):
    """What became of lines that were to be kept."""

    YES = 1
    CONFLICT = 0
    """Another agent has kept lines of the worker since."""
    NO_WORKER = -1


@dataclass(frozen=True)
class Place:
    """How far the output of a worker, or of a task's run, is kept.

    Attributes:
        batch: the last one that was kept; "": none was.
        position: where its engine continues; "": at the beginning.
        state: of :class:`ownpod.rules.output.Lines`, or :class:`ownpod.rules.task_output.TaskOutput`.
    """

    batch: str = ""
    position: str = ""
    state: str = ""


@dataclass(frozen=True)
class KeptLine:
    """A line of output. ``id``: its place, for reads of the lines after it; ``at_ms``: when it was kept, by Redis's clock."""

    id: str
    at_ms: int
    text: str
    run: str | None = None


def new_batch() -> str:
    """Names a part of an output, so that it is kept once."""
    return secrets.token_hex(6)


class Outputs:
    """The commands and reads of ``outputs.lua``'s keys. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = Scripts(
            client,
            *("journal.lua", "outputs.lua"),
            constants=OTHER_CONSTANTS
            + JOURNAL_CONSTANTS
            + constants(
                MANAGED=keys.MANAGED,
                OUTPUT=keys.OUTPUT,
                MOST_LINES=MOST_LINES,
                MOST_BYTES=MOST_BYTES,
                KEPT_MS=STOPPED_KEPT_S * 1000,
            ),
            repeatable=("append",),
        )

    @broken_managed
    @redis_errors
    def append(self, worker_id: str, lines: Sequence[Line], before: str, place: Place) -> Kept:
        """Keeps lines of a worker, and how far its output was read, in one step. Lines of a job that the worker runs are
        entries of the job's journal, too.

        Args:
            worker_id: the worker's id.
            lines: the lines; only the last :data:`MOST_LINES` of them are kept.
            before: the batch of the last call.
            place: how far the output is kept with these lines; its batch names this call.
        """
        check_worker_id(worker_id)
        parts = [part for line in lines[-MOST_LINES:] for part in _parts(line)]
        return Kept(
            self._script(
                "append", worker_id, before, place.batch, place.position, place.state, *parts
            )
        )

    @broken_managed
    @redis_reads
    def place(self, worker_id: str) -> Place:
        """How far a worker's output is kept."""
        check_worker_id(worker_id)
        values: Any = self._redis.hmget(keys.output_state(worker_id), "batch", "position", "state")
        return Place(*(value or "" for value in values))

    @broken_managed
    @redis_reads
    def last(self, worker_id: str, count: int = MOST_LINES) -> list[KeptLine]:
        """The last lines of a worker, the oldest first."""
        check_worker_id(worker_id)
        found: Any = self._redis.xrevrange(keys.output(worker_id), count=count)
        return [_line(*entry) for entry in reversed(found)]

    @broken_managed
    @redis_reads
    def after(self, worker_id: str, line_id: str, count: int = MOST_LINES) -> list[KeptLine]:
        """The lines after a line, the oldest first. ``line_id``: "0" is before all lines."""
        check_worker_id(worker_id)
        found: Any = self._redis.xrange(keys.output(worker_id), min=f"({line_id}", count=count)
        return [_line(*entry) for entry in found]

    @broken_managed
    @redis_reads
    def wait(self, worker_id: str, line_id: str) -> list[KeptLine]:
        """The lines after a line, as soon as there are some; none after :data:`LONGEST_WAIT_S`."""
        check_worker_id(worker_id)
        block = int(LONGEST_WAIT_S * 1000)
        found: Any = self._redis.xread({keys.output(worker_id): line_id}, block=block)
        return [_line(*entry) for _, entries in found or () for entry in entries]

    def of_job(self, worker_id: str, job_id: str) -> list[KeptLine]:
        """Those of the last lines of a worker that belong to a job."""
        return [line for line in self.last(worker_id) if is_of_job(line.run, job_id)]


def _parts(line: Line) -> tuple[str, str, str]:
    """What ``append`` gets of a line. One without an event is in the worker's output only."""
    data = log_data(line.text)
    event = json.dumps(data) if line.run and not is_debug(data) else ""
    return line.text, line.run or "", event


def _line(line_id: str, values: dict[str, str]) -> KeptLine:
    at = values.get("t", "")
    at_ms = int(at) if at.isdecimal() else 0
    return KeptLine(line_id, at_ms, values.get("m", ""), values.get("j"))
