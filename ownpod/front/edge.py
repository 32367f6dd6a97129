"""The edge: it keeps HAProxy as the endpoints, workers and keys are, and reads from it what is open.

One thread talks to HAProxy; another one to Redis (:mod:`ownpod.front.exchange`), a third one to workers that are not ready
(:mod:`ownpod.front.prober`). So HAProxy is restarted at once also while Redis does not answer.
"""

import contextlib
import logging
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ownpod.front.exchange import Exchange
from ownpod.front.notes import Notes
from ownpod.front.prober import Prober
from ownpod.rules.balancing import FrontState, RouteReading
from ownpod.rules.fronts import Totals, View, reported, state_of, targets
from ownpod.rules.homes import Front, joined
from ownpod.rules.probing import Verdict

log = logging.getLogger(__name__)

BUSY_S, REST_S = 0.2, 0.5
"""Seconds from one reading of HAProxy to the next: while something is open, and while nothing is."""

AGAIN_S = 1.0
"""Seconds after which the state is applied again."""

LEAST_S = 0.02
"""Seconds between two readings at least, however many requests begin to wait."""

MAINTENANCE = "MAINT"
"""HAProxy's state of a server that the edge has taken out."""

SOCKET = "edge.sock"
"""The name of a unix socket in the front's directory. A connection means that HAProxy began to hold a request."""

_IS_LINUX = sys.platform == "linux"


class Balances(Protocol):
    """What the edge needs of :class:`ownpod.front.balancer.Balancer`."""

    @property
    def fd(self) -> int:
        """Readable when HAProxy has ended."""

    @property
    def alive(self) -> bool:
        """Whether HAProxy runs."""

    def apply(self, state: FrontState) -> bool:
        """Makes HAProxy as the state is, now or when it starts. False: it does not answer, so that its state is not known."""

    def read(self) -> dict[str, RouteReading]:
        """What HAProxy has open, by the endpoint's id."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Why an endpoint, or ``<endpoint>/<worker>``, cannot be in HAProxy, in words."""

    def ensure(self) -> bool:
        """Restarts HAProxy if it has ended, with its last state. True: it had."""


class Edge:
    """The loop of the front.

    Args:
        balancer: HAProxy, started or adopted.
        exchange: makes the exchange with Redis; it gets the function that wakes this loop.
        me: this front.
        directory: the front's directory; None: without the socket.
        adopted: HAProxy served before this process did.
        clock: seconds.
    """

    def __init__(
        self,
        balancer: Balances,
        exchange: Callable[[Callable[[], None]], Exchange],
        *,
        me: Front,
        directory: Path | None = None,
        adopted: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._balancer = balancer
        self._me = me
        self._clock = clock
        self._adopted = adopted
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._waker = os.pipe()
        for end in (self._wake_end, self._waker):
            os.set_blocking(end, False)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._listener = None if directory is None else self._listen(directory / SOCKET)
        self.exchange = exchange(self.wake)
        self.prober = Prober(self.wake)
        self._notes = Notes()
        self._totals = Totals()
        self._view: View | None = None
        self._state: FrontState | None = None
        """What HAProxy has; None: not known."""
        self._apply_at = 0.0
        self._read_at = self._was_read_at = 0.0
        self._readings: Mapping[str, RouteReading] = {}
        self._read_state: FrontState | None = None
        """What HAProxy had when it was read: a worker is free only if it has no open request after it was drained."""
        self._read_view: View | None = None
        """The view that this was made from."""
        self._down: Mapping[str, str] = {}
        self._ready_before = frozenset[str]()
        self._problem = ""
        self._stopping = self._reloading = False

    def _listen(self, path: Path) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        # The path of a socket has 107 bytes at most, so that of a deep directory is shortened.
        directory, mask = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY), os.umask(0o177)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}" if _IS_LINUX else str(path))
        finally:
            os.umask(mask)
            os.close(directory)
        listener.listen(64)
        listener.settimeout(0)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    def wake(self) -> None:
        """Ends the loop's wait. Any thread may call this."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._waker, b"\0")

    def stop(self) -> None:
        """Ends :meth:`run`. A signal handler may call this."""
        self._stopping = True
        self.wake()

    def reload(self) -> None:
        """Reads the configuration again. A signal handler may call this."""
        self._reloading = True
        self.wake()

    def run(self) -> bool:
        """Blocks until :meth:`stop`. False: it ended because one of its threads has died."""
        self.exchange.start()
        self.prober.start()
        try:
            if self._adopted:
                self._read_adopted()
            while not self._stopping:
                if not (self.exchange.alive and self.prober.alive):
                    log.error("a thread of the front has died")
                    return False
                if self._reloading:
                    self._reloading = False
                    self.exchange.reload()
                self._guarded_turn()
                self._sleep()
        finally:
            self.prober.stop()
            self.exchange.stop()
            if self._listener is not None:
                self._listener.close()
        return True

    def _read_adopted(self) -> None:
        """Reads which workers HAProxy sends requests to: these are not asked again, because one that is busy may not answer."""
        try:
            found = self._balancer.read()
        except Exception:
            log.exception("HAProxy, which ran already, cannot be read")
            return
        self._ready_before = frozenset(
            name
            for route in found.values()
            for name, server in route.servers.items()
            if server.up or server.open
        )

    def _guarded_turn(self) -> None:
        try:
            self.turn()
        except Exception as error:
            # HAProxy may have ended during the turn; the next turn restarts it.
            self._state, self._apply_at = None, self._clock() + min(AGAIN_S, BUSY_S)
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                self._problem = problem
                log.warning("HAProxy: %s", problem, exc_info=not isinstance(error, OSError))
        else:
            self._problem = ""

    def turn(self) -> None:
        """One comparison of HAProxy with what it should be, and a reading if one is due."""
        now = self._clock()
        if self._balancer.ensure():
            self._read_at = now
        if now >= self._read_at:
            self._read()
        view = self.exchange.view
        if view is None or (self._adopted and not view.is_complete and self._state is None):
            # An HAProxy that serves already knows more than the configuration does.
            return
        if view is not self._view:
            self._view = view
            self.prober.watch(targets(view, self._me), self._ready_before)
            self._ready_before = frozenset()
        verdicts = self.prober.verdicts
        state = state_of(view, self._me, verdicts)
        # Again and again, because names of workers get other addresses, and a server with open requests is removed later.
        if now >= self._apply_at or (self._state is not None and state != self._state):
            applied = state if self._balancer.apply(state) else None
            if applied != self._state:
                self._read_at = min(self._read_at, now + LEAST_S)
            self._state, self._apply_at = applied, now + (AGAIN_S if applied else BUSY_S)
        self._notes.turn(view, verdicts)
        self._report()

    def _read(self) -> None:
        """Reads HAProxy, and has workers that it finds down asked by the prober."""
        found = self._balancer.read()
        # After an unanswered change its state is not known, and `_report` keeps what was reported before.
        routes = {} if self._state is None else self._state.routes
        self._was_read_at = self._clock()
        self._read_at = self._was_read_at + BUSY_S
        if routes and not found and self._balancer.alive:
            # HAProxy did not answer. What was open may still be.
            return
        # One that has ended has nothing open, and its totals go on when it is back.
        self._readings = readings = self._totals.grow(found) if found else {}
        self._read_state, self._read_view = self._state, self._view
        if not _is_busy(readings):
            self._read_at = self._was_read_at + REST_S
        down, lost, silent = {}, {}, {}
        for name, route in routes.items():
            servers = readings.get(name, RouteReading()).servers
            for server in route.servers:
                reading = servers.get(server.id)
                if reading is None or reading.up or server.draining:
                    continue
                if server.is_front:
                    silent[joined(server.host, server.port)] = reading.problem
                    continue
                if reading.problem.startswith(MAINTENANCE):
                    # Between two states that the edge itself gives it.
                    continue
                down[server.id] = reading.problem or "HAProxy finds it down"
                # Twice, because a reading may be of the moment in which it was added. One with open requests
                # stays: HAProxy sends it no others.
                if server.id in self._down and not reading.open:
                    lost[server.id] = down[server.id]
        self._down = down
        self._notes.fronts(silent)
        if lost:
            self.prober.lost(lost)

    def _report(self) -> None:
        if self._read_state is None or self._read_view is None:
            return
        found = reported(self._readings, self._read_state, self._read_view)
        waiting = frozenset(name for name, r in found.items() if r.waiting or r.wishes)
        verdicts = dict(self.prober.verdicts)
        problems = dict[str, str]()
        for name, why in self._balancer.problems.items():
            endpoint, _, worker = name.partition("/")
            if worker:
                problems[worker] = why
            else:
                found[endpoint] = replace(found.get(endpoint, RouteReading()), problem=why)
        for name, problem in {**problems, **self._down}.items():
            if name in verdicts and verdicts[name].ready:
                verdicts[name] = Verdict(reason=problem, lost=True)
        self.exchange.report(found, verdicts, waiting)

    def _sleep(self) -> None:
        until = self._read_at
        with self._watching(self._balancer.fd):
            ready = self._selector.select(max(0.0, until - self._clock()))
        for key, _ in ready:
            if key.fd == self._wake_end:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_end, 4096)
            elif self._listener is not None and key.fd == self._listener.fileno():
                self._accept(self._listener)

    @contextlib.contextmanager
    def _watching(self, fd: int) -> Iterator[None]:
        """Has the wait end when HAProxy does. Each time, because the next HAProxy has another descriptor."""
        try:
            self._selector.register(fd, selectors.EVENT_READ)
        except (ValueError, KeyError, OSError):
            yield
            return
        try:
            yield
        finally:
            self._selector.unregister(fd)

    def _accept(self, listener: socket.socket) -> None:
        """HAProxy began to hold a request: it is read at once, but not for each of many."""
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                listener.accept()[0].close()
        self._read_at = min(self._read_at, self._was_read_at + LEAST_S)


def _is_busy(readings: Mapping[str, RouteReading]) -> bool:
    """Whether requests are open or held. The first one that is held is announced at :data:`SOCKET`."""
    return any(reading.requests or reading.wishes for reading in readings.values())
