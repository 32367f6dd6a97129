"""Sub-commands of ``celery -A ownpod``: jobs, retry, cancel, workers. Entry points in pyproject.toml.

Every ``celery`` command of any application in this environment loads this module. Imports that cost time are
therefore inside the commands.
"""

from typing import TYPE_CHECKING, Any

import click
from celery.bin.base import CeleryCommand

from ownpod.rules.jobs import JobStatus, new_job_id

if TYPE_CHECKING:
    from ownpod.registry import Registry
    from ownpod.store.store import Store


def _parts(ctx: click.Context) -> tuple["Registry", "Store"]:
    """The registry and the job store. Raises: click.UsageError, if ``-A`` names another application."""
    if ctx.obj.app.main != "ownpod":
        raise click.UsageError("this command is OwnPod's: use celery -A ownpod ...")
    return open_parts("ownpod-celery")


def open_parts(client_name: str) -> tuple["Registry", "Store"]:
    """The registry and the job store, in the Redis that the settings name. Raises: ConfigurationError."""
    from ownpod import settings
    from ownpod.celery import open_store
    from ownpod.configuration import load_endpoints
    from ownpod.registry import Registry
    from ownpod.store.fleet import Fleet

    config = settings.current()
    store = open_store(config, client_name=client_name)
    return Registry(load_endpoints(config), Fleet(store.client), config), store


class _Command(CeleryCommand):  # type: ignore[misc]
    """Prints one line for an error of OwnPod, instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from ownpod.errors import OwnPodError

        try:
            return super().invoke(ctx)
        except OwnPodError as error:
            raise click.ClickException(error.message) from None


def _endpoints(registry: "Registry", endpoint: str | None) -> list[str]:
    return sorted(registry.endpoints) if endpoint is None else [registry.endpoint(endpoint).id]


@click.group()
def jobs() -> None:
    """OwnPod's jobs: list them, show one."""


@jobs.command(cls=_Command, name="list")
@click.option("-e", "--endpoint", help="Only jobs of this endpoint.")
@click.option(
    "-s",
    "--status",
    help="Only jobs in this state.",
    type=click.Choice([status.value for status in JobStatus], case_sensitive=False),
)
@click.option("-n", "--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.pass_context
def list_jobs(ctx: click.Context, endpoint: str | None, status: str | None, limit: int) -> None:
    """List the last jobs, the newest first."""
    from ownpod.tools import tables

    registry, store = _parts(ctx)
    listing = store.listing
    wanted = None if status is None else JobStatus(status.upper())
    last = [
        listed.job
        for name in _endpoints(registry, endpoint)
        for listed in listing.recent(name, status=wanted, before=None, limit=limit, logs=False)[0]
    ]
    last.sort(key=lambda job: -job.created_ms)
    tables.show(
        ("JOB", "ENDPOINT", "STATUS", "AGE", "DELAY", "EXECUTION", "WORKER", "RETRIES", "ERROR"),
        (
            (
                job.id,
                job.endpoint,
                job.status,
                tables.ago(job.created_ms),
                tables.seconds(job.answer().get("delayTime")),
                tables.seconds(job.answer().get("executionTime")),
                job.worker_id,
                job.retries or None,
                (job.error or "")[:60],
            )
            for job in last[:limit]
        ),
    )


@jobs.command(cls=_Command, name="show")
@click.argument("job_id")
@click.pass_context
def show_job(ctx: click.Context, job_id: str) -> None:
    """Show a job's whole record, as JSON."""
    import json

    _, store = _parts(ctx)
    click.echo(json.dumps(store.listing.details(job_id), indent=2))


@click.command(cls=_Command)
@click.argument("job_ids", nargs=-1, metavar="JOB_ID...")
@click.option("--failed", is_flag=True, help="All FAILED and TIMED_OUT jobs of the endpoint.")
@click.option("-e", "--endpoint", help="The endpoint, with --failed.")
@click.pass_context
def retry(
    ctx: click.Context,
    job_ids: tuple[str, ...],
    endpoint: str | None,
    failed: bool,  # noqa: FBT001 - click
) -> None:
    """Submit FAILED and TIMED_OUT jobs of OwnPod again; print the old and new ids."""
    from ownpod import settings

    if failed == bool(job_ids) or (failed and endpoint is None):
        raise click.UsageError("give job ids, or --failed --endpoint <endpoint>")
    registry, store = _parts(ctx)
    listing = store.listing
    same_id = settings.current().retry_same_id
    if failed:
        name = registry.endpoint(str(endpoint)).id
        states = (JobStatus.FAILED, JobStatus.TIMED_OUT)
        ids = [
            listed.job.id
            for state in states
            for listed in listing.recent(
                name, status=state, before=None, limit=100_000, logs=False
            )[0]
        ]
        job_ids = tuple(job_id for job_id in ids if same_id or not store.jobs.retried_as(job_id))
    for job_id in job_ids:
        new_id = job_id if same_id else new_job_id(sync=False)
        store.jobs.retry(job_id, listing.get(job_id).endpoint, new_id)
        click.echo(f"{job_id} -> {new_id}")
    if failed:
        click.echo(f"{len(job_ids)} jobs submitted again", err=True)


@click.command(cls=_Command)
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[str, ...]) -> None:
    """Cancel jobs of OwnPod, in the queue or running; print their new states."""
    from ownpod.broker.messages import notify_node

    registry, store = _parts(ctx)
    listing = store.listing
    for job_id in job_ids:
        job = listing.get(job_id)
        state = store.jobs.cancel(job_id, job.endpoint, reason="cancelled with `celery cancel`")
        node = registry.fleet.node_of(job.worker_id) if job.worker_id else None
        if node is not None:
            notify_node(ctx.obj.app, node)
        click.echo(f"{job_id} {state}")


@click.command(cls=_Command)
@click.pass_context
def workers(ctx: click.Context) -> None:
    """List OwnPod's RunPod workers and their states."""
    show_workers(*_parts(ctx))


def show_workers(registry: "Registry", store: "Store") -> None:
    """Prints a table of all workers of all endpoints."""
    from ownpod.rules.balanced_states import BalancedView, busy_text
    from ownpod.rules.balancing import RouteReading
    from ownpod.rules.fronts import summed
    from ownpod.rules.managed_states import ManagedView, shown
    from ownpod.store.fronts import Fronts
    from ownpod.store.managed import Managed
    from ownpod.tools import tables

    view = ManagedView(Managed(store.client).list())
    records = view.by_id()
    rows: list[tuple[object, ...]] = []
    fronts, published = Fronts(store.client).living()
    readings = summed(published.values())
    for endpoint in registry.endpoints.values():
        running = list(store.figures.counts(endpoint.id)[1].values())
        statuses = registry.fleet.statuses(endpoint.workers)
        reading = readings.get(endpoint.id, RouteReading())
        found = BalancedView(len(fronts), reading, statuses, view)
        for worker in endpoint.workers:
            if endpoint.is_balanced:
                status, taken = found.status(worker), found.server(worker.id).open
            else:
                status = shown(statuses[worker.id], records.get(worker.id), view)
                taken = running.count(worker.id) + status.lingering
            busy = busy_text(taken, worker.capacity)
            rows.append((worker.id, endpoint.id, worker.url, status.state, busy, status.reason))
    for entry in registry.left_out():
        rows.append((entry.id, entry.endpoint or "", "", "left out", "", entry.reason))  # noqa: PERF401
    tables.show(("WORKER", "ENDPOINT", "URL", "STATE", "BUSY", "REASON"), rows)
