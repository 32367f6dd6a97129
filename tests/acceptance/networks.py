"""Hosts of a test's own: network namespaces on one bridge. Their processes share this host's files, not its network."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import psutil
from helpers import Process, wait_until

PREFIX = "ownpod-test-"
"""What the names of all namespaces of tests begin with; the id of the test's process follows."""

HOSTNAME = 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"'


def ip(*arguments: object) -> str:
    """Runs the command ``ip``; returns its output."""
    command = ["ip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Network:
    """A bridge in the namespace of the first host, with a cable to each other host and one to the tests.

    The bridge has no part in this host's own namespace, so that rules of its firewall (Docker's, for example) do not
    stop what goes through it. The addresses are those of RFC 2544, for tests of networks.

    Args:
        hosts: names of the hosts, the first one first.
    """

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self._pid = os.getpid()
        self._net = f"198.18.{self._pid % 250}"
        self.address = f"{self._net}.1"
        """The first host's, and the bridge's."""
        remove_leftovers()
        try:
            for number, host in enumerate(hosts, 1):
                self._add(host, number)
            self._connect("tests", None, 254)
        except BaseException:
            self.remove()
            raise

    def _add(self, host: str, number: int) -> None:
        space = self.space(host)
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
        if number == 1:
            ip("-n", space, "link", "add", "bridge", "type", "bridge")
            ip("-n", space, "address", "add", f"{self.address}/24", "dev", "bridge")
            ip("-n", space, "link", "set", "bridge", "up")
        else:
            self._connect(host, space, number)

    def _connect(self, host: str, space: str | None, number: int) -> None:
        first, own = self.space(self.hosts[0]), f"op{self._pid}-{number}"
        where = ("-n", space) if space else ()
        target = ("netns", space or self._pid)
        ip("-n", first, "link", "add", f"to-{host}", "type", "veth", "peer", own, *target)
        ip("-n", first, "link", "set", f"to-{host}", "master", "bridge", "up")
        ip(*where, "address", "add", f"{self._net}.{number}/24", "dev", own)
        ip(*where, "link", "set", own, "up")

    def space(self, host: str) -> str:
        """The name of a host's namespace."""
        return f"{PREFIX}{self._pid}-{host}"

    def cut(self, host: str) -> None:
        """Cuts a host off: packets from and to it are lost without an answer."""
        ip("-n", self.space(self.hosts[0]), "link", "set", f"to-{host}", "down")

    def join(self, host: str) -> None:
        """Ends :meth:`cut`."""
        ip("-n", self.space(self.hosts[0]), "link", "set", f"to-{host}", "up")

    def run(self, host: str, *command: object, log: Path, **environ: object) -> Process:
        """Starts a process on a host. Its pid is that of the command itself."""
        enter = ("nsenter", f"--net=/run/netns/{self.space(host)}", "unshare", "--uts")
        return Process(*enter, "sh", "-c", HOSTNAME, host, *command, log=log, **environ)

    def remove(self) -> None:
        """Ends all processes of the hosts, and removes the hosts."""
        _remove(f"{PREFIX}{self._pid}-")
        # The kernel removes what is in a namespace some time after the namespace, and the next network has this name, too.
        own = f"op{self._pid}-254"
        command = ["ip", "link", "delete", own]
        subprocess.run(command, capture_output=True, timeout=30, check=False)
        wait_until(lambda: own not in ip("link"), 20, f"the end of {own}")


def remove_leftovers() -> None:
    """Removes the namespaces of tests whose process was killed."""
    for name in _names(PREFIX):
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            _remove(f"{PREFIX}{pid}-")


def _names(prefix: str) -> list[str]:
    lines = ip("netns", "list").splitlines()
    return [line.split()[0] for line in lines if line.startswith(prefix)]


def _remove(prefix: str) -> None:
    for name in _names(prefix):
        wait_until(lambda name=name: not _kill(name), 20, f"the end of {name}'s processes")
        ip("netns", "delete", name)


def _kill(name: str) -> bool:
    """Kills what runs in a namespace. False: nothing does."""
    pids = [int(pid) for pid in ip("netns", "pids", name).split()]
    alive = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
                os.kill(pid, signal.SIGKILL)
    return bool(alive)
