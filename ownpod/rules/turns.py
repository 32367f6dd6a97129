"""One turn of devices: each wanted worker, the oldest first, gets free devices, or those of workers that give way. Pure.

The scaler carries out each choice. The admission of a task only computes a turn, to know whether a device is free or
freeable.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ownpod.rules.hours import scaling_at
from ownpod.rules.loads import JobsView
from ownpod.rules.managed import AgentInfo, ManagedWorker, Phase, Role
from ownpod.rules.residents import HOLD_LEAST_S, Resident, Waiting, let_leave
from ownpod.rules.scaling import unhealthy
from ownpod.rules.sharing import (
    Evict,
    HoldsByHost,
    Wait,
    choose,
    free_slots,
    is_kept_in_vain,
    keep,
    slot_name,
    unkeep,
)
from ownpod.rules.templates import ManagedSpec


@dataclass(frozen=True)
class Free:
    """These slots of a host are free, and enough for a wanted worker."""

    host: str
    slots: tuple[str, ...]


Found = Free | Evict | Wait | None
"""What a wanted worker gets; None: no host has enough devices that fit, or its hosts have too few."""


@dataclass(frozen=True)
class Turn:
    """What is left to the next wanted worker of a turn.

    Attributes:
        residents: the workers that hold devices.
        agents: the hosts.
        holds: what occupies the devices, by host, with what earlier wanted workers of the turn get.
        behind: workers with jobs that give way to an earlier one first.
        hold_least_s: see :data:`ownpod.rules.residents.HOLD_LEAST_S`.
    """

    residents: Sequence[Resident]
    agents: Sequence[AgentInfo]
    holds: HoldsByHost
    behind: frozenset[str] = frozenset()
    hold_least_s: float = HOLD_LEAST_S

    def find(self, waiting: Waiting) -> Found:
        """What a wanted worker gets now. Call :meth:`without_vain` before, because slots that are kept in vain count as taken."""
        if (free := free_slots(waiting, self.agents, self.holds)) is not None:
            return Free(*free)
        waiting = replace(waiting, behind=self.behind)
        return choose(
            waiting, self.residents, self.agents, self.holds, hold_least_s=self.hold_least_s
        )

    def without_vain(self, waiting: Waiting) -> "Turn | None":
        """The turn after a wanted worker gives up the slots that are kept for it in vain; None: there are none."""
        if not is_kept_in_vain(waiting, self.agents, self.holds):
            return None
        return replace(self, holds=unkeep(self.holds, waiting.worker))

    def after(self, worker: str, found: Found) -> "Turn":
        """The turn for the next wanted worker, after this one, by id, has got what was found for it."""
        match found:
            case Free(host, slots):
                # Its agent is about to place it, so the next one must not count on the same devices.
                return replace(self, holds=keep(self.holds, host, slots, worker))
            case Evict(host, victims, slots):
                going = {victim.worker for victim in victims}
                holds = keep(unkeep(self.holds, worker), host, slots, worker)
                return replace(self, residents=let_leave(self.residents, going), holds=holds)
            case Wait():
                later = replace(self, behind=self.behind | found.workers)
                if not found.slots:
                    return later
                return replace(later, holds=keep(self.holds, found.host, found.slots, worker))
        return self


def has_room(turn: Turn, earlier: Iterable[Waiting], waiting: Waiting) -> bool:
    """Whether devices for one more worker are free or freeable.

    Freeable are devices that idle workers of other endpoints give to it now, and devices that are being freed and not yet promised.
    A worker with jobs frees none: how long its jobs take is not known.

    Args:
        turn: before the first wanted worker.
        earlier: the workers that wait already, the oldest first.
        waiting: the new one.
    """
    for other in earlier:
        turn = turn.without_vain(other) or turn
        turn = turn.after(other.worker, turn.find(other))
    match turn.find(waiting):
        case Free():
            return True
        case Evict(victims=victims):
            return not any(victim.busy for victim in victims)
        case Wait(slots=slots):
            return bool(slots)
    return False


def residents_of(
    workers: Sequence[ManagedWorker],
    specs: Mapping[str, ManagedSpec],
    jobs: Mapping[str, JobsView],
    holds: HoldsByHost,
    evictable: Collection[str],
) -> list[Resident]:
    """The workers that hold devices.

    Args:
        workers: those of endpoints that have a spec and jobs.
        specs: what endpoints have, by id.
        jobs: their jobs, by the endpoint's id.
        holds: what occupies the devices, by host.
        evictable: endpoints whose idle sessions may give way.
    """
    slots: dict[tuple[str, str], list[str]] = {}
    idle_s = dict[str, float]()
    for host, mine in holds.items():
        for hold in mine:
            if hold.worker is not None:
                slots.setdefault((hold.worker, host), []).append(slot_name(hold.device, hold.slot))
                idle_s[hold.worker] = hold.idle_s or 0.0
    ready = count_ready(workers)
    residents = []
    for worker in workers:
        if worker.host is None or (worker.id, worker.host) not in slots:
            continue
        view, spec = jobs[worker.endpoint], specs[worker.endpoint]
        above = max(ready[worker.endpoint] - scaling_at(spec, view.now_ms).workers_min, 0)
        if worker.is_private:
            above = int(worker.role is Role.SESSION and worker.endpoint in evictable)
        residents.append(
            Resident(
                worker.id,
                worker.endpoint,
                worker.host,
                tuple(slots[worker.id, worker.host]),
                worker.phase,
                idle_s=view.idle_s.get(worker.id, idle_s[worker.id]),
                load_s=_load_s(worker),
                ready_s=max(view.now_ms - worker.ready_ms, 0) / 1000 if worker.ready_ms else 0.0,
                jobs=view.jobs(worker.id),
                # A private worker has jobs of its own queue only, and the eviction checks these.
                queued=0 if worker.is_private else view.queued,
                oldest_wait_s=view.oldest_wait_s,
                above_min=above * view.known,
                private=worker.is_private,
                sharing=spec.template.sharing,
            )
        )
    return residents


def count_ready(workers: Iterable[ManagedWorker]) -> Counter[str]:
    """How many ready workers each endpoint has, besides private ones."""
    ready = (w.endpoint for w in workers if w.phase is Phase.READY and not w.is_private)
    return Counter(ready)


def wanted_of(
    known: Iterable[ManagedWorker], endpoints: Collection[str], most: int
) -> list[ManagedWorker]:
    """The workers for which a turn looks for devices, the oldest first, as agents take them.

    Args:
        known: all managed workers.
        endpoints: ids of the endpoints whose workers count.
        most: number of wanted workers that agents read. Further ones get no devices, so none gives way to them.
    """
    wanted = (worker for worker in known if worker.phase is Phase.WANTED)
    first = sorted(wanted, key=lambda worker: (worker.created_ms, worker.id))[:most]
    return [worker for worker in first if worker.endpoint in endpoints and worker.gpu_count > 0]


def waiting_of(worker: ManagedWorker, jobs: JobsView, *, has_serving: bool) -> Waiting:
    """A wanted worker.

    Args:
        worker: its record.
        jobs: those of its endpoint.
        has_serving: its endpoint has a ready worker that is not private.
    """
    waits_s = jobs.oldest_wait_s
    if worker.is_private:
        # A session waits since it was wanted, whatever the endpoint's shared workers do.
        waits_s, has_serving = max(jobs.now_ms - worker.created_ms, 0) / 1000, False
    return Waiting(
        worker.id,
        worker.endpoint,
        worker.pools,
        worker.gpu_count,
        worker.volumes,
        oldest_wait_s=waits_s,
        load_s=jobs.load_s,
        has_serving=has_serving,
        unhealthy=unhealthy(jobs.failures.count),
        refused_by=frozenset(worker.refused_by),
    )


def _load_s(worker: ManagedWorker) -> float:
    # Its start is not recorded if the agent was killed at that moment, and the worker was ready before it came back.
    began_ms = worker.placed_ms if worker.started_ms is None else worker.started_ms
    if worker.ready_ms is None or began_ms is None:
        return 0.0
    return max(worker.ready_ms - began_ms, 0) / 1000
