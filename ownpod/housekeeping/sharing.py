"""The scaler's last part of a turn: idle workers give their devices to wanted ones for which none is free.

The choice is :func:`ownpod.rules.sharing.choose`; :meth:`ownpod.store.managed.Managed.evict` checks it again and makes it so
in one step. Nothing is remembered here: what is being freed for which worker is in Redis.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ownpod.rules.hours import scaling_at
from ownpod.rules.managed import ManagedWorker, Phase, Role
from ownpod.rules.placement import why_waits
from ownpod.rules.residents import let_leave
from ownpod.rules.scaling import unhealthy
from ownpod.rules.sharing import (
    HOLD_LEAST_S,
    Evict,
    HoldsByHost,
    Resident,
    Waiting,
    choose,
    free_slots,
    is_kept_in_vain,
    keep,
    slot_name,
    unkeep,
)
from ownpod.rules.templates import ManagedSpec
from ownpod.store.agents import Agents
from ownpod.store.loads import JobsView
from ownpod.store.managed import Managed
from ownpod.store.managed_records import MOST_WANTED

log = logging.getLogger(__name__)


class Swaps:
    """Lets workers give way.

    Args:
        managed: the workers' records.
        agents: the hosts' records.
        hold_least_s: see :data:`ownpod.rules.residents.HOLD_LEAST_S`.
    """

    def __init__(
        self, managed: Managed, agents: Agents, *, hold_least_s: float = HOLD_LEAST_S
    ) -> None:
        self._managed = managed
        self._agents = agents
        self._hold_least_s = hold_least_s

    def turn(
        self,
        specs: Mapping[str, ManagedSpec],
        jobs: Mapping[str, JobsView],
        *,
        evictable: Collection[str] = (),
    ) -> dict[str, str]:
        """Lets workers give way to those that are wanted now, the oldest first.

        Args:
            specs: what endpoints have, by id.
            jobs: their jobs, by the endpoint's id.
            evictable: endpoints whose idle sessions may give way.

        Returns:
            What wanted workers wait for, in words, by id; only those for which there is more to say than
            :func:`ownpod.rules.placement.why_waits` does.

        Raises:
            RedisUnavailable: Redis is away.
        """
        if not self._managed.any_wanted():
            return {}
        known = self._managed.list()
        holds = self._give_up_unknown(self._agents.all_holds(), {worker.id for worker in known})
        workers = [w for w in known if w.endpoint in jobs and w.endpoint in specs]
        # No agent reads further ones, so none gives way to them.
        first = sorted((w for w in known if w.phase is Phase.WANTED), key=_age)[:MOST_WANTED]
        seen = {worker.id for worker in first}
        wanted = [w for w in workers if w.id in seen and w.gpu_count > 0]
        if not wanted:
            return {}
        agents = self._agents.agents()
        residents = _residents(workers, specs, jobs, holds, evictable)
        ready = _ready(workers)
        words = dict[str, str]()
        behind = frozenset[str]()
        for worker in sorted(wanted, key=_age):
            waiting = _waiting(
                worker, jobs[worker.endpoint], has_serving=ready[worker.endpoint] > 0
            )
            if is_kept_in_vain(waiting, agents, holds):
                self._managed.unkeep(worker.id)
                holds = unkeep(holds, worker.id)
            if (free := free_slots(waiting, agents, holds)) is not None:
                # Its agent is about to place it, so the next one must not count on the same devices.
                holds = keep(holds, *free, worker.id)
                continue
            waiting = replace(waiting, behind=behind)
            found = choose(waiting, residents, agents, holds, hold_least_s=self._hold_least_s)
            if found is None:
                continue
            words[worker.id] = found.reason
            if not isinstance(found, Evict):
                behind |= found.workers
                if found.slots:
                    holds = keep(holds, found.host, found.slots, worker.id)
                else:
                    words[worker.id] = f"{why_waits(worker, agents, holds)}: {found.reason}"
            elif self._evict(found, worker):
                going = {victim.worker for victim in found.victims}
                residents = let_leave(residents, going)
                holds = keep(unkeep(holds, worker.id), found.host, found.slots, worker.id)
            else:
                del words[worker.id]
        return words

    def _give_up_unknown(self, holds: HoldsByHost, known: Collection[str]) -> HoldsByHost:
        """The holds without what is kept for workers whose record cannot be read, because no agent takes these."""
        for worker in {h.next for mine in holds.values() for h in mine if h.next} - set(known):
            self._managed.unkeep(worker)
            holds = unkeep(holds, worker)
        return holds

    def _evict(self, choice: Evict, worker: ManagedWorker) -> bool:
        if not self._managed.evict(choice, worker.id):
            return False
        for victim in choice.victims:
            log.info(
                "endpoint %s: worker %s leaves: %s", victim.endpoint, victim.worker, victim.reason
            )
        return True


def _residents(
    workers: Sequence[ManagedWorker],
    specs: Mapping[str, ManagedSpec],
    jobs: Mapping[str, JobsView],
    holds: HoldsByHost,
    evictable: Collection[str],
) -> list[Resident]:
    slots: dict[tuple[str, str], list[str]] = {}
    idle_s = dict[str, float]()
    for host, mine in holds.items():
        for hold in mine:
            if hold.worker is not None:
                slots.setdefault((hold.worker, host), []).append(slot_name(hold.device, hold.slot))
                idle_s[hold.worker] = hold.idle_s or 0.0
    ready = _ready(workers)
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


def _ready(workers: Sequence[ManagedWorker]) -> Counter[str]:
    """How many ready workers each endpoint has, besides private ones."""
    ready = (w.endpoint for w in workers if w.phase is Phase.READY and not w.is_private)
    return Counter(ready)


def _load_s(worker: ManagedWorker) -> float:
    # Its start is not recorded if the agent was killed at that moment, and the worker was ready before it came back.
    began_ms = worker.placed_ms if worker.started_ms is None else worker.started_ms
    if worker.ready_ms is None or began_ms is None:
        return 0.0
    return max(worker.ready_ms - began_ms, 0) / 1000


def _age(worker: ManagedWorker) -> tuple[int, str]:
    """Sorts the oldest first, as agents take them."""
    return worker.created_ms, worker.id


def _waiting(worker: ManagedWorker, jobs: JobsView, *, has_serving: bool) -> Waiting:
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
