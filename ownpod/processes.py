"""What processes that start others share: dying with the parent, free ports, readable exits."""

import contextlib
import ctypes
import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path

from ownpod.errors import StartError

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """In a child, on Linux: SIGTERM when the parent is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def check_port(host: str, port: int) -> None:
    """Raises StartError if nothing can listen there."""
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
    """Where a pid means one process: a host, and on Linux a PID namespace, as each container has one,
    whatever host name it goes by.
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
    """Whether a process, named as above, was here and is gone. Others cannot be told."""
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
    """Only this host can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port() -> int:
    """A port on loopback that was free just now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Backoff:
    """Pauses before the restarts of one process.

    A process that has served for :data:`STEADY_S` is restarted at once. One that ends earlier is
    restarted after a pause that doubles each time, from :data:`FIRST_S` to :data:`LONGEST_S`.
    """

    FIRST_S, LONGEST_S, STEADY_S = 0.5, 30.0, 3.0
    _MOST_DOUBLINGS = 16
    """More would overflow a float after a thousand ends."""

    def __init__(self) -> None:
        self.failures = 0
        """Early ends in a row."""

    def next_s(self, served_s: float) -> float:
        """Seconds until the next start, of a process that has ended after serving for ``served_s``."""
        if served_s >= self.STEADY_S:
            self.failures = 0
            return 0.0
        self.failures += 1
        doublings = min(self.failures - 1, self._MOST_DOUBLINGS)
        return float(min(self.FIRST_S * 2**doublings, self.LONGEST_S))


def describe_exit(code: int) -> str:
    """A child's exit in words; a negative code is the signal that ended it, as ``subprocess`` says."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
