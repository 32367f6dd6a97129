"""What pulling workers have just reported: of each run its job, and of each accepted chunk its header. So not every chunk of a stream
asks Redis which job it belongs to, or goes through Flask.
"""

import threading
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ownpod.store.offers import Offers

FRESH_S = 4.0
"""Seconds for which a run's job is remembered. Meanwhile Redis is not told that the worker has sent a request; it counts as gone
after ``OWNPOD_WORKER_GONE_S``, which is at least 10 s.
"""

KNOWN_S = 60.0
"""Seconds for which a header is accepted as it was. Keys that are removed meanwhile open nothing more: a run may be reported under the
key with which its worker took it, also where that key is no longer in the settings.
"""

MOST = 10_000
"""Number of runs, and of headers, that are remembered; the oldest is dropped first."""

Attempt = tuple[str, int]
"""A job's id, and the number of its attempt."""

Run = tuple[str, str, str]
"""The ids of a worker, of its endpoint, and of the run."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Accepted:
    """What is known of a chunk with this header."""

    run: Run
    attempt: Attempt
    request_id: str | None
    """Its valid ``X-Request-ID``, which the response repeats."""


class Reports:
    """The runs of which this process has received chunks.

    Args:
        offers: has the runs.
    """

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._runs = _Recent[Run, Attempt]()
        self._headers = _Recent[bytes, Accepted]()

    def job_of(self, worker_id: str, endpoint: str, run_id: str) -> Attempt | None:
        """The job and attempt of a run; None: the run has ended, or is another worker's. If the run has ended within
        :data:`FRESH_S`, the attempt fences what is written.

        Raises:
            As :meth:`ownpod.store.offers.Offers.reported`.
        """
        run, now_s = (worker_id, endpoint, run_id), time.monotonic()
        attempt = self._runs.get(run, FRESH_S)
        if attempt is None:
            attempt = self._offers.reported(worker_id, endpoint, run_id)
            self._runs.keep(run, now_s, attempt)
        return attempt

    def ended(self, runs: Iterable[Run]) -> set[Run]:
        """Those of the runs that have ended, or are another worker's, by one request to Redis at most; as of :meth:`job_of`.

        Raises:
            As :meth:`ownpod.store.offers.Offers.all_reported`.
        """
        old = [run for run in dict.fromkeys(runs) if self._runs.get(run, FRESH_S) is None]
        now_s = time.monotonic()
        attempts = self._offers.all_reported(old) if old else []
        for run, attempt in zip(old, attempts, strict=True):
            self._runs.keep(run, now_s, attempt)
        return {run for run, attempt in zip(old, attempts, strict=True) if attempt is None}

    def accept(self, signature: bytes, accepted: Accepted) -> None:
        """Remembers the header of a chunk that was accepted: a chunk with the same one is accepted, too, for :data:`KNOWN_S`.

        Args:
            signature: :attr:`ownpod.api.serving.arrival.Arrival.signature`.
            accepted: what is known of the chunk.
        """
        self._headers.keep(signature, time.monotonic(), accepted)

    def accepted(self, signature: bytes) -> Accepted | None:
        """What is known of a chunk that has the same header as one that was accepted before; None: there was none."""
        return self._headers.get(signature, KNOWN_S)

    def forget(self, signature: bytes) -> None:
        """Forgets a header, because its job no longer runs that attempt."""
        self._headers.keep(signature, 0.0, None)


class _Recent(Generic[K, V]):
    """Values, each with its time on the monotonic clock. Threads share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[K, tuple[float, V]] = {}

    def get(self, key: K, most_s: float) -> V | None:
        """The value, if it is at most so old."""
        found = self._found.get(key)
        return found[1] if found and time.monotonic() - found[0] <= most_s else None

    def keep(self, key: K, since_s: float, value: V | None) -> None:
        """Keeps a value; None: forgets it."""
        with self._lock:
            # Again at the end of the dict, which is in the order of these times.
            self._found.pop(key, None)
            if value is not None:
                self._found[key] = (since_s, value)
            if len(self._found) > MOST:
                del self._found[next(iter(self._found))]
