"""The positions of waiting jobs in their queues, for all event streams of this process together.

Changes of a position are not published, so they are read. One thread reads those of all followed jobs at once: 500 streams that
each read their own would take a fifth of a core.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ownpod.errors import RedisUnavailable
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.waiting import look_again_s
from ownpod.store.queue import Place

log = logging.getLogger(__name__)

LEAST_S, MOST_S = 0.5, 5.0
"""Seconds between two reads of a position, at least and at most."""

SHARE = 50
"""The thread rests so many times as long as it has read."""


class Places(Protocol):
    """Where jobs wait, see :class:`ownpod.store.queue.Queue`."""

    def places(self, jobs: Sequence[Job]) -> list[Place | None]: ...


class Follower:
    """A stream that shows the position of a job."""

    def __init__(self, changed: Callable[[], None], least_s: float) -> None:
        self._changed = changed
        self._least_s = least_s
        self.job: Job | None = None
        """None: nothing is to be looked for."""
        self.position = 0
        self.next_s = 0.0

    def has(self, job: Job, position: int) -> None:
        """The stream has shown this position. ``position``: 0: none, because the job has its worker, or its end."""
        if job.status is not JobStatus.IN_QUEUE or not position:
            self.job = None
            return
        if self.job is not None and self.position == position:
            return
        self.rest(position)
        self.job, self.position = job, position
        self._changed()

    def rest(self, position: int) -> None:
        """The position is not read for a while."""
        self.next_s = time.monotonic() + look_again_s(position, self._least_s, MOST_S)

    def follows(self, job: Job) -> bool:
        """Whether the job waits, and its position was that of the stream when it was read last."""
        return self.job is not None and job.status is JobStatus.IN_QUEUE


class Positions:
    """Wakes the streams of waiting jobs whose position has changed. A thread looks, from the first stream on.

    Args:
        queue: where jobs wait.
        wake: wakes the streams of a job.
        least_s: see :data:`LEAST_S`.
    """

    def __init__(
        self, queue: Places, wake: Callable[[str], None], *, least_s: float = LEAST_S
    ) -> None:
        self._queue = queue
        self._wake = wake
        self.least_s = least_s
        self._changed = threading.Condition()
        self._followers: set[Follower] = set()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def follow(self) -> Iterator[Follower]:
        """A stream, whose follower is to know each position that it shows."""
        follower = Follower(self._notify, self.least_s)
        with self._changed:
            self._followers.add(follower)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="positions", daemon=True)
                self._thread.start()
        try:
            yield follower
        finally:
            with self._changed:
                self._followers.discard(follower)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _due(self) -> list[Follower]:
        """The followers whose position is to be read now; waits until there are some."""
        while True:
            now = time.monotonic()
            with self._changed:
                waiting = [follower for follower in self._followers if follower.job is not None]
                due = [follower for follower in waiting if follower.next_s <= now]
                if due:
                    return due
                first = min((follower.next_s for follower in waiting), default=None)
                self._changed.wait(None if first is None else max(first - now, 0.01))

    def _run(self) -> None:
        while True:
            due, began = self._due(), time.monotonic()
            try:
                self._look(due)
            except RedisUnavailable as error:
                log.info("positions of waiting jobs are not read: %s", error)
                time.sleep(MOST_S)
            except Exception:
                log.exception("positions of waiting jobs are not read")
                time.sleep(MOST_S)
            took_s = time.monotonic() - began
            time.sleep(min(max(SHARE * took_s, self.least_s), MOST_S))

    def _look(self, followers: Sequence[Follower]) -> None:
        jobs = {job.id: job for follower in followers if (job := follower.job) is not None}
        known = list(jobs.values())
        places = dict(zip(jobs, self._queue.places(known), strict=True))
        changed = set[str]()
        for follower in followers:
            job = follower.job
            if job is None or job.id not in places:
                continue
            place = places[job.id]
            if place is not None and place.position == follower.position:
                follower.rest(place.position)
            else:
                # Until the stream has shown the new one.
                follower.job = None
                changed.add(job.id)
        for job_id in changed:
            self._wake(job_id)
