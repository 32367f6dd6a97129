"""Checks of directories of the host that never block the agent's turn.

A directory may be on a network's file system whose server has gone, and each access to it then blocks. So threads of
their own check the directories, and the agent's turn does not wait for one that blocks.
"""

import os
import threading
import time
from collections.abc import Callable

from ownpod.rules.managed import HostVolume
from ownpod.rules.volumes import VolumeSource

EVERY_S = 10.0
"""Seconds between two checks of a directory, and after which one that has not answered counts as unusable."""

CHECK_S = 0.5
"""Seconds for which the agent waits for a check."""

MIB = 1024**2


class DirectoryCheck:
    """The checks of one volume's directory, one after the other.

    Args:
        source: the volume.
        check: measures the directory. May block without an end; raises nothing.
    """

    def __init__(self, source: VolumeSource, check: Callable[[], HostVolume]) -> None:
        self._source = source
        self._do = check
        self._began = 0.0
        self._thread: threading.Thread | None = None
        self._last: HostVolume | None = None

    def begin(self, every_s: float) -> None:
        """Begins a check if the last one began ``every_s`` ago, and has ended."""
        now = time.monotonic()
        if not self._running() and (self._last is None or now - self._began >= every_s):
            self._began = now
            self._thread = threading.Thread(target=self._run, name="volume", daemon=True)
            self._thread.start()

    def result(self, until: float) -> HostVolume:
        """What the last check found. Blocks until the running one has ended, or until this time of the monotonic clock."""
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        late = self._running() and time.monotonic() - self._began >= EVERY_S
        if self._last is None or late:
            name, kind, source = self._source.name, self._source.kind, self._source.source
            return HostVolume(name, kind, source, problem=f"{source} does not answer")
        return self._last

    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        self._last = self._do()


def sizes(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Total and free MiB of the file system that has a directory. May block without an end. Raises: OSError."""
    status = os.statvfs(path)
    total, free = status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    return total // MIB, free // MIB
