"""``ownpod gpus``: the devices of all hosts, and their reservations."""

import re
from typing import Any

import click

from ownpod.rules.hosts import describe_device
from ownpod.tools import hosts, tables
from ownpod.tools.devices import figures
from ownpod.tools.remote import print_json

COLUMNS = (
    *("HOST", "INDEX", "NAME", "MEMORY", "LOAD", "TEMP", "POOLS"),
    *("STATE", "WORKERS", "REASON", "ID"),
)

UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}

LONGEST_S = 365 * 86_400


def parse_duration(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """The seconds of ``90s``, ``30m``, ``2h``, ``1d`` or a number of seconds. Raises: click.BadParameter."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|min|h|d|)", value)
    duration_s = float(found[1]) * UNITS_S[found[2]] if found else 0.0
    if not 1 <= duration_s <= LONGEST_S:
        raise click.BadParameter(
            f"{value!r} must be a time from 1s to 365d, like 90s, 30m, 2h or 1d"
        )
    return duration_s


@click.group()
def gpus() -> None:
    """List the devices of all hosts, and keep them free of workers.

    DEVICE is `<host>/<id>`, or the id, the beginning of the id or the index alone where it is
    unique. The commands use the Redis of this host's settings.
    """


@gpus.command(name="list")
@hosts.json_option
def list_gpus(*, as_json: bool) -> None:
    """List the devices of all hosts: GPUs, and stand-ins for GPUs.

    STATE is free, busy (workers hold it), reserved, unusable, draining or silent (its host is).
    """
    with hosts.opened() as (stored, _):
        found = stored.agents()
        holds = stored.all_holds()
    rows = [
        {"host": agent.host} | describe_device(agent, device, holds.get(agent.host, []))
        for agent in found
        for device in agent.devices
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no agent offers a device; see OWNPOD_DEVICES", err=True)
    tables.show(COLUMNS, map(_cells, rows))


@gpus.command()
@click.argument("device")
@click.option(
    "--for",
    "for_s",
    metavar="TIME",
    callback=parse_duration,
    help="End after this time, like 2h; by default: never.",
)
@click.option("--reason", default="", help="Why, for `ownpod gpus list` and jobs that wait.")
@click.option(
    "--drain", is_flag=True, help="Drain the workers that hold it: they end after their jobs."
)
def reserve(device: str, for_s: float | None, reason: str, *, drain: bool) -> None:
    """Start no more workers on a device, until `ownpod gpus release`.

    \b
      ownpod gpus reserve 0 --for 2h --drain
      ownpod gpus reserve gpu-1/GPU-5f3e2a1c --reason "new fan"
    """  # noqa: D301 - click's mark for lines that it must not wrap
    with hosts.opened() as (stored, managed):
        host, found = hosts.device(stored, device)
        stored.reserve(host, found.id, reason, for_s)
        # After the reservation, because a worker may have been placed until then.
        holds = stored.all_holds().get(host, [])
        workers = [hold.worker for hold in holds if hold.device == found.id and hold.worker]
        for worker in workers if drain else ():
            managed.drain(worker, reason or "its device is reserved")
    click.echo(f"reserved {host}/{found.id}")
    if workers:
        names = ", ".join(workers)
        state = "draining" if drain else "still running there, see --drain"
        click.echo(f"{state}: {names}")


@gpus.command()
@click.argument("device")
def release(device: str) -> None:
    """End the reservation of a device."""
    with hosts.opened() as (stored, _):
        host, found = hosts.device(stored, device)
        released = stored.release(host, found.id)
    click.echo(f"{'released' if released else 'was not reserved:'} {host}/{found.id}")


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        *(row["host"], row["index"], row["name"], *figures(row)),
        *(" ".join(row["pools"]), row["state"], " ".join(row["workers"])),
        *(row["reason"], row["id"]),
    )
