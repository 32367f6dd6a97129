"""Remembers for a short time to which job a run belongs, and which headers of chunks were accepted, so that not every chunk of a stream
asks Redis for its job, or goes through Flask.
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
"""Seconds for which a header of a chunk is known. Keys that are added or replaced meanwhile count for these chunks after this time; they
can only add to that run. A key that is removed makes no difference: a run may be reported under the key with which its worker took it.
"""

REMEMBERED = 10_000
"""Number of runs, and of headers, that are remembered; the oldest is forgotten first."""

JobAttempt = tuple[str, int]
"""A job's id, and the number of its attempt."""

RunOfWorker = tuple[str, str, str]
"""The ids of a worker, of its endpoint, and of the run."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class KnownHeader:
    """What is known of a chunk with this header."""

    run: RunOfWorker
    attempt: JobAttempt
    request_id: str | None
    """Its valid ``X-Request-ID``, which the response repeats."""


class Reports:
    """The runs of which this process has received chunks.

    Args:
        offers: has the runs.
    """

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._runs = _Recent[RunOfWorker, JobAttempt]()
        self._headers = _Recent[bytes, KnownHeader]()

    def job_of(self, worker_id: str, endpoint: str, run_id: str) -> JobAttempt | None:
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

    def not_running(self, runs: Iterable[RunOfWorker]) -> set[RunOfWorker]:
        """Those of the runs that have ended, are another worker's, or about which Redis has refused the request; as of :meth:`job_of`,
        by one request to Redis at most.

        Raises:
            As :meth:`ownpod.store.offers.Offers.all_reported`.
        """
        old = [run for run in dict.fromkeys(runs) if self._runs.get(run, FRESH_S) is None]
        now_s = time.monotonic()
        found = dict(zip(old, self._offers.all_reported(old) if old else [], strict=True))
        for run, attempt in found.items():
            self._runs.keep(run, now_s, attempt)
        return {run for run, attempt in found.items() if attempt is None}

    def remember(self, header_digest: bytes, header: KnownHeader) -> None:
        """Remembers the header of a chunk that was accepted, for :data:`KNOWN_S`.

        Args:
            header_digest: :attr:`ownpod.api.serving.arrival.Arrival.header_digest`.
            header: what is known of it.
        """
        self._headers.keep(header_digest, time.monotonic(), header)

    def known(self, header_digest: bytes) -> KnownHeader | None:
        """What is known of a chunk's header; None: no chunk with this header was accepted just before."""
        return self._headers.get(header_digest, KNOWN_S)

    def forget(self, header_digest: bytes) -> None:
        """Forgets a header, because the run of its chunks has ended."""
        self._headers.keep(header_digest, 0.0, None)


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
            if len(self._found) > REMEMBERED:
                del self._found[next(iter(self._found))]
