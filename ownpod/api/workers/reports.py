"""Runs about which workers that pull have just reported, and their requests, so that not each chunk of a stream asks Redis which job it
belongs to.
"""

import threading
import time
from collections.abc import Hashable

from ownpod.store.offers import Offers

FRESH_S = 4.0
"""Seconds for which a run's job is remembered. Meanwhile Redis is not told that the worker has sent a request; it counts as gone
after ``OWNPOD_WORKER_GONE_S``, which is at least 10 s.
"""

MOST = 10_000
"""Number of runs and of requests that are remembered, together; the oldest is dropped first."""

Attempt = tuple[str, int]
"""A job's id, and the number of its attempt."""


class Reports:
    """The runs of which this process has received chunks.

    Args:
        offers: has the runs.
    """

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._lock = threading.Lock()
        self._found: dict[Hashable, tuple[float, Attempt]] = {}

    def job_of(self, worker_id: str, endpoint: str, run_id: str) -> Attempt | None:
        """The job and attempt of a run; None: the run has ended, or is another worker's. If the run has ended within
        :data:`FRESH_S`, the attempt fences what is written.

        Raises:
            As :meth:`ownpod.store.offers.Offers.reported`.
        """
        run, now_s = (worker_id, endpoint, run_id), time.monotonic()
        attempt = self._fresh(run)
        if attempt is None:
            attempt = self._offers.reported(worker_id, endpoint, run_id)
            self._keep(run, now_s, attempt)
        return attempt

    def accept(self, signature: bytes, worker_id: str, endpoint: str, run_id: str) -> None:
        """Remembers a request for a chunk that was accepted: one with the same header is accepted, too, while the run's job is
        remembered.

        Args:
            signature: :attr:`ownpod.api.serving.arrival.Arrival.signature`.
            worker_id: the worker.
            endpoint: the endpoint.
            run_id: the run, of which :meth:`job_of` has found the job.
        """
        if found := self._found.get((worker_id, endpoint, run_id)):
            self._keep(signature, *found)

    def accepted(self, signature: bytes) -> Attempt | None:
        """The job and attempt of a request that has the same header as one that was just accepted; None: there was none."""
        return self._fresh(signature)

    def forget(self, signature: bytes) -> None:
        """Forgets a request, because its run has ended."""
        with self._lock:
            self._found.pop(signature, None)

    def _fresh(self, key: Hashable) -> Attempt | None:
        found = self._found.get(key)
        return found[1] if found and time.monotonic() - found[0] <= FRESH_S else None

    def _keep(self, key: Hashable, since_s: float, attempt: Attempt | None) -> None:
        with self._lock:
            # Again at the end of the dict: the first is the oldest, or almost.
            self._found.pop(key, None)
            if attempt is not None:
                self._found[key] = (since_s, attempt)
            if len(self._found) > MOST:
                del self._found[next(iter(self._found))]
