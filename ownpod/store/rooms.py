"""Whether a device for one more private worker is free or freeable, read from Redis. The rule is
:func:`ownpod.rules.turns.has_room`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import redis

from ownpod.rules.endpoints import Endpoint
from ownpod.rules.loads import JobsView
from ownpod.rules.managed import AgentInfo, ManagedWorker, Phase
from ownpod.rules.residents import HOLD_LEAST_S, Waiting
from ownpod.rules.scaling import unhealthy
from ownpod.rules.sessions import has_evictable_sessions
from ownpod.rules.sharing import HoldsByHost
from ownpod.rules.templates import ManagedSpec
from ownpod.rules.turns import Turn, count_ready, has_room, residents_of, waiting_of, wanted_of
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import redis_reads
from ownpod.store.managed import Managed
from ownpod.store.managed_records import MOST_WANTED

Endpoints = Callable[[], Mapping[str, Endpoint]]
Seen = tuple[int, int]
"""Numbers of wanted workers and of used slots. While both stay, devices are as free as they were."""


class Rooms:
    """Looks for a device for one more worker. Any call may raise RedisUnavailable.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        managed: the workers' records.
        agents: the hosts' records.
        endpoints: all endpoints, by id; one that is missing gives no devices.
        hold_least_s: see :data:`ownpod.rules.residents.HOLD_LEAST_S`.
    """

    def __init__(
        self,
        client: redis.Redis,
        managed: Managed,
        agents: Agents,
        endpoints: Endpoints,
        hold_least_s: float = HOLD_LEAST_S,
    ) -> None:
        self._redis = client
        self._managed = managed
        self._agents = agents
        self._endpoints = endpoints
        self._hold_least_s = hold_least_s

    def find(self, endpoint: str, spec: ManagedSpec) -> tuple[bool, Seen]:
        """Whether devices for one more worker are free or freeable, besides those of the workers that wait already.

        Args:
            endpoint: of the worker.
            spec: what it is started from.

        Returns:
            Also the numbers that were read before, so that a caller notices whether others took devices meanwhile.
        """
        seen = self._seen()
        need = spec.gpu
        if need is None or need.count < 1:
            return True, seen
        agents, holds = self._agents.agents(), self._agents.all_holds()
        volumes = tuple(mount.name for mount in spec.template.volumes)
        waiting = Waiting("", endpoint, need.pools, need.count, volumes)
        earlier = [
            Waiting(worker.id, worker.endpoint, worker.pools, worker.gpu_count, worker.volumes)
            for worker, _ in (self._managed.wanted() if seen[0] else ())
            if worker.gpu_count > 0
        ]
        if has_room(Turn((), agents, holds), earlier, waiting):
            return True, seen
        return self._is_freeable(waiting, spec, agents, holds), seen

    @redis_reads
    def _seen(self) -> Seen:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.MANAGED_WANTED)
            pipe.hlen(keys.DEVICES_HELD)
            wanted, held = pipe.execute()
        return int(wanted), int(held)

    def _is_freeable(
        self,
        waiting: Waiting,
        spec: ManagedSpec,
        agents: Sequence[AgentInfo],
        holds: HoldsByHost,
    ) -> bool:
        """Whether the scaler's next turn would find devices. The scaler's step checks again that the workers which give way are idle."""
        endpoints = {name: e for name, e in self._endpoints().items() if e.managed is not None}
        specs = {name: e.managed for name, e in endpoints.items() if e.managed is not None}
        specs.setdefault(waiting.endpoint, spec)
        known = self._managed.list()
        jobs = self._managed.peek({name: found.release for name, found in specs.items()}, known)
        jobs = {
            name: _with_requests(view, known, holds)
            if name in endpoints and endpoints[name].is_balanced
            else view
            for name, view in jobs.items()
        }
        if waiting.endpoint not in jobs:
            return False
        workers = [worker for worker in known if worker.endpoint in jobs]
        evictable = {name for name, e in endpoints.items() if has_evictable_sessions(e)}
        residents = residents_of(workers, specs, jobs, holds, evictable)
        ready = count_ready(workers)
        earlier = [
            waiting_of(worker, jobs[worker.endpoint], has_serving=ready[worker.endpoint] > 0)
            for worker in wanted_of(known, jobs, MOST_WANTED)
        ]
        mine = jobs[waiting.endpoint]
        waiting = replace(
            waiting, load_s=mine.load_s, unhealthy=unhealthy(mine.failures.of(spec.release).count)
        )
        turn = Turn(residents, agents, holds, hold_least_s=self._hold_least_s)
        return has_room(turn, earlier, waiting)


def _with_requests(
    view: JobsView, workers: Sequence[ManagedWorker], holds: HoldsByHost
) -> JobsView:
    """The jobs of a load-balanced endpoint, which are its requests. Only the scaler reads the fronts' counts; of these the holds
    have whether a worker is idle.
    """
    idle = {hold.worker for mine in holds.values() for hold in mine if hold.idle_s is not None}
    busy = [w.id for w in workers if w.phase is Phase.READY and w.id not in idle]
    return replace(view, queued=0, running=dict.fromkeys(busy, 1), are_requests=True)
