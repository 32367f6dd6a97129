"""Waiting for news without polling: one listener for each process.

A thread that waits for a job costs nothing until there is news.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis

from ownpod.errors import TooManyWaiting
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys

log = logging.getLogger(__name__)

RETRY_S = 0.5

ENDS = {status.value for status in JobStatus if status.terminal}


@dataclass(eq=False)
class _Waiter:
    end_only: bool
    woken: threading.Event = field(default_factory=threading.Event)
    news: str = ""


class Notices:
    """Tells waiting threads that a job has moved. Starts listening at the first wait.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        channels: where else "<id> <what>" is said, beside ``channel``.
    """

    def __init__(self, client: redis.Redis, *channels: str) -> None:
        self.channel = f"{keys.EVENTS}{uuid.uuid4()}"
        """This process's own: :meth:`ownpod.store.jobs.JobStore.watch` has a job's news sent there."""
        self._redis = client
        self._channels = (self.channel, *channels)
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[_Waiter]] = defaultdict(set)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self.most: int | None = None
        """Waits at the same time; None: any number. Each takes a thread, which others need too."""
        self._expected = 0

    @contextlib.contextmanager
    def subscribe(self, job_id: str, *, end_only: bool) -> Iterator[Callable[[float], str]]:
        """Watches for what is said of a job from now on, also of one that is about to be created.

        Args:
            job_id: the job.
            end_only: only its end is news; else every move and every chunk.

        Raises:
            TooManyWaiting: there are :attr:`most` waits already.

        Yields:
            A function that waits for news, at most so many seconds, and answers what was told beside
            the job's state. It returns "" sooner when news may have been missed, or when this process
            ends: look how the job is.
        """
        waiter = _Waiter(end_only)
        self._listen()
        with self._lock:
            self.check_room()
            self._expected += 1
            self._waiting[job_id].add(waiter)
        try:
            yield lambda timeout_s: self._wait(waiter, timeout_s)
        finally:
            with self._lock:
                self._expected -= 1
                self._waiting[job_id].discard(waiter)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def check_room(self) -> None:
        """Raises: TooManyWaiting, where :meth:`expect` would."""
        if self.most is not None and self._expected >= self.most:
            raise TooManyWaiting

    @property
    def stopped(self) -> bool:
        """This process ends, so nobody should wait any more."""
        return self._stopped

    def _wait(self, waiter: _Waiter, timeout_s: float) -> str:
        if not self._stopped and waiter.woken.wait(timeout_s):
            waiter.woken.clear()
        return waiter.news

    def wake(self, job_id: str) -> None:
        """Wakes the requests of this process that wait for this job."""
        self._wake(job_id, "", ended=True)

    def stop(self) -> None:
        """This process ends: everybody who waits gets what there is to see now.

        May be called by a signal handler: what takes a lock happens in a thread of its own.
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
                            # What was said before was not heard: everybody looks once.
                            self._wake_all()
                        elif message["type"] == "message":
                            job_id, _, what = message["data"].partition(" ")
                            if job_id in self._waiting:
                                state, _, news = what.partition(" ")
                                self._wake(job_id, news, ended=state in ENDS)
            except (redis.RedisError, OSError) as error:
                log.warning("listening for job events again: %s", error)
            except Exception:
                # redis-py, when its socket is closed under it, raises what comes.
                log.exception("listening for job events again")
            # Those who wait look for themselves now, and hear that Redis is away.
            self._wake_all()
            time.sleep(RETRY_S)

    def _wake(self, job_id: str, news: str, *, ended: bool) -> None:
        with self._lock:
            for waiter in self._waiting.get(job_id, ()):
                if ended or not waiter.end_only:
                    waiter.news = news
                    waiter.woken.set()

    def _wake_all(self) -> None:
        with self._lock:
            for waiters in self._waiting.values():
                for waiter in waiters:
                    waiter.woken.set()
