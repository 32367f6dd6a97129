"""Runs about which workers that pull have just reported, so that not each chunk of a stream asks Redis which job it belongs to."""

import threading
import time

from ownpod.store.offers import Offers

FRESH_S = 2.0
"""Seconds for which a run's job is remembered. Meanwhile Redis is not told that the worker has sent a request; it counts as gone
after ``OWNPOD_WORKER_GONE_S``, which is at least 10 s.
"""

MOST = 10_000
"""Number of runs that are remembered; the oldest is dropped first."""


class Reports:
    """The runs of which this process has received chunks.

    Args:
        offers: has the runs.
    """

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._lock = threading.Lock()
        self._found: dict[tuple[str, str, str], tuple[float, tuple[str, int]]] = {}

    def job_of(self, worker_id: str, endpoint: str, run_id: str) -> tuple[str, int] | None:
        """The job and attempt of a run; None: the run has ended, or is another worker's. If the run has ended within
        :data:`FRESH_S`, the attempt fences what is written.

        Raises:
            As :meth:`ownpod.store.offers.Offers.reported`.
        """
        run, now_s = (worker_id, endpoint, run_id), time.monotonic()
        since_s, attempt = self._found.get(run, (float("-inf"), None))
        if attempt is None or now_s - since_s > FRESH_S:
            attempt = self._offers.reported(worker_id, endpoint, run_id)
            with self._lock:
                # Again at the end of the dict, which is in the order of these times.
                self._found.pop(run, None)
                if attempt is not None:
                    self._found[run] = (now_s, attempt)
                if len(self._found) > MOST:
                    del self._found[next(iter(self._found))]
        return attempt
