"""How an agent takes wanted workers while the agents of other hosts take the same ones."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from ownpod.agent.engine import Engine, EngineError
from ownpod.agent.secret_values import SecretValues
from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker
from ownpod.rules.placement import Placement, cannot_start, place, replaces
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
    """

    def __init__(self, host: str, engine: Engine, managed: Managed, secrets: SecretValues) -> None:
        self._host = host
        self._engine = engine
        self._managed = managed
        self._secrets = secrets

    def lets(self, worker: ManagedWorker, spec: ManagedSpec) -> bool:
        """Whether this host can start the worker. Raises: RedisUnavailable."""
        problem = self._problem(spec)
        if bool(problem) != (self._host in worker.refused_by):
            self._managed.refused(worker.id, self._host, refuses=bool(problem))
        if not problem:
            return True
        reason = cannot_start(self._host, problem)
        if replaces(worker.reason, reason) and self._managed.waits(worker.id, reason):
            log.warning("worker %s of %s: %s", worker.id, worker.endpoint, reason)
        return False

    def _problem(self, spec: ManagedSpec) -> str:
        if problem := self._secrets.problem(spec):
            return problem
        try:
            self._engine.check_template(spec.template)
        except EngineError as error:
            return str(error)
        return ""
