"""Makes a Celery worker process the node of a worker, by its name.

The process ``<worker id>@<host>`` becomes the node of that worker, whether the supervisor forked it or an operator
started ``celery -A ownpod worker -n <worker id>@%h``. Any other name is left to :mod:`ownpod.housekeeping.signals`.
"""

import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from celery import bootsteps, signals
from celery.worker.consumer.tasks import Tasks

from ownpod import log, settings
from ownpod.broker import names
from ownpod.broker.process import become, current
from ownpod.celery import open_store
from ownpod.configuration import kept_endpoints
from ownpod.errors import ConfigurationError
from ownpod.node.breaker import Breaker
from ownpod.node.first_probe import FirstProbe
from ownpod.node.node import Node
from ownpod.node.overflow import Chooser, OverflowBreaker
from ownpod.node.purse import Purse
from ownpod.processes import Exit
from ownpod.registry import Registry
from ownpod.rules.endpoints import WorkerKind, WorkerSpec
from ownpod.settings import Settings
from ownpod.store import keys
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.store.retry import until_available
from ownpod.store.store import Store
from ownpod.store.tasks import TaskRuns
from ownpod.workers import Exchange, Worker, driver_for
from ownpod.workers.cloud import CloudWorker

logger = logging.getLogger(__name__)

FINISH = signal.SIGUSR2
"""Ends a node after its running jobs, however long they take."""


@dataclass(frozen=True)
class Prepared:
    """A Celery worker process before it has a role."""

    worker_id: str
    config: Settings
    store: Store
    registry: Registry


class BreakerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ties the node to the consumer's event loop.

    A signal writes to a pipe, so that the event loop turns at once and acts on the flags that the handler has set.
    """

    requires = (Tasks,)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        # Here and not at import, because the supervisor forks many nodes, and each needs a pipe of its own.
        self._wakeup, waker = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(waker, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(waker, warn_on_full_buffer=False)

    def start(self, consumer: Any) -> None:
        if (node := current(Node)) is not None:
            node.attach(consumer)
            consumer.hub.on_tick.add(node.tick)
            consumer.hub.add_reader(self._wakeup, self._woken)

    def stop(self, consumer: Any) -> None:
        if (node := current(Node)) is not None and consumer.hub is not None:
            consumer.hub.on_tick.discard(node.tick)
            consumer.hub.remove_reader(self._wakeup)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 4096)


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def prepare(sender: str, instance: Any, **_: Any) -> None:
    """Reads the process's role from its name, before Celery sets anything up."""
    config = settings.current()
    try:
        configured = kept_endpoints(config)
    except ConfigurationError as error:
        # Celery logs other errors of a signal's receivers and continues.
        settings.exit_on(error)
    store = open_store(config, client_name=sender)
    registry = Registry(configured, Fleet(store.client), config)
    store.schema.wait()
    # The worker may be one that was added, so only Redis knows it.
    until_available(registry.refresh)
    prepared = Prepared(names.worker_of(sender), config, store, registry)
    become(prepared)
    spec = registry.worker(prepared.worker_id)
    if spec is None:
        return
    try:
        worker = driver_for(spec, config, functools.partial(_exchange, spec, prepared))
    except ConfigurationError as error:
        # As above; and without its role this process would send webhooks under the worker's name.
        settings.exit_on(error)
    probe = worker.probe
    if spec.is_managed and not spec.pulls:
        probe = FirstProbe(probe, functools.partial(Managed(store.client).ready, spec.id))
    node = Node(
        config=config,
        registry=registry,
        store=store,
        worker=worker,
        spec=spec,
        name=sender,
        probe=probe,
        make_breaker=_breaker(spec, worker, prepared),
    )
    instance.app.amqp.queues.select(node.queues)
    instance.app.conf.worker_concurrency = node.concurrency
    instance.app.steps["consumer"].add(BreakerStep)
    become(node)
    node.acquire()


def _breaker(spec: WorkerSpec, worker: Worker, prepared: Prepared) -> Callable[..., Breaker]:
    """Makes the breaker of a worker, from the arguments that :class:`Node` gives."""
    if not isinstance(worker, CloudWorker) or spec.cloud is None:
        return Breaker
    purse = Purse(prepared.store, spec.endpoint, spec.id, spec.cloud)
    chooser = Chooser(prepared.store, prepared.registry, spec, spec.cloud, purse)
    return functools.partial(
        OverflowBreaker, worker=worker, chooser=chooser, capacity=spec.capacity
    )


def _exchange(spec: WorkerSpec, prepared: Prepared) -> Exchange:
    client = prepared.store.client
    offers = Offers(client, gone_s=prepared.config.worker_gone_s)
    is_task = spec.kind is WorkerKind.CONTAINER
    notices = Notices(client, keys.task(spec.id) if is_task else keys.pull(spec.id))
    subscribe = functools.partial(notices.subscribe, end_only=False)
    purse = None
    if spec.cloud is not None:
        purse = Purse(prepared.store, spec.endpoint, spec.id, spec.cloud)
    return Exchange(offers, subscribe, TaskRuns(client) if is_task else None, purse)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logging(**_: Any) -> None:
    """Keeps Celery from setting up its own logging."""
    if not logging.getLogger().handlers:
        config = settings.current()
        log.configure(config.log_level, form=config.log_format)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def started(**_: Any) -> None:
    """The node consumes: its threads begin, and signals drain the node instead of waiting without an end."""
    threading.excepthook = _end_process
    node = current(Node)
    if node is None or threading.current_thread() is not threading.main_thread():
        return

    def stop(_signum: int, _frame: FrameType | None) -> None:
        if not node.stop_soon():
            # The second signal: at once.
            os._exit(Exit.FAILED)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(FINISH, lambda *_: node.stop_soon(finish=True))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    node.start()


def _end_process(args: threading.ExceptHookArgs) -> None:
    """Ends the process of a thread that died, because a node without one of its threads does nothing and is not
    replaced.
    """
    info = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    logger.critical("thread %s died, so this node ends", args.thread, exc_info=info)
    os._exit(Exit.THREAD_DIED)
