"""Workers that hold devices, workers that wait for one, and when one of the first may give way to one of the second. Pure."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from ownpod.rules.managed import Phase
from ownpod.rules.templates import Sharing

HOLD_LEAST_S = 30.0
"""Seconds for which an endpoint with work keeps its devices at least, however short the loads are."""

HOLD_LOADS = 3.0
"""How many times the time of both loads an endpoint with work keeps its devices, so that loads take a quarter at most."""

LEAST_LOAD_S = 0.1
"""Seconds of the shortest load that is divided by."""


@dataclass(frozen=True)
class Resident:
    """A managed worker that holds devices.

    Attributes:
        slots: what it holds on its host, as ``<device>#<slot>``.
        idle_s: seconds since its last job, or since it was ready; 0 while it has a job.
        load_s: seconds that it took from its start to ready.
        ready_s: seconds since it was ready; 0: it is not.
        jobs: number of jobs that it has.
        queued: number of waiting jobs of its endpoint.
        oldest_wait_s: seconds for which the oldest of them has waited.
        above_min: how many of its endpoint's ready workers are above ``workersMin``; of a private worker, 1 if it may give way.
        private: it is a session, or the worker of a one-off task.
    """

    worker: str
    endpoint: str
    host: str
    slots: tuple[str, ...]
    phase: Phase = Phase.READY
    idle_s: float = 0.0
    load_s: float = 0.0
    ready_s: float = 0.0
    jobs: int = 0
    queued: int = 0
    oldest_wait_s: float = 0.0
    above_min: int = 1
    private: bool = False
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def works(self) -> bool:
        """Whether it has a job, or its endpoint has one that waits."""
        return self.jobs > 0 or self.queued > 0

    @property
    def stays_s(self) -> float:
        """Seconds until it has been ready for its residency, which is never shorter than its load was."""
        return max(self.sharing.residency_s, self.load_s) - self.ready_s

    @property
    def may_give_way(self) -> bool:
        """Whether it may ever give its devices to another endpoint."""
        return (
            self.phase is Phase.READY
            and self.above_min > 0
            and self.sharing.evictable
            and not self.sharing.pinned
        )

    @property
    def leaves(self) -> bool:
        """Whether its devices will soon be free: it is to end, and has no job."""
        return self.phase in {Phase.DRAINING, Phase.STOPPING} and not self.jobs


@dataclass(frozen=True)
class Waiting:
    """A wanted worker.

    Attributes:
        pools: see :class:`ownpod.rules.templates.GpuNeed`.
        count: number of devices that it needs, all of one host.
        volumes: names of the volumes that its host must have.
        oldest_wait_s: seconds for which the oldest waiting job of its endpoint has waited.
        load_s: seconds that the last start of its endpoint took; 0: not known.
        has_serving: its endpoint has a ready worker.
        unhealthy: the last starts of its endpoint have failed, so no other worker gives way for the next one.
        refused_by: hosts that cannot start it.
        behind: workers with jobs that give way to an older wanted worker first.
    """

    worker: str
    endpoint: str
    pools: tuple[str, ...] = ()
    count: int = 1
    volumes: tuple[str, ...] = ()
    oldest_wait_s: float = 0.0
    load_s: float = 0.0
    has_serving: bool = False
    unhealthy: bool = False
    refused_by: frozenset[str] = frozenset()
    behind: frozenset[str] = frozenset()


def let_leave(residents: Sequence[Resident], going: Collection[str]) -> list[Resident]:
    """The residents after some of them, by id, give way; for the next choice of the same turn.

    The others of their endpoints are fewer then, so that two choices do not take what ``workersMin`` promises.
    """
    fewer = Counter(r.endpoint for r in residents if r.worker in going)
    return [
        replace(r, phase=Phase.DRAINING)
        if r.worker in going
        else replace(r, above_min=max(r.above_min - fewer[r.endpoint], 0))
        for r in residents
    ]


def hold_s(load_s: float, other_load_s: float, least_s: float = HOLD_LEAST_S) -> float:
    """Seconds for which an endpoint with work keeps its devices while a job of another endpoint waits."""
    return max(least_s, HOLD_LOADS * (load_s + other_load_s))


def worth_s(resident: Resident) -> float:
    """The higher, the sooner a worker gives way: idle seconds by the seconds of its load, times its weight."""
    return resident.idle_s / (max(resident.load_s, LEAST_LOAD_S) * resident.sharing.weight)


def gives_way_in_s(
    resident: Resident, waiting: Waiting, hold_least_s: float = HOLD_LEAST_S
) -> float | None:
    """Seconds until a worker may give way to a wanted one if nothing changes, 0 at least; None: it does not."""
    if not resident.may_give_way or resident.endpoint == waiting.endpoint:
        return None
    if not resident.works:
        return max(resident.stays_s, 0.0)
    # Two endpoints with short loads would otherwise swap each other, while a third with a longer hold never gets a device.
    if waiting.has_serving or resident.worker in waiting.behind:
        return None
    hold = hold_s(resident.load_s, waiting.load_s, hold_least_s)
    # Both: otherwise a backlog on either side would swap them as often as their residency allows.
    return max(hold - waiting.oldest_wait_s, hold - resident.ready_s, resident.stays_s, 0.0)
