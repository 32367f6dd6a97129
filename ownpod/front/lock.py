"""The front's directory: one front at a time runs in it. A front that was killed may leave its HAProxy in there."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ownpod.errors import StartError
from ownpod.front.layout import FILE
from ownpod.settings import Settings

PID_FILE = "haproxy.pid"
"""The file with HAProxy's process, in the front's directory."""

END_S = 3.0
"""Seconds between SIGTERM and SIGKILL of an HAProxy that was left behind."""

CHECK_S = 0.02
"""Seconds between two checks of the lock, or of the process."""


def front_directory(config: Settings, port: int) -> Path:
    """The directory of the front that listens on a port."""
    return config.data_dir / "front" / str(port)


@contextlib.contextmanager
def locked(directory: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the directory's lock. The system releases it with the end of the process.

    Raises:
        StartError: the directory cannot be used, or another front runs in it for longer than ``wait_s`` seconds.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / "lock").open("w")
    except OSError as error:
        raise StartError(f"OWNPOD_DATA_DIR: {directory} cannot be used: {error.strerror}") from None
    with file:
        deadline = time.monotonic() + wait_s
        while not _lock(file.fileno()):
            if time.monotonic() > deadline:
                raise StartError(
                    f"another front runs in {directory}; stop it, or set OWNPOD_DATA_DIR"
                )
            time.sleep(CHECK_S)
        yield


def end_orphan(directory: Path) -> bool:
    """Ends an HAProxy that a killed front has left in the directory, so that its port is free.

    Returns:
        False: a front runs there, or drains, and was left alone.
    """
    if not directory.is_dir():
        return True
    with contextlib.suppress(StartError), locked(directory):
        for signum in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_S
            while (pid := _haproxy(directory)) is not None and time.monotonic() < deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
                time.sleep(CHECK_S)
        return True
    return False


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _haproxy(directory: Path) -> int | None:
    """The process of the file, if it is an HAProxy of this directory. Another process may have its pid now."""
    try:
        pid = int((directory / PID_FILE).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        there = Path(f"/proc/{pid}/cwd").resolve(strict=True)
    except (OSError, ValueError):
        return None
    return pid if there == directory.resolve() and FILE.encode() in command else None
