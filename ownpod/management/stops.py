"""The managing call that stops one worker, which the scaler replaces if it is needed: RunPod's users recycle workers so."""

from collections.abc import Sequence
from typing import Protocol

from ownpod.management.calls import Caller
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.store.catalog import Audit


class Workers(Protocol):
    """What a stop needs of the records of managed workers."""

    def list(self) -> Sequence[ManagedWorker]:
        """The workers that are not STOPPED."""

    def discard(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """Ends one that no agent has taken. False: an agent has taken it."""

    def drain(self, worker_id: str, reason: str, audit: Audit | None = None) -> bool:
        """Gives one no more jobs. False: it drains already."""


REASON = "it was stopped through the management API"


def stop_worker(managed: Workers, worker_id: str, caller: Caller) -> ManagedWorker | None:
    """Drains a managed worker, with an entry in the audit log, in one step.

    Returns:
        The worker as it was; None: there is none of this id that could be stopped. Of a worker that stops already
        there is no second entry.

    Raises:
        RedisUnavailable: Redis does not answer.
    """
    worker = next((found for found in managed.list() if found.id == worker_id), None)
    if worker is None or caller.dry_run:
        return worker
    stop = managed.discard if worker.phase is Phase.WANTED else managed.drain
    if stop(worker_id, REASON, Audit(caller.by, caller.door, "stop worker", worker_id)):
        return worker
    return worker if worker.phase in {Phase.DRAINING, Phase.STOPPING} else None
