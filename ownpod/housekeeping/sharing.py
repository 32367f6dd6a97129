"""The scaler's last part of a turn: idle workers give their devices to wanted ones for which none is free.

The choice is :meth:`ownpod.rules.turns.Turn.find`; :meth:`ownpod.store.managed.Managed.evict` checks it again and makes it so
in one step. Nothing is remembered here: what is being freed for which worker is in Redis.
"""

import logging
from collections.abc import Collection, Mapping

from ownpod.rules.loads import JobsView
from ownpod.rules.managed import ManagedWorker
from ownpod.rules.placement import why_waits
from ownpod.rules.sharing import HOLD_LEAST_S, Evict, HoldsByHost, Wait, unkeep
from ownpod.rules.templates import ManagedSpec
from ownpod.rules.turns import Turn, count_ready, residents_of, waiting_of, wanted_of
from ownpod.store.agents import Agents
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
        if not (wanted := wanted_of(known, jobs.keys() & specs.keys(), MOST_WANTED)):
            return {}
        agents = self._agents.agents()
        residents = residents_of(workers, specs, jobs, holds, evictable)
        turn = Turn(residents, agents, holds, hold_least_s=self._hold_least_s)
        ready = count_ready(workers)
        words = dict[str, str]()
        for worker in wanted:
            waiting = waiting_of(
                worker, jobs[worker.endpoint], has_serving=ready[worker.endpoint] > 0
            )
            if (without := turn.without_vain(waiting)) is not None:
                self._managed.unkeep(worker.id)
                turn = without
            found = turn.find(waiting)
            if isinstance(found, Evict) and not self._evict(found, worker):
                continue
            if isinstance(found, Evict | Wait):
                words[worker.id] = found.reason
            if isinstance(found, Wait) and not found.slots:
                words[worker.id] = f"{why_waits(worker, agents, turn.holds)}: {found.reason}"
            turn = turn.after(worker.id, found)
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
