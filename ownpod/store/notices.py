"""Waiting for events of jobs without polling: one subscription to Redis for each process.

A waiting thread sleeps until an event of its job arrives, so thousands of them cost no CPU.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import redis

from ownpod.errors import TooManyWaiting
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Seconds between the loss of the subscription and the next try to subscribe."""

CHUNK = "CHUNK"
"""First word of the event of new chunks."""

MOST_KEPT = 65_536
"""Characters of chunks that are kept for a thread that is busy, as with a client that reads slowly; it reads Redis then."""

ENDS = {status.value for status in JobStatus if status.terminal}
"""First words of the events that end a job."""


@dataclass(eq=False)
class _Waiter:
    end_only: bool
    woken: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    chunks: list[str] = field(default_factory=list)
    kept: int = 0
    """Characters of ``chunks``."""
    has_all: bool = False
    """Whether ``chunks`` is all that has happened since they were taken. False if they never were."""

    def add(self, state: str, text: str) -> None:
        """Keeps an event; with the lock of :class:`Notices`."""
        self.text = text
        if self.has_all and state == CHUNK and text and self.kept < MOST_KEPT:
            self.chunks.append(text)
            self.kept += len(text)
        else:
            self.lose()

    def lose(self) -> None:
        """Something has happened, or may have, that only Redis has; with the lock of :class:`Notices`."""
        self.has_all = False
        self.chunks, self.kept = [], 0


class Wait:
    """Waits for events of one job; see :meth:`Notices.subscribe`."""

    def __init__(self, notices: "Notices", waiter: _Waiter) -> None:
        self._notices, self._waiter = notices, waiter

    def __call__(self, timeout_s: float) -> str:
        """Waits for an event, for at most the given number of seconds, and returns the text that follows the event's state. Returns
        "" early if an event may have been missed, or if this process ends; the caller must then read the job's record.
        """
        return self._notices._wait(self._waiter, timeout_s)  # noqa: SLF001

    def chunks(self) -> list[str]:
        """The chunks of events since the last call, each "<attempt> <index> <JSON text>"; []: the caller must read the job's record,
        because nothing has happened, something else, or more.
        """
        return self._notices._chunks(self._waiter)  # noqa: SLF001


class Notices:
    """Wakes waiting threads when an event of their job arrives. Subscribes to Redis at the first wait.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        channels: further channels with messages "<job id> <event>", beside ``channel``.
    """

    def __init__(self, client: redis.Redis, *channels: str) -> None:
        self.channel = f"{keys.EVENTS}{uuid.uuid4()}"
        """The channel of this process. A job's record lists the channels to which its events are published."""
        self._redis = client
        self._channels = (self.channel, *channels)
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[_Waiter]] = defaultdict(set)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.max_waiting: int | None = None
        """Maximum number of threads that wait at the same time, because other requests need threads, too; None: no limit."""
        self._expected = 0

    @contextlib.contextmanager
    def subscribe(self, job_id: str, *, end_only: bool) -> Iterator[Wait]:
        """Subscribes to a job's events from now on. The job need not exist yet.

        Args:
            job_id: the job.
            end_only: whether only the job's end is an event, or every change of state and every chunk.

        Raises:
            TooManyWaiting: :attr:`max_waiting` threads are waiting already.

        Yields:
            A function that waits for an event.
        """
        waiter = _Waiter(end_only)
        self._listen()
        with self._lock:
            self.check_room()
            self._expected += 1
            self._waiting[job_id].add(waiter)
        try:
            yield Wait(self, waiter)
        finally:
            with self._lock:
                self._expected -= 1
                self._waiting[job_id].discard(waiter)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def check_room(self) -> None:
        """Raises: TooManyWaiting, if :meth:`subscribe` would."""
        if self.max_waiting is not None and self._expected >= self.max_waiting:
            raise TooManyWaiting

    @property
    def stopped(self) -> bool:
        """Whether this process is ending, so that no thread should wait any more."""
        return self._stopped

    def _wait(self, waiter: _Waiter, timeout_s: float) -> str:
        if not self._stopped and waiter.woken.wait(timeout_s):
            waiter.woken.clear()
        return waiter.text

    def _chunks(self, waiter: _Waiter) -> list[str]:
        with self._lock:
            found = waiter.chunks
            waiter.chunks, waiter.kept, waiter.has_all = [], 0, True
            waiter.woken.clear()
        return found

    def wake(self, job_id: str) -> None:
        """Wakes the threads of this process that wait for this job, without an event from Redis."""
        self._wake(job_id, "", "", ended=True)

    def stop(self) -> None:
        """Wakes all waiting threads, because this process ends.

        A signal handler may call this. Waking takes a lock that the interrupted thread may hold, and therefore
        happens in another thread.
        """
        self._stopped = True
        threading.Thread(target=self._wake_all, name="job-events-stop", daemon=True).start()

    def _listen(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="job-events", daemon=True)
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while not self._stopped:
            try:
                with self._redis.pubsub() as pubsub:
                    pubsub.subscribe(*self._channels)
                    while not self._stopped:
                        message = pubsub.get_message(timeout=5)
                        if message is None:
                            pubsub.ping()
                        elif message["type"] == "subscribe":
                            # Events from before the subscription are lost, so every waiting thread must read its job.
                            self._wake_all()
                        elif message["type"] == "message":
                            job_id, _, what = message["data"].partition(" ")
                            if job_id in self._waiting:
                                state, _, text = what.partition(" ")
                                self._wake(job_id, state, text, ended=state in ENDS)
            except (redis.RedisError, OSError) as error:
                log.warning("subscribing to job events again: %s", error)
            except Exception:
                # redis-py raises errors of any kind if its socket is closed during a read.
                log.exception("subscribing to job events again")
            # Waiting threads read their jobs now, and so get the error that Redis is away.
            self._wake_all()
            time.sleep(RETRY_S)

    def _wake(self, job_id: str, state: str, text: str, *, ended: bool) -> None:
        with self._lock:
            for waiter in self._waiting.get(job_id, ()):
                if ended or not waiter.end_only:
                    waiter.add(state, text)
                    waiter.woken.set()

    def _wake_all(self) -> None:
        with self._lock:
            for waiters in self._waiting.values():
                for waiter in waiters:
                    waiter.lose()
                    waiter.woken.set()
