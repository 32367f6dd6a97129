"""What makes a Celery worker process the node of a RunPod worker: its name.

``<worker id>@<host>`` gets that worker's queues, capacity, runner and gate, whether the dispatcher
forked it or somebody typed ``celery -A ownpod worker -n <worker id>@%h``. ``housekeeping@<host>``
runs the sweep. Any other name is a plain Celery worker of the housekeeping queue.
"""

import functools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from celery import bootsteps, signals
from celery.worker.consumer.tasks import Tasks

from ownpod import log, settings
from ownpod.broker import control, names, workarounds
from ownpod.celery import open_store
from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError, RedisUnavailable
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.sweep import Sweep
from ownpod.housekeeping.webhooks import Webhooks
from ownpod.node import tasks
from ownpod.node.breaker import Gate
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Attempts
from ownpod.processes import this_process
from ownpod.registry import Registry
from ownpod.rules.endpoints import HOUSEKEEPING, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt
from ownpod.rules.stall import StallWatch
from ownpod.settings import Settings
from ownpod.store import keys
from ownpod.store.deliveries import Deliveries
from ownpod.store.fleet import Fleet
from ownpod.store.jobs import JobStore
from ownpod.store.listing import Listing
from ownpod.store.notices import Notices
from ownpod.store.offers import Offers
from ownpod.store.retry import until_available
from ownpod.workers.pull import PullWorker
from ownpod.workers.push import PushWorker

if TYPE_CHECKING:
    from ownpod.workers import Worker

logger = logging.getLogger(__name__)

FINISH = signal.SIGUSR2
"""Ends a node when what it runs has ended, however long that takes."""

TICK_S = 0.5
"""Between looks at what the node is to do; its loop turns at least every few seconds by itself."""
STOP_TICK_S = 0.25
"""The same while it stops."""
MOST_PULLED = 1000
"""Jobs that a worker that pulls may have at a time, whatever it asks for."""
SILENCE_S = 60.0
"""An event loop silent for longer is stuck; Celery's reconnects pause up to 30 s."""
HOUSEKEEPING_THREADS = 16
"""Webhooks that are sent at a time: a slow receiver must not hold up the others."""


class Node:
    """A worker's node: its threads, and its way to stop."""

    def __init__(
        self,
        app: Any,
        *,
        config: Settings,
        registry: Registry,
        store: JobStore,
        spec: WorkerSpec,
        name: str,
    ) -> None:
        self._name = name
        self._process = this_process()
        self._lease_s = config.lease_s
        self._own_s = max(config.lease_s / 2, 1.0)
        self._spec = spec
        self._capacity = min(spec.capacity, MOST_PULLED)
        """Jobs that the worker takes at a time, as it last said."""
        self._store = store
        self._listing = Listing(store.client)
        self._registry = registry
        self._grace_s = config.shutdown_grace_s
        self._consumer: Any = None
        self._stop_at: float | None = None
        self._left = False
        self._paused: str | None = None
        self._ticked = time.monotonic()
        self._stopping = False
        self._stall = StallWatch(
            patience_s=2 * config.lease_s, silence_s=max(SILENCE_S, 2 * config.lease_s)
        )
        worker = _worker(spec, config, store)
        self.gate = Gate(worker.probe, self._announce, announce_every_s=config.lease_s / 6)
        self._follow = worker.follow if isinstance(worker, PullWorker) else None
        self._attempts = Attempts(store, worker, lease_s=config.lease_s, on_change=self.gate.wake)
        self._attempts.on_over = self._tell_celery
        self.gate.slots = self._attempts
        self.gate.on_turn = self._turned
        self._runner = JobRunner(
            store,
            worker,
            self._attempts,
            self.gate,
            worker_id=spec.id,
            callbacks=config.callback_url is not None,
        )
        tasks.run_jobs_with(self._runner)
        self._own_queue = names.worker_queue(spec.endpoint, spec.id)
        self._queue = names.endpoint_queue(spec.endpoint)
        app.amqp.queues.select([self._own_queue, self._queue])
        # A worker that pulls says what it can take as it goes; see `_apply`.
        app.conf.worker_concurrency = MOST_PULLED if spec.pulls else spec.capacity
        app.steps["consumer"].add(GateStep)

    def wait_for_worker(self) -> None:
        """Until the worker is this node's: each is run by one of them at a time, also where several
        dispatchers list it. Then settles what an earlier node has left.

        A worker that is free is taken at the second look: whoever ran it until now comes first, when
        Redis was away.
        """
        told, free = False, True
        while True:
            try:
                was_free, free = free, self._registry.owner(self._spec.id) is None
                if was_free and free and self._own():
                    break
                if not told and not free:
                    owner = self._registry.owner(self._spec.id)
                    logger.info("worker is run by another node, %s; standing by", owner)
                    told = True
            except RedisUnavailable as error:
                logger.warning("standing by: %s", error)
            time.sleep(self._lease_s / 6)
        self._paused = until_available(lambda: self._registry.paused(self._spec.id))
        self._runner.adopt(self._spec.endpoint)

    def start(self) -> None:
        """Starts the threads; the gate opens when the worker has been reached."""
        self._attempts.start()
        self.gate.start()
        if self._follow is not None:
            self._follow(self.gate)

    def attach(self, consumer: Any) -> None:
        """A connection to the broker is there; called again after each reconnect."""
        self._consumer = consumer
        self._apply()

    def look(self) -> None:
        """A job of this worker may have been cancelled."""
        self._attempts.look()

    @property
    def queue(self) -> str:
        """The endpoint's queue."""
        return self._queue

    def describe(self) -> dict[str, Any]:
        """How it is, for ``celery inspect ownpod_node``."""
        status = self._status(self.gate.status)
        return {
            "worker": self._spec.id,
            "endpoint": self._spec.endpoint,
            "url": self._spec.url,
            "capacity": self._capacity,
            "state": status.state.value,
            "reason": status.reason,
            "jobs": self._attempts.jobs,
            "held": status.held,
            "stopping": self._stop_at is not None,
        }

    def pause(self, reason: str) -> None:
        """Takes no jobs from now on, also after a restart; what runs is finished."""
        self._registry.pause(self._spec.id, reason)
        self._set_paused(reason)

    def resume(self) -> None:
        """Takes jobs again."""
        self._registry.resume(self._spec.id)
        self._set_paused(None)

    def cancel(self, job_id: str, reason: str) -> None:
        """Cancels a job, whoever has it."""
        job = self._listing.find(job_id)
        if job is not None:
            self._store.cancel(job_id, job.endpoint, reason=reason)
            self.look()

    def stop_soon(self, *, finish: bool = False) -> bool:
        """From a signal handler: only sets what the event loop looks at. False: it was told before.

        ``finish``: however long what runs takes.
        """
        told = self._stop_at not in {None, math.inf}
        self._stop_at = math.inf if finish else time.monotonic() + self._grace_s
        if self._attempts.in_hand == 0:
            # Also heard while Redis is away and the loop waits for it.
            workarounds.stop_node()
        threading.Thread(target=self._soon, args=(self.tick,), name="stop", daemon=True).start()
        return not told

    def tick(self) -> None:
        """In the event loop's thread, whenever that turns: keeps the queues as wanted, and stops when
        it is time. Not by a timer: each turn of an idle node costs a third of a millisecond.
        """
        now = time.monotonic()
        if self._stop_at is None and now - self._ticked < TICK_S:
            return
        self._ticked = now
        self._apply()
        if self._stop_at is None:
            return
        if not self._stopping:
            self._stopping = True
            self._consumer.timer.call_repeatedly(STOP_TICK_S, self.tick)
        if self._attempts.running == 0 or now >= self._stop_at:
            self._leave()
            workarounds.stop_node()

    def drain(self) -> None:
        """Waits for running jobs, at most the grace; hands back the rest.

        For a stop that does not come by signal: Celery's remote ``shutdown``.
        """
        until = time.monotonic() + self._grace_s
        while self._attempts.running and time.monotonic() < until:
            time.sleep(STOP_TICK_S)
        self._leave()

    def _own(self) -> bool:
        return self._registry.acquire(self._spec.id, self._process, ttl_s=self._own_s)

    def _set_paused(self, reason: str | None) -> None:
        if reason != self._paused:
            self._paused = reason
            logger.info("worker paused: %s", reason) if reason else logger.info("worker resumed")
            self.gate.wake()
            self._turned()

    def _status(self, status: WorkerStatus) -> WorkerStatus:
        if self._paused is None or status.state is not WorkerState.READY:
            return status
        return replace(status, state=WorkerState.PAUSED, reason=self._paused)

    def _tell_celery(self, attempt: Attempt) -> None:
        """A job that is over while its task goes on: Flower hears it now."""
        try:
            job = self._listing.find(attempt.job_id)
        except RedisUnavailable:
            return
        events = self._consumer and self._consumer.event_dispatcher
        if job is None or not job.status.terminal or not events:
            return
        if job.status is JobStatus.CANCELLED:
            events.send("task-revoked", uuid=job.id, terminated=True, signum=None, expired=False)
        else:
            exception = f"{job.status}: {job.error}"
            events.send("task-failed", uuid=job.id, exception=exception, traceback="")

    def _announce(self, status: WorkerStatus) -> None:
        if self._left:
            return
        if self._spec.pulls and (spec := self._registry.worker(self._spec.id)) is not None:
            # Here, as it asks Redis; the event loop takes it over.
            capacity, self._capacity = self._capacity, min(spec.capacity, MOST_PULLED)
            if capacity != self._capacity:
                self._turned()
        heard = self._registry.heartbeat(
            self._spec.id,
            self._status(status),
            process=self._process,
            node=self._name,
            own_s=self._own_s,
            ttl_s=self._lease_s,
            queues=self._store.messages.lists(self._spec.endpoint),
        )
        if not heard.owned:
            if not self._own():
                logger.critical("another node runs this worker now, so this one ends")
                os._exit(71)
            return
        self._set_paused(heard.paused)
        stalled = self._stall.look(
            time.monotonic(),
            could_fetch=self._fetches and self._attempts.in_hand < self._capacity,
            waiting=heard.waiting,
            begun=self._attempts.begun,
            ticked=self._ticked,
        )
        if stalled is not None:
            logger.critical("this node ends, to be replaced: %s", stalled)
            self._leave()
            os._exit(72)

    def _leave(self) -> None:
        self._left = True
        try:
            left = self._attempts.hand_over("its node was stopped")
            self._registry.remove_status(self._spec.id)
            self._registry.release(self._spec.id, self._process)
        except RedisUnavailable as error:
            logger.warning("jobs not handed back, their leases will run out: %s", error)
        else:
            if left:
                logger.info("%d unfinished jobs handed back", left)

    @property
    def _fetches(self) -> bool:
        return self.gate.open and self._paused is None and self._stop_at is None

    def _turned(self) -> None:
        self._soon(self._apply)

    def _soon(self, call: Callable[[], None]) -> None:
        """In the event loop's thread; not to be called by a signal handler."""
        if self._consumer is not None:
            self._consumer.call_soon(call)

    def _apply(self) -> None:
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        if self._spec.pulls:
            # Celery fetches no more than its pool takes.
            consumer.pool.limit = self._capacity
        # Its own queue holds what the worker is at already, so that is not the gate's business.
        for queue, fetch in (
            (self._own_queue, self._stop_at is None),
            (self._queue, self._fetches),
        ):
            if fetch and not consumer.task_consumer.consuming_from(queue):
                consumer.add_task_queue(queue)
            elif not fetch and queue in consumer.app.amqp.queues.consume_from:
                consumer.cancel_task_queue(queue)


def _worker(spec: WorkerSpec, config: Settings, store: JobStore) -> "Worker":
    if not spec.pulls:
        return PushWorker(spec, config)
    pulls = Offers(store.client, gone_s=config.worker_gone_s)
    news = Notices(store.client, keys.pull(spec.id))
    expect = functools.partial(news.subscribe, end_only=False)
    return PullWorker(spec, pulls, expect, gone_s=config.worker_gone_s)


class GateStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ties the node to the consumer's event loop."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        node = _here.node
        if node is not None:
            node.attach(consumer)
            consumer.hub.on_tick.add(node.tick)

    def stop(self, consumer: Any) -> None:
        node = _here.node
        if node is not None and consumer.hub is not None:
            consumer.hub.on_tick.discard(node.tick)


class _Here:
    node: Node | None = None
    sweep: Sweep | None = None


_here = _Here()


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def prepare(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """Looks at the node's name, before Celery sets anything up."""
    config = settings.current()
    worker_id = names.worker_of(sender)
    try:
        configured = load_endpoints(config)
    except ConfigurationError as error:
        # Celery logs other errors of a signal's receivers and continues.
        settings.exit_on(error)
    store = open_store(config, client_name=sender)
    registry = Registry(configured, Fleet(store.client), config)
    tasks.send_webhooks_with(Webhooks(Deliveries(store.client, store.messages), config))
    store.schema.wait()
    # Whose node this is may stand in Redis only.
    until_available(registry.refresh)
    spec = registry.worker(worker_id)
    if spec is not None:
        _here.node = Node(
            instance.app, config=config, registry=registry, store=store, spec=spec, name=sender
        )
        control.act_on(_here.node)
        workarounds.JobPool.before_stop = _here.node.drain
        _here.node.wait_for_worker()
        return
    queues = options.get("queues") or names.HOUSEKEEPING_QUEUE
    wanted = queues.split(",") if isinstance(queues, str) else [str(name) for name in queues]
    instance.app.amqp.queues.select(wanted)
    if worker_id == HOUSEKEEPING:
        recovery = Recovery(store, lambda: registry.endpoints, lease_s=config.lease_s)
        pulls = Offers(store.client, gone_s=config.worker_gone_s)
        _here.sweep = Sweep(store, recovery, pulls, lease_s=config.lease_s)
        instance.app.conf.worker_concurrency = HOUSEKEEPING_THREADS
    elif any(names.is_job_queue(name) for name in wanted):
        known = ", ".join(sorted(worker.id for worker in registry.workers()))
        sys.exit(
            f"ownpod: node {sender!r} is no worker's, so it cannot run jobs; "
            f"name it after one: -n <worker id>@%h, with one of {known}"
        )


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logging(**_: Any) -> None:
    """Celery's own logging stays out of the way."""
    if not logging.getLogger().handlers:
        config = settings.current()
        log.configure(config.log_level, form=config.log_format)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def started(**_: Any) -> None:
    """The node consumes: its threads begin, and signals drain instead of waiting for ever."""
    node = _here.node
    threading.excepthook = _end_process
    if _here.sweep is not None and not _here.sweep.is_alive():
        _here.sweep.start()
    if node is None or threading.current_thread() is not threading.main_thread():
        return

    def stop(_signum: int, _frame: FrameType | None) -> None:
        if not node.stop_soon():
            # The second signal: at once.
            os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(FINISH, lambda *_: node.stop_soon(finish=True))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    node.start()


def _end_process(args: threading.ExceptHookArgs) -> None:
    """A node without one of its threads looks alive and does nothing: it ends, and is replaced."""
    info = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    logger.critical("thread %s died, so this node ends", args.thread, exc_info=info)
    os._exit(70)
