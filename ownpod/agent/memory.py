"""The memory of GPUs between two workers: the next one begins when the driver has freed that of the last one."""

import logging
import time
from collections.abc import Collection, Iterable

from ownpod.agent.devices import Devices
from ownpod.rules.managed import Device

WITHIN_S = 5.0
"""Seconds within which a driver frees the memory of processes that have ended."""

POLL_S = 0.1
"""Seconds between two readings while that memory is waited for."""

SLACK = 0.05
"""Part of a GPU's memory that may be in use beyond the least that was ever seen."""

log = logging.getLogger(__name__)


class Memory:
    """Knows the least memory of each GPU that was ever in use, and waits until no more is.

    Args:
        devices: the devices of this host.
        within_s: see :data:`WITHIN_S`.
        poll_s: see :data:`POLL_S`.
    """

    def __init__(
        self, devices: Devices, *, within_s: float = WITHIN_S, poll_s: float = POLL_S
    ) -> None:
        self._devices = devices
        self._within_s = within_s
        self._poll_s = poll_s
        self._least_mb: dict[str, float] = {}

    def observe(self, devices: Iterable[Device]) -> None:
        """Remembers the least memory in use of these devices, as they were read now."""
        for device in devices:
            used_mb = device.metrics.get("memory_used_mb")
            if used_mb is not None:
                self._least_mb[device.id] = min(self._least_mb.get(device.id, used_mb), used_mb)

    def wait_until_free(self, ids: Collection[str]) -> None:
        """Blocks until the memory of a worker that has ended is free again, because the next one may need all of it.

        After ``within_s`` it logs a warning instead: the memory may be that of another program.

        Args:
            ids: of the devices that the worker held; shared ones, whose memory others use, are not waited for.
        """
        if not any(device.id in ids and not device.simulated for device in self._devices.read()):
            return
        until = time.monotonic() + self._within_s
        while True:
            devices = self._devices.read_now(max(until - time.monotonic(), 0))
            self.observe(devices)
            used = [device.id for device in devices if device.id in ids and self._is_used(device)]
            left_s = until - time.monotonic()
            if not used:
                return
            if left_s <= 0:
                log.warning(
                    "%s: memory is in use %g s after the end of a worker; the next one begins now",
                    ", ".join(used),
                    self._within_s,
                )
                return
            time.sleep(min(self._poll_s, left_s))

    def _is_used(self, device: Device) -> bool:
        used_mb = device.metrics.get("memory_used_mb")
        if used_mb is None or device.slots > 1:
            return False
        return used_mb > self._least_mb[device.id] + SLACK * device.memory_mb
