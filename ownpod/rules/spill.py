"""When a private worker that waits for a device may also have one of another difficulty. Pure.

A difficulty may spill at once: then its worker has the pools of all of them from the beginning. Or it spills after some seconds, so
that the other difficulty's devices stay free for its own tasks for so long.
"""

from ownpod.rules.about import about_of
from ownpod.rules.managed import ManagedWorker, Phase


def spilled(worker: ManagedWorker, now_ms: int) -> tuple[str, ...] | None:
    """The pools that a wanted worker has from now on; None: no others than before.

    Args:
        worker: a private worker.
        now_ms: Redis's clock, in ms since the epoch.
    """
    if worker.phase is not Phase.WANTED or not worker.gpu_count:
        return None
    known = about_of(worker)
    pools, after_s = known.get("spill"), known.get("spill_after_s")
    if not isinstance(pools, list) or not isinstance(after_s, int):
        return None
    found = tuple(str(pool) for pool in pools)
    # Its model is fetched before it waits for a device.
    since_ms = max(worker.created_ms, worker.fetched_ms or 0)
    return found if found != worker.pools and now_ms - since_ms >= after_s * 1000 else None
