"""The devices of this host: NVIDIA GPUs, read by NVML, or stand-ins for GPUs.

NVML's module ``pynvml`` and the table of processes are arguments, so that tests replace the driver.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ownpod.rules import devices as rules
from ownpod.rules.devices import DeviceChoice, Difficulties, Use
from ownpod.rules.managed import LOST, Device

EVERY_S = 5.0
"""Seconds between two readings of NVML."""

HUNG_S = 30.0
"""Seconds after which a reading that has not ended makes all GPUs of the host unusable. A broken driver may block."""

DEEPEST = 100
"""Largest number of ancestors that are read, because a table that changes meanwhile may contain a circle."""

MIB = 1024**2

PoolsOf = Callable[[str, int], tuple[str, ...]]
"""RunPod's pools of a GPU, from its name and its memory in MiB."""

logger = logging.getLogger(__name__)


def relatives(pid: int) -> frozenset[int] | None:
    """The pids of a process, its ancestors, and the leaders of its group and session; None: it is not visible here.

    The leaders count, because a process whose parent has ended is a child of init.
    """
    found = set()
    current = pid
    for _ in range(DEEPEST):
        try:
            # After the name, which may contain spaces and parentheses: state, parent, group, session.
            stat = Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        parent, group, session = map(int, stat[1:4])
        found |= {pid, group, session} if current == pid else {current}
        if parent <= 1:
            break
        current = parent
    return frozenset(found - {0, 1}) if found else None


@dataclass(frozen=True)
class Gpu:
    """A GPU or MIG device as NVML has it, before labels. ``parent``: the UUID of a MIG device's GPU."""

    handle: Any
    device: Device
    parent: str | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        return (self.device.id,) if self.parent is None else (self.device.id, self.parent)


class Devices:
    """The devices that this host offers, with their figures.

    GPUs are read in a thread, at most every ``every_s`` seconds, so that a driver that blocks does not stop the
    agent. A GPU that was found once stays listed, with a ``problem`` when NVML has lost it.

    Args:
        choice: which devices are offered.
        labels: the host's labels, which add pools and slots to devices.
        pools_of: RunPod's pools of a GPU.
        own_pids: the first processes of this host's workers. A GPU that other programs use has a ``problem``; None:
            this is not checked.
        nvml: the module ``pynvml``; None: imported when it is first used.
        relatives: see :func:`relatives`.
        difficulties: of the devices, as they are now.
        every_s: seconds between two readings.
        hung_s: see :data:`HUNG_S`.
    """

    def __init__(
        self,
        choice: DeviceChoice,
        labels: Mapping[str, str],
        *,
        pools_of: PoolsOf,
        own_pids: Callable[[], set[int]] | None = None,
        nvml: Any = None,
        relatives: Callable[[int], frozenset[int] | None] = relatives,
        difficulties: Callable[[], Difficulties] = Difficulties,
        every_s: float = EVERY_S,
        hung_s: float = HUNG_S,
    ) -> None:
        self._choice = choice
        self._labels = labels
        self._pools_of = pools_of
        self._own_pids = own_pids
        self._nvml = nvml
        self._relatives = relatives
        self._difficulties = difficulties
        self._every_s = every_s
        self._hung_s = hung_s
        self._ready = False
        self._stale = False
        self._known: dict[str, Gpu] = {}
        self._last: tuple[Device, ...] = ()
        self._problem = ""
        self._reader: threading.Thread | None = None
        self._starting = threading.Lock()
        self._began: float | None = None
        self._has_stand_ins = False
        if choice.stand_ins is not None:
            self._last = self._stand_ins()

    def _stand_ins(self) -> tuple[Device, ...]:
        return tuple(map(self._stand_in, range(self._choice.stand_ins or 0)))

    @property
    def problem(self) -> str:
        """Why GPUs of this host cannot be read; "" if all were, or if the host has no NVML."""
        return self._problem

    def read(self) -> tuple[Device, ...]:
        """The devices as last read. The first call waits for the first reading, at most ``hung_s``."""
        if self._choice.stand_ins is not None:
            self._last = self._stand_ins()
            return self._last
        now = time.monotonic()
        if self._reader is None or not self._reader.is_alive():
            first = self._began is None
            if self._began is None or now - self._began >= self._every_s:
                reader = self._begin()
                if first:
                    reader.join(self._hung_s)
        elif self._began is not None and now - self._began >= self._hung_s:
            self._problem = f"NVML has not answered for {now - self._began:.0f} s"
            return tuple(
                replace(device, problem=self._problem, metrics={}) for device in self._last
            )
        return self._last

    def _begin(self) -> threading.Thread:
        """The thread of a reading, which is under way already or begins now."""
        with self._starting:
            if self._reader is None or not self._reader.is_alive():
                self._began = time.monotonic()
                self._reader = threading.Thread(target=self._refresh, name="nvml", daemon=True)
                self._reader.start()
            return self._reader

    def read_now(self, within_s: float) -> tuple[Device, ...]:
        """The devices as a reading has them that begins now, or as last read, if that takes longer than ``within_s``."""
        if self._choice.stand_ins is None:
            until = time.monotonic() + within_s
            # A reading that is under way may have begun before what the caller waits for.
            self._begin().join(within_s)
            self._begin().join(max(until - time.monotonic(), 0))
        return self._last

    def _refresh(self) -> None:
        before = self._problem
        self.refresh()
        if self._problem and self._problem != before:
            logger.warning("devices: %s", self._problem)

    def refresh(self) -> tuple[Device, ...]:
        """Reads all devices now, in this thread, and returns them."""
        if self._choice.stand_ins is not None:
            return self._last
        try:
            found, problems = self._gpus()
            # Without NVML, what was there before is not offered until it answers again.
            devices = self._offered(found) if found is not None else self._without_nvml(problems)
        except Exception as error:  # the edge of a thread
            if not self._is_nvml(error):
                logger.exception("the GPUs cannot be read")
            self._stale = True
            problems = [f"NVML cannot be used: {error}"]
            devices = [self._lost(gpu, problems[0]) for gpu in self._known.values()]
        if self._stale:
            self._close()
        self._problem = "; ".join(problems)
        self._last = tuple(sorted(devices, key=lambda device: (device.index, device.id)))
        return self._last

    def _without_nvml(self, problems: list[str]) -> list[Device]:
        """The devices of a host that has no NVML; ``problems`` loses what is none for a host with stand-ins."""
        numbers = self._choice.instead or (() if self._choice.gpus else (0,))
        if self._known or not numbers or not self._difficulties().has_presets:
            return [self._lost(gpu, problems[0]) for gpu in self._known.values()]
        problems.clear()
        stand_ins = [self._stand_in(number) for number in numbers]
        if not self._has_stand_ins:
            self._has_stand_ins = True
            listed = ", ".join(device.id for device in stand_ins)
            logger.warning(
                "devices: no GPU, because NVML's library is not found; stand-ins: %s", listed
            )
        return stand_ins

    def _is_nvml(self, error: Exception) -> bool:
        return self._nvml is not None and isinstance(error, self._nvml.NVMLError)

    def _open(self) -> bool:
        """Initializes NVML; False if this host has none. Raises: NVMLError."""
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        if not self._ready:
            try:
                self._nvml.nvmlInit()
            except self._nvml.NVMLError as error:
                if error.value == self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                    return False
                raise
            self._ready = True
        return True

    def _close(self) -> None:
        """Makes the next reading initialize NVML again, because NVML counts GPUs only then."""
        self._stale = False
        if self._ready:
            self._ready = False
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                logger.debug("nvmlShutdown: %s", error)

    def _gpus(self) -> tuple[list[Gpu] | None, list[str]]:
        """The GPUs that NVML has now, all of them, and problems of the host. None: there is no NVML."""
        if not self._open():
            lacking = self._choice.gpus or self._known
            return None, ["NVML's library is not found"] if lacking else []
        found: list[Gpu] = []
        problems: list[str] = []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                found += self._gpu(index)
            except self._nvml.NVMLError as error:
                if not any(gpu.device.index == index for gpu in self._known.values()):
                    problems.append(f"GPU {index}: {error}")
        known = [*found, *self._known.values()]
        missing = self._choice.missing((gpu.device.index, gpu.ids) for gpu in known)
        return found, [*problems, *(f"no GPU {name} on this host" for name in missing)]

    def _gpu(self, index: int) -> list[Gpu]:
        """The devices of one GPU: itself, or its MIG devices. Raises: NVMLError."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        whole = self._named(handle, index)
        if not self._has_mig(handle):
            return [Gpu(handle, whole)]
        parts = []
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            except nvml.NVMLError as error:
                if error.value in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_INVALID_ARGUMENT}:
                    continue
                raise
            parts.append(Gpu(part, self._named(part, index), parent=whole.id))
        empty = "MIG is enabled, and it has no MIG device; see nvidia-smi mig -cgi"
        return parts or [Gpu(None, replace(whole, problem=empty))]

    def _has_mig(self, handle: Any) -> bool:
        mode = self._figure(self._nvml.nvmlDeviceGetMigMode, handle)
        return mode is not None and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE

    def _named(self, handle: Any, index: int) -> Device:
        memory = self._figure(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return Device(
            id=self._nvml.nvmlDeviceGetUUID(handle),
            index=index,
            # V1 of RunPod's API has names with two spaces.
            name=" ".join(self._nvml.nvmlDeviceGetName(handle).split()),
            memory_mb=0 if memory is None else memory.total // MIB,
        )

    def _figure(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers; None if this GPU does not support it. Raises: NVMLError."""
        unsupported = {
            self._nvml.NVML_ERROR_NOT_SUPPORTED,
            self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            self._nvml.NVML_ERROR_NO_PERMISSION,
        }
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in unsupported:
                return None
            raise

    def _offered(self, found: Iterable[Gpu]) -> list[Device]:
        """The chosen ones of these GPUs with figures, and those that were known before and are missing now."""
        gpus = [gpu for gpu in found if self._choice.takes(gpu.device.index, *gpu.ids)]
        present = {name for gpu in gpus for name in gpu.ids}
        gone = [
            gpu
            for gpu in self._known.values()
            if gpu.device.id not in present and gpu.parent not in present
        ]
        self._known = {gpu.device.id: gpu for gpu in [*gpus, *gone]}
        own = None if self._own_pids is None else self._own_pids()
        devices = [self._labelled(self._measured(gpu, own), *gpu.ids) for gpu in gpus]
        self._stale = self._stale or bool(gone)
        return devices + [self._lost(gpu, f"{LOST}NVML does not find it any more") for gpu in gone]

    def _lost(self, gpu: Gpu, problem: str) -> Device:
        return self._labelled(replace(gpu.device, problem=problem), *gpu.ids)

    def _labelled(self, device: Device, *ids: str) -> Device:
        pools = () if device.simulated else self._pools_of(device.name, device.memory_mb)
        labelled = rules.labelled_pools(self._labels, device.index, *ids)
        with_pools = replace(device, pools=pools)
        added = labelled or self._difficulties().pools(with_pools, *ids)
        slots = rules.labelled_slots(self._labels, device.index, *ids)
        return replace(device, pools=tuple(dict.fromkeys([*pools, *added])), slots=slots)

    def _stand_in(self, index: int) -> Device:
        device = Device(id=f"cpu-{index}", index=index, name="CPU", simulated=True)
        return self._labelled(device, device.id)

    def _measured(self, gpu: Gpu, own: set[int] | None) -> Device:
        """A device with its figures, and with its problem if it has one."""
        if gpu.device.problem:
            return gpu.device
        nvml = self._nvml
        try:
            memory = self._figure(nvml.nvmlDeviceGetMemoryInfo, gpu.handle)
            rates = self._figure(nvml.nvmlDeviceGetUtilizationRates, gpu.handle)
            temperature = self._figure(
                nvml.nvmlDeviceGetTemperature, gpu.handle, nvml.NVML_TEMPERATURE_GPU
            )
            power = self._figure(nvml.nvmlDeviceGetPowerUsage, gpu.handle)
            problem = self._used(gpu, own, 0 if memory is None else memory.used / MIB)
        except nvml.NVMLError as error:
            # Handles of a lost GPU, or of one whose driver was restarted, do not work again.
            self._stale = True
            lost = error.value == nvml.NVML_ERROR_GPU_IS_LOST
            return replace(gpu.device, problem=f"{LOST}{error}" if lost else f"NVML: {error}")
        figures = {
            "memory_used_mb": memory and memory.used / MIB,
            "utilization_percent": rates and rates.gpu,
            "temperature_c": temperature,
            "power_w": power and power / 1000,
        }
        metrics = {name: float(value) for name, value in figures.items() if value is not None}
        return replace(gpu.device, metrics=metrics, problem=problem)

    def _used(self, gpu: Gpu, own: set[int] | None, used_mb: float) -> str:
        """Which other programs use a GPU; "" if none does. Raises: NVMLError."""
        if own is None:
            return ""
        nvml = self._nvml
        computing = self._figure(nvml.nvmlDeviceGetComputeRunningProcesses, gpu.handle) or ()
        drawing = self._figure(nvml.nvmlDeviceGetGraphicsRunningProcesses, gpu.handle) or ()
        uses = [
            Use(process.pid, process.usedGpuMemory and process.usedGpuMemory / MIB, graphics)
            for graphics, processes in ((False, computing), (True, drawing))
            for process in processes
        ]
        ours = {use.pid for use in uses if own & ((self._relatives(use.pid) or set()) | {use.pid})}
        others = rules.foreign(uses, ours)
        if not others:
            return ""
        names = list(dict.fromkeys(self._program(use.pid) for use in others))
        return rules.used_by(names, used_mb, gpu.device.memory_mb)

    def _program(self, pid: int) -> str:
        try:
            path: str = self._nvml.nvmlSystemGetProcessName(pid)
        except self._nvml.NVMLError:
            path = ""
        # A name, and not what a program wrote into its command line.
        return Path(path.split(" ")[0]).name[:64] or f"process {pid}"
