"""The scaler: it decides how many managed workers each endpoint has, and writes what it wants into Redis.

The decision is :func:`ownpod.rules.scaling.decide`; agents make it so. One housekeeping node scales at a time. It
remembers nothing that a successor needs, so it may end at any moment.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.housekeeping.releases import Effective, Rollouts
from ownpod.housekeeping.requests import Fronts, RequestCounts
from ownpod.housekeeping.sessions import PrivateWorkers
from ownpod.housekeeping.sharing import Swaps
from ownpod.processes import this_process
from ownpod.registry import Registry
from ownpod.rules.endpoints import HOUSEKEEPING
from ownpod.rules.loads import JobsView
from ownpod.rules.managed import HOST_SILENT_S, LIVE, ManagedWorker, Phase, new_worker_id
from ownpod.rules.placement import kept_reason, why_waits
from ownpod.rules.residents import HOLD_LEAST_S
from ownpod.rules.scaling import (
    UNHEALTHY_S,
    Action,
    Discard,
    Drain,
    EndpointView,
    Recycle,
    Start,
    WorkerView,
    decide,
)
from ownpod.rules.sessions import has_evictable_sessions
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

EVERY_S = 1.0
"""Seconds between two decisions; a notice brings the next one forward."""

LEAD_S = 5.0
"""Seconds after which another housekeeping node scales, when this one does not."""

PATIENCE_S = 15.0
"""Seconds after a start or an outage of Redis in which no host counts as silent, because agents could not publish."""

JUMP_S = 10.0
"""Seconds by which two clocks must differ after a decision for one of them to have jumped."""

STUCK_S = 15.0
"""Seconds for which a handler may go on after its job has ended, until its worker is stopped."""


@contextlib.contextmanager
def _apart(problem: str) -> Iterator[None]:
    """Around a step: one endpoint or worker with a broken record must not stop the others. Raises: RedisUnavailable."""
    try:
        yield
    except RedisUnavailable:
        raise
    except OwnPodError:
        log.exception("%s", problem)


class Scaler(threading.Thread):
    """The thread of the scaler.

    Args:
        registry: the endpoints, with what their workers are started from.
        managed: the workers' records.
        agents: the hosts' records.
        wakeups: wakes the thread when a job comes to an endpoint without workers.
        fronts: count the requests of load-balanced endpoints; None: there are none.
        hold_s: see :data:`ownpod.rules.residents.HOLD_LEAST_S`.
        sessions: ends sessions and one-off tasks' workers; None: there are none.
        clock: seconds, for its patience and for how long a handler goes on.
    """

    def __init__(
        self,
        registry: Registry,
        managed: Managed,
        agents: Agents,
        wakeups: Wakeups,
        *,
        fronts: Fronts | None = None,
        hold_s: float = HOLD_LEAST_S,
        sessions: PrivateWorkers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="scaler", daemon=True)
        self._registry = registry
        self._managed = managed
        self._agents = agents
        self._wakeups = wakeups
        self._requests = RequestCounts(fronts)
        self._swaps = Swaps(managed, agents, hold_least_s=hold_s)
        self._sessions = sessions
        self._private = set[str]()
        """Workers whose jobs do not count for their endpoint's number of workers."""
        self._clock = clock
        self._rollouts = Rollouts(managed.releases, agents.agents)
        self._process = this_process()
        self._lingering_since = dict[str, float]()
        self._unhealthy_since = dict[str, float]()
        self._patient_until = self._clock() + PATIENCE_S
        self._offset_s: float | None = None
        """Redis's clock less this host's at the last decision."""
        self._waited = set[str]()
        """Workers that already waited for a host at the last decision."""

    def run(self) -> None:
        while True:
            self._wakeups.wait(EVERY_S)
            try:
                if self._registry.fleet.acquire(HOUSEKEEPING, self._process, ttl_s=LEAD_S):
                    self.once()
            except RedisUnavailable as error:
                log.warning("no scaling: %s", error)
                self._patient_until = self._clock() + PATIENCE_S
            except Exception:
                log.exception("scaling failed")

    def once(self) -> None:
        """One decision for each endpoint. Raises: RedisUnavailable."""
        endpoints = self._registry.endpoints
        specs = {name: e.managed for name, e in endpoints.items() if e.managed is not None}
        workers = self._managed.list()
        if self._sessions is not None:
            with _apart("sessions are not checked"):
                self._sessions.once([worker for worker in workers if worker.is_private])
        if not specs and not workers:
            return
        lost = self._lose_silent(workers)
        every = [worker for worker in workers if worker.id not in lost]
        workers = [worker for worker in every if not worker.is_private]
        self._private = {worker.id for worker in every if worker.is_private}
        current = self._rollouts.effective(specs, workers, now_ms=self._managed.now_ms)
        requests = self._requests.read({name for name in specs if endpoints[name].is_balanced})
        jobs = self._managed.views(
            {name: found.release for name, found in current.items()},
            workers,
            requests.readings,
            requests.used,
        )
        for endpoint, found in current.items():
            mine = [worker for worker in workers if worker.endpoint == endpoint]
            if endpoint not in jobs:
                continue
            with _apart(f"endpoint {endpoint} is not scaled"):
                if not self._resume(endpoint, found, mine, jobs[endpoint]):
                    self._scale(endpoint, found, mine, jobs[endpoint])
                self._rollouts.check_starts(endpoint, found, jobs[endpoint].failures)
        for worker in every:
            if worker.endpoint not in specs:
                with _apart(f"worker {worker.id} does not leave"):
                    self._act(Drain(worker.id, "its endpoint has no template any more"), worker)
        words = dict[str, str]()
        with _apart("no worker gives way to another"):
            words = self._swaps.turn(
                {name: found.spec for name, found in current.items()},
                jobs,
                evictable={name for name in current if has_evictable_sessions(endpoints[name])},
            )
        self._explain([worker for worker in every if worker.phase is Phase.WANTED], words)

    def _explain(self, wanted: Sequence[ManagedWorker], words: Mapping[str, str]) -> None:
        """Records why wanted workers wait for a device. ``words``: those that are known already, by id."""
        late = {worker.id: worker for worker in wanted if worker.id in self._waited}
        self._waited = {worker.id for worker in wanted}
        if not late:
            return
        agents, holds = self._agents.agents(), self._agents.all_holds()
        for worker in late.values():
            reason = words.get(worker.id) or why_waits(worker, agents, holds)
            if reason != worker.reason and not kept_reason(worker.reason, reason):
                self._managed.waits(worker.id, reason)

    def _lose_silent(self, workers: Sequence[ManagedWorker]) -> Collection[str]:
        """Stops the records of workers whose host is silent, so that others replace them. Returns their ids."""
        lost = set[str]()
        if self._clock_jumped() or self._clock() < self._patient_until:
            return lost
        silent_s = {agent.host: agent.silent_s for agent in self._agents.agents()}
        for worker in workers:
            if worker.phase not in LIVE or worker.host is None:
                continue
            host_silent_s = silent_s.get(worker.host, float("inf"))
            if host_silent_s > HOST_SILENT_S:
                reason = f"its host {worker.host} has been silent for {HOST_SILENT_S:.0f} s"
                if self._managed.lost(worker.id, reason):
                    log.warning("worker %s of %s is lost: %s", worker.id, worker.endpoint, reason)
                    lost.add(worker.id)
        return lost

    def _clock_jumped(self) -> bool:
        """Whether Redis's clock has moved by another time than this host's, as after a host was suspended or its clock was
        set. Heartbeats then look older than they are, so hosts get :data:`PATIENCE_S` to publish.
        """
        before, self._offset_s = self._offset_s, self._managed.now_ms() / 1000 - self._clock()
        jumped = before is not None and abs(self._offset_s - before) > JUMP_S
        if jumped:
            log.warning(
                "the clock of Redis or of this host has jumped; no host counts as silent now"
            )
            self._patient_until = self._clock() + PATIENCE_S
        return jumped

    def _scale(
        self, endpoint: str, current: Effective, workers: Sequence[ManagedWorker], jobs: JobsView
    ) -> None:
        by_id = {worker.id: worker for worker in workers}
        view = EndpointView(
            id=endpoint,
            scaling=current.scaling(jobs.now_ms),
            release=current.release,
            now_ms=jobs.now_ms,
            queued=jobs.queued,
            oldest_wait_s=jobs.oldest_wait_s,
            running=sum(n for worker, n in jobs.running.items() if worker not in self._private),
            workers=tuple(self._view(worker, jobs) for worker in workers),
            failures_count=jobs.failures.count,
            pause_s=jobs.failures.pause_s,
            pinned=current.spec.template.sharing.pinned,
            came_up=current.came_up,
            has_host=self._rollouts.has_host(current, workers),
            known=jobs.known,
        )
        for action in decide(view):
            if isinstance(action, Start):
                self._start(endpoint, current, action.count)
            else:
                self._act(action, by_id[action.worker])

    def _view(self, worker: ManagedWorker, jobs: JobsView) -> WorkerView:
        return WorkerView(
            worker.id,
            worker.phase,
            worker.release,
            idle_s=jobs.idle_s.get(worker.id, 0.0),
            jobs=jobs.jobs(worker.id),
            created_ms=worker.created_ms,
            host=worker.host,
            stuck=self._is_stuck(worker.id, jobs),
            unhealthy=self._is_unhealthy(worker.id, jobs),
            wished=worker.id in jobs.wishes,
        )

    def _is_stuck(self, worker_id: str, jobs: JobsView) -> bool:
        """Whether a handler goes on for :data:`STUCK_S` after its job ended, while the worker runs no other job."""
        if jobs.are_requests:
            # A request may last as long as its endpoint lets it, and the front ends it.
            return False
        if not jobs.lingering.get(worker_id) or jobs.running.get(worker_id):
            self._lingering_since.pop(worker_id, None)
            return False
        since = self._lingering_since.setdefault(worker_id, self._clock())
        return self._clock() - since > STUCK_S

    def _is_unhealthy(self, worker_id: str, jobs: JobsView) -> bool:
        """Whether the front has found the worker unhealthy for :data:`UNHEALTHY_S`. One that processes a request may be too
        busy to answer a health check.
        """
        fails = worker_id in jobs.unhealthy and jobs.known and not jobs.jobs(worker_id)
        if not jobs.are_requests or not fails:
            self._unhealthy_since.pop(worker_id, None)
            return False
        return (
            self._clock() - self._unhealthy_since.setdefault(worker_id, self._clock()) > UNHEALTHY_S
        )

    def _resume(
        self, endpoint: str, current: Effective, workers: Sequence[ManagedWorker], jobs: JobsView
    ) -> bool:
        """Lets stopped workers be started again for which requests wait. True: one is, so the next decision counts it."""
        room = current.scaling(jobs.now_ms).workers_max - len(workers)
        if not jobs.wishes or room <= 0 or jobs.failures.pause_s > 0:
            return False
        able = self._managed.resumable(endpoint, current.release, jobs.wishes)[:room]
        done = [
            worker_id
            for worker_id in able
            if self._managed.want_again(
                worker_id, endpoint, spec=current.spec, release=current.release
            )
        ]
        for worker_id in done:
            log.info("endpoint %s: worker %s is wanted again by a request", endpoint, worker_id)
        return bool(done)

    def _start(self, endpoint: str, current: Effective, count: int) -> None:
        for _ in range(count):
            worker_id = new_worker_id()
            if self._managed.want(worker_id, endpoint, spec=current.spec, release=current.release):
                log.info("endpoint %s: one more worker is wanted, %s", endpoint, worker_id)

    def _act(self, action: Action, worker: ManagedWorker) -> None:
        match action:
            case Drain(worker_id, reason) if worker.phase is Phase.WANTED:
                done = self._managed.discard(worker_id, reason)
            case Drain(worker_id, reason):
                done = self._managed.drain(worker_id, reason)
            case Discard(worker_id, reason):
                done = self._managed.discard(worker_id, reason)
            case Recycle(worker_id, reason):
                done = self._managed.stopping(worker_id, worker.host or "", reason)
                self._managed.notice()
            case _:
                return
        if done:
            log.info("endpoint %s: worker %s leaves: %s", worker.endpoint, worker.id, action.reason)
