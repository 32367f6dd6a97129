"""The limits of a worker that is a plain process: control groups, or what Linux offers without them."""

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path

from ownpod.agent import cgroups
from ownpod.rules.templates import Limits


def limit(pid: int, limits: Limits, group: str, note: Callable[..., None]) -> tuple[Path, ...]:
    """Limits a process, and all that it will start. Returns its control groups.

    Args:
        pid: the process.
        limits: those of its template.
        group: the name for its control groups.
        note: gets the limits that do not hold, as a text for ``%`` and its values.
    """
    groups: tuple[Path, ...] = ()
    wanted = {"memory": limits.memory_bytes, "pids": limits.pids, "cpu": limits.cpus}
    holding: set[str] = set()
    if any(wanted.values()):
        groups, holding = cgroups.enter(group, limits, pid)
    if limits.memory_bytes and "memory" not in holding:
        with contextlib.suppress(OSError, ValueError):
            most = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
            size = limits.memory_bytes
            if most != resource.RLIM_INFINITY:
                size = min(size, most)
            resource.prlimit(pid, resource.RLIMIT_DATA, (size, size))
            note("no control group can be made here: limits.memory holds for each process")
            holding.add("memory")
    shown = {"memory": "memory", "pids": "pids", "cpu": "cpus"}
    missing = [shown[name] for name, value in wanted.items() if value and name not in holding]
    if limits.shm_bytes:
        missing.append("shm")
    for name in missing:
        note("the engine process does not enforce limits.%s here", name)
    return groups
