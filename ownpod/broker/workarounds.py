"""What works around Celery 5.7 and kombu 5.7; nothing else in OwnPod knows their insides.

Each piece says for which version, why, and has a test that fails when it is no longer needed.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kombu
from celery.concurrency.thread import TaskPool
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning
from celery.worker import state
from kombu.transport.redis import Channel

from ownpod.broker.process import worker_node


def apply() -> None:
    """Once, before the first connection. Calling it again changes nothing."""
    # Celery 5.7 prints seven lines for each node where it runs as root, as containers do.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # And this one at each reconnect, of a setting that has no meaning for threads.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    # On a lost connection kombu would put the messages of running jobs back into their queues, or,
    # without Redis, into a file. Their records know better.
    Channel.do_restore = False
    if kombu.__version__.startswith("5.7.") and not hasattr(Channel, "_ownpod_create_client"):
        _reuse_client()


def _reuse_client() -> None:
    """One Redis client for each channel instead of one for each command.

    kombu 5.7.0 makes a new one for each. Clients are thread-safe, and hold nothing but the pool.
    """
    original = Channel._create_client  # noqa: SLF001

    def _create_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002
        if asynchronous:
            return original(self, asynchronous)
        pool, client = getattr(self, "_ownpod_client", (None, None))
        if pool is None or pool is not self.pool:
            client = original(self)
            self._ownpod_client = self.pool, client
        return client

    Channel._ownpod_create_client = original  # noqa: SLF001
    Channel._create_client = _create_client  # noqa: SLF001


def on_purge(purge: Callable[[str], int | None]) -> None:
    """Whoever purges a queue with Celery's tools tells ``purge`` its name first.

    kombu 5.7 only deletes the list, and nothing is told. ``purge`` answers how many messages it
    removed, or None if the queue is none of its own. Calling this again replaces it.
    """
    original = getattr(Channel, "_ownpod_purge", Channel._purge)  # noqa: SLF001

    def _purge(self: Any, queue: str) -> int:
        removed = purge(queue)
        return int(original(self, queue)) if removed is None else removed

    Channel._ownpod_purge = original  # noqa: SLF001
    Channel._purge = _purge  # noqa: SLF001


class JobPool(TaskPool):  # type: ignore[misc]
    """Celery's thread pool, but stopping it does not wait for the threads.

    Celery 5.7: a warm shutdown waits for every running task, for days if need be, and silences the node
    meanwhile; no call ends a running thread. So the node drains before the pool stops, and requeues the jobs
    that still run then.
    """

    executor: ThreadPoolExecutor

    def on_stop(self) -> None:
        if (node := worker_node()) is not None:
            node.drain()
        self.executor.shutdown(wait=False, cancel_futures=True)


def stop_node() -> None:
    """Ends the node's event loop at its next turn. Only sets a flag, so signal handlers may call it."""
    state.should_stop = 0
