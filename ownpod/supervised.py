"""Processes that are restarted when they end; and a group of them with one log, ended in order.

The group has one thread: it copies the processes' output, each line behind its process's name, and restarts a
process that ends. The end of a process that has not served yet is an error, so that a wrong setting stops the start.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from ownpod.errors import StartError
from ownpod.processes import Backoff, describe_exit, die_with_parent

CHECK_INTERVAL_S, IDLE_INTERVAL_S = 0.1, 0.5
"""Seconds between checks of the processes: while one is starting, and while all serve."""

START_S = 60.0
"""Longest wait in seconds for a process to serve for the first time."""

QUIET_S, LONGEST_SETTLE_S = 0.3, 1.0
"""Seconds without a line after which the log is quiet, and longest wait in seconds for that."""


class Output:
    """The output of a process and its children, copied line by line behind the process's name."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.file = file
        self._name = name
        self._rest = b""
        os.set_blocking(file.fileno(), False)

    def copy(self) -> bool:
        """Copies what was written; False at the end of the output."""
        data = self.file.read(65536)
        if data is None:
            return True
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if not data and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        write(self._name, *(line.decode(errors="replace") for line in lines))
        return bool(data)


@dataclass(eq=False)
class Supervised:
    """A process and its successors, each started some time after the end of the one before.

    Times are seconds on the monotonic clock.
    """

    name: str
    pid: int = 0
    """The process that runs; 0: none."""
    started: float = 0.0
    start_at: float = 0.0
    """When the next process is to be started, if none runs; infinite: not by itself."""
    backoff: Backoff = field(default_factory=Backoff)

    def is_due(self, now: float) -> bool:
        """Whether a process is to be started now."""
        return self.pid == 0 and self.start_at <= now

    def began(self, pid: int) -> None:
        """A process was started."""
        self.pid, self.started = pid, time.monotonic()

    def ended(self, served_s: float) -> float:
        """The process has ended after serving for ``served_s``. Returns the pause before the next one."""
        self.pid = 0
        pause_s = self.backoff.next_s(served_s)
        self.start_at = time.monotonic() + pause_s
        return pause_s


class Child(Supervised):
    """A program of a group."""

    def __init__(
        self,
        name: str,
        launch: Callable[[], subprocess.Popen[bytes]],
        *,
        serves: Callable[[], bool],
        reloads: bool,
        drains: bool,
        late: bool,
    ) -> None:
        super().__init__(name)
        self.reloads = reloads
        """It reads the configuration again at SIGHUP."""
        self.drains = drains
        """It stops accepting at SIGTERM, and passes on what is open: it gets the signal before all others end."""
        self.supervised = late
        """It, or a predecessor, has served, or it was started after the others: it is restarted when it ends."""
        self._launch = launch
        self._serves = serves
        self.start()

    def start(self) -> None:
        """Starts a process, the first one or a successor."""
        self.process = self._launch()
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        self.output = Output(self.name, self.process.stdout)
        self.served_since: float | None = None
        """When this process began to serve, on the monotonic clock; None: it does not yet."""
        self.began(self.process.pid)

    def check(self) -> None:
        """Records that the process serves, once it does."""
        if self.pid and self.served_since is None and self._serves():
            self.served_since = time.monotonic()
            self.supervised = True

    def served_s(self) -> float:
        """Seconds for which this process has served."""
        return 0.0 if self.served_since is None else time.monotonic() - self.served_since


def write(name: str, *lines: str) -> None:
    """Writes lines of the common log at once."""
    sys.stdout.write("".join(f"{name:<10} | {line}\n" for line in lines))
    sys.stdout.flush()


class Group:
    """Child processes with one log, ended in the reverse order of their start."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self.stopping = False
        self.reloading = False
        self.reloads = 0
        """Number of SIGHUPs that were passed on."""

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT set ``stopping``; SIGHUP is passed on to those that read settings."""

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self.stopping = True

        def reload(_signum: int, _frame: FrameType | None) -> None:
            self.reloading = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)

    def spawn(
        self,
        name: str,
        arguments: list[str],
        environ: dict[str, str],
        *,
        serves: Callable[[], bool],
        reloads: bool = False,
        drains: bool = False,
        before: Child | None = None,
    ) -> Child:
        """Starts a program; ``serves`` returns whether it serves by now, and raises nothing.

        ``before``: a child that serves already and that is to be ended first, as if it had been started after this one.
        The failure of this one is then no failure of the start: it is restarted.
        """

        def launch() -> subprocess.Popen[bytes]:
            # A session of its own: Ctrl-C comes here only, and children are ended in order.
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
            )

        return self.add(name, launch, serves=serves, reloads=reloads, drains=drains, before=before)

    def add(
        self,
        name: str,
        launch: Callable[[], subprocess.Popen[bytes]],
        *,
        serves: Callable[[], bool],
        reloads: bool = False,
        drains: bool = False,
        before: Child | None = None,
    ) -> Child:
        """Starts a process with a function; ``before`` as of :meth:`spawn`."""
        late = before is not None
        child = Child(name, launch, serves=serves, reloads=reloads, drains=drains, late=late)
        place = len(self.children) if before is None else self.children.index(before)
        self.children.insert(place, child)
        self._copy_from(child.output)
        return child

    @property
    def serving(self) -> bool:
        """All children serve now."""
        return all(child.served_since is not None for child in self.children)

    def supervise(self, timeout_s: float | None = None) -> bool:
        """Copies output for a moment, restarts ended processes. True, if there was output.

        ``timeout_s``: how long at most; by default as long as a check of the processes may wait.

        Raises:
            StartError: a child has ended that never served, or did not serve in time.
        """
        if timeout_s is None:
            timeout_s = IDLE_INTERVAL_S if self.serving else CHECK_INTERVAL_S
        copied = self._copy(timeout_s)
        if self.reloading:
            self.reloading = False
            self.reloads += 1
            for child in self.children:
                if child.reloads and child.process.poll() is None:
                    child.process.send_signal(signal.SIGHUP)
        for child in self.children:
            if self.stopping:
                break
            code = child.process.poll()
            if code is None:
                self._check(child)
            else:
                self._restart(child, code)
        return copied

    def _check(self, child: Child) -> None:
        child.check()
        if not child.supervised and time.monotonic() - child.started > START_S:
            raise StartError(
                f"{child.name} did not come up within {START_S:g} s; ending everything"
            )

    def _restart(self, child: Child, code: int) -> None:
        if child.pid:
            self._copy(0.2 if not child.supervised else 0)
            if not child.supervised:
                raise StartError(f"{child.name} {describe_exit(code)}; ending everything")
            pause_s = child.ended(child.served_s())
            child.served_since = None
            when = f"in {pause_s:g} s" if pause_s else "at once"
            write("ownpod", f"{child.name} {describe_exit(code)}; starting it again {when}")
        if child.is_due(time.monotonic()):
            # The output of the process before is copied on, because its children may still write.
            child.start()
            self._copy_from(child.output)

    def _copy_from(self, output: Output) -> None:
        self._selector.register(output.file, selectors.EVENT_READ, output)

    def settle(self) -> None:
        """Supervises until the log is quiet, or for a second, so that the caller's next line is the last one."""
        quiet_since = began = time.monotonic()
        while not self.stopping and time.monotonic() - quiet_since < QUIET_S:
            if time.monotonic() - began > LONGEST_SETTLE_S:
                return
            if self.supervise():
                quiet_since = time.monotonic()

    def end(self, kill_after_s: float) -> None:
        """Ends all children, the last started first, one after the other; those that drain begin with it at once."""
        self.stopping = True
        for child in self.children:
            if child.drains and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        for child in reversed(self.children):
            # A second SIGTERM would end the drain.
            if not child.drains and child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + kill_after_s
            while child.process.poll() is None:
                if time.monotonic() > deadline:
                    write("ownpod", f"{child.name} did not end, killing it")
                    child.process.kill()
                    child.process.wait()
                self._copy(CHECK_INTERVAL_S)
        self._copy(0)
        for key in list(self._selector.get_map().values()):
            self._close(key.data)
        self._selector.close()

    def _copy(self, timeout_s: float) -> bool:
        if not self._selector.get_map():
            time.sleep(timeout_s)
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if not key.data.copy():
                self._close(key.data)
        return bool(ready)

    def _close(self, output: Output) -> None:
        self._selector.unregister(output.file)
        output.file.close()
