"""HAProxy as a process: started, adopted from an edge before this one, and ended."""

import contextlib
import logging
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from ownpod.errors import StartError
from ownpod.front.layout import FILE, LUA, Maps, digest
from ownpod.front.lock import PID_FILE
from ownpod.front.runtime import Runtime, RuntimeUnavailable
from ownpod.processes import describe_exit

log = logging.getLogger(__name__)

START_S = 10.0
"""Time limit in seconds for the start. It takes about 60 ms, and much longer on a machine that swaps."""

END_S = 3.0
"""Seconds between SIGTERM and SIGKILL."""

RESERVED, LARGEST = 400, 100_000
"""File descriptors for listeners, health checks and the runtime socket; and the largest number of connections."""


def connections_limit() -> int:
    """Connections of clients for which this process's children have file descriptors: two for each."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        return LARGEST
    return max(100, min(LARGEST, (hard - RESERVED) // 2))


class Program:
    """One HAProxy in a directory. A successor of this process finds it by its runtime socket."""

    def __init__(self, directory: Path, binary: str) -> None:
        self.directory = directory
        self.runtime = Runtime(directory)
        self._binary = binary
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._fd = -1

    @property
    def pid(self) -> int:
        """The process; 0: none."""
        return self._pid

    @property
    def fd(self) -> int:
        """A file descriptor that is readable when the process has ended; -1: none, or the system has no such thing."""
        return self._fd

    def alive(self) -> bool:
        """Whether the process runs."""
        if self._pid == 0:
            return False
        if self._child is not None:
            return self._child.poll() is None
        if self._fd >= 0:
            return not select.select([self._fd], [], [], 0)[0]
        return _exists(self._pid)

    def adopt(self, text: str) -> bool:
        """Adopts an HAProxy that runs here with this configuration; ends one with another."""
        pid = self.runtime.process() or self._noted()
        if pid is None:
            return False
        self._watch(pid)
        if self._description() == digest_of(text):
            log.info("HAProxy (pid %d) runs already with this configuration", pid)
            return True
        self.end()
        return False

    def start(self, text: str, maps: Mapping[Maps, Mapping[str, str]]) -> None:
        """Starts HAProxy with these entries in its maps. Raises: StartError."""
        directory = self.directory
        write_files(directory, text, maps)
        self._child = subprocess.Popen(
            [self._binary, "-db", "-f", FILE],
            cwd=directory,
            # Settings, and with them keys, are not HAProxy's concern.
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Ctrl+C of the terminal ends the edge, which ends HAProxy after it.
            process_group=0,
            umask=0o077,
        )
        assert self._child.stderr is not None  # noqa: S101 - for the type checker
        self._watch(self._child.pid)
        write_file(directory / PID_FILE, f"{self._child.pid}\n")
        # The pipe is closed after the start: HAProxy writes a line at each change of a worker, which the edge reports already.
        with self._child.stderr as problems:
            os.set_blocking(problems.fileno(), False)
            deadline = time.monotonic() + START_S
            while self._description() != digest_of(text):
                code = self._child.poll()
                if code is not None or time.monotonic() > deadline:
                    reason = "did not start in time" if code is None else describe_exit(code)
                    self.end()
                    raise StartError(f"HAProxy {reason}: {_last_problem(problems.read() or b'')}")
                time.sleep(0.003)

    def drain(self, limit_s: float) -> bool:
        """Ends the process when its requests have ended: it stops listening at once. Returns whether it ended in time."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGUSR1)
        return self._await_end(limit_s)

    def end(self) -> None:
        """Ends the process with its connections."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive():
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signum)
            self._await_end(END_S)
        if self._child is not None:
            self._child.poll()
        self.forget()

    def _await_end(self, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while self.alive() and time.monotonic() < deadline:
            if self._fd >= 0:
                select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            else:
                time.sleep(0.02)
        return not self.alive()

    def forget(self) -> None:
        """Gives up the process, which the next edge adopts if it is alive."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._pid, self._child = -1, 0, None

    def _watch(self, pid: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._pid, self._fd = pid, -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._fd = os.pidfd_open(pid)

    def _description(self) -> str | None:
        try:
            (info,) = self.runtime.ask("show info")
        except RuntimeUnavailable:
            return None
        for line in info.splitlines():
            name, _, value = line.partition(":")
            if name.lower() == "description":
                return value.strip()
        return None

    def _noted(self) -> int | None:
        """The pid of the file, if that process is an HAProxy of this directory whose socket does not answer."""
        try:
            pid = int((self.directory / PID_FILE).read_text())
            there = Path(f"/proc/{pid}/cwd").resolve(strict=True)
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        if there == self.directory.resolve() and FILE.encode() in command:
            return pid
        return None


def _last_problem(output: bytes) -> str:
    lines = output.decode(errors="replace").splitlines()
    alerts = [line for line in lines if "[ALERT]" in line]
    return " ".join(" ".join((alerts or lines[-1:] or [""])[0].split())[:400].split())


def script() -> str:
    """The text of the Lua file."""
    return Path(__file__).with_name(LUA).read_text()


def digest_of(text: str) -> str:
    """The digest in a rendered configuration."""
    for line in text.splitlines():
        if line.startswith("  description "):
            return line.split()[1]
    return digest(text)


def write_files(directory: Path, text: str, maps: Mapping[Maps, Mapping[str, str]]) -> None:
    """Writes all files that HAProxy reads. Only this user can read them: one has the digests of keys."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    (directory / "maps").mkdir(exist_ok=True)
    files = {FILE: text, LUA: script()}
    for name in Maps:
        entries = maps.get(name, {})
        files[str(name)] = "".join(f"{key} {value}\n" for key, value in entries.items())
    for file_name, content in files.items():
        write_file(directory / file_name, content)


def write_file(path: Path, content: str) -> None:
    """Writes a file that only this user can read."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", newline="") as file:
        file.write(content)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
