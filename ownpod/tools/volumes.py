"""``ownpod volumes``: the volumes of all hosts, and the endpoints that use them."""

from typing import Any

import click

from ownpod.rules.devices import gigabytes
from ownpod.rules.hosts import host_state
from ownpod.rules.volumes import ANY_NETWORK, describe_volume
from ownpod.tools import hosts, tables
from ownpod.tools.remote import print_json

NEW = "(new network volumes)"
"""The name of the directory in which a host makes network volumes, in the table."""

COLUMNS = ("HOST", "NAME", "KIND", "SOURCE", "FREE", "STATE", "WORKERS", "PROBLEM")


@click.command()
@hosts.json_option
def volumes(*, as_json: bool) -> None:
    """List the volumes that hosts offer to managed workers, OWNPOD_VOLUMES of their agents.

    WORKERS is the number of the host's workers that have the volume. Uses the Redis of this host's settings.
    """
    with hosts.opened() as (stored, managed):
        found = stored.agents()
        workers = managed.list()
    rows: list[dict[str, Any]] = [
        {
            "host": agent.host,
            **describe_volume(volume),
            "state": host_state(agent, sum(worker.host == agent.host for worker in workers)),
            "workers": sum(w.host == agent.host and volume.name in w.volumes for w in workers),
        }
        for agent in found
        for volume in agent.volumes
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no agent offers a volume; see OWNPOD_VOLUMES", err=True)
    tables.show(COLUMNS, map(_cells, rows))


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    free = ""
    if row["totalMb"]:
        free = f"{gigabytes(row['freeMb'])} of {gigabytes(row['totalMb'])} GB"
    return (
        *(
            row["host"],
            NEW if row["name"] == ANY_NETWORK else row["name"],
            row["kind"],
            row["source"],
            free,
            row["state"],
        ),
        *(row["workers"], row["problem"]),
    )
