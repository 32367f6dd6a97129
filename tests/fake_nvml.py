"""A driver for tests on hosts without a GPU: GPUs, and what replaces the module ``pynvml`` for them."""

# ruff: noqa: N802 - the methods have the names of NVML

from types import SimpleNamespace

import pynvml

MIB = 1024**2
GB = 1024 * MIB


class Card:
    """A GPU of the fake driver. ``error``: NVML's error code of every call for it."""

    def __init__(self, uuid, name="NVIDIA GeForce RTX 4090", total=24564 * MIB, *, parts=None):
        self.uuid = uuid
        self.name = name
        self.total = total
        self.used = 0
        self.parts = parts
        self.part_of = None
        self.computing = []
        self.drawing = []
        self.error = None
        self.unsupported = set()
        for part in parts or ():
            if part is not None:
                part.part_of = self
                part.unsupported = {"rates", "temperature", "power", "mode"}


class Driver:
    """Stands for the module ``pynvml``: its constants and errors are the real ones.

    As in the real one, no call works before ``nvmlInit``, GPUs are counted then, and handles of an earlier
    initialization do not work.
    """

    def __init__(self, *cards, error=None):
        self.cards = list(cards)
        self.error = error
        self.programs = {}
        self.inits = 0
        self.open = False
        self.counted = []
        self.block = None

    def __getattr__(self, name):
        if name.startswith("nvml"):
            raise AssertionError(f"the fake has no {name}")
        return getattr(pynvml, name)

    def _check(self, handle=None, what=None):
        if self.block is not None:
            self.block.wait(60)
        if not self.open:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if handle is None:
            return None
        card, generation = handle
        if generation != self.inits:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        if card.error is not None:
            raise pynvml.NVMLError(card.error)
        if what in card.unsupported:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card

    def nvmlInit(self):
        if self.error is not None:
            raise pynvml.NVMLError(self.error)
        self.inits += 1
        self.open = True
        self.counted = list(self.cards)

    def nvmlShutdown(self):
        self._check()
        self.open = False

    def nvmlDeviceGetCount(self):
        self._check()
        return len(self.counted)

    def nvmlDeviceGetHandleByIndex(self, index):
        handle = self.counted[index], self.inits
        self._check(handle)
        return handle

    def nvmlDeviceGetMigMode(self, handle):
        card = self._check(handle, "mode")
        if card.parts is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE, pynvml.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7 if self._check(handle).parts is not None else 0

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number):
        parts = self._check(handle).parts
        if number >= len(parts) or parts[number] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return parts[number], self.inits

    def nvmlDeviceGetUUID(self, handle):
        return self._check(handle).uuid

    def nvmlDeviceGetName(self, handle):
        return self._check(handle).name

    def nvmlDeviceGetMemoryInfo(self, handle):
        card = self._check(handle, "memory")
        return SimpleNamespace(total=card.total, used=card.used, free=card.total - card.used)

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._check(handle, "rates")
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        self._check(handle, "temperature")
        return 61

    def nvmlDeviceGetPowerUsage(self, handle):
        self._check(handle, "power")
        return 215_500

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self._check(handle, "processes").computing

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return self._check(handle, "processes").drawing

    def nvmlSystemGetProcessName(self, pid):
        if pid not in self.programs:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.programs[pid]


def process(pid, memory=None):
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)
