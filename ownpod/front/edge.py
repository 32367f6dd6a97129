"""The edge: it keeps HAProxy as the endpoints, workers and keys are, and reads from it what is open.

One thread talks to HAProxy; another one to Redis (:mod:`ownpod.front.exchange`), a third one to workers that are not ready
(:mod:`ownpod.front.prober`). So HAProxy is restarted at once also while Redis does not answer.
"""

import contextlib
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ownpod.front.exchange import Exchange
from ownpod.front.notes import Notes
from ownpod.front.prober import Prober
from ownpod.rules.balancing import FrontState, RouteReading
from ownpod.rules.fronts import Totals, View, reported, state_of, targets
from ownpod.rules.homes import Front
from ownpod.rules.probing import Verdict

log = logging.getLogger(__name__)

BUSY_S, REST_S = 0.2, 0.5
"""Seconds from one reading of HAProxy to the next: while something is open or held, and while nothing is."""

AGAIN_S = 1.0
"""Seconds after which the state is applied again, while HAProxy has servers that it should not have any more, or after an error."""

LEAST_S = 0.02
"""Seconds between two readings at least, however many requests begin to wait."""

SOCKET = "edge.sock"
"""The name of a unix socket in the front's directory. A connection means that HAProxy began to hold a request."""


class Balancing(Protocol):
    """What the edge needs of :class:`ownpod.front.balancer.Balancer`."""

    @property
    def fd(self) -> int:
        """Readable when HAProxy has ended."""

    def apply(self, state: FrontState) -> None:
        """Makes HAProxy as the state is."""

    def read(self) -> dict[str, RouteReading]:
        """What HAProxy has open, by the endpoint's id."""

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
        balancer: Balancing,
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
        self._down: Mapping[str, str] = {}
        self._ready_before = frozenset[str]()
        self._problem = ""
        self._stopping = False

    def _listen(self, path: Path) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(64)
        listener.settimeout(0)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    @property
    def waker(self) -> int:
        """A descriptor: what is written to it wakes the loop, for ``signal.set_wakeup_fd``."""
        return self._waker

    def wake(self) -> None:
        """Ends the loop's wait. Any thread may call this."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._waker, b"\0")

    def stop(self) -> None:
        """Ends :meth:`run`. A signal handler may call this."""
        self._stopping = True
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
                self._guarded_turn()
                self._sleep()
        finally:
            self.prober.stop()
            self.exchange.stop()
            if self._listener is not None:
                self._listener.close()
        return True

    def _read_adopted(self) -> None:
        """Reads which workers HAProxy has and finds up: these are not asked again, because one that is busy may not answer."""
        try:
            found = self._balancer.read()
        except Exception:
            log.exception("HAProxy, which ran already, cannot be read")
            return
        self._ready_before = frozenset(
            name for route in found.values() for name, server in route.servers.items() if server.up
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
            log.warning("HAProxy had ended; it was started again")
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
        again = self._state is None or _leftover(self._readings, state)
        if (again and now >= self._apply_at) or (self._state is not None and state != self._state):
            self._balancer.apply(state)
            self._state, self._apply_at = state, now + AGAIN_S
            self._read_at = min(self._read_at, now + BUSY_S)
        self._notes.turn(view, verdicts)
        self._report()

    def _read(self) -> None:
        """Reads HAProxy, and has workers that it finds down asked by the prober."""
        self._readings = readings = self._totals.grow(self._balancer.read())
        busy = any(reading.open or reading.wishes for reading in readings.values())
        self._was_read_at = self._clock()
        self._read_at = self._was_read_at + (BUSY_S if busy else REST_S)
        if self._state is None:
            return
        down, lost = {}, {}
        for name, route in self._state.routes.items():
            found = readings.get(name, RouteReading()).servers
            for server in route.servers:
                reading = found.get(server.id)
                if reading is None or reading.up or server.draining or server.is_front:
                    continue
                down[server.id] = reading.problem or "HAProxy finds it down"
                # Twice, because a reading may be of the moment in which it was added. One with open requests
                # stays: HAProxy sends it no others.
                if server.id in self._down and not reading.open:
                    lost[server.id] = down[server.id]
        self._down = down
        if lost:
            self.prober.lost(lost)

    def _report(self) -> None:
        if self._state is None:
            return
        found = reported(self._readings, self._state)
        waiting = frozenset(name for name, r in found.items() if r.waiting or r.wishes)
        verdicts = dict(self.prober.verdicts)
        for name, problem in self._down.items():
            if name in verdicts and verdicts[name].ready:
                verdicts[name] = Verdict(reason=problem, lost=True)
        self.exchange.report(found, verdicts, waiting)

    def _sleep(self) -> None:
        until = self._read_at
        if self._state is None and self._apply_at > self._clock():
            until = min(until, self._apply_at)
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


def _leftover(readings: Mapping[str, RouteReading], state: FrontState) -> bool:
    """Whether HAProxy has servers that it should not have."""
    for name, reading in readings.items():
        route = state.routes.get(name)
        if reading.servers and (
            route is None or reading.servers.keys() - {server.id for server in route.servers}
        ):
            return True
    return False
