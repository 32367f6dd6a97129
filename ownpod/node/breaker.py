"""The circuit breaker of a node: closed while the worker takes jobs. The node fetches jobs only while it is closed.

Without the breaker, a dead worker would fail jobs faster than healthy workers run them. The breaker closes by
itself when the worker answers again.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from ownpod.errors import WorkerAwaited, WorkerSilent, WorkerUnavailable
from ownpod.node.slots import Slots
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.workers.prober import FIRST_RETRY_S, LONGEST_RETRY_S, Prober

log = logging.getLogger(__name__)


class Breaker(Prober):
    """A prober that knows the node's jobs: a job that the worker refuses opens the breaker.

    A busy worker cannot answer a probe, because a sync handler blocks the SDK's server. So a worker is probed
    while it runs nothing, and silence of a busy one does not open the breaker.

    Args:
        probe: as of :class:`Prober`.
        publish: as of :class:`Prober`.
        publish_every_s: as of :class:`Prober`.
        slots: the node's slots.
        is_paused: whether the worker is paused, as each managed worker is before its agent stops it.
        on_change: called from any thread when the breaker closes or opens.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        publish: Callable[[WorkerStatus], None],
        *,
        publish_every_s: float,
        slots: Slots,
        is_paused: Callable[[], bool] = lambda: False,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(probe, publish, publish_every_s=publish_every_s)
        self.name = "breaker"
        self._slots = slots
        self._is_paused = is_paused
        self._on_change = on_change

    @property
    def closed(self) -> bool:
        """The node may fetch jobs."""
        return self._state is WorkerState.READY

    @property
    def status(self) -> WorkerStatus:
        return replace(super().status, lingering=self._slots.lingering)

    def open(self, reason: str) -> None:
        """The worker takes no jobs: the node fetches none until a probe succeeds."""
        self.fail(reason)

    def refuse(self, error: WorkerUnavailable) -> None:
        """The worker did not take a job."""
        self.open(str(error))

    def open_if_closed(self, reason: str) -> None:
        """Opens the breaker; one that is open already keeps its reason and its pause."""
        if self.closed:
            self.open(reason)

    def note_failure(self, reason: str) -> None:
        if self._is_paused():
            # It takes no jobs anyway, and its end is the usual one of a worker that was idle or is replaced.
            log.info("the paused worker does not answer any more: %s", reason)
        else:
            super().note_failure(reason)

    def wake(self) -> None:
        """The slots have changed: publishes the status now, and probes a worker that was busy."""
        if self._state is WorkerState.BUSY:
            self._probe_at = time.monotonic()
        self._woken.set()

    def probe_once(self) -> None:
        busy, begun = self._slots.taken > 0, self._slots.begun
        if busy and self.closed:
            return
        try:
            self._probe()
        except WorkerUnavailable as error:
            if isinstance(error, WorkerAwaited):
                state = WorkerState.BUSY if busy else WorkerState.INITIALIZING
                self.await_worker(state, str(error), LONGEST_RETRY_S if busy else FIRST_RETRY_S)
            elif isinstance(error, WorkerSilent) and busy:
                # When the handler ends, its slot is free, and `wake` has the worker probed.
                self.await_worker(WorkerState.BUSY, "it runs a job that began before its node")
            elif self._slots.begun == begun or not self.closed:
                # A worker that began a job after the probe was sent may be blocked by it, and so be healthy.
                self.open(str(error))
        else:
            self.ready()

    def changed(self) -> None:
        self._on_change()
