"""Limits of a worker by Linux's control groups, version 2 or 1, where this process may make groups.

A group counts all processes of the worker together. Groups are made in the agent's own group or beside it, where an
administrator or systemd has delegated the controllers; OwnPod enables no controller itself, because that would change
groups of others.
"""

import contextlib
import math
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ownpod.rules.templates import Limits

CPU_PERIOD_US = 100_000
"""Microseconds of the period in which a group may use its share of the CPUs; Linux's default."""

CONTROLLERS = ("memory", "pids", "cpu")


@dataclass(frozen=True)
class Parent:
    """A directory of the cgroup filesystem in which groups may be made."""

    path: Path
    version: int


def _settings(controller: str, limits: Limits, version: int) -> dict[str, str]:
    """The files of a group and what to write into them; none if the limit is not set."""
    if controller == "memory" and limits.memory_bytes:
        size = str(limits.memory_bytes)
        return {"memory.max" if version == 2 else "memory.limit_in_bytes": size}
    if controller == "pids" and limits.pids:
        # One more, because the shell that waits for the worker counts as well.
        return {"pids.max": str(limits.pids + 1)}
    if controller == "cpu" and limits.cpus:
        quota = max(1000, math.ceil(limits.cpus * CPU_PERIOD_US))
        if version == 2:
            return {"cpu.max": f"{quota} {CPU_PERIOD_US}"}
        return {"cpu.cfs_period_us": str(CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
    return {}


def _without_swap(limits: Limits, version: int) -> tuple[str, str]:
    """The file that keeps a group from using swap beyond its memory, and its value. Not every kernel has it."""
    if version == 2:
        return "memory.swap.max", "0"
    return "memory.memsw.limit_in_bytes", str(limits.memory_bytes)


def _mounts(process: Path) -> Iterator[tuple[str, str, Path, set[str]]]:
    """Type, root within the hierarchy, mount point and options of each mounted cgroup filesystem."""
    with contextlib.suppress(OSError):
        for line in (process / "mountinfo").read_text().splitlines():
            fields = line.split()
            kind, _, options = fields[fields.index("-") + 1 :][:3]
            if kind in {"cgroup", "cgroup2"}:
                yield kind, fields[3], Path(fields[4]), set(options.split(","))


def _own_groups(process: Path) -> dict[str, str]:
    """This process's groups by controller; version 2's is under ""."""
    found = {}
    with contextlib.suppress(OSError):
        for line in (process / "cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            found.update(dict.fromkeys(controllers.split(","), group))
    return found


def parents(process: Path = Path("/proc/self")) -> dict[str, Parent]:
    """Where a process, given by its directory in ``/proc``, can make groups; by controller."""
    own = _own_groups(process)
    found: dict[str, Parent] = {}
    for kind, root, mount, options in _mounts(process):
        version = 2 if kind == "cgroup2" else 1
        for controller in CONTROLLERS:
            group = own.get("" if version == 2 else controller)
            if controller in found or group is None or (version == 1 and controller not in options):
                continue
            if not Path(group).is_relative_to(root) or ".." in Path(group).parts:
                # Its group is outside the part of the hierarchy that is mounted.
                continue
            here = mount / Path(group).relative_to(root)
            # Version 2 has no group with limits below one that has processes: only the parent can have another.
            for path in (here,) if version == 1 else (here, here.parent):
                if mount in (path, *path.parents) and _offers(path, controller, version):
                    found[controller] = Parent(path, version)
                    break
    return found


def _offers(path: Path, controller: str, version: int) -> bool:
    """Whether groups with this controller can be made in a directory."""
    if not os.access(path, os.W_OK):
        return False
    try:
        return version == 1 or controller in (path / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def enter(name: str, limits: Limits, pid: int) -> tuple[tuple[Path, ...], set[str]]:
    """Makes a worker's groups and moves a process into them; processes that it starts later are in them, too.

    Returns:
        The groups, and the names of the limits that hold: memory, pids, cpu.
    """
    groups: dict[Path, None] = {}
    holding = set()
    for controller, parent in parents().items():
        settings = _settings(controller, limits, parent.version)
        if not settings:
            continue
        group = parent.path / name
        try:
            group.mkdir(exist_ok=True)
            groups[group] = None
            _write(group, settings)
            if controller == "memory":
                with contextlib.suppress(OSError):
                    _write(group, dict([_without_swap(limits, parent.version)]))
            _write(group, {"cgroup.procs": str(pid)})
        except OSError:
            continue
        holding.add(controller)
    return tuple(groups), holding


def _write(group: Path, settings: Mapping[str, str]) -> None:
    for file, text in settings.items():
        # Opened without O_CREAT and O_TRUNC, which a cgroup filesystem may refuse.
        with (group / file).open("r+" if file != "cgroup.procs" else "w") as opened:
            opened.write(text)


def pids(groups: tuple[Path, ...]) -> set[int]:
    """The processes in these groups."""
    found: set[int] = set()
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            found.update(int(line) for line in (group / "cgroup.procs").read_text().split())
    return found


def was_out_of_memory(groups: tuple[Path, ...]) -> bool:
    """Whether Linux has killed a process of these groups because their memory limit was reached."""
    for group in groups:
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                lines = (group / file).read_text().splitlines()
                counts = dict(line.split(" ", 1) for line in lines)
                if int(counts.get("oom_kill", "0")) > 0:
                    return True
    return False


def remove(groups: tuple[Path, ...]) -> None:
    """Removes groups that have no process any more."""
    for group in groups:
        with contextlib.suppress(OSError):
            group.rmdir()


def remove_named(name: str) -> None:
    """Removes a worker's groups whose record was not written."""
    remove(tuple(parent.path / name for parent in parents().values()))


def limit(name: str, limits: Limits, pid: int, note: Callable[..., None]) -> tuple[Path, ...]:
    """Puts a process under limits: by groups, or where none can be made, its memory by the process's own limit.

    Args:
        name: of the groups.
        limits: of the worker.
        pid: its first process, which has not started others yet.
        note: logs a text with values, once.

    Returns:
        The directories of the groups.
    """
    groups: tuple[Path, ...] = ()
    wanted = {"memory": limits.memory_bytes, "pids": limits.pids, "cpu": limits.cpus}
    holding: set[str] = set()
    if any(wanted.values()):
        groups, holding = enter(name, limits, pid)
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
    for part in missing:
        note("the engine process does not enforce limits.%s here", part)
    return groups
