"""What an agent does next: its workers' records against the workers that its engine has. Pure.

A plan depends on its arguments only, so an agent that has just started continues where the one before it ended. Each
step may be done twice. The holds must be read before the records: a worker that is placed in between then holds its
devices in the records at least, and never loses them.
"""

import signal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ownpod.rules.managed import LOST, LOST_GPU, ORPHAN_S, Device, Hold, ManagedWorker, Phase, Role
from ownpod.rules.templates import DEFAULT_INIT_TIMEOUT_S

EMPTY_REDIS_S = 600.0
"""Seconds for which an agent ends no orphan after Redis came back without its records."""


@dataclass(frozen=True)
class Found:
    """A worker that an engine has started, as it is now.

    Attributes:
        age_s: seconds since it was started.
        exit_code: None while it runs; negative, as Python has it, where a signal ended it.
        out_of_memory: the kernel killed it because its memory limit was reached.
        devices: ids of the devices that it was started with.
    """

    worker_id: str
    running: bool
    age_s: float
    exit_code: int | None = None
    out_of_memory: bool = False
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """The worker is to be started."""

    worker: str


@dataclass(frozen=True)
class Adopt:
    """The worker runs, and its record is to be moved to STARTING (``Managed.started``)."""

    worker: str


@dataclass(frozen=True)
class Restart:
    """The worker is ready and has asked for a restart, or has ended after that: it is ended and started again with its devices."""

    worker: str


@dataclass(frozen=True)
class Stop:
    """The worker is to be ended.

    Attributes:
        announce: its record is moved to STOPPING first (``Managed.stopping``). The step is dropped if that is refused.
        failed: its end is reported as a failure.
        quick: it has no job any more that counts, and gets less time to end, because its device is wanted.
    """

    worker: str
    reason: str
    announce: bool = False
    failed: bool = False
    quick: bool = False


@dataclass(frozen=True)
class Ended:
    """Nothing of the worker runs: its record is to be moved to STOPPED (``Managed.stopped``), its remains removed."""

    worker: str
    reason: str
    exit_code: int | None = None
    failed: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Remove:
    """The worker has no record here: it is to be ended and removed, and its devices are freed (``Managed.gone``)."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Free:
    """Devices of this host are held by a worker of which nothing is left: they are freed (``Managed.gone``)."""

    worker: str


Step = Launch | Adopt | Restart | Stop | Ended | Remove | Free


@dataclass(frozen=True)
class Knowledge:
    """What else an agent knows. All ids are of workers.

    Attributes:
        busy: they have a job.
        paused: their node fetches no more jobs.
        stuck: their job has ended by its ``executionTimeout``, and its handler still runs.
        under_way: the agent is starting or ending them at this moment.
        ended: Redis has their record, as STOPPED; for example of a host that was silent for too long.
        unknown_s: seconds for which the agent has seen them without a record; a missing one: 0.
        init_timeout_s: seconds from a worker's start to its first request for a job; a missing one: RunPod's default.
        lost_s: seconds for which a GPU of theirs has been lost; a missing one: none is.
        probed: they ask for no jobs, because the front sends them requests, once their health check is well.
    """

    busy: Collection[str] = frozenset()
    paused: Collection[str] = frozenset()
    stuck: Collection[str] = frozenset()
    under_way: Collection[str] = frozenset()
    ended: Collection[str] = frozenset()
    unknown_s: Mapping[str, float] = field(default_factory=dict)
    init_timeout_s: Mapping[str, float] = field(default_factory=dict)
    lost_s: Mapping[str, float] = field(default_factory=dict)
    probed: Collection[str] = frozenset()


LOST_S = 15.0
"""Seconds after which a worker is ended whose GPU is lost: a driver that is loaded again has it back sooner."""

FRONT_SILENT_S = 30.0
"""Seconds for which a draining worker that served requests stays although no front publishes its status: the front's HAProxy
may still serve clients, until another process of the front controls it again."""


def await_front(
    before: Mapping[str, float],
    silent: Collection[str],
    draining: Collection[ManagedWorker],
    probed: Collection[str],
    now_s: float,
) -> dict[str, float]:
    """Since when no front has published the status of draining workers that may still have requests, from the previous answer,
    on the agent's own clock.

    Args:
        before: the previous answer.
        silent: ids of workers without a status.
        draining: workers that drain.
        probed: see :class:`Knowledge`.
        now_s: the agent's clock.
    """
    return {
        worker.id: before.get(worker.id, now_s)
        for worker in draining
        if worker.id in silent and worker.id in probed and worker.ready_ms is not None
    }


def plan(
    records: Mapping[str, ManagedWorker],
    found: Mapping[str, Found],
    holds: Sequence[Hold] = (),
    *,
    instance_known: bool,
    known_for_s: float = float("inf"),
    knowledge: Knowledge | None = None,
) -> list[Step]:
    """An agent's next steps; those that free devices come first.

    Args:
        records: the records of this host's workers that are not STOPPED, by id.
        found: all workers that the engine has, those that ended included, by id.
        holds: what occupies the devices of this host, read before the records.
        instance_known: Redis has the key of this installation. Without it no orphan is ended.
        known_for_s: seconds since that key was seen missing. Within :data:`EMPTY_REDIS_S` no orphan is ended, because
            a Redis that came back empty must not end workers that serve.
        knowledge: what else the agent knows.
    """
    known = knowledge or Knowledge()
    steps: list[Step] = []
    for worker_id, record in sorted(records.items(), key=lambda r: (r[1].created_ms, r[0])):
        if worker_id not in known.under_way:
            step = _of_record(record, found.get(worker_id), known)
            steps += [step] if step else []
    trusted = instance_known and known_for_s >= EMPTY_REDIS_S
    for worker_id in sorted(found.keys() - records.keys()):
        if worker_id in known.under_way:
            continue
        if worker_id in known.ended:
            steps.append(Remove(worker_id, "its record is STOPPED"))
        elif trusted and known.unknown_s.get(worker_id, 0.0) >= ORPHAN_S:
            steps.append(Remove(worker_id, f"it has had no record for {ORPHAN_S:.0f} s"))
    holders = {hold.worker for hold in holds if hold.worker is not None}
    gone = holders - records.keys() - found.keys() - set(known.under_way)
    steps += [Free(worker_id) for worker_id in sorted(gone)]
    return sorted(steps, key=lambda step: _ORDER.index(type(step)))


_ORDER: list[type[Step]] = [Ended, Free, Remove, Stop, Adopt, Restart, Launch]


def _of_record(record: ManagedWorker, found: Found | None, known: Knowledge) -> Step | None:
    if record.phase in {Phase.WANTED, Phase.STOPPED}:
        return None
    if found is None and record.phase is Phase.PREPARING:
        return Launch(record.id)
    of_role = _of_task if record.role is Role.TASK else _of_server
    return of_role(record, found, known)


def _of_server(record: ManagedWorker, found: Found | None, known: Knowledge) -> Step | None:
    runs = found is not None and found.running
    if record.phase is Phase.READY and record.restart in {1, 3}:
        waits = runs and record.restart == 1 and record.id in known.busy
        return None if waits else Restart(record.id)
    if found is None or not found.running:
        return _ended(record, found)
    if record.phase in {Phase.DRAINING, Phase.STOPPING} or record.id in known.stuck:
        return _leaving(record, known)
    if known.lost_s.get(record.id, 0.0) >= LOST_S:
        return Stop(
            record.id,
            f"{LOST_GPU}: NVML has not had it for {LOST_S:.0f} s",
            failed=True,
            quick=True,
        )
    limit = known.init_timeout_s.get(record.id, float(DEFAULT_INIT_TIMEOUT_S))
    is_ready = record.phase is Phase.READY and not record.restart
    if not is_ready and found.age_s > limit:
        # Its record is not moved to STOPPING, so that its end counts as a failure after a crash of the agent, too.
        reason = f"it did not ask for a job within {limit:g} s of its start"
        if record.id in known.probed:
            why = f": {record.reason}" if record.phase is Phase.STARTING and record.reason else ""
            reason = f"its health check did not answer 200 within {limit:g} s of its start{why}"
        return Stop(record.id, reason, failed=True)
    return Adopt(record.id) if record.phase is Phase.PREPARING else None


def _of_task(record: ManagedWorker, found: Found | None, known: Knowledge) -> Step | None:
    """The worker of a one-off task gets its container by its job, and keeps it until the job has ended.

    Unlike with other workers, its node need not be paused: no job is claimed for a private worker that drains.
    """
    leaves = record.phase is Phase.DRAINING and record.id not in known.busy
    if not leaves and record.phase is not Phase.STOPPING:
        return None
    if found is not None and found.running:
        return Stop(record.id, record.reason, announce=record.phase is Phase.DRAINING)
    return Ended(record.id, record.reason, found.exit_code if found else None)


def _ended(record: ManagedWorker, found: Found | None) -> Ended:
    exit_code = found.exit_code if found else None
    if record.phase in {Phase.DRAINING, Phase.STOPPING}:
        return Ended(record.id, record.reason, exit_code)
    reason = end_reason(found) if found else "it vanished: the engine does not have it any more"
    memory = found is not None and found.out_of_memory
    return Ended(record.id, reason, exit_code, failed=True, out_of_memory=memory)


def _leaving(record: ManagedWorker, known: Knowledge) -> Stop | None:
    if record.phase is Phase.STOPPING:
        return Stop(record.id, record.reason, quick=record.role is Role.SESSION)
    if record.id in known.stuck:
        reason = "its executionTimeout has passed, and its handler still runs"
        return Stop(record.id, reason, announce=True)
    if record.id in known.paused and record.id not in known.busy:
        return Stop(record.id, record.reason, announce=True)
    return None


def unrecorded(found: Mapping[str, Found], holds: Sequence[Hold]) -> list[Hold]:
    """Holds that Redis does not have, of devices that workers use; for example after Redis came back empty.

    Placement needs them beside Redis's own, because a device would get a second worker otherwise.
    """
    held = {(hold.worker, hold.device) for hold in holds}
    used = ((w.worker_id, device) for w in found.values() if w.running for device in w.devices)
    return [Hold(device, worker) for worker, device in used if (worker, device) not in held]


def first_unknown(
    before: Mapping[str, float],
    records: Mapping[str, ManagedWorker],
    found: Mapping[str, Found],
    now_s: float,
) -> dict[str, float]:
    """When each found worker was first seen without a record, from the previous answer, on the agent's own clock."""
    return {i: before.get(i, now_s) for i in found if i not in records}


def first_lost(
    before: Mapping[str, float],
    records: Iterable[ManagedWorker],
    devices: Iterable[Device],
    now_s: float,
) -> dict[str, float]:
    """Since when a GPU of workers is lost, from the previous answer, on the agent's own clock.

    Args:
        before: the previous answer.
        records: the workers of this host.
        devices: its devices, as read last.
        now_s: the agent's clock.
    """
    lost = {device.id for device in devices if device.problem.startswith(LOST)}
    return {w.id: before.get(w.id, now_s) for w in records if lost.intersection(w.devices)}


def end_reason(found: Found) -> str:
    """How a worker ended, in words for people."""
    if found.out_of_memory:
        return "it was killed because it reached its memory limit"
    if found.exit_code is None:
        return "it ended with an unknown exit code"
    number = -found.exit_code if found.exit_code < 0 else found.exit_code - 128
    try:
        # A shell and Docker give 128 and the signal's number.
        return f"it was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"exit code {found.exit_code}"
