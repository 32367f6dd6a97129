"""The managed workers in the output of ``ownpod workers list``."""

from collections.abc import Iterator

import click

from ownpod.registry import Registry
from ownpod.rules.managed import LOG_LINES, ManagedWorker
from ownpod.rules.managed_states import ManagedView, failure_in_words, with_exit_code
from ownpod.store.managed import Managed
from ownpod.tools import tables

COLUMNS = ("WORKER", "ENDPOINT", "PHASE", "FOR", "DEVICES", "REASON")


def show_managed(managed: Managed, registry: Registry) -> None:
    """Prints a table of the managed workers, the last ones that ended badly included, which endpoints are paused, and why
    workers do not start; nothing if there are none.
    """
    rows, now_ms = [*map(_cells, _shown(managed))], managed.now_ms()
    if rows:
        click.echo()
        tables.show(COLUMNS, rows)
    for endpoint in registry.endpoints.values():
        if endpoint.managed is None:
            continue
        if pause := endpoint.pause_at(now_ms):
            click.echo(f"\n{endpoint.id}: the endpoint is paused: {pause.reason}")
        failures = managed.failures(endpoint.id)
        current = managed.rolled_out(endpoint.id).rollout.current
        release = current.id if current else endpoint.managed.release
        if failures.release == release and ManagedView((), failures).failing:
            click.echo(f"\n{endpoint.id}: {failure_in_words(failures)}")
            for line in failures.log.splitlines()[-LOG_LINES:]:
                click.echo(f"  {line}")


def _shown(managed: Managed) -> Iterator[ManagedWorker]:
    yield from managed.list()
    yield from managed.crashed()


def _cells(worker: ManagedWorker) -> tuple[object, ...]:
    since_ms = (
        worker.stopped_ms
        or worker.ready_ms
        or worker.started_ms
        or worker.placed_ms
        or worker.created_ms
    )
    devices = " ".join(f"{worker.host}/{device}" for device in worker.devices) or worker.host
    reason = with_exit_code(worker.reason, worker.exit_code)
    return (
        *(worker.id, worker.endpoint, worker.phase, tables.ago(since_ms)),
        *(devices, reason),
    )
