"""The managed workers in the output of ``ownpod workers list``."""

from collections.abc import Iterator

import click

from ownpod.rules.managed import ManagedWorker
from ownpod.store.managed import Managed
from ownpod.tools import tables

COLUMNS = ("WORKER", "ENDPOINT", "PHASE", "FOR", "DEVICES", "REASON")


def show_managed(managed: Managed) -> None:
    """Prints a table of the managed workers, those that failed within the last hour included; nothing if there are none."""
    rows = [*map(_cells, _shown(managed))]
    if rows:
        click.echo()
        tables.show(COLUMNS, rows)


def _shown(managed: Managed) -> Iterator[ManagedWorker]:
    yield from managed.list()
    yield from (worker for worker in managed.recent() if worker.failed)


def _cells(worker: ManagedWorker) -> tuple[object, ...]:
    since_ms = (
        worker.stopped_ms
        or worker.ready_ms
        or worker.started_ms
        or worker.placed_ms
        or worker.created_ms
    )
    devices = " ".join(f"{worker.host}/{device}" for device in worker.devices) or worker.host
    reason = worker.reason
    if worker.exit_code is not None:
        reason = f"exit code {worker.exit_code}: {reason}".removesuffix(": ")
    return (
        *(worker.id, worker.endpoint, worker.phase, tables.ago(since_ms)),
        *(devices, reason[:120]),
    )
