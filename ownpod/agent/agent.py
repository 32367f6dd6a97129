"""The agent's loop: it compares the records of this host's workers with what the engine has, and does what is missing.

A turn depends on Redis and on the engine only, so an agent that has just started continues where the one before it
ended. The agent ends without ending its workers.
"""

import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ownpod.agent.devices import Devices
from ownpod.agent.engine import Engine, EngineError, Found
from ownpod.agent.models import HostModels
from ownpod.agent.notes import Notes
from ownpod.agent.output import Followers
from ownpod.agent.prefetch import Prefetch
from ownpod.agent.secret_values import SecretValues
from ownpod.agent.steps import Host, Steps
from ownpod.agent.taking import Filter, take
from ownpod.agent.tasks import Tasks
from ownpod.agent.volumes import Volumes
from ownpod.errors import OwnPodError, RedisUnavailable, WorkerRecordBroken
from ownpod.processes import this_process
from ownpod.rules import reconcile
from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker, Phase, Role
from ownpod.rules.placement import Placement
from ownpod.rules.reconcile import FRONT_SILENT_S, Ended, Free, Knowledge, Remove, Step, Stop
from ownpod.rules.templates import ManagedSpec, Protocol
from ownpod.rules.volumes import has_all
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs
from ownpod.store.secrets import Secrets

log = logging.getLogger(__name__)

REST_S = 5.0
"""Seconds between two turns of an agent whose workers all serve; notices and ends of workers wake it earlier."""

LEAVE_S = 5.0
"""Seconds for which the end of an agent waits until what its tasks have written is kept."""

BUSY_S = 1.0
"""Seconds between two turns while a worker starts, drains or stops, or waits for a device."""


class Agent:
    """Starts, watches and stops the managed workers of one host.

    Args:
        host: this host.
        engine: runs the workers.
        devices: the devices of this host.
        managed: the workers' records.
        agents: the hosts' records.
        outputs: the workers' output.
        wakeups: wakes the loop when something is wanted.
        environ: with secrets of templates, ``OWNPOD_SECRET_<name>``.
        secrets: those in Redis; None: there are none.
        volumes: the volumes of this host; None: it has none.
        models: the models of this host; None: it has none.
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
        outputs: Outputs,
        wakeups: Wakeups,
        environ: Mapping[str, str],
        secrets: Secrets | None = None,
        volumes: Volumes | None = None,
        models: HostModels | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._engine = engine
        self._devices = devices
        self._volumes = volumes or Volumes()
        self._managed = managed
        self._agents = agents
        self._wakeups = wakeups
        self._values = values = SecretValues(environ, secrets, engine)
        self._models = models
        self._filter = Filter(host.name, engine, managed, values, models)
        self._clock = clock
        self._token = this_process()
        self._unknown_since = dict[str, float]()
        self._lost_since = dict[str, float]()
        self._silent_since: Mapping[str, float] = {}
        self._wanted_since = dict[str, float]()
        self._found: Mapping[str, Found] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._followers = Followers(engine, outputs)
        self.steps = Steps(
            host,
            engine,
            devices,
            managed=managed,
            followers=self._followers,
            values=values,
            done=self._wake.set,
            models=models,
        )
        if models is not None:
            models.done = self._wake.set
        self._tasks = Tasks(host.name, engine, managed.tasks, self.steps)
        self._prefetch = Prefetch(
            host.name,
            engine,
            managed.releases,
            problem=values.problem,
            done=self._wake.set,
            clock=clock,
        )
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
            volumes=self._volumes.read(self._engine.name),
            images=None if self._host.images is None else tuple(self._host.images),
            secrets=self._values.own_names,
        )
        self.steps.memory.observe(info.devices)
        beat = self._agents.heartbeat(info, self._token)
        self._owns_host = beat.owned
        if not beat.owned:
            self._notes.say(f"standing by: another agent runs as host {self._host.name}")
            self._followers.keep({}, ())
            return BUSY_S
        self._notes.say("")
        # Before the records: a step that ends meanwhile changes its worker's record, which would be out of date.
        under_way = self.steps.under_way
        holds = self._agents.holds(self._host.name)
        mine = self._note_unready(self._managed.of_host(self._host.name))
        plan = self._plan(mine, holds, under_way)
        # Before the steps, because a worker that has ended since needs its mask, too.
        running = [i for i in mine if i in self._found and self._found[i].running]
        masks = self._masks(mine)
        tasks = {i for i, (worker, _) in mine.items() if worker.role is Role.TASK}
        self._followers.keep(masks, [i for i in running if i not in tasks])
        self._tasks.turn(mine, masks, self._found)
        for step in plan:
            try:
                self._do(step, mine)
            except RedisUnavailable:
                raise
            except OwnPodError as error:
                # One worker with a broken record must not keep the others from their steps.
                self._notes.worker(step.worker, error)
        self._volumes.tidy()
        if self._models is not None:
            self._models.turn({*mine, *self._found, *self.steps.under_way})
        self._get_images(replace(info, draining=beat.draining))
        closed = beat.draining or self._stopping or self.steps.closed
        coming = [] if closed else self._place(info)
        settled = all(worker.phase is Phase.READY for worker, _ in mine.values())
        return REST_S if settled and not coming and not self.steps.under_way else BUSY_S

    def _get_images(self, info: AgentInfo) -> None:
        if self._stopping or self.steps.closed:
            return
        try:
            self._prefetch.turn(info)
        except WorkerRecordBroken as error:
            self._notes.worker("releases", error)

    def _masks(
        self, mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]]
    ) -> dict[str, Callable[[str], str]]:
        """What hides secrets in the output of each worker, by id."""
        return {i: functools.partial(self._values.masked, i, spec) for i, (_, spec) in mine.items()}

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
        probed = {i for i, (_, spec) in mine.items() if spec.template.protocol is Protocol.HTTP}
        draining = [w for w in records.values() if w.phase is Phase.DRAINING]
        restarting = [w for w in records.values() if w.restart and w.phase is Phase.READY]
        busy, paused, silent = self._agents.in_hand([*draining, *restarting])
        self._silent_since = since = reconcile.await_front(
            self._silent_since, silent, draining, probed, now
        )
        self._lost_since = reconcile.first_lost(
            self._lost_since, records.values(), self._devices.read(), now
        )
        knowledge = Knowledge(
            busy=busy,
            lost_s={i: now - since for i, since in self._lost_since.items()},
            paused={i for i in paused if now - since.get(i, -math.inf) >= FRONT_SILENT_S},
            under_way=under_way,
            ended=self._ended(found.keys() - records.keys()),
            unknown_s={i: now - since for i, since in self._unknown_since.items()},
            init_timeout_s={i: spec.template.init_timeout_s for i, (_, spec) in mine.items()},
            probed=probed,
        )
        return reconcile.plan(
            records,
            found,
            holds,
            instance_known=True,
            known_for_s=self._managed.instance(self._engine.instance).restored_s,
            knowledge=knowledge,
        )

    def _note_unready(
        self, mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]]
    ) -> dict[str, tuple[ManagedWorker, ManagedSpec]]:
        """The workers, with why the health check of those that start is not well: clients see it in their records."""
        starting = {
            worker_id: worker
            for worker_id, (worker, spec) in mine.items()
            if spec.template.protocol is Protocol.HTTP and worker.phase is Phase.STARTING
        }
        noted = dict(mine)
        for worker_id, reason in self._agents.reasons(starting).items():
            if reason != starting[worker_id].reason:
                self._managed.progress(worker_id, self._host.name, reason)
                noted[worker_id] = replace(starting[worker_id], reason=reason), mine[worker_id][1]
        return noted

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
        # The scaler records why a worker waits for a volume, because it knows the volumes of all hosts.
        near = [
            (w, spec)
            for w, spec in wanted.values()
            if has_all(info, w.volumes) and self._volumes.may_have(w.volumes)
        ]
        waited_s = {i: now - since for i, since in self._wanted_since.items()}
        able = [w for w, spec in near if self._filter.lets(w, spec, info, waited_s[w.id])]
        holds = self._agents.holds(self._host.name)
        holds += reconcile.unrecorded(self._found, holds)
        slots = {device.id: device.slots for device in info.devices}

        def claim(placement: Placement) -> bool:
            devices = {device: slots[device] for device in placement.devices}
            if not self._volumes.settle(placement.worker.volumes):
                return False
            model = wanted[placement.worker.id][1].template.model
            if model and not (self._models and self._models.hold(placement.worker.id, model)):
                return False
            return self._managed.place(placement.worker.id, self._host.name, self._token, devices)

        for placement in take(able, info, holds, claim, waited_s=waited_s):
            worker, spec = wanted.pop(placement.worker.id)
            self.steps.launch(worker, spec, placement.devices)
        return [worker for worker, _ in wanted.values()]

    # Steps.

    def _do(self, step: Step, mine: Mapping[str, tuple[ManagedWorker, ManagedSpec]]) -> None:
        worker_id = step.worker
        match step:
            case reconcile.Launch():
                worker, spec = mine[worker_id]
                self.steps.launch(worker, spec, worker.devices)
            case reconcile.Adopt():
                log.info(
                    "worker %s of %s runs already: adopted", worker_id, mine[worker_id][0].endpoint
                )
                at = self._engine.address(worker_id)
                self._managed.started(
                    worker_id, self._host.name, url=at.url, health_port=at.health_port
                )
            case reconcile.Restart():
                self.steps.restart(*mine[worker_id])
            case Stop():
                self.steps.stop(step)
            case Ended():
                self.steps.report(step, mine[worker_id][0])
            case Remove():
                log.warning("worker %s is ended and removed: %s", worker_id, step.reason)
                found = self._found.get(worker_id)
                self.steps.remove(worker_id, found.devices if found else ())
            case Free():
                self._managed.gone(worker_id, self._host.name)

    # The end.

    def end_workers(self, grace_s: float) -> None:
        """Ends all workers of this host, for ``ownpod up``, whose own end comes next. Their jobs are requeued.

        An agent that stands by ends none: they are another agent's.
        """
        if not self._owns_host:
            return
        # Otherwise a task could start its container after the others were ended.
        self._tasks.close(LEAVE_S)
        try:
            self.steps.end_workers(grace_s)
            self.turn()
        except (RedisUnavailable, EngineError) as error:
            log.warning("the end of the workers: %s", error)

    def leave(self) -> None:
        """Lets the next agent of this host begin at once."""
        self.steps.wait()
        if self._models is not None:
            self._models.close()
        self._tasks.close(LEAVE_S)
        self._followers.close()
        try:
            self._agents.leave(self._host.name, self._token)
        except OwnPodError as error:
            log.debug("the host's name is not given up: %s", error)
