"""Sessions and tasks as the HTTP API shows them. Pure.

Source: the GPU service's schemas, ``SessionResponse`` and the states of a task. Times are ISO 8601 with ``Z``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ownpod.rules.event_data import iso, status_url
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.managed import Device, Phase
from ownpod.rules.sessions import Session


class TaskType(StrEnum):
    """Where a task runs."""

    SESSION = "session"
    ONE_OFF = "oneoff"


class OnDisconnect(StrEnum):
    """What becomes of a task when the client of its stream has gone."""

    CONTINUE = "continue"
    CANCEL = "cancel"
    """The task is cancelled, unless a client reads its events again within some seconds."""


TASK_STATUS = {
    JobStatus.IN_QUEUE: "pending",
    JobStatus.IN_PROGRESS: "running",
    JobStatus.COMPLETED: "completed",
}
"""The GPU service's words for a job's states; all others are ``failed``."""

SUBMITTED_STATUS = {JobStatus.IN_QUEUE: "queued", JobStatus.IN_PROGRESS: "processing"}
"""The words in the JSON answer to a submission; after the task's end, those of :data:`TASK_STATUS`."""


@dataclass(frozen=True)
class TaskFacts:
    """What a job's record keeps of the request that made it a task.

    Attributes:
        type: a word of :class:`TaskType`; "": the job is no task.
        timeout_seconds: for which it may run.
        on_disconnect: a word of :class:`OnDisconnect`.
        found: its session was there before it.
    """

    type: str = ""
    model_id: str = ""
    preset: str = ""
    difficulty: str = ""
    timeout_seconds: int = 0
    on_disconnect: str = OnDisconnect.CONTINUE.value
    found: bool = False

    def text(self) -> str:
        """As JSON, for the record."""
        return json.dumps(asdict(self))


def task_facts(text: str | None) -> TaskFacts:
    """The facts in a record. Values that cannot be read are left out, because they are for people only."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, dict):
        return TaskFacts()
    kinds = {name: type(value) for name, value in asdict(TaskFacts()).items()}
    return TaskFacts(**{n: v for n, v in found.items() if n in kinds and isinstance(v, kinds[n])})


def _iso(ms: int | None) -> str | None:
    """An instant in ms since the epoch as ``2026-11-24T10:00:00.123Z``; None, and what no calendar has, is None."""
    if ms is None:
        return None
    try:
        return iso(ms)
    except (OverflowError, OSError, ValueError):
        return None


@dataclass(frozen=True)
class Placed:
    """The first device of a worker, and its host."""

    host: str
    device: Device


@dataclass(frozen=True)
class SessionView:
    """A session with what its own record lacks.

    Attributes:
        session: the session as it is now.
        placed: its device; None: it has none yet, or its host publishes none.
        image: the image that it is started from; None: it runs without one.
        digest: of the image; "": not known.
        container: what the engine names it; None: nothing runs.
    """

    session: Session
    placed: Placed | None = None
    image: str | None = None
    digest: str = ""
    container: str | None = None


def describe_session(view: SessionView) -> dict[str, Any]:
    """A session as JSON has it, first the GPU service's keys, then OwnPod's own."""
    session, worker, about = view.session, view.session.worker, view.session.about
    reason = None if session.reason is None else session.reason.value
    body = {
        "session_id": worker.id,
        "status": session.status.value,
        "gpu_device_id": None if view.placed is None else view.placed.device.index,
        "container_id": view.container,
        "model_id": about.get("model_id"),
        "created_at": _iso(worker.created_ms),
        "last_activity": _iso(worker.active_ms or worker.created_ms),
        "queue_size": len(session.queued),
        "current_task_id": session.running[0] if session.running else None,
        "endpoint": worker.endpoint,
        "task_preset": about.get("preset"),
        "task_difficulty": about.get("difficulty"),
        "labels": about["labels"] if isinstance(about.get("labels"), dict) else {},
        "phase": worker.phase.value,
        "reason": reason,
        "message": worker.reason,
        "gpu": describe_gpu(view.placed, about.get("difficulty")),
        "queue_max": worker.queue_max,
        "queued_task_ids": list(session.queued),
        "tasks_done": worker.tasks_done,
        "idle_timeout_seconds": worker.idle_s,
        "max_lifetime_seconds": worker.life_s,
        "idle_expires_at": _iso(session.idle_expires_ms),
        "expires_at": _iso(session.expires_ms),
        "ready_at": _iso(worker.ready_ms),
        "load_seconds": session.load_s,
        "image": view.image,
        "image_id": view.digest or None,
    }
    if worker.phase in {Phase.DRAINING, Phase.STOPPING}:
        body["ending"] = reason
    elif worker.phase is Phase.STOPPED:
        body["ended_at"] = _iso(worker.stopped_ms)
        body["exit_code"] = worker.exit_code
        body["oom"] = worker.out_of_memory
    return body


def describe_gpu(placed: Placed | None, difficulty: object) -> dict[str, Any] | None:
    """A session's device as JSON has it; None: it has none."""
    if placed is None:
        return None
    device = placed.device
    return {
        "host": placed.host,
        "index": device.index,
        "uuid": device.id,
        "name": device.name,
        "class": difficulty if difficulty in device.pools else next(iter(device.pools), None),
        "simulated": device.simulated,
    }


def describe_task(
    job: Job,
    facts: TaskFacts,
    now_ms: int,
    *,
    session: str | None = None,
    container: str | None = None,
    logs: Sequence[Mapping[str, Any]] = (),
    position: int | None = None,
    estimated_wait_s: int | None = None,
) -> dict[str, Any]:
    """A task as JSON has it, without its output.

    Args:
        job: its job.
        facts: what its request was.
        now_ms: the clock of the records, ms since the epoch.
        session: the id of its session; None: it is of none.
        container: what the engine names the container that runs it, or ran it.
        logs: its last log lines, as their events have them.
        position: in its queue, from 1; None: it does not wait.
        estimated_wait_s: whole seconds until it will probably begin; None: not known.
    """
    began, ended = job.started_ms, job.finished_ms
    elapsed_ms = 0 if began is None else max(0, (ended or now_ms) - began)
    return {
        "task_id": job.id,
        "status": TASK_STATUS.get(job.status, "failed"),
        "task_type": facts.type or None,
        "task_difficulty": facts.difficulty or None,
        "model_id": facts.model_id or None,
        "task_preset": facts.preset or None,
        "session_id": session,
        "container_id": container,
        "created_at": _iso(job.created_ms),
        "started_at": _iso(began),
        "completed_at": _iso(ended),
        "elapsed_seconds": elapsed_ms // 1000,
        "timeout_seconds": facts.timeout_seconds or None,
        "error_message": job.error,
        "recent_logs": [dict(line) for line in logs],
        "endpoint": job.endpoint,
        "job_status": job.status.value,
        "worker_id": job.worker_id,
        "attempts": job.attempt,
        "position": position,
        "estimated_wait_seconds": estimated_wait_s,
        "status_url": status_url(job),
    }
