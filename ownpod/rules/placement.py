"""Which wanted workers a host takes, and on which of its devices; why a worker waits for a device. Pure."""

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ownpod.rules.images import why_no_host_may
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Device, Hold, ManagedWorker
from ownpod.rules.templates import GpuNeed
from ownpod.rules.volumes import has_all, reachable, why_no_volume

POOLS_BY_NAME: Mapping[str, tuple[str, ...]] = {
    "AMPERE_16": ("RTX A4000", "RTX A4500", "RTX 4000 Ada", "RTX 4000 SFF Ada", "RTX 2000 Ada"),
    "AMPERE_24": ("L4", "RTX A5000", "GeForce RTX 3090"),
    "ADA_24": ("GeForce RTX 4090",),
    "ADA_32_PRO": ("GeForce RTX 5090",),
    "AMPERE_48": ("A40", "RTX A6000"),
    "ADA_48_PRO": ("L40", "L40S", "RTX 6000 Ada"),
    "AMPERE_80": ("A100*",),
    "ADA_80_PRO": ("H100*",),
    "HOPPER_141": ("H200*",),
    "BLACKWELL_96": ("RTX PRO 6000*",),
    "BLACKWELL_180": ("B200*",),
}
"""RunPod's pools, and the names of the GPUs in each; source: RunPod's list of GPU types."""

POOLS_BY_MEMORY = (
    (180, ("BLACKWELL_180",)),
    (141, ("HOPPER_141",)),
    (96, ("BLACKWELL_96",)),
    (80, ("AMPERE_80", "ADA_80_PRO")),
    (48, ("AMPERE_48", "ADA_48_PRO")),
    (32, ("ADA_32_PRO",)),
    (24, ("AMPERE_24", "ADA_24")),
    (16, ("AMPERE_16",)),
)
"""Pools of a GPU that RunPod does not have, by its memory in GB from which on it belongs to them."""

MB_PER_GB = 0.98 * 1000**3 / 1024**2
"""MiB for a GB of a GPU's nominal memory; a little less, because ECC and the driver take a part."""

SHORTEST_PREFIX = 8
"""Characters of a GPU's UUID that name it, ``GPU-`` included."""

ABOUT_TO_START = "an agent is about to take it"
"""Why a wanted worker waits for which there is a free device."""

CANNOT_START = " cannot start it: "
"""Between a host and its problem, in the reason of a wanted worker."""

WITHHOLD_S = 600.0
"""Seconds for which a worker that needs several devices keeps free ones from younger workers."""

_MEMORY = re.compile(r"(\d+) ?(?:g|gb|gib)")
_VENDOR = re.compile(r"^(?:(?:nvidia|amd|geforce|tesla|quadro) )+")


def pools_of(name: str, memory_mb: int) -> tuple[str, ...]:
    """RunPod's names of the pools that a GPU belongs to.

    Args:
        name: as NVML has it, for example ``NVIDIA GeForce RTX 4090``.
        memory_mb: its memory in MiB, which decides for a GPU that RunPod does not have.
    """
    found = tuple(
        pool
        for pool, names in POOLS_BY_NAME.items()
        if any(_is_named(name, pattern) for pattern in names)
    )
    if found:
        return found
    by_memory = (pools for gb, pools in POOLS_BY_MEMORY if memory_mb >= gb * MB_PER_GB)
    return next(by_memory, ())


def matches(device: Device, pool: str) -> bool:
    """Whether a device belongs to a pool.

    Args:
        device: a host's device.
        pool: ``any``, the name of a pool, a device's id or the beginning of its UUID, a GPU's name with or without its
            vendor and with ``*`` for any characters, or the least memory, for example ``24GB``.
    """
    wanted = " ".join(pool.lower().split())
    if wanted == "any" or wanted in (name.lower() for name in device.pools):
        return True
    device_id = device.id.lower()
    if wanted == device_id or (
        len(wanted) >= SHORTEST_PREFIX
        and wanted.startswith("gpu-")
        and device_id.startswith(wanted)
    ):
        return True
    memory = _MEMORY.fullmatch(wanted)
    if memory:
        return device.memory_mb >= int(memory[1]) * MB_PER_GB
    return _is_named(device.name, wanted)


def _is_named(name: str, pattern: str) -> bool:
    """Whether a GPU has a name, whatever the case, the spaces, the vendor, and a "Generation" at its end."""
    full = " ".join(name.lower().split()).removesuffix(" generation")
    wanted = " ".join(pattern.lower().split()).removesuffix(" generation")
    if not wanted.strip("*"):
        return False
    short = _VENDOR.sub("", full)
    return any(
        fnmatch.fnmatchcase(full_or_short, p)
        for full_or_short, p in (
            (full, wanted),
            (short, _VENDOR.sub("", wanted)),
        )
    )


@dataclass(frozen=True)
class Placement:
    """A worker for this host, with the ids of the devices that it gets."""

    worker: ManagedWorker
    devices: tuple[str, ...]


def place(
    wanted: Sequence[ManagedWorker],
    agent: AgentInfo,
    holds: Sequence[Hold],
    *,
    waited_s: Mapping[str, float] | None = None,
) -> list[Placement]:
    """The wanted workers that a host can take now, the oldest first. Each gets all the devices that it needs, or none.

    A worker that needs several devices keeps those that are free from younger workers, because it would wait without an
    end if each device went to a younger worker as soon as it is free. It does so every other :data:`WITHHOLD_S`,
    because the devices that it still misses may be in use without an end.

    Args:
        wanted: workers in the phase WANTED.
        agent: the host.
        holds: what occupies the host's devices.
        waited_s: seconds for which the agent has known each worker as wanted, by id; a missing one: 0.
    """
    if agent.draining:
        return []
    host, placements = _Host(agent.devices, holds), []
    able = (worker for worker in wanted if has_all(agent, worker.volumes))
    for worker in sorted(able, key=lambda w: (w.created_ms, w.id)):
        devices: tuple[str, ...] | None = ()
        if worker.gpu_count > 0:
            devices = host.take(worker)
        if devices is not None:
            placements.append(Placement(worker, devices))
        elif worker.gpu_count > 1:
            waited = (waited_s or {}).get(worker.id, 0.0)
            if int(waited // WITHHOLD_S) % 2 == 0:
                host.withhold(worker)
    return placements


class _Host:
    """The devices of a host, and what is free of them during one placement."""

    def __init__(self, devices: Iterable[Device], holds: Iterable[Hold]) -> None:
        found = list(holds)
        self._reserved = {hold.device for hold in found if hold.is_reservation}
        self._used = Counter(hold.device for hold in found if hold.worker is not None)
        kept = [hold for hold in found if hold.worker is None and hold.next is not None]
        self._kept = Counter(hold.device for hold in kept)
        self._kept_for = Counter((hold.device, hold.next) for hold in kept)
        usable = (d for d in devices if not d.problem and d.id not in self._reserved)
        self._usable = sorted(usable, key=lambda d: (d.memory_mb, d.index, d.id))
        self._free = sum(max(d.slots - self._used[d.id], 0) for d in self._usable)
        self._of_need: dict[tuple[str, ...], list[list[Device]]] = {}

    def groups(self, worker: ManagedWorker) -> list[list[Device]]:
        """The usable devices of each pool of a worker's need, in its order of preference."""
        need = worker.pools
        if need not in self._of_need:
            self._of_need[need] = [group for _, group in groups(self._usable, need)]
        return self._of_need[need]

    def is_free(self, device: Device, worker: ManagedWorker) -> bool:
        """Whether a worker may have a slot of the device: one that is free, and not kept for another worker."""
        for_others = self._kept[device.id] - self._kept_for[device.id, worker.id]
        return self._used[device.id] + for_others < device.slots

    def take(self, worker: ManagedWorker) -> tuple[str, ...] | None:
        """The devices for a worker, all from one pool, which are used from now on; None: not enough are free."""
        if self._free < worker.gpu_count:
            return None
        for group in self.groups(worker):
            free = [device for device in group if self.is_free(device, worker)]
            if len(free) >= worker.gpu_count:
                # Those that others have left for it, then the least used; of these the one with the least memory, so that
                # the large ones stay free.
                free.sort(key=lambda d: (not self._kept_for[d.id, worker.id], self._used[d.id]))
                return self._use(free[: worker.gpu_count])
        return None

    def withhold(self, worker: ManagedWorker) -> None:
        """Keeps free devices for a worker that needs more than are free, if the host has enough at all."""
        for group in self.groups(worker):
            if len(group) >= worker.gpu_count:
                self._use([device for device in group if self.is_free(device, worker)])
                return

    def _use(self, devices: Sequence[Device]) -> tuple[str, ...]:
        for device in devices:
            self._used[device.id] += 1
        self._free -= len(devices)
        return tuple(device.id for device in devices)


def groups(devices: Iterable[Device], pools: Sequence[str]) -> list[tuple[str, list[Device]]]:
    """The devices of each pool, in the order of the pools. ``-NAME`` excludes devices, as in RunPod's ``gpuIds``."""
    excluded = [pool[1:] for pool in pools if pool.startswith("-")]
    included = [pool for pool in pools if not pool.startswith("-")] or ["any"]
    left = [d for d in devices if not any(matches(d, pool) for pool in excluded)]
    return [(pool, [d for d in left if matches(d, pool)]) for pool in included]


def cannot_start(host: str, problem: str) -> str:
    """Why a host leaves a wanted worker to others although it may have free devices, in words for people."""
    return f"host {host}{CANNOT_START}{problem}"


def kept_reason(before: str, now: str) -> bool:
    """Whether the reason of a waiting worker stays, because it explains more than the new one.

    A device is free, and the agent that has it cannot start the worker.
    """
    return now == ABOUT_TO_START and CANNOT_START in before


def replaces(before: str, now: str) -> bool:
    """Whether an agent's reason from :func:`cannot_start` replaces the one that a waiting worker has.

    The reason of another host, or that no device is free, stays: the agents would write in turns otherwise.
    """
    mine = now.partition(CANNOT_START)[0] + CANNOT_START
    return before != now and (before in {"", ABOUT_TO_START} or before.startswith(mine))


def why_waits(
    worker: ManagedWorker, agents: Sequence[AgentInfo], holds_by_host: Mapping[str, Sequence[Hold]]
) -> str:
    """Why no agent has taken a wanted worker, in words for people."""
    if not agents:
        return "no agent is running"
    alive = [agent for agent in agents if agent.silent_s <= HOST_SILENT_S]
    if not alive:
        last = min(agents, key=lambda agent: agent.silent_s)
        return f"no agent is running: the last heartbeat, of host {last.host}, was {last.silent_s:.0f} s ago"
    open_hosts = [agent for agent in alive if not agent.draining]
    if not open_hosts:
        return f"host {alive[0].host} is drained" if len(alive) == 1 else "all hosts are drained"
    if worker.volumes:
        able, elsewhere = reachable(agents, worker.volumes)
        able = [agent for agent in able if agent in open_hosts]
        if not able:
            return elsewhere or why_no_volume(open_hosts, worker.volumes)
        open_hosts = able
    if worker.gpu_count <= 0:
        return ABOUT_TO_START
    return _why_no_device(worker, open_hosts, holds_by_host)


def _why_no_device(
    worker: ManagedWorker, agents: Sequence[AgentInfo], holds_by_host: Mapping[str, Sequence[Hold]]
) -> str:
    count = worker.gpu_count
    found = [(a.host, g) for a in agents for _, g in groups(a.devices, worker.pools) if g]
    where = _named([pool for pool in worker.pools if not pool.startswith("-")])
    if not found:
        return f"no host has a device{where}"
    most = max(len(group) for _, group in found)
    if most < count:
        return f"it needs {count} devices of one host, and no host has more than {most}{where}"
    states: dict[tuple[str, str], str] = {}
    free = 0
    for host, group in found:
        holds = holds_by_host.get(host, ())
        of_group = {(host, d.id): _state(d, holds, worker.id) for d in group}
        states |= of_group
        free = max(free, sum(not state for state in of_group.values()))
    if free >= count:
        return ABOUT_TO_START
    simulated = any(device.simulated for _, group in found for device in group)
    noun = "device" if simulated else "GPU"
    return _all_taken(list(states.values()), count=count, free=free, noun=noun, where=where)


def why_no_host(need: GpuNeed, agents: Sequence[AgentInfo]) -> str:
    """Why no host can ever run a worker with this need, whatever is busy now; "": one can."""
    found = [len(g) for a in agents for _, g in groups(a.devices, need.pools)]
    if max(found, default=0) >= need.count:
        return ""
    where = _named([pool for pool in need.pools if not pool.startswith("-")])
    there = Counter(device.name for agent in agents for device in agent.devices)
    listed = ", ".join(f"{n} x {name}" for name, n in sorted(there.items())) or "no device"
    if not any(found):
        return f"no host has a device{where}; the hosts have {listed}"
    return f"no host has {need.count} devices{where}; the hosts have {listed}"


def with_devices(need: GpuNeed | None, agents: Sequence[AgentInfo]) -> list[AgentInfo]:
    """The hosts that have the devices of a worker, whatever is busy now."""
    if need is None:
        return [*agents]
    return [
        a for a in agents if any(len(g) >= need.count for _, g in groups(a.devices, need.pools))
    ]


def why_not_startable(image: str | None, need: GpuNeed | None, agents: Sequence[AgentInfo]) -> str:
    """Why no host can ever start a worker, by its GPUs and its image; "": one can, or no host is known.

    A silent host still counts for its GPUs, because it may come back; for images, only hosts that live count.
    """
    if need is not None and agents and (why := why_no_host(need, agents)):
        return why
    able = [agent for agent in with_devices(need, agents) if agent.silent_s < HOST_SILENT_S]
    return why_no_host_may(image, {agent.host: agent.images for agent in able})


def secrets_nowhere(
    names: Sequence[str], stored: Collection[str], agents: Sequence[AgentInfo]
) -> tuple[str, ...]:
    """Those of the named secrets that are neither stored nor of a host that lives; none where no such host is known."""
    alive = [agent for agent in agents if agent.silent_s < HOST_SILENT_S]
    if not alive or any(agent.secrets is None for agent in alive):
        return ()
    there = {*stored, *(name for agent in alive for name in agent.secrets or ())}
    return tuple(name for name in names if name not in there)


def _all_taken(states: Sequence[str], *, count: int, free: int, noun: str, where: str) -> str:
    """Why the devices that fit are not enough, from the state of each; ``free``: most that are free on one host."""
    if free:
        return f"it needs {count} {noun}s of one host, and no host has more than {free} free{where}"
    if set(states) == {"busy"}:
        one = len(states) == 1
        return (
            f"the only {noun}{where} is busy"
            if one
            else f"all {len(states)} {noun}s{where} are busy"
        )
    listed = ", ".join(f"{n} {state}" for state, n in sorted(Counter(states).items()))
    return f"no {noun}{where} is free: {listed}"


def _named(pools: Sequence[str]) -> str:
    if not pools:
        return ""
    return f" of pool {pools[0]}" if len(pools) == 1 else f" of the pools {', '.join(pools)}"


def _state(device: Device, holds: Sequence[Hold], worker_id: str) -> str:
    """Why a device takes no worker of this id; "" if it takes it."""
    if device.problem:
        return f"unusable ({device.problem})"
    mine = [hold for hold in holds if hold.device == device.id]
    reserved = next((hold for hold in mine if hold.is_reservation), None)
    if reserved:
        return f"reserved ({reserved.reserved})" if reserved.reserved else "reserved"
    taken = [hold for hold in mine if hold.worker is not None or hold.next != worker_id]
    if len(taken) < device.slots:
        return ""
    if any(hold.next == worker_id for hold in taken):
        return "being freed"
    return "being freed for another worker" if any(hold.next for hold in taken) else "busy"
