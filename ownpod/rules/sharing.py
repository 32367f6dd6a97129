"""Which idle worker gives its devices to a wanted worker of another endpoint, and when a busy one has to. Pure.

Jobs of an endpoint whose worker is loaded run before that worker gives way, so four jobs A B A A run as A A A B: each
load is paid once. So that B never waits without an end, an endpoint with work keeps its devices at most :func:`ownpod.rules.residents.hold_s`
once a job of B has waited that long.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Device, Hold, Phase
from ownpod.rules.placement import groups
from ownpod.rules.residents import (
    HOLD_LEAST_S,
    Resident,
    Waiting,
    gives_way_in_s,
    hold_s,
    worth_s,
)

__all__ = [
    "HOLD_LEAST_S",
    "Evict",
    "HoldsByHost",
    "Resident",
    "Victim",
    "Wait",
    "Waiting",
    "choose",
    "free_slots",
    "gives_way_in_s",
    "hold_s",
    "is_kept_in_vain",
    "keep",
    "slot_name",
    "unkeep",
    "worth_s",
]

HoldsByHost = Mapping[str, Sequence[Hold]]


@dataclass(frozen=True)
class Victim:
    """A worker that gives way. ``busy``: although it or its endpoint has jobs; it ends its running ones."""

    worker: str
    endpoint: str
    reason: str
    busy: bool = False


@dataclass(frozen=True)
class Evict:
    """These workers are to be drained, all or none, and the wanted worker gets these slots of their host."""

    host: str
    victims: tuple[Victim, ...]
    slots: tuple[str, ...]
    reason: str
    """What the wanted worker waits for then, in words."""


@dataclass(frozen=True)
class Wait:
    """No worker gives way now.

    Attributes:
        reason: which endpoints' workers use the devices, in words.
        in_s: seconds until one may give way; None: not known.
        host: of ``slots``.
        slots: slots that will soon be free, and are enough for the wanted worker.
        workers: those with jobs that may give way to it later: ``behind`` of younger wanted workers.
    """

    reason: str
    in_s: float | None = None
    host: str = ""
    slots: tuple[str, ...] = ()
    workers: frozenset[str] = field(default=frozenset(), compare=False)


def choose(
    waiting: Waiting,
    residents: Iterable[Resident],
    agents: Iterable[AgentInfo],
    holds: HoldsByHost,
    *,
    hold_least_s: float = HOLD_LEAST_S,
) -> Evict | Wait | None:
    """Which workers give way to a wanted one.

    Idle workers first, those with the highest ``idle_s / (load_s * weight)``: what was used longest ago and is loaded
    fastest. They give way only if that is enough for all devices that the worker needs, with those that are free.

    Args:
        waiting: the wanted worker.
        residents: all workers that hold devices.
        agents: the hosts.
        holds: what occupies the devices, by host.
        hold_least_s: see :data:`HOLD_LEAST_S`.

    Returns:
        None: a host has enough free devices, or none has enough devices that fit.
    """
    if waiting.count < 1:
        return None
    offers = _offers(waiting, residents, agents, holds)
    if not offers or any(offer.is_free for offer in offers):
        return None
    # An idle worker comes before one that has to give way: its last job may still take long.
    for busy in (False, True):
        ready = (wait for offer in offers if (wait := offer.wait(busy=busy)) is not None)
        if (first := next(ready, None)) is not None:
            return first
        found = [e for offer in offers if (e := offer.evict(hold_least_s, busy=busy)) is not None]
        if found and not waiting.unhealthy:
            # The first pool that the worker prefers, then what costs the fewest workers.
            return min(found, key=lambda e: (e[0], len(e[1].victims)))[1]
    if waiting.unhealthy:
        return Wait("its last starts have failed, so no other worker gives way")
    return _wait(offers, waiting, hold_least_s)


def free_slots(
    waiting: Waiting, agents: Iterable[AgentInfo], holds: HoldsByHost
) -> tuple[str, tuple[str, ...]] | None:
    """A host and its free slots that are enough for a wanted worker; None: no host has enough."""
    free = (offer for offer in _offers(waiting, (), agents, holds) if offer.is_free)
    return next(((o.host, o.free[: waiting.count]) for o in free), None)


def is_kept_in_vain(waiting: Waiting, agents: Iterable[AgentInfo], holds: HoldsByHost) -> bool:
    """Whether slots are kept for a wanted worker that cannot get all devices that it needs with them any more."""
    hosts = {h for h, mine in holds.items() if any(hold.next == waiting.worker for hold in mine)}
    kept = [a for a in agents if a.host in hosts and _is_open(a, waiting)]
    can = (
        waiting.count <= sum(hold.next == waiting.worker for hold in holds[agent.host])
        for agent in kept
        if not _kept_on_unusable(agent, waiting, holds[agent.host])
    )
    return bool(hosts) and not any(can)


def _kept_on_unusable(agent: AgentInfo, waiting: Waiting, holds: Sequence[Hold]) -> bool:
    usable = {device.id for device in _usable(agent, holds)}
    return any(hold.next == waiting.worker and hold.device not in usable for hold in holds)


def unkeep(holds: HoldsByHost, worker: str) -> dict[str, list[Hold]]:
    """The holds after no slot is kept for a wanted worker any more."""
    return {
        host: [
            replace(hold, next=None) if hold.next == worker else hold
            for hold in mine
            if hold.next != worker or hold.worker is not None
        ]
        for host, mine in holds.items()
    }


def keep(holds: HoldsByHost, host: str, slots: Iterable[str], worker: str) -> dict[str, list[Hold]]:
    """The holds after slots of a host are kept for a wanted worker; for the next one of the same turn."""
    kept = {name: list(of_host) for name, of_host in holds.items()}
    mine = kept.setdefault(host, [])
    for name in slots:
        device, slot = _split(name)
        for i, hold in enumerate(mine):
            if (hold.device, hold.slot) == (device, slot) and not hold.is_reservation:
                mine[i] = replace(hold, next=worker)
                break
        else:
            mine.append(Hold(device, next=worker, slot=slot))
    return kept


def slot_name(device: str, slot: int) -> str:
    """A slot's name on its host."""
    return f"{device}#{slot}"


def _split(name: str) -> tuple[str, int]:
    device, _, slot = name.rpartition("#")
    return device, int(slot)


def _is_open(agent: AgentInfo, waiting: Waiting) -> bool:
    has = {volume.name for volume in agent.volumes if not volume.problem}
    return (
        not agent.draining
        and agent.silent_s <= HOST_SILENT_S
        and agent.host not in waiting.refused_by
        and has.issuperset(waiting.volumes)
    )


@dataclass(frozen=True)
class _Offer:
    """The devices of one host that belong to one pool of the worker's need.

    Attributes:
        rank: of the pool in the worker's order of preference.
        free: slots that the worker may have now.
        coming: slots that it may have soon, with the worker that leaves them.
        later: slots that are kept for it, of workers that still have a job.
        residents: workers that hold other slots, with those of their slots that belong to the pool.
    """

    waiting: Waiting
    host: str
    rank: int
    devices: Mapping[str, Device]
    free: tuple[str, ...]
    coming: Mapping[str, Resident | None]
    later: Mapping[str, Resident | None]
    residents: Mapping[Resident, tuple[str, ...]]

    @property
    def is_free(self) -> bool:
        return len(self.free) >= self.waiting.count

    def wait(self, *, busy: bool) -> Wait | None:
        """What the worker waits for, if no other has to give way. ``busy``: also for the end of jobs."""
        soon = self._soon(busy=busy)
        missing = self.waiting.count - len(self.free)
        if len(soon) < missing:
            return None
        soon = dict(list(soon.items())[:missing])
        words = [f"{self._named([slot])} is being freed{_of(who)}" for slot, who in soon.items()]
        return Wait("; ".join(words), 0.0, self.host, (*self.free, *soon))

    def _soon(self, *, busy: bool) -> dict[str, Resident | None]:
        return {**self.coming, **(self.later if busy else {})}

    def evict(self, hold_least_s: float, *, busy: bool) -> tuple[int, Evict] | None:
        """The rank, and who gives way; None: those that may give way now are not enough."""
        can = [r for r in self.residents if self._gives_way(r, hold_least_s, busy=busy)]
        can.sort(key=lambda r: (r.works, -worth_s(r), -r.idle_s, -r.ready_s, r.worker))
        have = [*self.free, *self._soon(busy=busy)]
        victims, spare = list[Resident](), Counter[str]()
        for resident in can:
            if self._number(victims) + len(have) >= self.waiting.count:
                break
            if spare[resident.endpoint] < resident.above_min:
                spare[resident.endpoint] += 1
                victims.append(resident)
        if self._number(victims) + len(have) < self.waiting.count:
            return None
        for resident in reversed(victims.copy()):
            others = [v for v in victims if v is not resident]
            if self._number(others) + len(have) >= self.waiting.count:
                victims = others
        of_victims = (slot for victim in victims for slot in self.residents[victim])
        slots = {_split(slot)[0]: slot for slot in (*have, *of_victims)}
        words = [f"{self._named(self.residents[v])} is being freed{_of(v)}" for v in victims]
        return self.rank, Evict(
            self.host,
            tuple(map(self._victim, victims)),
            tuple(slots.values())[: self.waiting.count],
            "; ".join(words),
        )

    def may_give_way(self, hold_least_s: float) -> list[Resident]:
        """Workers that may give way some time; none if they are not enough, or no job waits."""
        times = {r: gives_way_in_s(r, self.waiting, hold_least_s) for r in self.residents}
        found = [resident for resident, left_s in times.items() if left_s is not None]
        enough = len(self.free) + len(self.coming) + self._number(found) >= self.waiting.count
        return found if enough and self.waiting.oldest_wait_s > 0 else []

    def _number(self, victims: Iterable[Resident]) -> int:
        """How many devices they free."""
        return len({_split(slot)[0] for victim in victims for slot in self.residents[victim]})

    def _gives_way(self, resident: Resident, hold_least_s: float, *, busy: bool) -> bool:
        left_s = gives_way_in_s(resident, self.waiting, hold_least_s)
        return left_s is not None and left_s <= 0 and (busy or not resident.works)

    def _victim(self, resident: Resident) -> Victim:
        why = (
            f"whose oldest job has waited for {self.waiting.oldest_wait_s:.0f} s"
            if resident.works
            else f"it was idle for {resident.idle_s:.0f} s"
        )
        reason = f"its device goes to {self.waiting.endpoint}, {why}"
        return Victim(resident.worker, resident.endpoint, reason, busy=resident.works)

    def _named(self, slots: Sequence[str]) -> str:
        """The devices of slots in words, for example "GPU 0"."""
        devices = [self.devices[_split(slot)[0]] for slot in slots]
        noun = "device" if any(device.simulated for device in devices) else "GPU"
        indices = sorted({device.index for device in devices})
        return f"{noun}{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _usable(agent: AgentInfo, holds: Sequence[Hold]) -> list[Device]:
    reserved = {hold.device for hold in holds if hold.is_reservation}
    return [d for d in agent.devices if not d.problem and d.id not in reserved]


def _offers(
    waiting: Waiting,
    residents: Iterable[Resident],
    agents: Iterable[AgentInfo],
    holds: HoldsByHost,
) -> list[_Offer]:
    by_host = dict[str, list[Resident]]()
    for resident in residents:
        by_host.setdefault(resident.host, []).append(resident)
    return [
        offer
        for agent in agents
        if _is_open(agent, waiting)
        for offer in _of_host(agent, waiting, by_host.get(agent.host, []), holds)
    ]


def _of_host(
    agent: AgentInfo, waiting: Waiting, residents: Sequence[Resident], holds: HoldsByHost
) -> Iterable[_Offer]:
    mine = holds.get(agent.host, ())
    usable = _usable(agent, mine)
    taken = {(h.device, h.slot): h for h in mine if not h.is_reservation}
    holders = {slot: resident for resident in residents for slot in resident.slots}
    for rank, (_, group) in enumerate(groups(usable, waiting.pools)):
        slots = [(d.id, slot) for d in group for slot in range(d.slots)]
        if len(group) < waiting.count:
            continue
        free, coming, later = dict[str, str](), dict[str, str](), dict[str, str]()
        held = dict[Resident, dict[str, str]]()
        for device, number in slots:
            name = slot_name(device, number)
            hold = taken.get((device, number))
            holder = holders.get(name)
            if hold is not None and hold.next not in {None, waiting.worker}:
                continue
            if hold is None or hold.worker is None:
                free.setdefault(device, name)
            elif holder is not None and holder.leaves:
                coming.setdefault(device, name)
            elif hold.next is not None:
                later.setdefault(device, name)
            elif holder is not None:
                held.setdefault(holder, {}).setdefault(device, name)
        # One slot of a device is enough: a worker gets no device twice.
        soon = {d: slot for d, slot in coming.items() if d not in free}
        late = {d: slot for d, slot in later.items() if d not in free and d not in soon}
        had = free.keys() | soon.keys() | late.keys()
        yield _Offer(
            waiting,
            agent.host,
            rank,
            {device.id: device for device in group},
            tuple(free.values()),
            {slot: holders.get(slot) for slot in soon.values()},
            {slot: holders.get(slot) for slot in late.values()},
            {r: left for r, of in held.items() if (left := _of_others(of, had))},
        )


def _of_others(slots: Mapping[str, str], devices: Collection[str]) -> tuple[str, ...]:
    """The slots, by device, of other devices than these."""
    return tuple(slot for device, slot in slots.items() if device not in devices)


def _wait(offers: Sequence[_Offer], waiting: Waiting, hold_least_s: float) -> Wait | None:
    residents = dict.fromkeys(resident for offer in offers for resident in offer.residents)
    if not residents:
        return None
    times = {r: gives_way_in_s(r, waiting, hold_least_s) for r in residents}
    soon = [left_s for left_s in times.values() if left_s]
    words = list(dict.fromkeys(_state(r, left_s) for r, left_s in times.items()))
    later = [o.may_give_way(hold_least_s) for o in offers]
    workers = frozenset(r.worker for of_offer in later for r in of_offer if r.works)
    return Wait(", ".join(words), min(soon, default=None), workers=workers)


def _state(resident: Resident, left_s: float | None) -> str:
    sharing = resident.sharing
    cases = (
        (bool(left_s), f"may be swapped in {max(left_s or 0, 1):.0f} s"),
        (resident.phase in {Phase.DRAINING, Phase.STOPPING}, "ends its jobs"),
        (resident.phase is not Phase.READY, "starts"),
        (resident.works, "works"),
        (sharing.pinned, "is pinned"),
        (not sharing.evictable, "is not evictable"),
        (resident.private and not resident.above_min, "serves one client"),
        (not resident.above_min, "is within its workersMin"),
    )
    state = next((words for applies, words in cases if applies), "stays")
    return f"{resident.endpoint} {state}"


def _of(resident: Resident | None) -> str:
    if resident is None:
        return ""
    idle = "" if resident.works else f", idle {resident.idle_s:.0f} s"
    return f" ({resident.endpoint}{idle})"
