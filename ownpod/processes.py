"""Helpers of processes that start others: the end with the parent, free ports, pauses, exit codes."""

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import sys
from enum import IntEnum
from pathlib import Path

from ownpod.errors import StartError
from ownpod.rules.backoff import backoff_s

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has Linux send SIGTERM to this process when its parent ends, also when the parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def return_memory() -> None:
    """Has glibc return memory that is free to Linux. Imports leave a third of a process's memory free but not returned."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def check_port(host: str, port: int) -> None:
    """Checks that a server can listen there. Raises: StartError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StartError(
                f"cannot listen on {host} port {port}: {reason}; choose another with --host, --port"
            ) from None


def _here() -> str:
    """The scope in which a pid names one process: the host, and on Linux the PID namespace, because containers
    may share a host name.
    """
    host = socket.gethostname()
    try:
        return f"{host}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return host


def this_process() -> str:
    """Names this process among all hosts': ``<host>/<pid namespace>:<pid>``."""
    return f"{_here()}:{os.getpid()}"


def is_dead_here(process: str) -> bool:
    """Whether a process, named as by :func:`this_process`, has ended. False for one of another host or namespace."""
    here, _, pid = process.rpartition(":")
    if here != _here() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def is_loopback(host: str) -> bool:
    """Whether only this host can connect to a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port() -> int:
    """A port on loopback that was free just now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class HeldPort:
    """A port on loopback for a server that listens seconds later. While this object lives, Linux chooses the port for no other
    program; a server that sets SO_REUSEADDR, as gunicorn does, can listen on it.

    Attributes:
        number: the port.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        # Before the bind, because Linux allows a second one only if both sockets have it and neither listens.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])
        if sys.platform != "linux":
            # Other systems would refuse the server.
            self.close()

    def close(self) -> None:
        """Gives the port back."""
        self._socket.close()


class Backoff:
    """Pauses before the restarts of one process.

    A process that has served for :data:`STEADY_S` is restarted at once. One that ends earlier is
    restarted after a pause that doubles each time, from :data:`FIRST_S` to :data:`LONGEST_S`.
    """

    FIRST_S, LONGEST_S, STEADY_S = 0.5, 30.0, 3.0

    def __init__(self) -> None:
        self.failures = 0
        """Early ends in a row."""

    def next_s(self, served_s: float) -> float:
        """Seconds until the next start, of a process that has ended after serving for ``served_s``."""
        if served_s >= self.STEADY_S:
            self.failures = 0
            return 0.0
        self.failures += 1
        return backoff_s(self.failures, self.FIRST_S, self.LONGEST_S)


class Exit(IntEnum):
    """Exit codes of a node that ends by itself; the supervisor starts another one."""

    FAILED = 1
    """An error at its start, or a second SIGTERM."""
    THREAD_DIED = 70
    WORKER_LOST = 71
    STALLED = 72


REASONS = {
    Exit.THREAD_DIED: "one of its threads died, see its log",
    Exit.WORKER_LOST: "another node has acquired its worker",
    Exit.STALLED: "it had stalled: it fetched no jobs, or its event loop was stuck",
}
"""Explanations of exit codes for the operator; other programs use none of these codes."""


def describe_exit(code: int) -> str:
    """A child's exit in words; a negative code is the signal that ended it, as in ``subprocess``."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    reason = f" ({REASONS[Exit(code)]})" if code in REASONS else ""
    return f"ended with exit code {code}{reason}"
