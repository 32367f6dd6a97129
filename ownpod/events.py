"""Waiting for a job to end, without polling: one listener for each process hears of every move.

A thread that waits for a job costs nothing until the job has moved.
"""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import redis

from ownpod import keys

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 0.5


class JobEvents:
    """Tells waiting threads that a job has moved. Starts listening at the first wait."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._listening = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def wait_until(
        self, job_id: str, timeout_s: float, look: Callable[[], T], done: Callable[[T], bool]
    ) -> T:
        """What ``look`` sees: once ``done`` is true of it, the time is over, or the process ends.

        It looks again whenever the job has moved, and whenever news may have been missed.
        """
        deadline = time.monotonic() + timeout_s
        moved = threading.Event()
        self._listen()
        with self._lock:
            self._waiting[job_id].add(moved)
        try:
            while True:
                moved.clear()
                seen = look()
                left_s = deadline - time.monotonic()
                if done(seen) or left_s <= 0 or self._stopped:
                    return seen
                moved.wait(left_s)
        finally:
            with self._lock:
                self._waiting[job_id].discard(moved)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def stop(self) -> None:
        """This process ends: everybody who waits gets what there is to see now.

        May be called by a signal handler: what takes a lock happens in a thread of its own.
        """
        self._stopped = True
        threading.Thread(target=self._wake_all, name="job-events-stop", daemon=True).start()

    def _listen(self) -> None:
        if not self._listening.is_set():
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="job-events", daemon=True
                    )
                    self._thread.start()
            self._listening.wait(1)

    def _run(self) -> None:
        while True:
            try:
                with self._redis.pubsub() as pubsub:
                    pubsub.subscribe(keys.EVENTS)
                    while True:
                        message = pubsub.get_message(timeout=5)
                        if message is None:
                            pubsub.ping()
                        elif message["type"] == "subscribe":
                            self._wake_all()
                            self._listening.set()
                        elif message["type"] == "message":
                            self._wake(message["data"].partition(" ")[0])
            except (redis.RedisError, OSError) as error:
                log.warning("listening for job events again: %s", error)
            self._listening.clear()
            # Those who wait look for themselves now, and hear that Redis is away.
            self._wake_all()
            time.sleep(RETRY_S)

    def _wake(self, job_id: str) -> None:
        if job_id in self._waiting:
            with self._lock:
                for event in self._waiting.get(job_id, ()):
                    event.set()

    def _wake_all(self) -> None:
        with self._lock:
            for events in self._waiting.values():
                for event in events:
                    event.set()
