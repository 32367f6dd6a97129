"""``ownpod models``: the models of all hosts."""

import contextlib
from collections.abc import Iterator
from typing import Any

import click

from ownpod.management.models import ModelCalls
from ownpod.rules.images import size_words
from ownpod.store.agents import Agents
from ownpod.store.models import Models
from ownpod.tools import hosts, tables
from ownpod.tools.remote import print_json

COLUMNS = ("MODEL", "HOST", "STATE", "SIZE", "WORKERS", "PINNED", "SOURCE", "PROBLEM")

host_option = click.option("--host", default="", help="Only on this host; by default on all.")


@click.group()
def models() -> None:
    """List, fetch, remove and pin the models that hosts keep for their workers.

    The commands use the Redis of this host's settings. The agents of the hosts fetch and remove.
    """


@contextlib.contextmanager
def _opened() -> Iterator[ModelCalls]:
    from ownpod.tools.celery_commands import open_parts

    registry, _ = open_parts("ownpod-cli")
    with hosts.connected() as client:
        yield ModelCalls(Models(client), registry, Agents(client).agents)


@models.command(name="list")
@hosts.json_option
def list_models(*, as_json: bool) -> None:
    """List the models of presets and of hosts, with the progress of each host that fetches."""
    with _opened() as calls:
        found = calls.all()
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no preset has a model with a source", err=True)
    tables.show(COLUMNS, [row for model in found for row in _rows(model)])


@models.command()
@click.argument("model_id")
@host_option
def fetch(model_id: str, host: str) -> None:
    """Fetch a model before a worker needs it. `ownpod models list` shows the progress."""
    with _opened() as calls:
        asked = calls.fetch(model_id, host)
    click.echo(f"model {model_id} is being fetched on {', '.join(asked)}")


@models.command()
@click.argument("model_id")
@host_option
def remove(model_id: str, host: str) -> None:
    """Remove a model from the hosts' disks. A model that a worker has stays."""
    with _opened() as calls:
        asked = calls.remove(model_id, host)
    click.echo(
        f"model {model_id} is being removed on {', '.join(asked)}" if asked else "no host has it"
    )


@models.command()
@click.argument("model_id")
def pin(model_id: str) -> None:
    """Keep a model on the hosts that have it: it gives way to no other model."""
    with _opened() as calls:
        calls.pin(model_id, pinned=True)
    click.echo(f"pinned {model_id}; `ownpod models unpin {model_id}` ends that")


@models.command()
@click.argument("model_id")
def unpin(model_id: str) -> None:
    """Let a model give way to others again."""
    with _opened() as calls:
        calls.pin(model_id, pinned=False)
    click.echo(f"unpinned {model_id}")


def _rows(model: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    pinned = "yes" if model["pinned"] else ""
    if not model["hosts"]:
        yield model["id"], "", "not fetched", "", "", pinned, ", ".join(model["sources"]), ""
    for host in model["hosts"]:
        size = size_words(host["total"] or host["done"]) if host["total"] or host["done"] else ""
        if host["total"] and host["done"] < host["total"]:
            size = f"{size_words(host['done'])} of {size}"
        yield (
            *(model["id"], host["host"], host["state"], size, len(host["workers"]) or ""),
            *(pinned, host["source"], host["error"]),
        )
