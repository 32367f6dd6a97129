"""The agent's loop: it compares the records of this host's workers with what the engine has, and does what is missing.

A turn depends on Redis and on the engine only, so an agent that has just started continues where the one before it
ended. The agent ends without ending its workers.
"""

import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ownpod.agent.devices import Devices
from ownpod.agent.engine import STOP_GRACE_S, Engine, EngineError, Found, Launch
from ownpod.agent.notes import Notes
from ownpod.agent.starts import Starts
from ownpod.agent.taking import Filter, take
from ownpod.errors import OwnPodError, RedisUnavailable, WorkerRecordBroken
from ownpod.processes import this_process
from ownpod.rules import reconcile
from ownpod.rules.credentials import digest_of
from ownpod.rules.launching import environment
from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker, Phase
from ownpod.rules.placement import Placement
from ownpod.rules.reconcile import Ended, Free, Knowledge, Remove, Step, Stop
from ownpod.rules.secrets import SecretMissing, resolve
from ownpod.rules.templates import ManagedSpec
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

REST_S = 5.0
"""Seconds between two turns of an agent whose workers all serve; notices and ends of workers wake it earlier."""

BUSY_S = 1.0
"""Seconds between two turns while a worker starts, drains or stops, or waits for a device."""

AT_ONCE = 8
"""Number of workers that are started or stopped at the same time."""


@dataclass(frozen=True)
class Host:
    """The host of an agent, for its workers and for OwnPod.

    Attributes:
        name: the name under which its workers and devices are listed.
        api_url: the API's base URL as the workers reach it.
        labels: the operator's labels, for example its data center.
    """

    name: str
    api_url: str
    labels: Mapping[str, str]


class Agent:
    """Starts, watches and stops the managed workers of one host.

    Args:
        host: this host.
        engine: runs the workers.
        devices: the devices of this host.
        managed: the workers' records.
        agents: the hosts' records.
        wakeups: wakes the loop when something is wanted.
        environ: where the templates' secrets are.
        clock: seconds, for how long a worker has been without a record and a wanted one has waited.
    """

    def __init__(
        self,
        host: Host,
        engine: Engine,
        devices: Devices,
        *,
        managed: Managed,
        agents: Agents,
        wakeups: Wakeups,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._engine = engine
        self._devices = devices
        self._managed = managed
        self._agents = agents
        self._wakeups = wakeups
        self._environ = environ
        self._filter = Filter(host.name, engine, managed, environ)
        self._clock = clock
        self._token = this_process()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._under_way = set[str]()
        self._unknown_since = dict[str, float]()
        self._wanted_since = dict[str, float]()
        self._failures = dict[str, str]()
        """Why workers are stopped that are to count as failed, by id."""
        self._found: Mapping[str, Found] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._starts = Starts()
        self._owns_host = False
        self._notes = Notes()

    # The loop.

    def run(self) -> None:
        """Blocks until :meth:`stop`."""
        for target in (self._listen, self._watch):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()
        while not self._stopping:
            self._wake.clear()
            rest_s = BUSY_S
            try:
                rest_s = self.turn()
            except OwnPodError as error:
                self._notes.say(str(error))
            except Exception:
                log.exception("the agent's turn failed")
            self._wake.wait(rest_s)

    def stop(self) -> None:
        """Ends the loop; the workers go on. A signal handler may call this."""
        self._stopping = True
        self._wake.set()

    def _listen(self) -> None:
        while not self._stopping:
            if self._wakeups.wait(REST_S):
                self._wake.set()

    def _watch(self) -> None:
        while not self._stopping:
            self._engine.wait(REST_S)
            self._wake.set()

    def turn(self) -> float:
        """One comparison, with what follows from it. Returns seconds until the next one.

        Raises:
            RedisUnavailable: Redis is away; the workers go on.
            EngineError: the engine does not answer.
        """
        info = AgentInfo(
            self._host.name,
            self._engine.name,
            self._devices.read(),
            self._host.labels,
            problem=self._devices.problem,
        )
        beat = self._agents.heartbeat(info, self._token)
        self._owns_host = beat.owned
        if not beat.owned:
            self._notes.say(f"standing by: another agent runs as host {self._host.name}")
            return BUSY_S
        self._notes.say("")
        with self._lock:
            # Before the records: a step that ends meanwhile changes its worker's record, which would be out of date.
            under_way = frozenset(self._under_way)
        holds = self._agents.holds(self._host.name)
        mine = self._managed.of_host(self._host.name)
        for step in self._plan(mine, holds, under_way):
            try:
                self._do(step, mine)
            except RedisUnavailable:
                raise
            except OwnPodError as error:
                # One worker with a broken record must not keep the others from their steps.
                self._notes.worker(step.worker, error)
        closed = beat.draining or self._stopping or self._starts.closed
        coming = [] if closed else self._place(info)
        settled = all(worker.phase is Phase.READY for worker, _ in mine.values())
        return REST_S if settled and not coming and not self._under_way else BUSY_S

    def _plan(
        self,
        mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]],
        holds: Sequence[Hold],
        under_way: frozenset[str],
    ) -> list[Step]:
        found, now = self._engine.list(), self._clock()
        self._found = found
        records = {worker_id: worker for worker_id, (worker, _) in mine.items()}
        self._unknown_since = reconcile.first_unknown(self._unknown_since, records, found, now)
        busy, paused = self._agents.in_hand(
            [w for w in records.values() if w.phase is Phase.DRAINING]
        )
        knowledge = Knowledge(
            busy=busy,
            paused=paused,
            under_way=under_way,
            ended=self._ended(found.keys() - records.keys()),
            unknown_s={i: now - since for i, since in self._unknown_since.items()},
            init_timeout_s={i: spec.template.init_timeout_s for i, (_, spec) in mine.items()},
        )
        return reconcile.plan(
            records,
            found,
            holds,
            instance_known=True,
            known_for_s=self._managed.instance(self._engine.instance).restored_s,
            knowledge=knowledge,
        )

    def _ended(self, unknown: "set[str]") -> "set[str]":
        """Those of unknown workers whose record is STOPPED."""
        ended = set()
        for worker_id in unknown:
            try:
                record = self._managed.get(worker_id)
            except WorkerRecordBroken as error:
                self._notes.worker(worker_id, error)
            else:
                ended |= {worker_id} if record and record.phase is Phase.STOPPED else set()
        return ended

    # Placement.

    def _place(self, info: AgentInfo) -> list[ManagedWorker]:
        """Takes the wanted workers that fit this host. Returns those that still wait."""
        wanted = {worker.id: (worker, spec) for worker, spec in self._managed.wanted()}
        if not wanted:
            self._wanted_since.clear()
            return []
        now = self._clock()
        self._wanted_since = {i: self._wanted_since.get(i, now) for i in wanted}
        able = [worker for worker, spec in wanted.values() if self._filter.lets(worker, spec)]
        waited_s = {i: now - since for i, since in self._wanted_since.items()}
        holds = self._agents.holds(self._host.name)
        holds += reconcile.unrecorded(self._found, holds)
        slots = {device.id: device.slots for device in info.devices}

        def claim(placement: Placement) -> bool:
            devices = {device: slots[device] for device in placement.devices}
            return self._managed.place(placement.worker.id, self._host.name, self._token, devices)

        for placement in take(able, info, holds, claim, waited_s=waited_s):
            worker, spec = wanted.pop(placement.worker.id)
            launch = functools.partial(self._launch, worker, spec, placement.devices)
            self._start(worker.id, launch)
        return [worker for worker, _ in wanted.values()]

    # Steps.

    def _do(self, step: Step, mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]]) -> None:
        worker_id = step.worker
        match step:
            case reconcile.Launch():
                worker, spec = mine[worker_id]
                self._start(worker_id, lambda: self._launch(worker, spec, worker.devices))
            case reconcile.Adopt():
                log.info(
                    "worker %s of %s runs already: adopted", worker_id, mine[worker_id][0].endpoint
                )
                self._managed.started(worker_id, self._host.name, url=self._engine.url(worker_id))
            case Stop():
                self._start(worker_id, lambda: self._stop(step))
            case Ended():
                self._start(worker_id, lambda: self._report(step))
            case Remove():
                log.warning("worker %s is ended and removed: %s", worker_id, step.reason)
                self._start(worker_id, lambda: self._remove(worker_id))
            case Free():
                self._managed.gone(worker_id, self._host.name)

    def _start(self, worker_id: str, step: Callable[[], None]) -> None:
        """Does a step in another thread, one at a time for each worker."""
        with self._lock:
            if worker_id in self._under_way:
                return
            self._under_way.add(worker_id)
        self._pool.submit(step).add_done_callback(lambda done: self._finished(worker_id, done))

    def _finished(self, worker_id: str, done: "Future[None]") -> None:
        with self._lock:
            self._under_way.discard(worker_id)
        error = done.exception()
        if isinstance(error, RedisUnavailable | EngineError):
            log.warning("worker %s: %s; tried again", worker_id, error)
        elif error is not None:
            log.error("worker %s: its step failed", worker_id, exc_info=error)
        self._wake.set()

    def _launch(self, worker: ManagedWorker, spec: ManagedSpec, device_ids: Sequence[str]) -> None:
        began = time.monotonic()
        try:
            devices = tuple(d for d in self._devices.read() if d.id in device_ids)
            self._engine.prepare(spec.template, lambda words: self._progress(worker.id, words))
            key = secrets.token_urlsafe(32)
            env = environment(
                spec.template,
                worker_id=worker.id,
                endpoint=worker.endpoint,
                base_url=self._engine.api_url(self._host.api_url),
                key=key,
                devices=devices,
                labels=self._host.labels,
            )
            launch = Launch(
                worker.id,
                worker.endpoint,
                self._engine.instance,
                spec.template,
                resolve(env, self._environ),
                devices,
            )
            # The key counts from before the start, because the worker may ask for a job at once.
            if not self._managed.set_key(worker.id, self._host.name, digest_of(key)):
                return
            with self._starts.one() as allowed:
                if not allowed:
                    return
                started = self._engine.start(launch)
        except (EngineError, SecretMissing) as error:
            log.warning("worker %s of %s cannot be started: %s", worker.id, worker.endpoint, error)
            self._managed.stopped(
                worker.id, self._host.name, exit_code=None, reason=str(error), failed=True
            )
            return
        self._managed.started(worker.id, self._host.name, url=started.url)
        where = f" on {', '.join(device_ids)}" if device_ids else ""
        took_s = time.monotonic() - began
        log.info("worker %s of %s started%s in %.2f s", worker.id, worker.endpoint, where, took_s)

    def _progress(self, worker_id: str, words: str) -> None:
        try:
            self._managed.progress(worker_id, self._host.name, words)
        except RedisUnavailable as error:
            log.debug("progress of %s not published: %s", worker_id, error)

    def _stop(self, step: Stop) -> None:
        if step.announce and not self._managed.stopping(step.worker, self._host.name, step.reason):
            return
        if step.failed:
            self._failures[step.worker] = step.reason
        log.info("worker %s is stopped: %s", step.worker, step.reason)
        self._engine.stop(step.worker, STOP_GRACE_S)

    def _report(self, step: Ended) -> None:
        reason = self._failures.pop(step.worker, None)
        failed = step.failed or reason is not None
        output = self._engine.log(step.worker)
        level = logging.WARNING if failed else logging.INFO
        log.log(level, "worker %s has ended: %s", step.worker, reason or step.reason)
        self._managed.stopped(
            step.worker,
            self._host.name,
            exit_code=step.exit_code,
            reason=reason or step.reason,
            failed=failed,
            log=output,
        )
        self._engine.remove(step.worker)

    def _remove(self, worker_id: str) -> None:
        self._engine.stop(worker_id, STOP_GRACE_S)
        self._engine.remove(worker_id)
        self._managed.gone(worker_id, self._host.name)

    # The end.

    def end_workers(self, grace_s: float) -> None:
        """Ends all workers of this host, for ``ownpod up``, whose own end comes next. Their jobs are requeued.

        An agent that stands by ends none: they are another agent's.
        """
        if not self._owns_host:
            return
        # The engine does not list what is being started now.
        self._starts.close(grace_s)
        try:
            running = [i for i, found in self._engine.list().items() if found.running]
            ends = [self._pool.submit(self._end_worker, i, grace_s) for i in running]
            for worker_id, end in zip(running, ends, strict=True):
                if error := end.exception():
                    log.warning("worker %s was not ended: %s", worker_id, error)
            self.turn()
        except (RedisUnavailable, EngineError) as error:
            log.warning("the end of the workers: %s", error)

    def _end_worker(self, worker_id: str, grace_s: float) -> None:
        try:
            self._managed.stopping(worker_id, self._host.name, "OwnPod was stopped")
        except RedisUnavailable as error:
            log.warning("worker %s: %s", worker_id, error)
        self._engine.stop(worker_id, grace_s)

    def leave(self) -> None:
        """Lets the next agent of this host begin at once."""
        self._pool.shutdown(wait=True)
        try:
            self._agents.leave(self._host.name, self._token)
        except OwnPodError as error:
            log.debug("the host's name is not given up: %s", error)
