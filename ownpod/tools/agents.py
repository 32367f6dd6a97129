"""``ownpod agents``: the hosts that start managed workers."""

from typing import Any

import click

from ownpod.errors import BadRequest
from ownpod.rules.devices import state_of
from ownpod.rules.hosts import host_state
from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Hold
from ownpod.tools import hosts, tables
from ownpod.tools.remote import print_json

COLUMNS = ("HOST", "STATE", "ENGINE", "FREE", "WORKERS", "HEARTBEAT", "LABELS", "PROBLEM")


@click.group()
def agents() -> None:
    """List, drain, resume and remove the hosts that start managed workers.

    Each host has one agent. The commands use the Redis of this host's settings.
    """


@agents.command(name="list")
@hosts.json_option
def list_agents(*, as_json: bool) -> None:
    """List all hosts, with the number of their free devices and of their workers."""
    with hosts.opened() as (stored, managed):
        found = stored.agents()
        holds = stored.all_holds()
        placed = [worker.host for worker in managed.list()]
    rows = [_row(agent, holds.get(agent.host, []), placed.count(agent.host)) for agent in found]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no agent has run yet: `ownpod agent` starts one", err=True)
    tables.show(COLUMNS, map(_cells, rows))


@agents.command()
@click.argument("host")
def drain(host: str) -> None:
    """Start no more workers on a host. Its workers keep running, and get jobs."""
    with hosts.opened() as (stored, _):
        hosts.known(stored, host)
        stored.drain_host(host)
    click.echo(f"draining {host}; `ownpod agents resume {host}` ends that")


@agents.command()
@click.argument("host")
def resume(host: str) -> None:
    """Start workers on a drained host again."""
    with hosts.opened() as (stored, _):
        hosts.known(stored, host)
        stored.resume_host(host)
    click.echo(f"resumed {host}")


@agents.command()
@click.argument("host")
def remove(host: str) -> None:
    """Remove a host that does not come back, and free its devices.

    Its agent must have been silent for 60 s, so that its workers count as lost.
    """
    with hosts.opened() as (stored, _):
        hosts.known(stored, host)
        if not stored.remove_agent(host):
            raise BadRequest(
                f"host {host!r} has workers, or its agent runs: stop the agent, and wait "
                f"{HOST_SILENT_S:.0f} s until its workers count as lost"
            )
    click.echo(f"removed {host}")


def _row(agent: AgentInfo, holds: list[Hold], workers: int) -> dict[str, Any]:
    states = [state_of(device, agent, holds).word for device in agent.devices]
    return {
        "host": agent.host,
        "state": host_state(agent, workers),
        "engine": agent.engine,
        "devices": len(states),
        "free": states.count("free"),
        "workers": workers,
        "silentS": round(agent.silent_s, 1),
        "labels": dict(agent.labels),
        "problem": agent.problem,
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    labels = ",".join(f"{name}={value}" for name, value in row["labels"].items())
    free = f"{row['free']} of {row['devices']}"
    return (
        *(row["host"], row["state"], row["engine"], free, row["workers"]),
        *(f"{row['silentS']:.0f} s ago", labels, row["problem"]),
    )
