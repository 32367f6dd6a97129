"""Makes a Celery worker process that is no worker's node one of housekeeping.

``housekeeping@<host>`` runs the sweep and sends webhooks. A process of any other name is a plain Celery worker: it
sends webhooks, and must not consume the queues of jobs.
"""

import sys
from dataclasses import dataclass
from threading import Thread
from typing import Any

from celery import signals

from ownpod.broker import names
from ownpod.broker.process import become, current
from ownpod.housekeeping.left_pins import LeftPins
from ownpod.housekeeping.recovery import Recovery
from ownpod.housekeeping.scaler import Scaler
from ownpod.housekeeping.sessions import PrivateWorkers
from ownpod.housekeeping.sweep import Sweep
from ownpod.housekeeping.unattended import Unattended
from ownpod.housekeeping.webhooks import Webhooks
from ownpod.node.signals import Prepared
from ownpod.rules.endpoints import HOUSEKEEPING
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.attended import Attended
from ownpod.store.fronts import Fronts
from ownpod.store.managed import Managed
from ownpod.store.offers import Offers
from ownpod.store.sessions import Sessions

THREADS = 16
"""Number of webhooks sent at a time, because a slow receiver must not delay the others."""


@dataclass(frozen=True)
class Housekeeping:
    """The role of a process that sends webhooks and may run the sweep."""

    webhooks: Webhooks
    threads: tuple[Thread, ...]
    """The sweep and the scaler; none in a process that only sends webhooks."""


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def prepare(sender: str, instance: Any, options: dict[str, Any], **_: Any) -> None:
    """After :func:`ownpod.node.signals.prepare`, which leaves what is no worker's node to this."""
    prepared = current(Prepared)
    if prepared is None:
        return
    queues = options.get("queues") or names.HOUSEKEEPING_QUEUE
    wanted = queues.split(",") if isinstance(queues, str) else [str(name) for name in queues]
    instance.app.amqp.queues.select(wanted)
    threads: tuple[Thread, ...] = ()
    if prepared.worker_id == HOUSEKEEPING:
        threads = (_sweep(prepared), _scaler(prepared))
        instance.app.conf.worker_concurrency = THREADS
    elif any(names.is_job_queue(name) for name in wanted):
        known = ", ".join(sorted(worker.id for worker in prepared.registry.workers()))
        sys.exit(
            f"ownpod: node {sender!r} is no worker's, so it cannot run jobs; "
            f"name it after one: -n <worker id>@%h, with one of {known}"
        )
    store = prepared.store
    webhooks = Webhooks(store.deliveries, prepared.config)
    become(Housekeeping(webhooks, threads))


def _sweep(prepared: Prepared) -> Sweep:
    config, store, registry = prepared.config, prepared.store, prepared.registry
    recovery = Recovery(store, lambda: registry.endpoints, lease_s=config.lease_s)
    offers = Offers(store.client, gone_s=config.worker_gone_s)
    pins = LeftPins(
        registry, store.queue, Managed(store.client), patience_s=max(config.lease_s / 2, 2.0)
    )
    return Sweep(
        store,
        recovery,
        offers,
        lease_s=config.lease_s,
        left_pins=pins,
        unattended=Unattended(store, Attended(store.client)),
    )


def _scaler(prepared: Prepared) -> Scaler:
    client, registry, config = prepared.store.client, prepared.registry, prepared.config
    sessions = Sessions(
        prepared.store,
        result_ttl_s=config.result_ttl_s,
        endpoints=lambda: registry.endpoints,
        hold_least_s=config.device_hold_s,
    )
    return Scaler(
        registry,
        Managed(client),
        Agents(client),
        Wakeups(client),
        fronts=Fronts(client),
        hold_s=config.device_hold_s,
        sessions=PrivateWorkers(registry, sessions),
    )


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def started(**_: Any) -> None:
    """The process consumes: the sweep and the scaler begin."""
    housekeeping = current(Housekeeping)
    for thread in () if housekeeping is None else housekeeping.threads:
        if not thread.is_alive():
            thread.start()
