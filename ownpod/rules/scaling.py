"""How many managed workers an endpoint has: what to start, drain, discard and recycle now. Pure.

The rules are RunPod's (``workersMin``, ``workersMax``, ``idleTimeout``, QUEUE_DELAY, REQUEST_COUNT, rolling releases).
A decision depends on its arguments only, so that a scaler which has just started decides as the one before it.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ownpod.rules.backoff import backoff_s
from ownpod.rules.managed import SERVING, Phase
from ownpod.rules.templates import ScalerType, Scaling

FAILURES_UNHEALTHY = 5
"""Number of failed starts in a row from which an endpoint is unhealthy."""

PAUSE_FIRST_S = 1.0
PAUSE_LONGEST_S = 60.0

PLACING_S = 5.0
"""Seconds after which a wanted worker that no agent has taken counts as one for which there is no free device."""

TAKING_S = 5.0
"""Seconds within which a ready worker without a job is expected to take a waiting one."""

UNHEALTHY_S = 120.0
"""Seconds without a healthy answer, and without a request, after which another worker replaces one of a load-balanced endpoint,
as on RunPod."""

LEAST_VALUE = 1e-9
"""Least ``scalerValue`` that is divided by; the configuration allows none below 1."""

COMING = (Phase.WANTED, Phase.PREPARING, Phase.STARTING)
"""Phases of a worker that is not ready yet."""

LEAVING = (Phase.DRAINING, Phase.STOPPING)


@dataclass(frozen=True)
class WorkerView:
    """What a decision uses of a managed worker.

    Attributes:
        idle_s: seconds since its last job, or since it was ready; 0 while it has a job.
        jobs: number of jobs that it has.
        created_ms: when it was wanted, in ms since the epoch, by Redis's clock.
        stuck: the ``executionTimeout`` of its job has passed, and its handler still runs.
        unhealthy: its health check has not been well for so long that another one replaces it.
        wished: a request waits for this very worker, so that no other one replaces it.
    """

    id: str
    phase: Phase
    release: str
    idle_s: float = 0.0
    jobs: int = 0
    created_ms: int = 0
    host: str | None = None
    stuck: bool = False
    unhealthy: bool = False
    wished: bool = False


@dataclass(frozen=True)
class EndpointView:
    """What a decision uses of an endpoint.

    Attributes:
        release: the release that its workers should have.
        queued: number of waiting jobs.
        oldest_wait_s: seconds for which the oldest of them has waited.
        running: number of running jobs.
        workers: its managed workers that are not STOPPED.
        failures_count: number of failed starts in a row.
        pause_s: seconds until the next start is allowed, because of these failures.
        came_up: a worker of the release was ready once. Until then one of the earlier release stays, and one of the new
            release is started as a trial, also without a job.
        now_ms: the time, in ms since the epoch, by Redis's clock.
        pinned: none of its workers leaves for being idle.
        has_host: a host could run a worker of the release, if its devices were free.
        known: the numbers of jobs are known. Those of a load-balanced endpoint are not while no front reports; no worker
            leaves for having none then.
    """

    id: str
    scaling: Scaling
    release: str
    now_ms: int
    queued: int = 0
    oldest_wait_s: float = 0.0
    running: int = 0
    workers: tuple[WorkerView, ...] = ()
    failures_count: int = 0
    pause_s: float = 0.0
    pinned: bool = False
    came_up: bool = True
    has_host: bool = True
    known: bool = True


@dataclass(frozen=True)
class Start:
    """``count`` more workers of the current release are wanted."""

    count: int


@dataclass(frozen=True)
class Drain:
    """The worker gets no more jobs, and is stopped when it has none."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Discard:
    """The wanted worker that no agent has taken is not wanted any more."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Recycle:
    """The worker is stopped although its handler runs, because the job of that handler has ended; or because its health check
    is not well.
    """

    worker: str
    reason: str


Action = Start | Drain | Discard | Recycle


def unhealthy(failures_count: int) -> bool:
    """Whether an endpoint with so many failed starts in a row is unhealthy."""
    return failures_count >= FAILURES_UNHEALTHY


def start_pause_s(failures_count: int) -> float:
    """Seconds without a start after a number of failed starts in a row: 1, 2, 4 and so on, up to 60."""
    if failures_count <= 0:
        return 0.0
    return backoff_s(failures_count, PAUSE_FIRST_S, PAUSE_LONGEST_S)


def decide(view: EndpointView) -> tuple[Action, ...]:
    """What to do now with an endpoint's managed workers. What frees devices comes first."""
    if not (view.workers or view.queued or view.running or view.scaling.workers_min):
        return ()
    plan = _Plan(view)
    plan.recycle()
    plan.outdated()
    plan.above_max()
    plan.not_needed()
    plan.idle()
    plan.start()
    return tuple(plan.actions)


class _Plan:
    """One decision. Each step removes from ``left`` the workers that are to leave."""

    def __init__(self, view: EndpointView) -> None:
        self.view = view
        self.actions: list[Action] = []
        self.left = [w for w in view.workers if w.phase in SERVING]
        self.max = max(view.scaling.workers_max, 0)
        self.min = min(max(view.scaling.workers_min, 0), self.max)
        by_count = 0
        if view.scaling.scaler is ScalerType.REQUEST_COUNT:
            jobs = view.queued + view.running
            by_count = math.ceil(jobs / max(view.scaling.scaler_value, LEAST_VALUE))
        self.floor = min(max(self.min, by_count), self.max)
        """The number of workers below which none leaves for being idle, and up to which new ones start."""
        # Drained workers count until they are STOPPED, because workersMax is a hard limit on what runs.
        self.leaving = sum(w.phase in LEAVING for w in view.workers)

    @functools.cached_property
    def load(self) -> Counter[str | None]:
        """The number of the endpoint's workers on each host."""
        return Counter(worker.host for worker in self.view.workers)

    def in_phase(self, *phases: Phase) -> list[WorkerView]:
        return [w for w in self.left if w.phase in phases]

    def is_current(self, worker: WorkerView) -> bool:
        return worker.release == self.view.release

    @property
    def on_trial(self) -> bool:
        """A worker of the release is to show that it comes up, while one of the earlier release serves."""
        ready = self.in_phase(Phase.READY)
        return not self.view.came_up and bool(ready) and not any(map(self.is_current, ready))

    def first_to_leave(self, worker: WorkerView) -> tuple[object, ...]:
        """Sorts: not placed, not ready, idle, busy; then another release; the longest idle; the fullest host."""
        rank = (*COMING, Phase.READY).index(worker.phase)
        newest = -worker.created_ms if worker.phase in COMING else worker.created_ms
        busy, current = worker.jobs > 0, self.is_current(worker)
        load = -self.load[worker.host] if worker.host else 0
        return rank, busy, current, -worker.idle_s, load, newest, worker.id

    def leave(self, workers: Iterable[WorkerView], reason: str) -> None:
        for worker in list(workers):
            self.left.remove(worker)
            if worker.phase is Phase.WANTED:
                self.actions.append(Discard(worker.id, reason))
            else:
                self.actions.append(Drain(worker.id, reason))
                self.leaving += 1

    def recycle(self) -> None:
        for worker in self.view.workers:
            reason = "its executionTimeout has passed, and its handler still runs"
            if worker.unhealthy:
                reason = f"its health check has not answered 200 for {UNHEALTHY_S:.0f} s"
            if (worker.stuck or worker.unhealthy) and worker.phase in {Phase.READY, Phase.DRAINING}:
                self.actions.append(Recycle(worker.id, reason))
                if worker in self.left:
                    self.left.remove(worker)
                    self.leaving += 1

    def outdated(self) -> None:
        """Replaces workers of another release (RunPod's rolling releases): idle ones at once, busy ones after their
        job. As many stay as ``workersMin`` needs until the new ones are ready, and more while the new release fails.
        """
        reason = "the endpoint has a new release"
        self.leave([w for w in self.in_phase(*COMING) if not self.is_current(w)], reason)
        old = [w for w in self.left if not self.is_current(w)]
        if not old:
            return
        ready = len(self.in_phase(Phase.READY)) - len(old)
        keep = max(0, self.min - ready)
        if not ready:
            # Until the new release has shown that it works, workers of the old one finish what is queued.
            all_stay = self.view.failures_count or not self.view.known
            keep = max(keep, len(old) if all_stay else sum(w.jobs > 0 for w in old))
            keep = max(keep, int(self.on_trial and self.max > 0))
        keep = max(keep - self._make_room(old), 0)
        old.sort(key=self.first_to_leave)
        self.leave(old[: max(len(old) - keep, 0)], reason)

    def _make_room(self, old: Sequence[WorkerView]) -> int:
        """1 if an old worker must leave before a new one can run, otherwise 0: one at a time."""
        if any(w.phase in LEAVING and not self.is_current(w) for w in self.view.workers):
            return 0
        if not self.view.has_host:
            # It would leave in vain, for example because the release needs a volume that no host has now.
            return 0
        coming = [w for w in self.in_phase(*COMING) if self.is_current(w)]
        if coming:
            waits = (w for w in coming if w.phase is Phase.WANTED)
            return int(any(self.view.now_ms - w.created_ms > PLACING_S * 1000 for w in waits))
        if self.view.pause_s > 0:
            return 0
        return int(len(self.left) + self.leaving >= self.max and len(old) > 0)

    def above_max(self) -> None:
        if len(self.left) <= self.max:
            return
        surplus = sorted(self.left, key=self.first_to_leave)[: len(self.left) - self.max]
        reason = "the endpoint is paused: workersMax is 0"
        self.leave(surplus, reason if not self.max else f"workersMax is {self.max}")

    def not_needed(self) -> None:
        """Discards wanted workers that no waiting job needs any more, the newest first."""
        wanted = [w for w in self.in_phase(Phase.WANTED) if not w.wished]
        if not wanted or not self.view.known:
            return
        placed = self.in_phase(Phase.PREPARING, Phase.STARTING)
        # Those of another release leave once these are ready, so that they do not make these superfluous.
        serving = [w for w in self.left if self.is_current(w)]
        needed = max(self.floor, int(self.on_trial))
        if self.view.scaling.scaler is ScalerType.QUEUE_DELAY:
            for_jobs = min(len(wanted), max(self.view.queued - len(placed), 0))
            needed = max(needed, len(serving) - len(wanted) + for_jobs)
        surplus = sorted(wanted, key=self.first_to_leave)[: max(len(serving) - needed, 0)]
        self.leave(surplus, "no waiting job needs it")

    def idle(self) -> None:
        """Drains workers that have been idle for ``idleTimeout``; never one with a job, never below the least."""
        scaling, ready = self.view.scaling, self.in_phase(Phase.READY)
        if (
            self.view.pinned
            or not self.view.known
            or (scaling.scaler is ScalerType.QUEUE_DELAY and self.view.queued)
        ):
            return
        limit = scaling.idle_timeout_s
        idle = [w for w in ready if not w.jobs and w.idle_s >= limit]
        if self.on_trial or (self.view.failures_count and not any(map(self.is_current, ready))):
            # Workers of the earlier release stay until the new one comes up, because no other might follow them.
            idle = []
        spare = min(len(self.left) - self.floor, len(ready) - self.min)
        if idle and spare > 0:
            idle.sort(key=self.first_to_leave)
            self.leave(idle[:spare], f"it was idle for {limit} s")

    def start(self) -> None:
        view, coming = self.view, len(self.in_phase(*COMING))
        if view.pause_s > 0:
            return
        # An old worker that stays until its successor is ready does not count as one.
        serving = [w for w in self.left if self.is_current(w)]
        target = max(self.floor, 1 if view.queued or self.on_trial else 0)
        if view.scaling.scaler is ScalerType.QUEUE_DELAY:
            # A worker that has just become ready has not taken the job for which it was started.
            taking = sum(not w.jobs and w.idle_s < TAKING_S for w in self.in_phase(Phase.READY))
            late = view.oldest_wait_s > view.scaling.scaler_value and view.queued > coming + taking
            target = max(target, len(serving) + late)
        room = self.max - len(self.left) - self.leaving
        count = min(target - len(serving), room)
        if view.failures_count:
            # One try at a time, because the next would very likely fail as the last one did.
            count = min(count, 1 - coming)
        if count > 0:
            self.actions.append(Start(count))


@dataclass(frozen=True)
class WorkerCounts:
    """Numbers of managed workers by RunPod's states, as ``/health`` has them."""

    initializing: int = 0
    idle: int = 0
    ready: int = 0
    running: int = 0
    throttled: int = 0
    unhealthy: int = 0


def counts(view: EndpointView) -> WorkerCounts:
    """An endpoint's managed workers by RunPod's states.

    A worker is initializing until it has asked for a job. One that drains is running while it has a job, and is not
    counted afterwards. ``throttled`` are wanted workers that no agent has taken for some seconds.
    """
    ready = [w for w in view.workers if w.phase is Phase.READY]
    running = [w for w in view.workers if w.jobs and w.phase in {Phase.READY, *LEAVING}]
    wanted = [w for w in view.workers if w.phase is Phase.WANTED]
    throttled = sum(view.now_ms - w.created_ms > PLACING_S * 1000 for w in wanted)
    coming = sum(w.phase in COMING for w in view.workers)
    idle = sum(not w.jobs for w in ready)
    return WorkerCounts(
        initializing=coming - throttled,
        idle=idle,
        ready=idle,
        running=len(running),
        throttled=throttled,
        unhealthy=int(unhealthy(view.failures_count)),
    )
