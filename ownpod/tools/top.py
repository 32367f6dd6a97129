"""``ownpod top``: a live screen of all endpoints, workers, hosts and devices, read through the API."""

import time
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ownpod.tools import tables
from ownpod.tools.client import Client
from ownpod.tools.devices import DEVICE_COLUMNS, HOST_COLUMNS, device_rows, host_rows
from ownpod.tools.health import (
    MANAGED_COLUMNS,
    WORKER_COLUMNS,
    failure_lines,
    front_problem,
    healthy_workers,
    managed_rows,
    worker_rows,
)
from ownpod.tools.remote import print_json, remote

ENDPOINT_COLUMNS = (
    "ENDPOINT",
    "TYPE",
    "WAITING",
    "RUNNING",
    "PER S",
    "COMPLETED",
    "FAILED",
    "WORKERS",
)

LOG_LINES = 5
"""Number of last lines of a worker that did not start; `ownpod health` has more."""


@click.command()
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.2),
    default=1.0,
    show_default=True,
    help="Seconds between two updates.",
)
@click.option("--count", type=click.IntRange(1), help="End after this many updates.")
@remote
def top(client: Client, *, every_s: float, count: int | None, as_json: bool) -> None:
    """Show all endpoints, workers, hosts and devices, live.

    For each endpoint: running jobs, waiting jobs, and ended jobs per second; for a load-balanced
    one (type LB) requests that are open, that wait, and requests per second. The JSON has the
    endpoints; `ownpod gpus list --json` has the devices.
    """
    poller = Poller(client)
    updates = 0
    console = Console()
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            endpoints = poller.poll()
            updates += 1
            if as_json:
                print_json(endpoints)
            else:
                live.update(screen(endpoints, client.agents()), refresh=console.is_terminal)
            if count is not None and updates >= count:
                break
            time.sleep(every_s)


class Poller:
    """Polls ``/health`` of all endpoints, and computes the rate of ended jobs, or of requests, between two polls."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._before: dict[str, tuple[float, int]] = {}
        """Of each endpoint's last poll: monotonic seconds, and the number of ended jobs or of requests."""

    def poll(self) -> dict[str, Any]:
        """The answer of ``/health`` for each endpoint id, with ``perSecond`` added."""
        endpoints = {}
        for name in self._client.endpoints():
            self._client.endpoint = name
            health = self._client.call("GET", "/health")
            now = time.monotonic()
            ended = _ended(health)
            then, earlier = self._before.get(name, (now, ended))
            self._before[name] = now, ended
            # The total of requests is less than before when a front has ended.
            grown = max(0, ended - earlier)
            health["perSecond"] = grown / (now - then) if now > then else 0.0
            endpoints[name] = health
        return endpoints


def _totals(health: dict[str, Any]) -> tuple[object, object]:
    """Completed and failed jobs. Requests leave no record of their end."""
    if "front" in health["ownpod"]:
        return "", ""
    return health["jobs"]["completed"], health["jobs"]["failed"]


def _ended(health: dict[str, Any]) -> int:
    front = health.get("ownpod", {}).get("front")
    if front is not None:
        return int(front["total"])
    return int(health["jobs"]["completed"] + health["jobs"]["failed"])


def screen(endpoints: dict[str, Any], hosts: list[dict[str, Any]]) -> RenderableType:
    """The tables, from answers of ``/health`` by endpoint and of ``/agents``."""
    rows = [
        (
            name,
            health["ownpod"].get("type", "QB"),
            health["jobs"]["inQueue"],
            health["jobs"]["inProgress"],
            f"{health['perSecond']:.1f}",
            *_totals(health),
            f"{healthy_workers(health)}/{len(health['ownpod']['workers'])}",
        )
        for name, health in endpoints.items()
    ]
    workers = [(name, *row) for name, health in endpoints.items() for row in worker_rows(health)]
    managed = [(name, *row) for name, health in endpoints.items() for row in managed_rows(health)]
    parts: list[RenderableType] = [
        tables.make(ENDPOINT_COLUMNS, rows),
        Text(),
        tables.make(("ENDPOINT", *WORKER_COLUMNS), workers),
    ]
    # Most installations start their workers themselves, and have none of these.
    for columns, more in (
        (("ENDPOINT", *MANAGED_COLUMNS), managed),
        (HOST_COLUMNS, list(host_rows(hosts))),
        (DEVICE_COLUMNS, list(device_rows(hosts))),
    ):
        if more:
            parts += [Text(), tables.make(columns, more)]
    for name, health in endpoints.items():
        if paused := health["ownpod"].get("paused"):
            parts += [Text(), Text(f"{name}: {paused}")]
        if problem := front_problem(health):
            parts += [Text(), Text(f"{name}: {problem}")]
        lines = list(failure_lines(health))
        if lines:
            parts += [Text(), Text(f"{name}: " + "\n".join(lines[:1] + lines[1:][-LOG_LINES:]))]
    return Group(*parts)
