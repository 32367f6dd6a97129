"""How an agent takes wanted workers while the agents of other hosts take the same ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ownpod.rules.managed import AgentInfo, Hold, ManagedWorker
from ownpod.rules.placement import Placement, place

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
