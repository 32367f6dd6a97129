"""The rules of a run, pure: an attempt of a job on a worker, and how a later node can check it."""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from ownpod.rules.jobs import JobStatus

LONGEST_MS = 8 * 86_400_000
"""Longest ``executionTime`` in ms that is accepted from a worker. No job runs longer, because its ``ttl`` ends sooner."""


def execution_ms(value: object) -> int | None:
    """A worker's figure of how long a run took, in whole ms from 0 to :data:`LONGEST_MS`.

    None for a value that is no number; infinite and negative numbers become the nearest end.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    return int(min(max(value, 0), LONGEST_MS))


class RunCheck(StrEnum):
    """How a node can check whether a run that it did not begin still occupies the worker.

    The values are in Redis since version 0.1.0.
    """

    POLL = "poll"
    """The worker answers polls of the run, so a node can also wait for the run's end."""
    STREAM = "listed"
    """A request for the run's stream begins no run, and its answer shows whether the worker still has the run."""
    HEALTH = "idle"
    """The worker answers no request while it runs a job, so one that answers a health probe is idle."""
    TIMEOUT = "never"
    """A request would begin the run again, and the worker answers others meanwhile, so only the run's timeout ends the wait."""
    UNKNOWN = "unknown"
    """A request would begin the run again, and whether the worker answers others meanwhile is not known yet."""


@dataclass(frozen=True)
class Run:
    """A run that may occupy a worker. Redis has it from before it begins until its slot is free, because the
    worker's next node must find it when this one ends meanwhile.
    """

    job_id: str
    attempt: int
    id: str
    """The worker's id of the run."""
    check: RunCheck
    execution_timeout_ms: int
    callback: bool = False
    """The worker got a URL to which it posts the output."""


@dataclass(frozen=True)
class Attempt:
    """One run of a job on one worker. ``number`` is the fence: a late result of attempt 1 changes nothing after
    attempt 2 has begun.
    """

    job_id: str
    endpoint: str
    worker_id: str
    number: int
    input: str
    s3_config: str | None
    execution_timeout_ms: int
    expires_ms: int
    """When the job's ``ttl`` expires, in ms since the epoch."""
    started_ms: int
    ran_ms: int = field(default=0, compare=False)
    """Ms that the attempt had run when it was claimed, because a node may adopt a run that an earlier one began.
    Measured on Redis's clock, as all times here; they are compared only with each other."""
    callback_token: str = ""
    """A result that comes by callback must have this token."""
    request_id: str | None = None
    low_priority: bool = False
    stays: bool = False
    """The job never goes to a cloud worker."""
    hops: int = 0
    """Number of OwnPods through which the job has come before this one."""
    remote_begun: bool = False
    """Of an attempt at a cloud worker: the run has begun there, so its ``executionTimeout`` counts since then."""
    run: Run | None = None
    """The run that an earlier node began, and that this attempt adopts."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``output`` is JSON text; ``execution_ms`` is the worker's own figure, see
    :func:`execution_ms`.
    """

    status: JobStatus
    output: str | None = None
    error: str | None = None
    execution_ms: int | None = None
