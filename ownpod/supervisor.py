"""The dispatcher: a supervisor with one Celery node for each worker URL, and one for housekeeping.

The nodes are forked from this process after everything is imported, which costs a quarter of the
memory and a twentieth of the CPU of starting each by itself. A node that ends is restarted: at
once if it has lived for some seconds, else after growing pauses.
"""

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from types import FrameType

# Everything a node needs, imported before the fork.
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
from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError, RedisUnavailable
from ownpod.node import node
from ownpod.processes import Backoff, describe_exit, die_with_parent
from ownpod.registry import CACHE_TTL_S, Registry
from ownpod.rules.endpoints import HOUSEKEEPING, WorkerSpec
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.settings import Settings

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
    node,
)

TELL_AFTER = 3
"""Early ends of a node in a row after which ``/health`` names them."""

HEARTBEAT_S = 5.0
"""Between a node's heartbeats, by which Flower knows that it is there; Celery's own are 2 s apart."""

STARTS, STARTS_EVERY_S = 8, 0.5
"""Nodes that are forked within so many s at most: many workers that come at once must not load the host."""

KILL_AFTER_S = 5.0
"""After the grace: what has not ended by then is killed."""


@dataclass
class _Child:
    name: str
    spec: WorkerSpec | None = None
    """What it was started for; None: housekeeping."""
    leaving: bool = False
    """It was told to finish what it has and end, as its worker was removed or changed."""
    pid: int = 0
    started: float = 0.0
    start_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)


def to_start(children: list[_Child], now: float) -> list[_Child]:
    """Children whose node is to be forked now, at most :data:`STARTS`."""
    return [child for child in children if child.pid == 0 and child.start_at <= now][:STARTS]


class Dispatcher:
    """Keeps one node alive for each worker; ends with SIGTERM or SIGINT, draining.

    SIGHUP reads ``workers.yaml`` again. Workers that are added, changed or removed are seen within
    :data:`ownpod.registry.CACHE_TTL_S`; a node that must go finishes what it has.
    """

    def __init__(self, config: Settings, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._host = socket.gethostname()
        self._children = [_Child(HOUSEKEEPING)]
        self._wakeup, self._waker = os.pipe()
        self._stopping = False
        self._reloading = False

    def run(self) -> None:
        """Until it is told to stop and all nodes have ended."""
        # A signal writes to the pipe, so that waiting on it is interrupted in every case.
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
        """One child for each worker, started for the worker as it is now."""
        wanted = {worker.id: worker for worker in self._registry.workers()}
        for child in self._children:
            spec = wanted.pop(child.name, None)
            if child.name == HOUSEKEEPING or _same(child.spec, spec):
                continue
            what = "removed" if spec is None else "changed"
            logger.info("worker %s was %s; its node ends when its jobs have", child.name, what)
            child.spec, child.leaving = spec, True
            if child.pid:
                os.kill(child.pid, node.FINISH)
        for spec in wanted.values():
            self._children.append(_Child(spec.id, spec))
        for child in [child for child in self._children if child.leaving and not child.pid]:
            child.leaving, child.start_at = False, 0.0
            if child.spec is None:
                self._children.remove(child)

    def _reload_soon(self, _signum: int, _frame: FrameType | None) -> None:
        self._reloading = True

    def _reload(self) -> None:
        self._reloading = False
        try:
            self._registry.reload(load_endpoints(self._config))
        except ConfigurationError as error:
            logger.error("the old configuration stays: %s", error)  # noqa: TRY400 - one line
        else:
            logger.info("configuration read again")

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _sleep(self, timeout_s: float) -> None:
        with contextlib.suppress(OSError):
            select.select([self._wakeup], [], [], max(0.0, timeout_s))
            os.read(self._wakeup, 4096)

    def _start(self, child: _Child) -> None:
        pid = os.fork()
        if pid == 0:
            _become_node(names.node_name(child.name, self._host), self._config)
        child.pid, child.started, child.start_at = pid, time.monotonic(), float("inf")

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
                # Somebody's `celery control shutdown`: it stays away until the next start.
                logger.warning("node %s was shut down and stays so", child.name)
                child.start_at = float("inf")
                continue
            pause_s = child.backoff.next_s(time.monotonic() - child.started)
            child.start_at = time.monotonic() + pause_s
            how = describe_exit(code)
            logger.error("node %s %s; starting it again in %.1f s", child.name, how, pause_s)
            if child.backoff.failures >= TELL_AFTER:
                self._tell(
                    child, f"its node keeps ending: {how}, {child.backoff.failures} times", pause_s
                )

    def _tell(self, child: _Child, problem: str, pause_s: float) -> None:
        """Says in ``/health`` how a worker's node is, as it cannot say so itself."""
        if child.name == HOUSEKEEPING:
            return
        status = WorkerStatus(WorkerState.UNHEALTHY, problem)
        name, ttl_s = names.node_name(child.name, self._host), pause_s + self._config.lease_s
        try:
            self._registry.publish_status(child.name, status, node=name, ttl_s=ttl_s)
        except RedisUnavailable as error:
            logger.warning("not announced: %s", error)

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

    def _alive(self) -> list[_Child]:
        return [child for child in self._children if child.pid]

    def _signal(self, signum: signal.Signals) -> None:
        for child in self._alive():
            os.kill(child.pid, signum)


def _same(old: WorkerSpec | None, new: WorkerSpec | None) -> bool:
    """Whether the node can stay: it does not depend on where its worker comes from, and the node of a pulling
    worker follows the capacity by itself.
    """
    if old is not None and new is not None:
        old = replace(old, source=new.source, capacity=new.capacity if old.pulls else old.capacity)
    return old == new


def _become_node(name: str, config: Settings) -> None:
    """In the forked child: one ordinary Celery worker. Does not return."""
    code = 1
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
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        logger.exception("node %s ended", name)
    finally:
        # Not sys.exit: that would run what the dispatcher has set up for its own end, and wait
        # for threads that hold a request to a worker.
        logging.shutdown()
        os._exit(code)
