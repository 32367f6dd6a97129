"""Readers of the events of tasks that are cancelled without one (``on_disconnect: cancel``)."""

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from ownpod.api.workers.held import HeldConnections
from ownpod.errors import RedisUnavailable
from ownpod.store.attended import RENEW_S, Attended

log = logging.getLogger(__name__)


class Readers:
    """The readers of this process. A thread renews them, from the first one on.

    Args:
        attended: where all processes' readers are.
    """

    def __init__(self, attended: Attended) -> None:
        self._attended = attended
        self._lock = threading.Lock()
        self._reads: Counter[str] = Counter()
        self._thread: threading.Thread | None = None

    def enter(self, job_id: str, *, only_attended: bool = False) -> bool:
        """A reader has come. ``only_attended``: only if the task is one that is cancelled without readers; returns whether it is.

        Raises:
            RedisUnavailable: Redis does not answer.
        """
        if not only_attended:
            self._attended.renew([job_id])
        elif not self._attended.join(job_id):
            return False
        with self._lock:
            self._reads[job_id] += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="readers", daemon=True)
                self._thread.start()
        return True

    def leave(self, job_id: str) -> None:
        """A reader has gone. Does not raise: a reader that is no longer renewed soon counts as gone."""
        self._gone(job_id, self._attended.leave)

    def forget(self, job_id: str) -> None:
        """As :meth:`leave`, of a job that has ended. The sweep need not read its record."""
        self._gone(job_id, self._attended.forget)

    def _gone(self, job_id: str, then: Callable[[str], None]) -> None:
        """Calls ``then`` if it was the last reader of this process."""
        with self._lock:
            self._reads[job_id] -= 1
            if self._reads[job_id] > 0:
                return
            del self._reads[job_id]
        with contextlib.suppress(RedisUnavailable):
            then(job_id)

    def _run(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with self._lock:
                job_ids = list(self._reads)
            try:
                self._attended.renew(job_ids)
            except RedisUnavailable as error:
                log.warning("readers of tasks are not renewed: %s", error)


class Reading:
    """One reader, which leaves once."""

    def __init__(self, readers: Readers, job_id: str) -> None:
        self._readers, self._job_id = readers, job_id
        self._lock = threading.Lock()
        self._ended = False

    def end(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._readers.leave(self._job_id)


def read_by(
    parts: Iterable[bytes], reading: Reading, held: HeldConnections, peer: socket.socket | None
) -> Iterator[bytes]:
    """The parts of a response. The reading ends with them, or when the client of ``peer`` closes its connection."""

    def gone() -> None:
        # Redis may take seconds, and the thread that calls this monitors all connections.
        threading.Thread(target=reading.end, name="reader-gone", daemon=True).start()

    # A stream that has nothing to send does not notice that its client has gone.
    with held.watch(peer, gone):
        try:
            yield from parts
        finally:
            reading.end()
