"""What pulling workers have just reported: of each run its job, and of each accepted chunk its header. So not every chunk of a stream
asks Redis which job it belongs to, or goes through Flask.
"""

import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ownpod.store.offers import Offers

FRESH_S = 4.0
"""Seconds for which a run's job is remembered. Meanwhile Redis is not told that the worker has sent a request; it counts as gone
after ``OWNPOD_WORKER_GONE_S``, which is at least 10 s.
"""

MOST = 10_000
"""Number of runs, and of headers, that are remembered; the oldest is dropped first."""

Attempt = tuple[str, int]
"""A job's id, and the number of its attempt."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True)
class Accepted:
    """What is known of a request with this header: the job and attempt of its run, and its valid ``X-Request-ID``, which the response repeats."""

    attempt: Attempt
    request_id: str | None


class Reports:
    """The runs of which this process has received chunks.

    Args:
        offers: has the runs.
    """

    def __init__(self, offers: Offers) -> None:
        self._offers = offers
        self._runs = _Recent[tuple[str, str, str], Attempt]()
        self._headers = _Recent[bytes, Accepted]()

    def job_of(self, worker_id: str, endpoint: str, run_id: str) -> Attempt | None:
        """The job and attempt of a run; None: the run has ended, or is another worker's. If the run has ended within
        :data:`FRESH_S`, the attempt fences what is written.

        Raises:
            As :meth:`ownpod.store.offers.Offers.reported`.
        """
        run, now_s = (worker_id, endpoint, run_id), time.monotonic()
        if (known := self._runs.get(run)) is not None:
            return known[1]
        attempt = self._offers.reported(worker_id, endpoint, run_id)
        if attempt is None:
            self._runs.forget(run)
        else:
            self._runs.keep(run, now_s, attempt)
        return attempt

    def accept(
        self,
        signature: bytes,
        worker_id: str,
        endpoint: str,
        run_id: str,
        *,
        request_id: str | None = None,
    ) -> None:
        """Remembers the header of a chunk that was accepted: a chunk with the same one is accepted, too, while the run's job is
        remembered.

        Args:
            signature: :attr:`ownpod.api.serving.arrival.Arrival.signature`.
            worker_id: the worker.
            endpoint: the endpoint.
            run_id: the run, of which :meth:`job_of` has found the job.
            request_id: the request's valid ``X-Request-ID``.
        """
        if (known := self._runs.get((worker_id, endpoint, run_id))) is not None:
            since_s, attempt = known
            self._headers.keep(signature, since_s, Accepted(attempt, request_id))

    def accepted(self, signature: bytes) -> Accepted | None:
        """What is known of a chunk that has the same header as one that was just accepted; None: there was none."""
        known = self._headers.get(signature)
        return None if known is None else known[1]

    def forget(self, signature: bytes) -> None:
        """Forgets a header, because its job no longer runs that attempt."""
        self._headers.forget(signature)


class _Recent(Generic[K, V]):
    """Values that are at most :data:`FRESH_S` old, each with its time. Threads share them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> tuple[float, V] | None:
        found = self._found.get(key)
        return found if found and time.monotonic() - found[0] <= FRESH_S else None

    def keep(self, key: K, since_s: float, value: V) -> None:
        with self._lock:
            # Again at the end of the dict: the first is the oldest, or almost.
            self._found.pop(key, None)
            self._found[key] = (since_s, value)
            if len(self._found) > MOST:
                del self._found[next(iter(self._found))]

    def forget(self, key: K) -> None:
        with self._lock:
            self._found.pop(key, None)
