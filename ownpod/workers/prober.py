"""Probes a worker and publishes its status. Needs neither Celery nor a queue."""

import logging
import threading
import time
from collections.abc import Callable

from ownpod.errors import RedisUnavailable, WorkerAwaited, WorkerUnavailable
from ownpod.rules.backoff import backoff_s
from ownpod.rules.fleet import WorkerState, WorkerStatus

log = logging.getLogger(__name__)

IDLE_PROBE_S = 10.0
"""Seconds between two probes of a healthy worker."""

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 5.0
"""Shortest and longest pause in seconds between probes of an unhealthy worker; pauses double in between."""


class Prober(threading.Thread):
    """Probes a worker again and again, and publishes its status.

    Any thread may call its methods. A lock guards the state together with its reason and the time of the next
    probe; the status is read without the lock, so a reader may see a new state with the reason of the state before.

    Args:
        probe: raises WorkerUnavailable, see :meth:`ownpod.workers.Worker.probe`.
        publish: publishes the worker's status. It may raise RedisUnavailable.
        publish_every_s: longest time in seconds between two publications.
    """

    def __init__(
        self,
        probe: Callable[[], None],
        publish: Callable[[WorkerStatus], None],
        *,
        publish_every_s: float,
    ) -> None:
        super().__init__(name="prober", daemon=True)
        self._probe = probe
        self._publish = publish
        self._publish_every_s = publish_every_s
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._probe_at = time.monotonic()
        self._state = WorkerState.INITIALIZING
        self._reason = "its node has not reached it yet"

    @property
    def status(self) -> WorkerStatus:
        """The status as of the last probe or job."""
        return WorkerStatus(self._state, self._reason)

    def fail(self, reason: str) -> None:
        """The worker takes no jobs: it is unhealthy until a probe succeeds."""
        with self._lock:
            self._failures += 1
            pause_s = backoff_s(self._failures, FIRST_RETRY_S, LONGEST_RETRY_S)
            self._probe_at = time.monotonic() + pause_s
            changed = self._set(WorkerState.UNHEALTHY, reason)
        if changed:
            self.note_failure(reason)

    def note_failure(self, reason: str) -> None:
        """Logs that the worker is unhealthy since now."""
        log.warning("worker unhealthy, its jobs go to others: %s", reason)

    def succeed(self) -> None:
        """The worker took a job: pauses between probes begin again at the shortest."""
        self._failures = 0

    def recheck(self) -> None:
        """Probes the worker now, because it may take jobs again."""
        self._probe_at = time.monotonic()
        self._woken.set()

    def run(self) -> None:
        while True:
            self._woken.clear()
            if self._probe_at <= time.monotonic():
                self._probe_at = time.monotonic() + IDLE_PROBE_S
                self.probe_once()
            try:
                self._publish(self.status)
            except RedisUnavailable as error:
                log.warning("worker status not published: %s", error)
            except Exception:
                # A key that Redis cannot read must not end the process, and with it the worker's jobs.
                log.exception("worker status not published")
            pause_s = min(self._probe_at - time.monotonic(), self._publish_every_s)
            self._woken.wait(max(0.0, pause_s))

    def probe_once(self) -> None:
        """Probes the worker and sets the state."""
        try:
            self._probe()
        except WorkerAwaited as error:
            self.await_worker(WorkerState.INITIALIZING, str(error), FIRST_RETRY_S)
        except WorkerUnavailable as error:
            self.fail(str(error))
        else:
            self.ready()

    def ready(self) -> None:
        """A probe succeeded."""
        with self._lock:
            changed = self._set(WorkerState.READY, "")
        if changed:
            log.info("worker ready")

    def await_worker(self, state: WorkerState, reason: str, pause_s: float | None = None) -> None:
        """The worker is not unhealthy, but takes no jobs yet; probed again after ``pause_s``, if given."""
        with self._lock:
            if pause_s is not None:
                self._probe_at = time.monotonic() + pause_s
            self._set(state, reason)

    def changed(self) -> None:
        """Called under the lock when the state has changed."""

    def _set(self, state: WorkerState, reason: str) -> bool:
        changed = state is not self._state
        self._state, self._reason = state, reason
        if changed:
            self.changed()
            self._woken.set()
        return changed
