"""Managed workers: the workers that OwnPod itself starts, their phases, and the devices that they hold. Pure."""

import json
import re
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from ownpod.errors import WorkerRecordBroken

WORKER_ID = re.compile(r"[a-z0-9]{14}")
"""Pattern of a managed worker's id, which is RunPod's."""

ALPHABET = string.ascii_lowercase + string.digits


def new_worker_id() -> str:
    """A random id as RunPod's workers have it: 14 lower-case letters and digits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(14))


class Phase(StrEnum):
    """Where a managed worker is on its way. It only moves down this list, and may skip phases."""

    WANTED = "wanted"
    """The scaler wants it; no agent has taken it yet."""
    PREPARING = "preparing"
    """An agent has taken it, with its devices, and gets the image."""
    STARTING = "starting"
    """Its process or container runs, and has not asked for a job yet."""
    READY = "ready"
    """It has asked for a job, or answers its health check."""
    DRAINING = "draining"
    """It takes no more jobs, and is stopped when it has none."""
    STOPPING = "stopping"
    """Its agent stops it."""
    STOPPED = "stopped"
    """Nothing of it runs, and it holds no device."""


ORDER = list(Phase)


class Role(StrEnum):
    """Whose jobs a managed worker runs."""

    SHARED = "shared"
    """Those of its endpoint; the scaler starts and stops it."""
    SESSION = "session"
    """Those of one client, from its own queue only, until the session ends."""
    TASK = "task"
    """One job, for which its container is started."""


LIVE = (Phase.PREPARING, Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING)
"""Phases in which a worker belongs to a host, and holds its devices."""

SERVING = (Phase.WANTED, Phase.PREPARING, Phase.STARTING, Phase.READY)
"""Phases in which a worker counts towards what its endpoint has or will soon have."""

STOPPED_KEPT_S, MOST_STOPPED = 7 * 86_400, 200
"""Seconds for which the record and the output of a stopped worker are kept, and number of such workers."""

LOG_LINES = 50
"""Number of last lines of output that are kept and shown of a worker that has stopped."""

HOST_SILENT_S = 60.0
"""Seconds without a heartbeat of an agent after which its workers count as lost."""

LOST = "lost: "
"""The beginning of the problem of a GPU that NVML has no more."""

LOST_GPU = "its GPU is lost"
"""The beginning of the reason of a worker that was ended because of that."""

ORPHAN_S = 60.0
"""Seconds after which an agent stops a container or process of its own that no record knows."""


@dataclass(frozen=True)
class ManagedWorker:
    """A managed worker's record. Times in ms since the epoch, by Redis's clock; None: not yet."""

    id: str
    endpoint: str
    release: str
    phase: Phase
    created_ms: int
    reason: str = ""
    """Why it is in its phase, in words: the progress of a pull, what it waits for, why it stopped."""
    host: str | None = None
    """The name of the agent that has taken it."""
    devices: tuple[str, ...] = ()
    """Ids of the devices that it holds, on its host."""
    gpu_count: int = 0
    """How many devices it needs."""
    pools: tuple[str, ...] = ()
    """See :class:`ownpod.rules.templates.GpuNeed`."""
    volumes: tuple[str, ...] = ()
    """Names of the volumes that its host must have."""
    refused_by: tuple[str, ...] = ()
    """While it is wanted: hosts that cannot start it, for example because a secret is missing there."""
    placed_ms: int | None = None
    started_ms: int | None = None
    ready_ms: int | None = None
    stopped_ms: int | None = None
    exit_code: int | None = None
    failed: bool = False
    """It stopped before it was ready, or ended by itself."""
    out_of_memory: bool = False
    """The kernel ended it because its memory limit was reached."""
    ended_in: str = ""
    """The phase in which it ended by itself; "": it was stopped, or has not ended."""
    log: str = ""
    """Its last lines of output, once it has stopped."""
    url: str | None = None
    """The base URL of a worker that is pushed to, or of a load-balanced endpoint, once it runs."""
    health_port: int | None = None
    """The port of its health check; None: that of ``url``."""
    role: Role = Role.SHARED
    owner: str = ""
    """The digest of the key that created the session or task; "": no key was needed."""
    queue_max: int = 0
    """How many jobs may wait for the session; 0: any number."""
    idle_s: int = 0
    """Seconds without work after which the session ends; 0: never."""
    life_s: int = 0
    """Seconds from ready after which the session ends; 0: never."""
    hard_life: bool = False
    """A job that runs at the end of the session's lifetime is ended, too."""
    active_ms: int | None = None
    """When the session last had work, or was kept alive."""
    keep_ms: int | None = None
    """Until when a keepalive holds an idle session, beyond its idle time."""
    about: str = ""
    """JSON object about a session or task, for people: ``model_id``, ``preset``, ``difficulty``, ``labels``."""
    job: str = ""
    """The id of a task's job."""
    run: str = ""
    """Of a task: "<job id>:<attempt>" once its node has claimed the job, so its container may start."""
    restart: int = 0
    """Of a worker that is ready: 1, it has asked for a restart; 2, its next process runs, and has not asked for a job yet;
    3, it is to be started again at once."""
    tasks_done: int = 0
    """Jobs of the session that have ended."""
    from_created: bool = False
    """The session's lifetime counts from its creation, not from ready."""
    wait_s: int = 0
    """Seconds for which the session waits for a device, until it ends; 0: any time."""
    fetched_ms: int | None = None
    """When a host last had news of the model that it fetches for the worker, which waits for no device meanwhile."""
    ending: str = ""
    """Why the session ends or has ended, a value of :class:`ownpod.rules.sessions.Reason`; "": not ended by OwnPod's rules."""

    @property
    def is_private(self) -> bool:
        """It gets jobs from its own queue only."""
        return self.role is not Role.SHARED

    @property
    def ended_badly(self) -> bool:
        """It ended by itself, could not be started, or was lost with its host."""
        return self.failed or bool(self.ended_in)


def is_resumable(worker: ManagedWorker, endpoint: str, release: str) -> bool:
    """Whether a worker that was stopped may be started once more, by the same id: it was ready, and did not fail."""
    return (
        worker.phase is Phase.STOPPED
        and (worker.endpoint, worker.release) == (endpoint, release)
        and worker.ready_ms is not None
        and not worker.ended_badly
    )


@dataclass(frozen=True)
class Device:
    """A GPU of a host, or a stand-in for one.

    Attributes:
        id: the GPU's UUID, or ``cpu-0`` and so on for a stand-in.
        pools: RunPod's names of the pools that it belongs to, and those that the host's labels add.
        problem: why it cannot be used now: another program uses it, or NVML has lost it. "" if it can.
    """

    id: str
    index: int
    name: str
    memory_mb: int = 0
    pools: tuple[str, ...] = ()
    simulated: bool = False
    slots: int = 1
    """Number of workers that may share it."""
    problem: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last figures: memory_used_mb, utilization_percent, temperature_c, power_w; empty where there are none."""


@dataclass(frozen=True)
class HostVolume:
    """A volume of a host.

    Attributes:
        kind: ``directory``, or ``docker`` for a named volume of the Docker engine.
        source: the directory's path on the host, or the name of the Docker volume.
        problem: why workers cannot use it now; "" if they can.
    """

    name: str
    kind: str
    source: str
    total_mb: int = 0
    free_mb: int = 0
    problem: str = ""


@dataclass(frozen=True)
class AgentInfo:
    """A host as its agent last published it."""

    host: str
    engine: str
    devices: tuple[Device, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    """An operator has drained the host: it takes no more workers."""
    silent_s: float = 0.0
    """Seconds since its last heartbeat."""
    problem: str = ""
    """Why GPUs of the host, or its engine, cannot be used; "" if all can."""
    volumes: tuple[HostVolume, ...] = ()
    images: tuple[str, ...] | None = None
    """Patterns of the images that the host may start; None: all, or its engine starts none."""
    secrets: tuple[str, ...] | None = None
    """Names of the secrets that the agent has in its own variables; None: its version does not publish them."""


@dataclass(frozen=True)
class Hold:
    """What occupies a slot of a device: a worker, an operator's reservation, or a wanted worker for which it is freed."""

    device: str
    worker: str | None = None
    reserved: str = ""
    """Why an operator keeps it, for example "2 h left"."""
    next: str | None = None
    """The wanted worker that gets the slot once ``worker`` has gone; without a ``worker``, the slot is kept for it."""
    slot: int = 0
    """Number of the slot, from 0."""
    idle_s: float | None = None
    """Seconds since ``worker`` was first seen without a job; None: it has one, or is not ready."""

    @property
    def is_reservation(self) -> bool:
        """Whether an operator keeps the device."""
        return self.worker is None and self.next is None


def may_move(old: Phase, new: Phase) -> bool:
    """Whether a worker may move from one phase to another: only forward, and never from STOPPED."""
    return ORDER.index(new) > ORDER.index(old)


LONGEST_NUMBER = 18
"""Characters of a number in a record: no larger one can be compared with a time in seconds."""

FIELDS = tuple(f.name for f in fields(ManagedWorker) if f.name != "id")
"""Fields of a worker's record in Redis."""


WANTED_FIELDS = (
    *("endpoint", "release", "phase", "created_ms"),
    *("reason", "gpu_count", "pools", "volumes", "refused_by", "role"),
)
"""Those of them that a wanted worker may have. Agents read many of these records every second."""


def from_record(
    worker_id: str, values: Sequence[str | None], names: Sequence[str] = FIELDS
) -> ManagedWorker:
    """The worker in a record.

    Args:
        worker_id: the worker's id.
        values: of ``names``, as texts; None: the record has no such field.
        names: some of :data:`FIELDS`.

    Raises:
        WorkerRecordBroken: the record is gone, or has a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for name, text in zip(names, values, strict=True):
        if text is None:
            continue
        try:
            found[name] = _VALUES.get(name, str)(text)
        except (ValueError, RecursionError):
            raise WorkerRecordBroken(f"the field {name!r} of its record cannot be read") from None
    try:
        return ManagedWorker(id=worker_id, **found)
    except TypeError:
        raise WorkerRecordBroken("its record is gone, or lacks fields") from None


def shortened(text: str, longest: int) -> str:
    """A text of ``longest`` characters at most, which ends after a word and with an ellipsis if it was cut."""
    if len(text) <= longest:
        return text
    words, _, _ = text[: longest - 1].rpartition(" ")
    # A path or a command may have no space for long.
    whole = words if len(words) > longest // 2 else text[: longest - 2]
    return f"{whole} \N{HORIZONTAL ELLIPSIS}"


def _names(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError
    return tuple(names)


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError
    return int(text)


_VALUES: dict[str, Any] = {
    "phase": Phase,
    "devices": _names,
    "pools": _names,
    "volumes": _names,
    "refused_by": _names,
    "role": Role,
    **dict.fromkeys(
        ("failed", "out_of_memory", "hard_life", "from_created"), lambda text: bool(int(text))
    ),
    **dict.fromkeys(
        (
            *("created_ms", "placed_ms", "started_ms", "ready_ms", "stopped_ms"),
            *("gpu_count", "exit_code", "health_port"),
            *("queue_max", "idle_s", "life_s", "active_ms", "keep_ms", "tasks_done", "wait_s"),
            *("fetched_ms", "restart"),
        ),
        _whole,
    ),
}
