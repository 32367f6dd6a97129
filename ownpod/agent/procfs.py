"""Processes of this host as Linux's ``/proc`` shows them, and signals that cannot reach another process.

A pid alone names no process, because Linux uses its number again. A pid with its start time does, within one boot.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process at one instant.

    Attributes:
        started: clock ticks between the boot and its start; with the pid, it names the process within one boot.
        dead: it has ended, and its parent has not read its exit code yet.
    """

    pid: int
    started: int
    group: int
    session: int
    dead: bool


def find(pid: int) -> Process | None:
    """The process with a pid; None if there is none."""
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name is in parentheses and may contain any character, also ")".
    fields = text[text.rindex(b")") + 2 :].split()
    # A process whose first thread has ended is shown as a zombie while its other threads run.
    dead = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return Process(pid, int(fields[19]), int(fields[2]), int(fields[3]), dead)


def find_started(pid: int, started: int) -> Process | None:
    """The living process with this pid and start time."""
    process = find(pid)
    return process if process and process.started == started and not process.dead else None


def living() -> Iterator[Process]:
    """All processes that this process can see, without itself."""
    for entry in os.scandir(PROC):
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            process = find(int(entry.name))
            if process and not process.dead:
                yield process


def was_started_with(process: Process, variable: str) -> bool:
    """Whether a process was started with an environment that has ``NAME=value``.

    Processes inherit it from their parents. False if it cannot be read: the process is another user's.
    """
    return variable.encode() in _environ(process)


def environ(process: Process) -> dict[str, str]:
    """The environment with which a process was started; empty if it cannot be read."""
    pairs = (os.fsdecode(part).partition("=") for part in _environ(process) if part)
    return {name: value for name, _, value in pairs}


def _environ(process: Process) -> list[bytes]:
    try:
        return (PROC / str(process.pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def uses(process: Process, directory: Path) -> bool:
    """Whether a process works in a directory, or writes its output to a file there."""
    for link in ("cwd", "fd/1", "fd/2"):
        with contextlib.suppress(OSError):
            target = (PROC / str(process.pid) / link).readlink()
            if directory in (target, *target.parents):
                return True
    return False


def send(process: Process, signum: signal.Signals) -> bool:
    """Sends a signal to exactly this process. Returns whether it still lived."""
    with open_handle(process) as handle:
        if handle is None:
            return False
        try:
            signal.pidfd_send_signal(handle, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@contextlib.contextmanager
def open_handle(process: Process) -> Iterator[int | None]:
    """A pidfd of a living process, which Linux reports as readable when the process ends; None if it has ended."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        yield None
        return
    try:
        # Checked with the handle open, because the pid cannot become another process's for the handle afterwards.
        yield handle if find_started(process.pid, process.started) else None
    finally:
        os.close(handle)


def wait_end(process: Process, timeout_s: float) -> bool:
    """Blocks until a process has ended, at most ``timeout_s``. Returns whether it has."""
    with open_handle(process) as handle:
        if handle is None:
            return True
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))


def boot_id() -> str:
    """Names this boot of the host; "" where Linux does not show it."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def age_s(started: int) -> float:
    """Seconds since a start time of this boot."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / TICKS_PER_S)
