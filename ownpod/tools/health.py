"""``ownpod health``: an endpoint's jobs and workers, read through the API; and the workers' tables, also for ``top``."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from ownpod.rules.balanced_states import busy_text
from ownpod.rules.managed_states import failure_in_words
from ownpod.tools import tables
from ownpod.tools.client import ApiError, ApiRefused, Client
from ownpod.tools.remote import print_json, remote

WORKER_COLUMNS = ("WORKER", "STATE", "BUSY", "JOB", "REASON")
HEALTHY = ("ready", "busy")
"""States of workers that take jobs or requests, or run one."""

MANAGED_COLUMNS = ("WORKER", "PHASE", "FOR", "DEVICES", "REASON")


@click.command()
@remote
def health(client: Client, *, as_json: bool) -> None:
    """Show an endpoint's jobs and workers. Without -e it is local-ep, or the only endpoint. The exit code is 1 if no worker is
    healthy.
    """
    source = click.get_current_context().get_parameter_source("endpoint")
    if source is ParameterSource.DEFAULT:
        client.endpoint = _default(client)
    record = client.call("GET", "/health")
    if as_json:
        print_json(record)
    else:
        click.echo(f"{client.endpoint}: {counts_text(record)}")
        if problem := front_problem(record):
            click.echo(problem)
        if paused := record["ownpod"].get("paused"):
            click.echo(paused)
        tables.show(WORKER_COLUMNS, worker_rows(record))
        if managed := list(managed_rows(record)):
            click.echo()
            tables.show(MANAGED_COLUMNS, managed)
        for line in failure_lines(record):
            click.echo(line)
    if not healthy_workers(record):
        sys.exit(1)


def _default(client: Client) -> str:
    """The endpoint where none was named. Raises: ApiError."""
    try:
        names = client.endpoints()
    except ApiRefused:
        # A key of some other endpoint may list none.
        return client.endpoint
    if client.endpoint in names or not names:
        return client.endpoint
    if len(names) > 1:
        raise ApiError(f"-e/--endpoint: must name an endpoint, one of {', '.join(sorted(names))}")
    return names[0]


def counts_text(health: dict[str, Any]) -> str:
    """The numbers of jobs, or of a load-balanced endpoint's requests, in an answer of ``/health``."""
    front = health["ownpod"].get("front")
    if front is not None:
        return ", ".join(f"{name} {front[name]}" for name in ("waiting", "open", "total"))
    return ", ".join(f"{name} {count}" for name, count in health["jobs"].items())


def front_problem(health: dict[str, Any]) -> str:
    """Why no request reaches a load-balanced endpoint, from an answer of ``/health``; "": nothing is known."""
    front = health["ownpod"].get("front") or {}
    return str(front.get("problem") or "")


def healthy_workers(health: dict[str, Any]) -> int:
    """The number of workers that take jobs or requests, or run one, in an answer of ``/health``."""
    return sum(worker["state"] in HEALTHY for worker in health["ownpod"]["workers"])


def worker_rows(health: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """Rows for :data:`WORKER_COLUMNS`, from an answer of ``/health``."""
    for worker in health["ownpod"]["workers"]:
        busy = busy_text(worker["running"] + worker["held"], worker["capacity"])
        jobs = ", ".join(worker["jobs"])
        yield worker["id"], worker["state"], busy, jobs, worker["reason"]


def managed_rows(health: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """Rows for :data:`MANAGED_COLUMNS`, from an answer of ``/health``."""
    for worker in _managed(health)["workers"]:
        since_ms = worker["readyAt"] or worker["startedAt"] or worker["createdAt"]
        devices = [f"{worker['host']}/{device}" for device in worker["devices"]]
        where = " ".join(devices) or worker["host"]
        yield worker["id"], worker["phase"], tables.ago(since_ms), where, worker["reason"]


@dataclass(frozen=True)
class FailedStarts:
    """The failed starts in an answer of ``/health``, see :class:`ownpod.rules.managed_states.StartFailures`."""

    count: int
    pause_s: float
    reason: str
    exit_code: int | None
    worker: str
    log: str
    release: str = ""


def failure_lines(health: dict[str, Any]) -> Iterator[str]:
    """Why the endpoint's workers do not start, and the last output of the last one; from an answer of ``/health``."""
    found = _managed(health)["failures"]
    if found is not None:
        failed = FailedStarts(
            *(found["count"], found["pauseSeconds"], found["reason"], found["exitCode"]),
            *(found["worker"], "\n".join(found["log"])),
        )
        yield failure_in_words(failed)
        yield from (f"  {line}" for line in found["log"])


def _managed(health: dict[str, Any]) -> dict[str, Any]:
    # An API of version 0.1 manages no workers.
    found: dict[str, Any] = health["ownpod"].get("managed") or {"workers": [], "failures": None}
    return found
