"""Devices of a host: which are offered, what its labels add to them, and which programs use them. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Device, Hold
from ownpod.rules.placement import matches
from ownpod.rules.presets import LOW

LARGEST_COUNT = 1000
"""Largest number of stand-ins of a host, and of workers that share a device."""

GRAPHICS_MB = 1024
"""Memory in MiB from which a graphics program, like a game, counts as using its GPU. Desktops need less."""

POOL = "pool"
SLOTS = "slots"

_STAND_INS = re.compile(r"cpu:([0-9]{1,4})")
_GPU = re.compile(r"[0-9]{1,3}|(?:GPU|MIG)-[0-9A-Fa-f][0-9A-Fa-f-]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"[A-Za-z0-9._+-]{1,255}")
_POOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True)
class DeviceChoice:
    """Which devices an agent offers, from ``OWNPOD_DEVICES``. Without values: all GPUs of the host.

    ``stand_ins``: number of stand-ins that are offered instead of GPUs; None: none, GPUs are.
    ``gpus``: indexes, UUIDs or beginnings of UUIDs of the only GPUs that are offered.
    ``instead``: indexes of the stand-ins of a host with presets that has no NVML.
    """

    stand_ins: int | None = None
    gpus: tuple[str, ...] = ()
    instead: tuple[int, ...] = ()

    def takes(self, index: int, *ids: str) -> bool:
        """Whether a GPU is offered. ``ids``: its UUIDs; those of a MIG device and its GPU."""
        return not self.gpus or any(_names(given, index, ids) for given in self.gpus)

    def missing(self, found: Iterable[tuple[int, tuple[str, ...]]]) -> tuple[str, ...]:
        """The chosen GPUs that are not among those found, which have an index and ids each."""
        known = list(found)
        return tuple(given for given in self.gpus if not any(_names(given, *gpu) for gpu in known))


def _names(given: str, index: int, ids: Iterable[str]) -> bool:
    if given.isdecimal():
        return int(given) == index
    return any(known.lower().startswith(given.lower()) for known in ids)


def parse_choice(text: str) -> DeviceChoice:
    """The devices that a text names: ``auto``, ``cpu:2``, or comma-separated indexes and UUIDs.

    Raises:
        ValueError: with what is allowed.
    """
    if text == "auto":
        return DeviceChoice()
    if stand_ins := _STAND_INS.fullmatch(text):
        count = int(stand_ins[1])
        if count > LARGEST_COUNT:
            raise ValueError(f"must have at most {LARGEST_COUNT} stand-ins")
        return DeviceChoice(stand_ins=count)
    gpus = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(map(_GPU.fullmatch, gpus)):
        raise ValueError(
            "must be auto, cpu:<number of stand-ins>, or a comma-separated list of GPU indexes and "
            "UUIDs, like 0,2 or GPU-5f3e2a1c"
        )
    return DeviceChoice(gpus=gpus)


def parse_labels(text: str) -> dict[str, str]:
    """The labels of a host, from ``zone=a,pool=low+fast,pool.0=high,slots.cpu-1=2``.

    Raises:
        ValueError: with what is allowed.
    """
    labels: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, given, value = (piece.strip() for piece in part.partition("="))
        if not given or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            raise ValueError(
                f"{part!r} must be <name>=<value> of letters, digits, dots, - and _, like zone=a"
            )
        if key in labels:
            raise ValueError(f"{key} must be there once; several pools are pool=low+fast")
        kind = key.partition(".")[0]
        if kind == POOL and not all(map(_POOL.fullmatch, value.split("+"))):
            raise ValueError(f"{part!r} must name one pool, or several like pool=low+fast")
        if kind == SLOTS and not (value.isdecimal() and 1 <= int(value) <= LARGEST_COUNT):
            raise ValueError(f"{part!r} must be a whole number from 1 to {LARGEST_COUNT}")
        labels[key] = value
    return labels


def parse_device_ids(text: str) -> DeviceChoice:
    """The devices of the GPU service's ``GPU_DEVICE_IDS``, like ``0,1``; on a host without NVML as many stand-ins.

    Raises:
        ValueError: with what is allowed.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,3}", part) for part in parts):
        raise ValueError("must be a comma-separated list of GPU indexes, like 0,1")
    numbers = tuple(dict.fromkeys(map(int, parts)))
    return DeviceChoice(gpus=tuple(map(str, numbers)), instead=numbers)


def parse_difficulties(text: str) -> dict[str, str]:
    """The difficulty of each device, by its index or UUID, from ``0:low,1:high``. A name alone is that of all others, under "".

    Raises:
        ValueError: with what is allowed.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        device, given, name = (piece.strip() for piece in part.rpartition(":"))
        if (given and not _GPU.fullmatch(device)) or not _POOL.fullmatch(name):
            raise ValueError(
                f"{part!r} must be <index or UUID of a GPU>:<difficulty>, like 1:high, or a difficulty for all others"
            )
        if device in found:
            raise ValueError(f"{part!r}: the device must be there once")
        found[device] = name
    return found


@dataclass(frozen=True)
class Difficulties:
    """What presets mean for the devices of a host.

    Attributes:
        by_device: the difficulty of a device, by its index or UUID; under "" that of all others.
        has_presets: presets are configured here, so each device has a difficulty, and a host without NVML has stand-ins.
        claimed: pools of difficulties that are defined by pools: their devices are not of the default difficulty.
    """

    by_device: Mapping[str, str] = field(default_factory=dict)
    has_presets: bool = False
    claimed: tuple[str, ...] = ()

    def pools(self, device: Device, *ids: str) -> tuple[str, ...]:
        """The pools that the difficulties add to a device that no label gives a pool. ``ids``: its UUIDs."""
        own = [
            name
            for given, name in self.by_device.items()
            if given and _names(given, device.index, ids)
        ]
        if own:
            return tuple(dict.fromkeys(own))
        if any(matches(device, pool) for pool in self.claimed):
            return ()
        if "" in self.by_device:
            return (self.by_device[""],)
        return (LOW,) if self.has_presets or self.by_device else ()


def check_host(name: str) -> None:
    """Checks the name of a host. Its devices are named ``<host>/<id>``. Raises: ValueError."""
    if not _HOST.fullmatch(name):
        raise ValueError("must have letters, digits, dots, - and _ only, at most 253")


def labelled_pools(labels: Mapping[str, str], index: int, *ids: str) -> tuple[str, ...]:
    """The pools that labels give a device: those of ``pool``, then those of ``pool.<index or id>``."""
    values = _of(labels, POOL, index, ids)
    return tuple(dict.fromkeys(pool for value in values for pool in value.split("+")))


def labelled_slots(labels: Mapping[str, str], index: int, *ids: str) -> int:
    """The number of workers that may share a device: that of ``slots.<index or id>``, of ``slots``, or 1."""
    return int([*("1", *_of(labels, SLOTS, index, ids))][-1])


def _of(labels: Mapping[str, str], kind: str, index: int, ids: Sequence[str]) -> list[str]:
    own = {
        key: value
        for key, value in labels.items()
        if key.startswith(f"{kind}.") and _names(key.partition(".")[2], index, ids)
    }
    return [*([labels[kind]] if kind in labels else []), *own.values()]


@dataclass(frozen=True)
class Use:
    """A process that uses a GPU.

    ``memory_mb``: its memory on the GPU in MiB; None: the driver does not report it.
    ``graphics``: it draws, and does not compute.
    """

    pid: int
    memory_mb: float | None = None
    graphics: bool = False


def foreign(uses: Iterable[Use], ours: Iterable[int]) -> tuple[Use, ...]:
    """The uses of a GPU by programs that OwnPod has not started, those with the most memory first.

    Args:
        uses: all uses of the GPU.
        ours: pids among them that belong to workers of this host.
    """
    own = frozenset(ours)
    others = [
        use
        for use in uses
        if use.pid not in own and not (use.graphics and (use.memory_mb or 0) < GRAPHICS_MB)
    ]
    return tuple(sorted(others, key=lambda use: -(use.memory_mb or 0)))


def used_by(names: Sequence[str], used_mb: float, total_mb: float) -> str:
    """Why a device cannot be used, with the names of the programs that use it, and its memory in MiB."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    memory = f", {gigabytes(used_mb)} of {gigabytes(total_mb)} GB" if total_mb else ""
    return f"used by another program: {names[0]}{more}{memory}"


def gigabytes(megabytes: float) -> str:
    """MiB as GiB with one decimal that is not 0: ``12.1``, ``24``."""
    return f"{megabytes / 1024:.1f}".removesuffix(".0")


STATES = ("silent", "unusable", "reserved", "busy", "draining", "free")
"""The words of :class:`DeviceState`."""


@dataclass(frozen=True)
class DeviceState:
    """What a device does now. Its values have this order: the first that applies is the state.

    ``word``: silent, unusable, reserved, busy, draining, or free: it can take a worker.
    ``reason``: why, in words; "" where the word is enough.
    ``workers``: ids of the workers that hold it.
    ``next``: ids of the wanted workers that get it then.
    ``idle_s``: seconds since the first of ``workers`` was seen without a job; None: one has a job.
    """

    word: str
    reason: str = ""
    workers: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    idle_s: float | None = None


def state_of(device: Device, agent: AgentInfo, holds: Iterable[Hold]) -> DeviceState:
    """The state of a device, from what occupies the devices of its host."""
    mine = [hold for hold in holds if hold.device == device.id]
    workers = tuple(hold.worker for hold in mine if hold.worker)
    reserved = [hold.reserved for hold in mine if hold.reserved]
    kept = [hold for hold in mine if hold.next is not None]
    idle = [hold.idle_s for hold in mine if hold.worker]
    if agent.silent_s >= HOST_SILENT_S:
        return DeviceState("silent", f"no heartbeat for {agent.silent_s:.0f} s", workers)
    if device.problem:
        return DeviceState("unusable", device.problem, workers)
    if reserved:
        return DeviceState("reserved", reserved[0], workers)
    if len(workers) + sum(hold.worker is None for hold in kept) >= device.slots:
        idle_s = max((s for s in idle if s is not None), default=None) if None not in idle else None
        next_ones = tuple(hold.next for hold in kept if hold.next)
        words = [] if idle_s is None else [f"idle for {idle_s:.0f} s"]
        words += [f"is being freed for {', '.join(next_ones)}"] if next_ones else []
        return DeviceState("busy", ", ".join(words), workers, next_ones, idle_s)
    return DeviceState("draining" if agent.draining else "free", "", workers)


def find(name: str, agents: Iterable[AgentInfo]) -> tuple[str, Device]:
    """The host and the device that a name means: ``<host>/<device>``, or the device alone where it is unique.

    A device is named by its id, the beginning of its id, or its index.

    Raises:
        ValueError: no device has the name, or several have.
    """
    everything = [(agent.host, device) for agent in agents for device in agent.devices]
    host, slash, wanted = name.rpartition("/")
    near = [(at, device) for at, device in everything if not slash or at == host]
    exact = [found for found in near if found[1].id == wanted]
    matching = exact or [
        (at, device) for at, device in near if wanted and _names(wanted, device.index, [device.id])
    ]
    if len(matching) == 1:
        return matching[0]
    shown = [f"{at}/{device.id}" for at, device in (matching or everything)]
    listed = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
    if matching:
        raise ValueError(f"device {name!r} is not unique: it may be {listed}")
    raise ValueError(f"device {name!r} not found; known devices: {listed or 'none'}")
