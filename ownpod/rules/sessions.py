"""Sessions: workers that run the tasks of one client, when they end, and how clients see them. Pure.

The worker of a one-off task is private, too, and ends with its job.
Source of the words and of the four states: the GPU service's ``SessionResponse``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from ownpod.errors import BadRequest
from ownpod.rules.about import ANY_SESSION, about, about_of
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import LOST_GPU, SERVING, ManagedWorker, Phase, Role
from ownpod.rules.placement import CANNOT_START
from ownpod.rules.templates import ManagedSpec

KEPT_S = 600
"""Seconds for which clients see an ended session."""

KEEPALIVE_FACTOR = 4
"""How many times its idle time a keepalive may hold a session."""

MISSING_JOB_S = 30.0
"""Seconds after which the worker of a one-off task leaves if its job was never created, because the API ended in between."""

MODEL_WAIT_S = 60
"""Seconds after which a worker ends whose model cannot be had, although it may wait for a device for any time."""

MOST_MOVES = 3
"""How often a task moves to another session before it fails."""


class Status(StrEnum):
    """The GPU service's states of a session."""

    INITIALIZING = "initializing"
    WAITING = "waiting"
    WORKING = "working"
    KILLED = "killed"


class Reason(StrEnum):
    """Why a session ends."""

    MANUAL = "manual"
    IDLE_TIMEOUT = "idle_timeout"
    MAX_LIFETIME = "max_lifetime"
    EVICTED = "evicted"
    START_FAILED = "start_failed"
    START_TIMEOUT = "start_timeout"
    NO_DEVICE = "no_device"
    MODEL_FAILED = "model_failed"
    IMAGE_NOT_ALLOWED = "image_not_allowed"
    IMAGE_MISSING = "image_missing"
    CRASHED = "crashed"
    OOM = "oom"
    GPU_LOST = "gpu_lost"
    HOST_LOST = "host_lost"
    SHUTDOWN = "shutdown"


HOPELESS = frozenset(
    {
        *(Reason.START_FAILED, Reason.START_TIMEOUT, Reason.NO_DEVICE, Reason.MODEL_FAILED),
        *(Reason.IMAGE_NOT_ALLOWED, Reason.IMAGE_MISSING),
    }
)
"""Another session would end in the same way, so a task does not move to one."""

WORDS = {
    Reason.MANUAL: "it was ended by its client",
    Reason.IDLE_TIMEOUT: "it had no work for its idle time",
    Reason.MAX_LIFETIME: "its lifetime was over",
    Reason.NO_DEVICE: "no device was free in time",
    Reason.SHUTDOWN: "OwnPod was stopped",
}
"""The reasons that OwnPod's rules give, for a worker's record and the log."""


@dataclass(frozen=True)
class SessionWish:
    """A session that a client wants.

    Attributes:
        endpoint: the preset's endpoint.
        spec: what its worker is started from, with the pools of the difficulty.
        idle_s: seconds without work until it ends; 0: never.
        life_s: seconds until it ends; 0: never.
        queue_max: tasks that may wait for it; 0: any number.
        wait_s: seconds for which it may wait for a device; None: any time, 0: it is refused when none is free or freeable.
        labels: the client's own words about it.
        for_task: :data:`ANY_SESSION`; "": it was made for another reason.
        spill: from :meth:`ownpod.rules.presets.Preset.later`.
    """

    endpoint: str
    spec: ManagedSpec = field(repr=False)
    model_id: str
    preset: str
    difficulty: str
    idle_s: int = 300
    life_s: int = 3600
    queue_max: int = 5
    hard_life: bool = False
    from_created: bool = False
    wait_s: int | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    for_task: str = ""
    spill: Mapping[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """JSON, see :attr:`ownpod.rules.managed.ManagedWorker.about`."""
        more = {"for_task": self.for_task, **self.spill}
        return about(self.model_id, self.preset, self.difficulty, self.labels, **more)


def wish_for(
    endpoint: Endpoint,
    difficulty: str | None = None,
    *,
    idle_s: int | None = None,
    life_s: int | None = None,
    wait_s: int | None = None,
    labels: Mapping[str, Any] | None = None,
) -> SessionWish:
    """A session of a preset.

    Args:
        endpoint: the preset's.
        difficulty: the pool of its device; None: the preset's own.
        idle_s: seconds without work until it ends; None: the preset's.
        life_s: seconds until it ends; None: the preset's.
        wait_s: see :class:`SessionWish`.
        labels: the client's own words about it.

    Raises:
        BadRequest: the endpoint has no sessions, or none of this difficulty.
    """
    preset, spec = endpoint.preset, endpoint.managed
    if preset is None or preset.session is None or spec is None:
        raise BadRequest(f"endpoint {endpoint.id!r} has no sessions")
    limits = preset.session
    return SessionWish(
        endpoint=endpoint.id,
        spec=preset.for_difficulty(spec, difficulty, at_once=True),
        spill=preset.later(difficulty),
        model_id=preset.model_id,
        preset=preset.name,
        difficulty=preset.difficulty if difficulty is None else difficulty,
        idle_s=limits.idle_timeout_s if idle_s is None else idle_s,
        life_s=limits.max_lifetime_s if life_s is None else life_s,
        queue_max=limits.queue,
        hard_life=limits.hard_lifetime,
        from_created=limits.from_created,
        wait_s=wait_s,
        labels=labels or {},
    )


def has_evictable_sessions(endpoint: Endpoint) -> bool:
    """Whether an idle session of the endpoint gives its devices to another endpoint's worker that waits."""
    preset = endpoint.preset
    return preset is not None and preset.session is not None and preset.session.evictable


def again(worker: ManagedWorker, endpoint: Endpoint) -> SessionWish:
    """A session like one that has ended, for its tasks. Raises: BadRequest."""
    known = about_of(worker)
    labels = known.get("labels")
    wish = wish_for(endpoint, str(known.get("difficulty") or "") or None)
    return replace(
        wish,
        idle_s=worker.idle_s,
        life_s=worker.life_s,
        queue_max=worker.queue_max,
        wait_s=worker.wait_s or None,
        labels=labels if isinstance(labels, dict) else {},
        for_task=ANY_SESSION,
    )


@dataclass(frozen=True)
class Session:
    """A session as it is now.

    Attributes:
        worker: its record.
        queued: ids of the tasks that wait for it, the first one first.
        running: ids of the tasks that it runs.
        now_ms: Redis's clock when this was read, in ms since the epoch.
    """

    worker: ManagedWorker
    queued: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    now_ms: int = 0

    @property
    def id(self) -> str:
        return self.worker.id

    @property
    def takes_tasks(self) -> bool:
        """Whether a task may be added."""
        return self.worker.phase in SERVING

    @property
    def status(self) -> Status:
        """The state in the GPU service's words. A session that drains is waiting or working, as before."""
        if self.worker.phase is Phase.STOPPED:
            return Status.KILLED
        starts = self.worker.phase in {Phase.WANTED, Phase.PREPARING, Phase.STARTING}
        if starts or (self.worker.restart and self.worker.phase is Phase.READY):
            return Status.INITIALIZING
        return Status.WORKING if self.running or self.queued else Status.WAITING

    @property
    def reason(self) -> Reason | None:
        """Why it ends or has ended; None: it serves."""
        return reason_of(self.worker)

    @property
    def about(self) -> dict[str, Any]:
        return about_of(self.worker)

    @property
    def is_idle(self) -> bool:
        """It is ready, and has neither a running nor a waiting task."""
        is_ready = self.worker.phase is Phase.READY and not self.worker.restart
        return is_ready and not self.running and not self.queued

    @property
    def idle_expires_ms(self) -> int | None:
        """When its idle time is over, in ms since the epoch; None: it works, is not ready, or has no idle time."""
        worker = self.worker
        if not worker.idle_s or not self.is_idle:
            return None
        since = max(worker.active_ms or 0, worker.ready_ms or 0)
        return max(since + worker.idle_s * 1000, worker.keep_ms or 0)

    @property
    def expires_ms(self) -> int | None:
        """When its lifetime is over, in ms since the epoch; None: not known yet, or it has none."""
        worker = self.worker
        begin = worker.created_ms if worker.from_created else worker.ready_ms
        return begin + worker.life_s * 1000 if worker.life_s and begin else None

    @property
    def load_s(self) -> float | None:
        """Seconds from the start of its container to ready; None: it was not ready yet."""
        began, ready = self.worker.started_ms, self.worker.ready_ms
        return None if began is None or ready is None else max(ready - began, 0) / 1000


@dataclass(frozen=True)
class End:
    """The private worker is to end.

    Attributes:
        reason: why.
        at_once: a job that runs is ended, too.
        words: for its record.
    """

    reason: Reason
    at_once: bool = False
    words: str = ""


def decide(session: Session, *, job_over: bool | None = None) -> End | None:
    """Why a private worker is to end now; None: it stays.

    Args:
        session: the session, or the worker of a one-off task.
        job_over: of a task's worker, whether its job has ended; None: there is no such job.
    """
    worker, now_ms = session.worker, session.now_ms
    if worker.phase not in SERVING:
        return None
    if worker.role is Role.TASK:
        missing = job_over is None and now_ms - worker.created_ms > MISSING_JOB_S * 1000
        words = "its job has ended" if job_over else "it has no job"
        if job_over or missing:
            return End(Reason.MANUAL, words=words)
        return _no_place(worker) if _waited_too_long(worker, now_ms) else None
    expires_ms, idle_ms = session.expires_ms, session.idle_expires_ms
    end = None
    if expires_ms is not None and now_ms >= expires_ms:
        end = _end(Reason.MAX_LIFETIME, at_once=worker.hard_life)
    elif idle_ms is not None and now_ms >= idle_ms:
        end = _end(Reason.IDLE_TIMEOUT)
    elif _waited_too_long(worker, now_ms):
        end = _no_place(worker)
    return end


def _waited_too_long(worker: ManagedWorker, now_ms: int) -> bool:
    longest_s = worker.wait_s or (MODEL_WAIT_S if _lacks_model(worker) else 0)
    if worker.phase is not Phase.WANTED or not longest_s:
        return False
    since_ms = max(worker.created_ms, worker.fetched_ms or 0)
    return now_ms - since_ms >= longest_s * 1000


def _lacks_model(worker: ManagedWorker) -> bool:
    return f"{CANNOT_START}model " in worker.reason


def _no_place(worker: ManagedWorker) -> End:
    """The end of a wanted worker that has waited too long: for a device, or for its model, which no host can have."""
    if _lacks_model(worker):
        return End(Reason.MODEL_FAILED, words=worker.reason)
    return _end(Reason.NO_DEVICE)


def _end(reason: Reason, *, at_once: bool = False) -> End:
    return End(reason, at_once=at_once, words=WORDS[reason])


def reason_of(worker: ManagedWorker) -> Reason | None:
    """Why a session ends or has ended; None: it serves."""
    if worker.phase in SERVING:
        return None
    if worker.ending in list(Reason):
        return Reason(worker.ending)
    if worker.out_of_memory:
        return Reason.OOM
    if worker.failed:
        return _failure(worker)
    if worker.ended_in:
        return Reason.HOST_LOST
    return Reason.SHUTDOWN if worker.reason == WORDS[Reason.SHUTDOWN] else Reason.MANUAL


_STARTS = (
    ("did not ask for a job within", Reason.START_TIMEOUT),
    ("may not start", Reason.IMAGE_NOT_ALLOWED),
    ("not allowed", Reason.IMAGE_NOT_ALLOWED),
    ("image", Reason.IMAGE_MISSING),
    ("model", Reason.MODEL_FAILED),
)
"""Parts of an agent's reasons, which are sentences for people."""


def _failure(worker: ManagedWorker) -> Reason:
    if worker.reason.startswith(LOST_GPU):
        return Reason.GPU_LOST
    return Reason.CRASHED if worker.ready_ms is not None else _start_failure(worker.reason)


def _start_failure(text: str) -> Reason:
    return next((reason for part, reason in _STARTS if part in text), Reason.START_FAILED)


def ended_in_words(worker: ManagedWorker) -> str:
    """The error of a task whose session has ended."""
    reason = reason_of(worker) or Reason.MANUAL
    detail = f" ({worker.reason})" if worker.reason and worker.reason not in WORDS.values() else ""
    return f"session {worker.id} ended: {reason}{detail}"


def code_of(worker: ManagedWorker) -> str:
    """The word for programs about such a task's end: why the session never was ready, or ``session_ended``."""
    reason = reason_of(worker)
    if worker.ready_ms is None and reason is not None and reason is not Reason.MANUAL:
        return reason.value
    return "session_ended"


def may_move(worker: ManagedWorker, *, movable: bool, moves: int) -> bool:
    """Whether a waiting task of an ended session moves to another one.

    Args:
        worker: the session's record.
        movable: the client did not name the session.
        moves: how often the task has moved already.
    """
    return movable and moves < MOST_MOVES and reason_of(worker) not in HOPELESS
