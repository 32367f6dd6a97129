"""The rules of a run, pure: an attempt of a job on a worker, and how a later node can check it."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from ownpod.rules.jobs import JobStatus

LONGEST_MS = 8 * 86_400_000
"""Longest ``executionTime`` in ms that is taken from a worker: a job's ``ttl`` and ``executionTimeout`` end sooner."""


def execution_ms(value: object) -> int | None:
    """A worker's figure of how long a run took, in whole ms from 0 to :data:`LONGEST_MS`.

    None for what is no number; infinite and negative ones are taken as the nearest end.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(min(max(value, 0), LONGEST_MS))


class RunCheck(StrEnum):
    """How a later process can tell whether a worker is still at a run that it did not begin."""

    POLL = "poll"
    """The worker answers about the run while it goes on, so it can also be followed to its end."""
    STREAM = "listed"
    """Asking for the run's stream runs nothing, and tells whether the worker still has it."""
    HEALTH = "idle"
    """The worker answers nothing while it runs a job: one that answers is done."""
    TIMEOUT = "never"
    """Asking would run it again, and the worker answers meanwhile: wait its time out."""
    UNKNOWN = "unknown"
    """Asking would run it again, and whether the worker answers meanwhile was not seen yet."""


@dataclass(frozen=True)
class Run:
    """What a worker has begun, as it stands in Redis from before it may run until its slot is free:
    for the next node, should this one end meanwhile.
    """

    job_id: str
    attempt: int
    id: str
    """The worker's own id of it."""
    check: RunCheck
    execution_timeout_ms: int
    callback: bool = False
    """The worker was told where to post its output."""


@dataclass(frozen=True)
class Attempt:
    """One run of a job on one worker. ``number`` is the fence: what a job's attempt 1 says late
    changes nothing once attempt 2 has begun.
    """

    job_id: str
    endpoint: str
    worker_id: str
    number: int
    input: str
    s3_config: str | None
    execution_timeout_ms: int
    expires_ms: int
    """When the job's ``ttl`` has passed, in ms since the epoch."""
    started_ms: int
    ran_ms: int = field(default=0, compare=False)
    """How long the attempt had run when it was claimed: a node may adopt what an earlier one began.
    Measured on Redis's clock, as the other times here; they are compared with each other only."""
    callback_token: str = ""
    """What a result must name that comes by callback."""
    request_id: str | None = None
    run: Run | None = None
    """An earlier node began it in the worker already, and this one goes on with it."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``output`` is JSON text; ``execution_ms`` is the worker's own figure, see
    :func:`execution_ms`.
    """

    status: JobStatus
    output: str | None = None
    error: str | None = None
    execution_ms: int | None = None
