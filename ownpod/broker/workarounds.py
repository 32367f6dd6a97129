"""Every change that OwnPod makes to Celery 5.7 and kombu 5.7 themselves, because they offer no option for it.

``ownpod.celery`` installs all of them, explicitly. Each has a contract test in
``tests/integration/test_celery_contract.py``, which fails when a new version no longer needs the change, or
changed what it relies on. The tests of ``tests/acceptance/test_workarounds.py`` show the effect on real nodes.

Other modules use undocumented parts as well, but change none: ``broker.messages`` reads a message with
``channel._get``; ``node`` uses the consumer's ``hub.on_tick``, ``task_consumer``, ``pool.limit`` and
``amqp.queues.consume_from``; ``housekeeping`` and ``store`` find ids as ``correlation_id`` in kombu's JSON;
``supervisor`` imports modules of ``celery.worker`` before it forks.
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
    """Installs the changes that need no argument. Must run before the first connection; may run again."""
    # Celery 5.7 prints seven lines for each node that runs as root, as nodes in containers do.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Celery 5.7 warns at each reconnect about a setting that has no effect on a pool of threads.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    # When a connection is lost, kombu 5.7 requeues the messages of running jobs, or, without Redis, writes
    # them to a file. Each such message would start its job a second time.
    Channel.do_restore = False
    if kombu.__version__.startswith("5.7.") and not hasattr(Channel, "_ownpod_create_client"):
        _reuse_client()


def _reuse_client() -> None:
    """Makes each channel use one Redis client, because kombu 5.7 creates a client for each command.

    Sharing is safe: a client is thread-safe, and has no state but its connection pool.
    """
    original = Channel._create_client  # noqa: SLF001

    def _create_client(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002
        if asynchronous:
            return original(self, asynchronous)
        pool, client = getattr(self, "_ownpod_client", (None, None))
        # After a reconnect the channel has a new pool, and the old client's connections are closed.
        if pool is None or pool is not self.pool:
            client = original(self)
            self._ownpod_client = self.pool, client
        return client

    Channel._ownpod_create_client = original  # noqa: SLF001
    Channel._create_client = _create_client  # noqa: SLF001


def on_purge(purge: Callable[[str], int | None], channel: Any = Channel) -> None:
    """Calls ``purge`` with the queue's name when Celery's tools purge a queue. Replaces an earlier function.

    kombu 5.7 only deletes the Redis list, and has no hook. The recovery would publish the deleted messages
    again.

    Args:
        purge: returns the number of removed messages, or None for a queue that kombu shall delete itself.
        channel: the class of channels.
    """
    original = getattr(channel, "_ownpod_purge", channel._purge)  # noqa: SLF001

    def _purge(self: Any, queue: str) -> int:
        removed = purge(queue)
        return int(original(self, queue)) if removed is None else removed

    channel._ownpod_purge = original  # noqa: SLF001
    channel._purge = _purge  # noqa: SLF001


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
