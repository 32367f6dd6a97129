"""``ownpod health``: an endpoint's jobs and workers, read through the API; and the workers' table, also for ``top``."""

import sys
from collections.abc import Iterator
from typing import Any

import click

from ownpod.tools import tables
from ownpod.tools.client import Client
from ownpod.tools.remote import print_json, remote

WORKER_COLUMNS = ("WORKER", "STATE", "BUSY", "JOB", "REASON")


@click.command()
@remote
def health(client: Client, *, as_json: bool) -> None:
    """Show an endpoint's jobs and workers. The exit code is 1 if no worker is healthy."""
    record = client.call("GET", "/health")
    if as_json:
        print_json(record)
    else:
        jobs = ", ".join(f"{name} {count}" for name, count in record["jobs"].items())
        click.echo(f"{client.endpoint}: {jobs}")
        tables.show(WORKER_COLUMNS, worker_rows(record))
    if not healthy_workers(record):
        sys.exit(1)


def healthy_workers(health: dict[str, Any]) -> int:
    """The number of workers that take jobs, in an answer of ``/health``."""
    workers = health["workers"]
    return int(workers["ready"] + workers["running"])


def worker_rows(health: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """Rows for :data:`WORKER_COLUMNS`, from an answer of ``/health``."""
    for worker in health["ownpod"]["workers"]:
        busy = f"{worker['running'] + worker['held']}/{worker['capacity']}"
        jobs = ", ".join(worker["jobs"])
        yield worker["id"], worker["state"], busy, jobs, worker["reason"]
