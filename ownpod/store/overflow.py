"""Jobs that go to cloud workers; the commands are in ``overflow.lua``."""

import json
from dataclasses import dataclass
from typing import Any

from ownpod.rules.overflow import LARGEST_INPUT, Spent
from ownpod.store import keys
from ownpod.store.budgets import DAY_MS
from ownpod.store.common import Part
from ownpod.store.scripts import constants

SCANNED = 1000
"""Number of waiting jobs that are checked at a time, at most, in some 2 ms of Redis, for some that may go."""

OVERFLOW_CONSTANTS = constants(BUDGET=keys.BUDGET, DAY_MS=DAY_MS, SCANNED=SCANNED)


@dataclass(frozen=True)
class Seen:
    """What Redis has about a cloud worker at one moment.

    Attributes:
        now_ms: Redis's clock, in ms since the epoch.
        oldest_wait_s: seconds for which the first job that may go there has waited; None: none may go.
        execution_timeout_ms: of that job.
        spent: the money of the present day.
        waiting: number of jobs in the worker's own queue.
    """

    now_ms: int
    oldest_wait_s: float | None
    execution_timeout_ms: int
    spent: Spent
    waiting: int


class Overflow(Part):
    """Chooses the jobs that go to a cloud worker, and keeps where they run."""

    def seen(self, endpoint: str, worker_id: str, *, after_s: float, secrets: bool) -> Seen:
        """What decides whether jobs go there, in one round trip.

        Args:
            endpoint: the endpoint of the jobs and of the worker.
            worker_id: the worker.
            after_s: seconds for which a job must have waited.
            secrets: also jobs with an ``s3Config``.
        """
        wanted = (int(after_s * 1000), LARGEST_INPUT, int(secrets))
        values: list[Any] = self._call("overflow_seen", "", endpoint, worker_id, *wanted)
        now_ms, created_ms, timeout_ms, spent, reserved, waiting = map(int, values)
        return Seen(
            now_ms=now_ms,
            oldest_wait_s=None if created_ms < 0 else max(now_ms - created_ms, 0) / 1000,
            execution_timeout_ms=timeout_ms,
            spent=Spent(spent, reserved),
            waiting=waiting,
        )

    def take(
        self, endpoint: str, worker_id: str, *, after_s: float, secrets: bool, capacity: int
    ) -> list[str]:
        """Puts the oldest jobs that may go there into the worker's own queue, as many as it has free slots.

        Returns:
            Their ids. A job that the worker's node does not claim within a second returns to its endpoint's queue.
        """
        wanted = (int(after_s * 1000), LARGEST_INPUT, int(secrets))
        return list(self._call("overflow_take", "", endpoint, worker_id, *wanted, capacity))

    def keep(self, job_id: str) -> None:
        """The job goes to no cloud worker any more."""
        self._call("overflow_keep", "", job_id)

    def remote(
        self,
        job_id: str,
        attempt: int,
        place: dict[str, str],
        *,
        begun: bool,
        ran_ms: int = 0,
        progress: str = "",
    ) -> bool:
        """Writes where a run is.

        Args:
            job_id: the job.
            attempt: the number of the attempt.
            place: url, endpoint, id and, if known, workerId of the run there.
            begun: the run has begun there. The attempt's time counts from then on.
            ran_ms: ms that it has run there.
            progress: JSON text, the job's output until it ends; "": unchanged.

        Returns:
            False: the job has moved on.
        """
        values = (json.dumps(place), int(begun), ran_ms, progress)
        return bool(self._call("overflow_remote", "", job_id, attempt, *values))
