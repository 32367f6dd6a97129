"""The rules of a job, pure: states, allowed moves, timings, what a client sees.

No Redis, HTTP, Celery, clock or environment: time comes in as milliseconds since the epoch.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self


class JobStatus(StrEnum):
    """A job's states, as RunPod's clients read them (``RUNNING`` is never sent)."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def terminal(self) -> bool:
        """No move leads out of this state."""
        return not MOVES[self]


MOVES: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.IN_QUEUE: frozenset(
        {
            JobStatus.IN_PROGRESS,
            # By a callback of an attempt that was requeued.
            JobStatus.COMPLETED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
            JobStatus.TIMED_OUT,
        }
    ),
    JobStatus.IN_PROGRESS: frozenset(
        {
            JobStatus.IN_QUEUE,
            JobStatus.COMPLETED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
            JobStatus.TIMED_OUT,
        }
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.TIMED_OUT: frozenset(),
}
"""Every allowed move; ``common.lua`` gets this table and refuses all others."""

DEFAULT_EXECUTION_TIMEOUT_MS = 600_000
"""RunPod's documented default, counted while the job runs."""

DEFAULT_TTL_MS = 86_400_000
"""RunPod's documented default, counted from submission over queue and run."""


DEFAULT_MAX_ATTEMPTS = 3
"""Attempts that reached a worker and were lost before the job is FAILED."""


def new_job_id(*, sync: bool) -> str:
    """An id shaped like RunPod's: ``<uuid>-u1``, ``sync-<uuid>-u1`` for ``/runsync``."""
    return f"{'sync-' if sync else ''}{uuid.uuid4()}-u1"


@dataclass(frozen=True)
class NewJob:
    """A job as a client submits it. ``input`` and ``s3_config`` are JSON texts."""

    id: str
    endpoint: str
    input: str
    s3_config: str | None
    webhook: str | None
    execution_timeout_ms: int
    ttl_ms: int
    low_priority: bool
    max_attempts: int
    created_ms: int | None = None
    """Ms since the epoch; None, as for every job of a client: Redis's clock when the record is made."""
    request_id: str | None = None
    """The client's ``X-Request-ID``: passed on to the worker, the webhook and the log."""
    queue: str | None = None
    """The Celery queue in which a pinned job waits: a worker's own, which only that worker's node consumes.
    None: the endpoint's queue."""
    affinity: str | None = None
    """How much a pinned job needs its worker, see :class:`ownpod.rules.affinity.Affinity`."""
    task: str | None = None
    """JSON text of :class:`ownpod.rules.task_views.TaskFacts`, of a job that is a task."""
    private: str | None = None
    """The session, or the worker of a one-off task, that alone runs the job; ``queue`` is its own queue then."""
    movable: bool = False
    """When its session ends, the job moves to another session, because its client did not name one."""
    owner: str | None = None
    """Of a task: the digest of its client's key, "" without one. Other keys of its endpoint do not see it. None: all see it."""
    stays: bool = False
    """It never goes to a cloud worker."""
    hops: int = 0
    """Number of OwnPods that it has come through before this one."""

    def record(self) -> dict[str, str | int]:
        """The fields that the record starts with."""
        fields: dict[str, str | int | None] = {
            "id": self.id,
            "endpoint": self.endpoint,
            "input": self.input,
            "s3_config": self.s3_config,
            "webhook": self.webhook,
            "execution_timeout_ms": self.execution_timeout_ms,
            "ttl_ms": self.ttl_ms,
            "low_priority": int(self.low_priority),
            "max_attempts": self.max_attempts,
            "created_ms": self.created_ms,
            "request_id": self.request_id,
            "queue": self.queue,
            "affinity": self.affinity,
            "task": self.task,
            "private": self.private,
            "movable": 1 if self.movable else None,
            "owner": self.owner,
            "stays": 1 if self.stays else None,
            "hops": self.hops or None,
            "status": JobStatus.IN_QUEUE.value,
            "attempt": 0,
            "lost": 0,
            "retries": 0,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A job record without its payload. Times in ms since the epoch; ``output`` is JSON text."""

    id: str
    endpoint: str
    status: JobStatus
    created_ms: int
    attempt: int
    retries: int
    started_ms: int | None = None
    finished_ms: int | None = None
    execution_ms: int | None = None
    worker_id: str | None = None
    output: str | None = None
    error: str | None = None
    progress: str | None = None
    """The handler's last progress update; JSON text."""
    all_lost: bool = False
    """The job is FAILED because its last allowed attempt was lost. Only where it was asked for, see
    :meth:`ownpod.store.jobs.Jobs.were_all_lost`."""

    FIELDS: ClassVar = (
        "id",
        "endpoint",
        "status",
        "created_ms",
        "attempt",
        "retries",
        "started_ms",
        "finished_ms",
        "execution_ms",
        "worker_id",
        "output",
        "error",
        "progress",
    )

    @classmethod
    def from_record(cls, values: list[str | None]) -> Self:
        """From the record's ``FIELDS``, in that order."""
        record: dict[str, Any] = dict(zip(cls.FIELDS, values, strict=True))
        for name, value in record.items():
            if value is not None and (name in {"attempt", "retries"} or name.endswith("_ms")):
                record[name] = int(value)
        return cls(**record | {"status": JobStatus(record["status"])})

    @property
    def ran_ms(self) -> int | None:
        """Ms of the last attempt, as its worker reports them, or as OwnPod has measured them. None: it has not ended."""
        if self.started_ms is None or self.finished_ms is None:
            return None
        if self.execution_ms is not None:
            return self.execution_ms
        return max(0, self.finished_ms - self.started_ms)

    def answer(self) -> dict[str, Any]:
        """The answer to a client, without ``output`` (see :meth:`answer_json`).

        Milliseconds are whole and ``error`` is a string, because Go's clients fail to decode anything else.
        """
        body: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.started_ms is not None:
            body["delayTime"] = max(0, self.started_ms - self.created_ms)
        if (ran_ms := self.ran_ms) is not None:
            body["executionTime"] = ran_ms
        if self.worker_id is not None or self.status.terminal:
            body["workerId"] = self.worker_id or ""
        if self.error is not None:
            body["error"] = self.error
        if self.retries:
            body["retries"] = self.retries
        return body

    def answer_json(self) -> str:
        """The body of ``/status``. The output is JSON already and is not parsed for it.

        As with RunPod, a handler's progress is the output while it runs.
        """
        body, output = json.dumps(self.answer()), self.output or self.progress
        return body if output is None else f'{body[:-1]}, "output": {output}}}'
