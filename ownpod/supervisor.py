"""The supervisor (``ownpod dispatch``): one Celery node for each worker, and one for housekeeping.

The nodes are forked from this process after everything is imported, which costs a quarter of the
memory and a twentieth of the CPU of starting each as a program. A node that ends is restarted: at
once if it has served for some seconds, otherwise after growing pauses.
"""

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import FrameType

# All modules that a node needs, because modules that are imported before the fork are in shared memory.
import celery.apps.worker
import celery.events.dispatcher
import celery.worker.autoscale
import celery.worker.components
import celery.worker.consumer
import celery.worker.control
import celery.worker.heartbeat
import celery.worker.strategy
import kombu.transport.redis

from ownpod import log
from ownpod.broker import control, names
from ownpod.celery import app
from ownpod.configuration import keep_endpoints
from ownpod.errors import ConfigurationError, OwnPodError, RedisUnavailable
from ownpod.housekeeping import signals as housekeeping_signals
from ownpod.housekeeping import tasks as housekeeping_tasks
from ownpod.node import signals as node_signals
from ownpod.node import tasks as node_tasks
from ownpod.processes import Exit, describe_exit, die_with_parent
from ownpod.registry import CACHE_TTL_S, Registry
from ownpod.rules.endpoints import HOUSEKEEPING, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.releases import to_check
from ownpod.rules.templates import ManagedSpec
from ownpod.settings import Settings
from ownpod.store.releases import Releases
from ownpod.supervised import Supervised

logger = logging.getLogger(__name__)

PRELOADED = (
    celery.apps.worker,
    celery.events.dispatcher,
    celery.worker.autoscale,
    celery.worker.components,
    celery.worker.consumer,
    celery.worker.control,
    celery.worker.heartbeat,
    celery.worker.strategy,
    kombu.transport.redis,
    control,
    housekeeping_signals,
    housekeeping_tasks,
    node_signals,
    node_tasks,
)

REPORT_AFTER = 3
"""Number of early ends of a node in a row after which ``/health`` names them."""

HEARTBEAT_S = 5.0
"""Seconds between a node's Celery heartbeats, by which Flower knows that the node is alive; Celery's default is 2."""

STARTS, STARTS_EVERY_S = 8, 0.5
"""Largest number of nodes that are forked within so many seconds, because a fork of many at once loads the host."""

KILL_AFTER_S = 5.0
"""Seconds after the grace until nodes that have not ended are killed."""


@dataclass(eq=False)
class Child(Supervised):
    """The node of one worker, or the housekeeping node."""

    spec: WorkerSpec | None = None
    """The worker that the node was started for; None: housekeeping."""
    leaving: bool = False
    """The node finishes its jobs and ends, because its worker was removed or changed."""


def to_start(children: list[Child], now: float) -> list[Child]:
    """Children whose node is to be forked now, at most :data:`STARTS`."""
    return [child for child in children if child.is_due(now)][:STARTS]


class Supervisor:
    """Keeps one node alive for each worker; drains all nodes at SIGTERM or SIGINT, and ends.

    SIGHUP reads ``workers.yaml`` again. Workers that are added, changed or removed are noticed within
    :data:`ownpod.registry.CACHE_TTL_S`; the node of a removed worker finishes its jobs first.
    """

    def __init__(
        self, config: Settings, registry: Registry, releases: Releases | None = None
    ) -> None:
        self._config = config
        self._registry = registry
        self._releases = releases
        self._host = socket.gethostname()
        self._children = [Child(HOUSEKEEPING)]
        self._wakeup, self._waker = os.pipe()
        self._stopping = False
        self._reloading = False

    def run(self) -> None:
        """Blocks until a signal to stop has come and all nodes have ended."""
        # A signal writes to the pipe, because one that comes just before the wait would not interrupt it.
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        signal.signal(signal.SIGHUP, self._reload_soon)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        app.finalize()
        gc.collect()
        gc.freeze()
        while not self._stopping:
            if self._reloading:
                self._reload()
            self._match()
            now = time.monotonic()
            due = to_start(self._children, now)
            for child in due:
                self._start(child)
            if len(due) == STARTS:
                self._sleep(STARTS_EVERY_S)
            else:
                later = [child.start_at for child in self._children if child.pid == 0]
                self._sleep(min([CACHE_TTL_S, *(at - time.monotonic() for at in later)]))
            self._reap()
        self._end_all()

    def _match(self) -> None:
        """Matches the children with the workers: one node for each, started for the worker as it is now."""
        wanted = {worker.id: worker for worker in self._registry.workers() if worker.has_node}
        for child in self._children:
            spec = wanted.pop(child.name, None)
            if child.name == HOUSEKEEPING or _same(child.spec, spec):
                continue
            what = "removed" if spec is None else "changed"
            logger.info("worker %s was %s; its node ends when its jobs have", child.name, what)
            child.spec, child.leaving = spec, True
            if child.pid:
                os.kill(child.pid, node_signals.FINISH)
        for spec in wanted.values():
            self._children.append(Child(spec.id, spec=spec))
        for child in [child for child in self._children if child.leaving and not child.pid]:
            child.leaving, child.start_at = False, 0.0
            if child.spec is None and child.name != HOUSEKEEPING:
                self._children.remove(child)

    def _reload_soon(self, _signum: int, _frame: FrameType | None) -> None:
        self._reloading = True

    def _reload(self) -> None:
        self._reloading = False
        before = {name: found.managed for name, found in self._registry.endpoints.items()}
        try:
            endpoints = keep_endpoints(self._config)
            self._registry.reload(endpoints)
        except ConfigurationError as error:
            logger.error("the old configuration stays: %s", error)  # noqa: TRY400 - one line
        else:
            logger.info("configuration read again")
            self._replace_housekeeping()
            self._check_tags(before, {name: found.managed for name, found in endpoints.items()})

    def _check_tags(
        self, before: Mapping[str, ManagedSpec | None], now: Mapping[str, ManagedSpec | None]
    ) -> None:
        """Lets the hosts check what the tags of unchanged endpoints mean now: the same image again may be another one."""
        if self._releases is None:
            return
        try:
            for name in to_check(before, now):
                self._releases.look(name)
        except OwnPodError as error:
            logger.warning("the tags of images are not checked: %s", error)

    def _replace_housekeeping(self) -> None:
        """Ends the housekeeping node after its webhooks in progress; the next one scales by the new configuration."""
        for child in self._children:
            if child.name == HOUSEKEEPING and child.pid:
                child.leaving = True
                os.kill(child.pid, signal.SIGTERM)

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _sleep(self, timeout_s: float) -> None:
        with contextlib.suppress(OSError):
            select.select([self._wakeup], [], [], max(0.0, timeout_s))
            os.read(self._wakeup, 4096)

    def _start(self, child: Child) -> None:
        pid = os.fork()
        if pid == 0:
            _become_node(names.node_name(child.name, self._host), self._config)
        child.began(pid)

    def _reap(self) -> None:
        for child in self._children:
            if child.pid == 0:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid == 0:
                continue
            child.pid = 0
            code = os.waitstatus_to_exitcode(status)
            if self._stopping or child.leaving:
                continue
            if code == 0:
                # An operator's `celery control shutdown`: the node stays away until the next start of the supervisor.
                logger.warning(
                    "node %s was shut down by a remote command and is not restarted", child.name
                )
                child.start_at = math.inf
                continue
            # Only here, because an end that was asked for does not make later pauses longer.
            pause_s = child.ended(time.monotonic() - child.started)
            how, ends = describe_exit(code), child.backoff.failures
            logger.error("node %s %s; starting it again in %.1f s", child.name, how, pause_s)
            if ends >= REPORT_AFTER:
                self._report(child, f"its node keeps ending: {how}, {ends} times", pause_s)

    def _report(self, child: Child, problem: str, pause_s: float) -> None:
        """Publishes a worker's status for ``/health``, because its node cannot."""
        if child.name == HOUSEKEEPING:
            return
        status = WorkerStatus(WorkerState.UNHEALTHY, problem)
        name, ttl_s = names.node_name(child.name, self._host), pause_s + self._config.lease_s
        try:
            self._registry.fleet.publish_status(child.name, status, node=name, ttl_s=ttl_s)
        except RedisUnavailable as error:
            logger.warning("worker status not published: %s", error)

    def _end_all(self) -> None:
        self._signal(signal.SIGTERM)
        until = time.monotonic() + self._config.shutdown_grace_s + KILL_AFTER_S
        while self._alive() and time.monotonic() < until:
            self._sleep(0.5)
            self._reap()
        for child in self._alive():
            logger.warning("node %s did not end, killing it", child.name)
        self._signal(signal.SIGKILL)
        while self._alive():
            self._sleep(0.1)
            self._reap()

    def _alive(self) -> list[Child]:
        return [child for child in self._children if child.pid]

    def _signal(self, signum: signal.Signals) -> None:
        for child in self._alive():
            os.kill(child.pid, signum)


def _same(old: WorkerSpec | None, new: WorkerSpec | None) -> bool:
    """Whether the node can stay. It does not depend on its worker's source, key and drain, and the node of a pulling
    worker applies a new capacity by itself.
    """
    if old is not None and new is not None:
        capacity = new.capacity if old.pulls else old.capacity
        old = replace(
            old,
            source=new.source,
            capacity=capacity,
            key_digest=new.key_digest,
            draining=new.draining,
            stopping=new.stopping,
        )
    return old == new


def _become_node(name: str, config: Settings) -> None:
    """Runs an ordinary Celery worker in the forked child. Does not return."""
    code: int = Exit.FAILED
    try:
        signal.set_wakeup_fd(-1)
        for signum in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGCHLD,
            signal.SIGHUP,
            signal.SIGQUIT,
        ):
            signal.signal(signum, signal.SIG_DFL)
        die_with_parent()
        threading.current_thread().name = name
        log.configure(config.log_level, names.worker_of(name), config.log_format)
        worker = app.Worker(
            hostname=name,
            loglevel=config.log_level,
            without_gossip=True,
            without_mingle=True,
            heartbeat_interval=HEARTBEAT_S,
            quiet=True,
        )
        worker.start()
        code = worker.exitcode or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else Exit.FAILED
    except BaseException:
        logger.exception("node %s ended", name)
    finally:
        # Not sys.exit: that would run the exit handlers of the supervisor, and wait for threads that hold a
        # request to a worker.
        logging.shutdown()
        os._exit(code)
