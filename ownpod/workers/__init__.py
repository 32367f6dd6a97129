"""The drivers: one interface to a worker, and one implementation for each kind of worker.

Imports the rules, the settings and ``store.retry``, and neither redis-py nor Celery: what a driver
needs from Redis is an argument. A node uses one driver for its worker.
"""

from collections.abc import Callable, Mapping

from ownpod.errors import ConfigurationError
from ownpod.rules.endpoints import WorkerKind, WorkerSpec
from ownpod.rules.templates import DEFAULT_INIT_TIMEOUT_S
from ownpod.settings import Settings
from ownpod.workers.cloud import CloudWorker
from ownpod.workers.container import ContainerWorker
from ownpod.workers.driver import (
    Exchange,
    OfferQueue,
    Place,
    Purse,
    RunListener,
    Subscription,
    TaskQueue,
    Worker,
)
from ownpod.workers.pull import PullWorker
from ownpod.workers.push import PushWorker

__all__ = [
    "Exchange",
    "OfferQueue",
    "Place",
    "Purse",
    "RunListener",
    "Subscription",
    "TaskQueue",
    "Worker",
    "driver_for",
]

MakeExchange = Callable[[], Exchange]


def _push(spec: WorkerSpec, settings: Settings, _exchange: MakeExchange | None) -> Worker:
    return PushWorker(spec, settings)


def _pull(spec: WorkerSpec, settings: Settings, exchange: MakeExchange | None) -> Worker:
    if exchange is None:
        raise ConfigurationError(f"worker {spec.id}: a worker that pulls is driven by a node only")
    if spec.is_managed:
        # Its agent limits the time of its start.
        gone_s, await_s = settings.worker_gone_s, float(DEFAULT_INIT_TIMEOUT_S)
        return PullWorker(spec, exchange(), gone_s=gone_s, await_s=await_s)
    return PullWorker(spec, exchange(), gone_s=settings.worker_gone_s)


def _container(spec: WorkerSpec, _settings: Settings, exchange: MakeExchange | None) -> Worker:
    made = None if exchange is None else exchange()
    if made is None or made.tasks is None:
        raise ConfigurationError(f"worker {spec.id}: a one-off task is driven by a node only")
    return ContainerWorker(spec, made.tasks, made.subscribe)


def _cloud(spec: WorkerSpec, settings: Settings, exchange: MakeExchange | None) -> Worker:
    made = None if exchange is None else exchange()
    if made is None or made.purse is None or spec.cloud is None:
        raise ConfigurationError(f"worker {spec.id}: a cloud worker is driven by a node only")
    return CloudWorker(spec, spec.cloud, settings, made.purse)


DRIVERS: Mapping[str, Callable[[WorkerSpec, Settings, MakeExchange | None], Worker]] = {
    WorkerKind.PUSH: _push,
    WorkerKind.PULL: _pull,
    WorkerKind.CONTAINER: _container,
    WorkerKind.CLOUD: _cloud,
}
"""The driver of each kind of worker."""


def driver_for(
    spec: WorkerSpec, settings: Settings, exchange: MakeExchange | None = None
) -> Worker:
    """The driver of a worker, by its kind.

    Args:
        spec: the worker.
        settings: time-outs and limits.
        exchange: makes what the driver of a polling worker, or of a one-off task, needs from Redis; None: neither can be driven.

    Raises:
        ConfigurationError: no driver of this kind exists, or it needs an exchange.
    """
    if spec.kind not in DRIVERS:
        known = ", ".join(map(str, DRIVERS))
        raise ConfigurationError(
            f"worker {spec.id}: no driver of kind {str(spec.kind)!r}, only {known}"
        )
    return DRIVERS[spec.kind](spec, settings, exchange)
