"""The node of one worker: it acquires the worker, consumes its queues while the breaker is closed, and drains."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ownpod.broker import names, workarounds
from ownpod.broker.process import WorkerNode
from ownpod.errors import RedisUnavailable
from ownpod.node.breaker import Breaker
from ownpod.node.runner import JobRunner
from ownpod.node.slots import Slots
from ownpod.processes import Exit, this_process
from ownpod.registry import Registry
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt
from ownpod.rules.stall import StallWatch
from ownpod.settings import Settings
from ownpod.store.retry import until_available
from ownpod.store.store import Store
from ownpod.workers import Worker

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
"""Shortest time in seconds between two checks of the node's state. The event loop makes them; it turns at least every
few seconds.
"""
STOP_CHECK_S = 0.25
"""Seconds between such checks while the node drains."""
MOST_PULLED = 1000
"""Maximum number of jobs that a pulling worker may have at a time, even if it requests more."""
SILENCE_S = 60.0
"""Seconds without a turn after which an event loop counts as stuck; Celery's reconnects pause up to 30 s."""


class StopRequest:
    """Whether a node is to stop, and when at the latest.

    Signal handlers write it, so it takes no lock; other threads read it. A deadline only ever comes nearer: a
    request to finish (:data:`ownpod.node.signals.FINISH`) does not end the deadline of a drain.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.at: float | None = None
        """Latest time of the stop in seconds on the monotonic clock, infinite to finish; None: no stop."""

    def ask(self, *, finish: bool = False) -> bool:
        """Asks for a stop, within the grace or, to ``finish``, after all running jobs.

        Returns:
            False, if a stop within the grace was asked for before.
        """
        before = self.at
        at = math.inf if finish else time.monotonic() + self._grace_s
        self.at = at if before is None else min(before, at)
        return before is None or before == math.inf

    @property
    def asked(self) -> bool:
        return self.at is not None


class Node(WorkerNode):
    """A worker's node: its threads, its queues and its drain.

    Which thread writes what: the **event loop** (the main thread) writes ``_consumer``, ``_ticked``,
    ``_consumes_own`` and ``_draining``; the **breaker's thread** writes ``_capacity``; signal handlers and the event loop write
    ``stop``. ``_paused`` is written by the breaker's and the control threads under ``_pausing``. ``_closed`` is
    set once, by the first thread that ends the node, and never reset. Each is one reference, so that other
    threads may read it without a lock.

    Args:
        config: the settings.
        registry: the workers.
        store: the jobs.
        worker: the driver of the worker.
        spec: the worker.
        name: the node's name, ``<worker id>@<host>``.
        probe: used in place of the driver's own probe.
        make_breaker: makes the breaker, that of a cloud worker for example.
    """

    def __init__(
        self,
        *,
        config: Settings,
        registry: Registry,
        store: Store,
        worker: Worker,
        spec: WorkerSpec,
        name: str,
        probe: Callable[[], None] | None = None,
        make_breaker: Callable[..., Breaker] = Breaker,
    ) -> None:
        self._name = name
        self._process = this_process()
        self._lease_s = config.lease_s
        self._own_s = max(config.lease_s / 2, 1.0)
        self._spec = spec
        self._store = store
        self._registry = registry
        self._grace_s = config.shutdown_grace_s
        self._worker = worker
        self._own_queue = names.worker_queue(spec.endpoint, spec.id)
        self._queue = names.endpoint_queue(spec.endpoint)
        self._capacity = min(spec.capacity, MOST_PULLED)
        """Jobs that the worker takes at a time; a pulling worker changes it with its requests."""
        self._consumes_own = not (spec.pulls or spec.private)
        """Whether the node consumes the worker's own queue. That of a worker that pulls, or is private: since it was ready for
        the first time, or, if it has a run of an earlier node, from the start.
        """
        self._consumer: Any = None
        self._ticked = time.monotonic()
        self._draining = False
        self._closed = False
        """The node has handed its jobs over and publishes no status any more."""
        self._pausing = threading.Lock()
        self._paused: str | None = None
        """Why the worker is paused; None: it is not."""
        self.stop = StopRequest(config.shutdown_grace_s)
        self._stall = StallWatch(
            patience_s=2 * config.lease_s, silence_s=max(SILENCE_S, 2 * config.lease_s)
        )
        self._slots = Slots(
            store,
            worker,
            lease_s=config.lease_s,
            on_change=self._slots_changed,
            on_over=self._notify_celery,
            begins_later=spec.cloud is not None,
        )
        self.breaker = make_breaker(
            probe or worker.probe,
            self._publish,
            publish_every_s=config.lease_s / 6,
            slots=self._slots,
            is_paused=lambda: self._paused is not None or self.stop.asked,
            on_change=self._apply_soon,
        )
        self.runner = JobRunner(
            store,
            worker,
            self._slots,
            self.breaker,
            worker_id=spec.id,
            callbacks=config.callback_url is not None,
        )

    @property
    def queues(self) -> list[str]:
        """The queues that the node may consume; the worker's own comes first. That of the endpoint is not for every worker."""
        return [self._own_queue] if self._spec.own_queue_only else [self._own_queue, self._queue]

    @property
    def concurrency(self) -> int:
        """Threads of the Celery pool. A pulling worker's capacity changes, see :meth:`_apply`."""
        return MOST_PULLED if self._spec.pulls else self._spec.capacity

    def acquire(self) -> None:
        """Blocks until this node owns the worker, and adopts the runs of an earlier node.

        One node runs a worker at a time, also where several supervisors list it. A worker without an owner is
        acquired at the second check, so that the previous owner can renew first after a Redis outage.
        """
        logged, free = False, True
        while True:
            try:
                was_free, free = free, self._registry.fleet.owner(self._spec.id) is None
                if was_free and free and self._acquire():
                    break
                if not logged and not free:
                    owner = self._registry.fleet.owner(self._spec.id)
                    logger.info("worker is run by another node, %s; standing by", owner)
                    logged = True
            except RedisUnavailable as error:
                logger.warning("standing by: %s", error)
            time.sleep(self._lease_s / 6)
        self._paused = until_available(lambda: self._registry.fleet.paused(self._spec.id))
        if self.runner.adopt(self._spec.endpoint):
            self._consumes_own = True

    def start(self) -> None:
        """Starts the threads; the breaker closes when a probe has succeeded."""
        self._slots.start()
        self.breaker.start()
        self._worker.follow(self._left, self.breaker.recheck)

    def attach(self, consumer: Any) -> None:
        """A connection to the broker is there; called again after each reconnect."""
        self._consumer = consumer
        self._apply()

    def check_runs(self) -> None:
        self._slots.check_runs()

    @property
    def queue(self) -> str:
        return self._queue

    def describe(self) -> dict[str, Any]:
        status = self._status(self.breaker.status)
        return {
            "worker": self._spec.id,
            "endpoint": self._spec.endpoint,
            "url": self._spec.url,
            "capacity": self._capacity,
            "state": status.state.value,
            "reason": status.reason,
            "jobs": self._slots.jobs,
            "held": status.lingering,
            "stopping": self.stop.asked,
        }

    def pause(self, reason: str) -> None:
        self._registry.fleet.pause(self._spec.id, reason)
        self._set_paused(reason)

    def resume(self) -> None:
        self._registry.fleet.resume(self._spec.id)
        self._set_paused(None)

    def cancel(self, job_id: str, reason: str) -> None:
        job = self._store.listing.find(job_id)
        if job is not None:
            self._store.jobs.cancel(job_id, job.endpoint, reason=reason)
            self.check_runs()

    def stop_soon(self, *, finish: bool = False) -> bool:
        """Only sets flags, because signal handlers call it; the event loop does the rest at its next turn."""
        first = self.stop.ask(finish=finish)
        if self._slots.taken == 0:
            # While Redis is away the event loop does not turn, and Celery checks this flag only.
            workarounds.stop_node()
        return first

    def tick(self) -> None:
        """Called by the event loop at each turn: consumes the wanted queues, and ends the node when its drain is over.

        Driven by ``hub.on_tick`` instead of a timer, because every wake-up of an idle node costs 0.3 ms of CPU.
        """
        now = time.monotonic()
        if not self.stop.asked and now - self._ticked < CHECK_INTERVAL_S:
            return
        self._ticked = now
        self._apply()
        if self.stop.at is None:
            return
        if not self._draining:
            self._draining = True
            self._consumer.timer.call_repeatedly(STOP_CHECK_S, self.tick)
        if self._slots.running == 0 or now >= self.stop.at:
            self._close()
            workarounds.stop_node()

    def drain(self) -> None:
        """Waits for running jobs, at most the grace; hands over the rest.

        For a stop without a signal: Celery's own shutdown of the pool.
        """
        until = time.monotonic() + self._grace_s
        while self._slots.running and time.monotonic() < until:
            time.sleep(STOP_CHECK_S)
        self._close()

    def _acquire(self) -> bool:
        return self._registry.fleet.acquire(self._spec.id, self._process, ttl_s=self._own_s)

    def _left(self, reason: str) -> None:
        """The worker has left. A paused one takes no jobs anyway, and leaves when its agent stops it."""
        if self._paused is None:
            self.breaker.open_if_closed(reason)

    def _set_paused(self, reason: str | None) -> None:
        with self._pausing:
            if reason == self._paused:
                return
            self._paused = reason
        logger.info("worker paused: %s", reason) if reason else logger.info("worker resumed")
        self.breaker.wake()
        self._apply_soon()

    def _status(self, status: WorkerStatus) -> WorkerStatus:
        if self._paused is None or status.state not in {WorkerState.READY, WorkerState.STANDBY}:
            return status
        return replace(status, state=WorkerState.PAUSED, reason=self._paused)

    def _slots_changed(self) -> None:
        self.breaker.wake()

    def _notify_celery(self, attempt: Attempt) -> None:
        """Sends Celery's event of a job that is over while its task goes on, so that Flower shows it now."""
        try:
            job = self._store.listing.find(attempt.job_id)
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

    def _publish(self, status: WorkerStatus) -> None:
        """The breaker's thread: the heartbeat, with which the node renews its ownership."""
        if self._closed:
            return
        if self._spec.pulls and (spec := self._registry.worker(self._spec.id)) is not None:
            # Read here, because it asks Redis; the event loop applies it.
            capacity, self._capacity = self._capacity, min(spec.capacity, MOST_PULLED)
            if capacity != self._capacity:
                self._apply_soon()
        heartbeat = self._registry.fleet.heartbeat(
            self._spec.id,
            self._status(status),
            process=self._process,
            node=self._name,
            own_s=self._own_s,
            ttl_s=self._lease_s,
            queues=self._store.messages.lists_of(self.queues[-1]),
        )
        if not heartbeat.owned:
            if not self._acquire():
                logger.critical("another node owns this worker now, so this node ends")
                os._exit(Exit.WORKER_LOST)
            return
        self._set_paused(heartbeat.paused)
        stalled = self._stall.check(
            time.monotonic(),
            could_fetch=self._fetches and self._slots.taken < self._capacity,
            waiting=heartbeat.waiting,
            begun=self._slots.begun,
            ticked=self._ticked,
        )
        if stalled is not None:
            logger.critical("this node ends, to be replaced: %s", stalled)
            self._close()
            os._exit(Exit.STALLED)

    def _close(self) -> None:
        """Hands over the jobs that still run and releases the worker."""
        self._closed = True
        try:
            count = self._slots.hand_over("its node was stopped")
            self._registry.fleet.remove_status(self._spec.id)
            self._registry.fleet.release(self._spec.id, self._process)
        except RedisUnavailable as error:
            logger.warning("jobs not requeued, their leases will expire: %s", error)
        else:
            if count:
                logger.info("%d unfinished jobs handed over", count)

    @property
    def _fetches(self) -> bool:
        """Whether the node fetches jobs of the endpoint."""
        return self.breaker.closed and self._paused is None and not self.stop.asked

    def _apply_soon(self) -> None:
        """Has the event loop apply the queues; any thread may call it, but no signal handler: it takes a lock."""
        if self._consumer is not None:
            self._consumer.call_soon(self._apply)

    def _apply(self) -> None:
        """The event loop: consumes from the queues that the node wants, and no others."""
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        if self._spec.pulls:
            # Celery fetches no more than its pool takes.
            consumer.pool.limit = self._capacity
        # A BRPOP of the own queue alone would delay the first job by up to a second, because only the next BRPOP has
        # the endpoint's queue, too.
        self._consumes_own |= self.breaker.closed
        # The worker's own queue holds runs that the worker executes already, so an open breaker does not matter.
        for queue, wanted in (
            (self._own_queue, self._consumes_own and not self.stop.asked),
            (self._queue, self._fetches and not self._spec.own_queue_only),
        ):
            if wanted and not consumer.task_consumer.consuming_from(queue):
                consumer.add_task_queue(queue)
            elif not wanted and queue in consumer.app.amqp.queues.consume_from:
                # `consume_from`, because after a reconnect the new task consumer consumes from all of these.
                consumer.cancel_task_queue(queue)
