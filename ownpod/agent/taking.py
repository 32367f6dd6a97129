"""How an agent takes wanted workers while the agents of other hosts take the same ones."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from ownpod.agent.engine import Engine, EngineError
from ownpod.agent.models import HostModels
from ownpod.agent.secret_values import SecretValues
from ownpod.configuration.custom import CUSTOM
from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker, Role
from ownpod.rules.model_news import Coming
from ownpod.rules.placement import Placement, cannot_start, place, replaces
from ownpod.rules.releases import could_run
from ownpod.rules.templates import ManagedSpec
from ownpod.store.managed import Managed

log = logging.getLogger(__name__)

PASSES = 20
"""Placements in one turn, at most. A claim may also fail without an end, because the host may not have the worker."""


def take(
    wanted: Sequence[ManagedWorker],
    info: AgentInfo,
    holds: Sequence[Hold],
    claim: Callable[[Placement], bool],
    *,
    waited_s: Mapping[str, float] | None = None,
) -> Iterator[Placement]:
    """Claims the wanted workers that fit a host, and yields each one that the host has got.

    A claim fails when another agent was faster. The agent then continues with the next workers at once: all agents
    begin with the oldest ones, so otherwise only one of them would take workers in each turn.

    Args:
        wanted: workers in the phase WANTED that this host can run.
        info: this host.
        holds: what occupies its devices.
        claim: gives a worker to this host, in one step; False: it or a device is not free any more.
        waited_s: see :func:`ownpod.rules.placement.place`.
    """
    left, holds = {worker.id: worker for worker in wanted}, list(holds)
    for _ in range(PASSES):
        failed = False
        for placement in place([*left.values()], info, holds, waited_s=waited_s):
            del left[placement.worker.id]
            if claim(placement):
                holds += [Hold(device, worker=placement.worker.id) for device in placement.devices]
                yield placement
            else:
                failed = True
        if not failed:
            return


class Filter:
    """Leaves workers that this host cannot start to other hosts, and records why.

    Args:
        host: the host's name.
        engine: runs the workers.
        managed: the workers' records.
        secrets: the templates' secrets.
        models: the models of this host; None: it has none.
    """

    def __init__(
        self,
        host: str,
        engine: Engine,
        managed: Managed,
        secrets: SecretValues,
        models: HostModels | None = None,
    ) -> None:
        self._models = models
        self._host = host
        self._engine = engine
        self._managed = managed
        self._secrets = secrets

    def lets(
        self,
        worker: ManagedWorker,
        spec: ManagedSpec,
        info: AgentInfo,
        waited_s: float,
    ) -> bool:
        """Whether this host can start the worker now. Otherwise its model may be on its way: the worker holds no device
        meanwhile, and no other one gives way to it.

        Args:
            worker: a wanted worker.
            spec: what it is started from.
            info: this host.
            waited_s: how long this agent has seen the worker wait.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        problem, coming = self._problem(worker, spec), None
        if not problem:
            coming = self._coming(worker, spec, info, waited_s)
        refuses = bool(problem) or coming is not None
        if refuses != (self._host in worker.refused_by):
            self._managed.refused(worker.id, self._host, refuses=refuses)
        if not refuses:
            return True
        if coming is not None:
            self._record_progress(worker, coming)
            return False
        reason = cannot_start(self._host, problem)
        if replaces(worker.reason, reason) and self._managed.waits(worker.id, reason):
            log.warning("worker %s of %s: %s", worker.id, worker.endpoint, reason)
        return False

    def _coming(
        self, worker: ManagedWorker, spec: ManagedSpec, info: AgentInfo, waited_s: float
    ) -> Coming | None:
        """What of the worker's model is not here yet; None: all of it is."""
        source = spec.template.model
        if source is None:
            return None
        if self._models is None:
            return Coming("this host has no directory of models", failed=True)
        may_fetch = could_run(spec, info) and waited_s >= self._models.head_start_s
        return self._models.coming(worker.id, source, may_fetch=may_fetch)

    def _record_progress(self, worker: ManagedWorker, coming: Coming) -> None:
        if not coming.words:
            return
        reason = cannot_start(self._host, coming.words)
        if coming.failed and replaces(worker.reason, reason):
            log.warning("worker %s of %s: %s", worker.id, worker.endpoint, reason)
        is_news = replaces(worker.reason, reason)
        if not coming.failed:
            # Also without news, because the worker's wait for a device begins after the last call.
            words = reason if is_news else worker.reason
            self._managed.waits(worker.id, words, fetching=(coming.done, coming.total))
        elif is_news:
            self._managed.waits(worker.id, reason)

    def _problem(self, worker: ManagedWorker, spec: ManagedSpec) -> str:
        is_custom = worker.role is Role.TASK and worker.endpoint == CUSTOM
        if is_custom and self._engine.name == "process":
            # The image is what the operator has allowed, and this engine runs the client's command without one.
            return "custom tasks need an engine that starts containers"
        if problem := self._secrets.problem(spec):
            return problem
        try:
            self._engine.check_template(spec.template)
        except EngineError as error:
            return str(error)
        return ""
