"""Whether a node fetches jobs: only while its worker takes them.

A dead worker must not swallow jobs faster than living ones run them, and must take part again by
itself when it is back.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ownpod.errors import RedisUnavailable, WorkerAwaited, WorkerSilent, WorkerUnavailable
from ownpod.rules.fleet import WorkerState, WorkerStatus

log = logging.getLogger(__name__)

IDLE_PROBE_S = 10.0
"""Pause between looks at an idle, healthy worker."""

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0
"""Looks at an unhealthy worker come with pauses that double between these."""


class Slots(Protocol):
    """The node's slots, see :class:`ownpod.node.slots.Attempts`."""

    @property
    def in_hand(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def begun(self) -> int: ...


class Gate(threading.Thread):
    """Looks after a worker's health, opens and closes its node's queues, and says how it is.

    Args:
        probe: raises WorkerUnavailable, see :meth:`ownpod.workers.Worker.probe`. A busy worker
            cannot answer it: a sync handler blocks the SDK's server. So only idle ones are asked.
        announce: publishes the worker's status.
        announce_every_s: how often, at least.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        announce: Callable[[WorkerStatus], None],
        *,
        announce_every_s: float,
    ) -> None:
        super().__init__(name="gate", daemon=True)
        self._probe = probe
        self._announce = announce
        self._announce_every_s = announce_every_s
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._probe_at = time.monotonic()
        self._state = WorkerState.INITIALIZING
        self._reason = "its node has not reached it yet"
        self.slots: Slots | None = None
        self.on_turn: Callable[[], None] = lambda: None
        """Called when the gate opens or closes, from any thread."""

    @property
    def open(self) -> bool:
        """The node may fetch jobs."""
        return self._state is WorkerState.READY

    @property
    def status(self) -> WorkerStatus:
        return WorkerStatus(self._state, self._reason, self.slots.held if self.slots else 0)

    def trip(self, reason: str) -> None:
        """The worker takes no jobs: closes the gate until a look shows that it does again."""
        with self._lock:
            self._failures += 1
            pause_s = min(FIRST_RETRY_S * 2 ** (self._failures - 1), LONGEST_RETRY_S)
            self._probe_at = time.monotonic() + pause_s
            turned = self._turn(WorkerState.UNHEALTHY, reason)
        if turned:
            log.warning("worker unhealthy, its jobs go to others: %s", reason)

    def recheck(self) -> None:
        """Probes the worker now, because it may take jobs again. From any thread."""
        self._probe_at = time.monotonic()
        self._woken.set()

    def worked(self) -> None:
        """The worker took a job."""
        self._failures = 0

    def wake(self) -> None:
        """Something about the slots changed."""
        if self._state is WorkerState.BUSY:
            self._probe_at = time.monotonic()
        self._woken.set()

    def run(self) -> None:
        while True:
            self._woken.clear()
            if self._probe_at <= time.monotonic():
                self._look()
            try:
                self._announce(self.status)
            except RedisUnavailable as error:
                log.warning("worker status not announced: %s", error)
            except Exception:
                # A key that Redis cannot read must not end the node, and with it the worker's jobs.
                log.exception("worker status not announced")
            pause_s = min(self._probe_at - time.monotonic(), self._announce_every_s)
            self._woken.wait(max(0.0, pause_s))

    def _look(self) -> None:
        slots = self.slots
        begun, taken = (slots.begun, slots.in_hand) if slots else (0, 0)
        self._probe_at = time.monotonic() + IDLE_PROBE_S
        if taken and self.open:
            return
        try:
            self._probe()
        except WorkerUnavailable as error:
            if isinstance(error, WorkerAwaited):
                self._wait_for_worker(str(error), busy=taken > 0)
            elif isinstance(error, WorkerSilent) and taken:
                # A sync handler blocks the SDK's server; when it ends, its slot is free, and this woken.
                with self._lock:
                    self._turn(WorkerState.BUSY, "it is at a run that began before its node")
            elif slots is None or slots.begun == begun or not self.open:
                # Else a job that began meanwhile may be why nothing was heard.
                self.trip(str(error))
            return
        with self._lock:
            turned = self._turn(WorkerState.READY, "")
        if turned:
            log.info("worker ready")

    def _wait_for_worker(self, reason: str, *, busy: bool) -> None:
        """The worker has not asked since its node began: not unhealthy yet, and probed often unless busy."""
        self._probe_at = time.monotonic() + (LONGEST_RETRY_S if busy else FIRST_RETRY_S)
        with self._lock:
            self._turn(WorkerState.BUSY if busy else WorkerState.INITIALIZING, reason)

    def _turn(self, state: WorkerState, reason: str) -> bool:
        turned = state is not self._state
        self._state, self._reason = state, reason
        if turned:
            self.on_turn()
            self._woken.set()
        return turned
