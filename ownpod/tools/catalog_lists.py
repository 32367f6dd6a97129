"""``ownpod templates``, ``network-volumes``, ``registries`` and ``audit``: the rest of the catalog."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
import yaml

from ownpod.errors import BadRequest
from ownpod.management import Management, Registries, Templates, Volumes
from ownpod.management.shown import time_text
from ownpod.management.v1.templates import show_template, show_volume
from ownpod.rules.catalog import EndpointRow, RegistryRow, TemplateRow, VolumeRow
from ownpod.store.catalog import AuditEntry
from ownpod.tools import catalog, hosts, tables
from ownpod.tools.remote import print_json
from ownpod.tools.secrets import read_value, telling_of_new_key

R = TypeVar("R", TemplateRow, VolumeRow, RegistryRow)

TEMPLATES = ("ID", "NAME", "AGE", "USED BY", "IMAGE")
VOLUMES = ("ID", "NAME", "SIZE", "DATA CENTER", "AGE", "USED BY")
REGISTRIES = ("ID", "NAME", "USERNAME", "AGE", "USED BY")
AUDIT = ("TIME", "BY", "API", "ACTION", "TARGET", "CHANGE")

LARGEST_GB = 4000
"""RunPod's largest network volume."""


@click.group()
def templates() -> None:
    """List, show and delete the templates of the management APIs. Uses the Redis of this host's settings."""


@templates.command(name="list")
@hosts.json_option
def list_templates(*, as_json: bool) -> None:
    """List the templates, the newest first, with the endpoints that are bound to each."""
    _list(
        lambda management: management.templates.list(),
        lambda endpoint, row: endpoint.template_id == row.id,
        TEMPLATES,
        lambda row, used: (
            *(row.id, tables.one_line(row.name), tables.ago(row.created_ms)),
            *(used, row.container.image),
        ),
        _template if as_json else None,
    )


@templates.command(name="show")
@click.argument("template_id", metavar="ID")
@hosts.json_option
def show_one_template(template_id: str, *, as_json: bool) -> None:
    """Show a template with RunPod's names; variables without their values."""
    with catalog.opened() as management:
        shown = _template(management.templates.get(template_id))
    if as_json:
        print_json(shown)
    else:
        click.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)


@templates.command(name="delete")
@click.argument("template_id", metavar="ID")
def delete_template(template_id: str) -> None:
    """Delete a template that no endpoint is bound to."""
    _delete(lambda management: management.templates, template_id)


@click.group()
def network_volumes() -> None:
    """List, create, change and delete network volumes, which endpoints name by id. Uses the Redis of this host's settings.

    `ownpod volumes` lists the volumes that hosts offer.
    """


@network_volumes.command(name="list")
@hosts.json_option
def list_volumes(*, as_json: bool) -> None:
    """List the network volumes, the newest first, with the endpoints that have each."""
    _list(
        lambda management: management.volumes.list(),
        lambda endpoint, row: row.id in endpoint.volumes,
        VOLUMES,
        lambda row, used: (
            *(row.id, tables.one_line(row.name), f"{row.size_gb} GB"),
            *(tables.one_line(row.data_center), tables.ago(row.created_ms), used),
        ),
        show_volume if as_json else None,
    )


@network_volumes.command(name="create")
@click.argument("name")
@click.option("--size", type=click.IntRange(1, LARGEST_GB), required=True, help="Its size in GB.")
@click.option("--data-center-id", required=True, help="Label `datacenter` of its hosts.")
def create_volume(name: str, size: int, data_center_id: str) -> None:
    """Create a network volume, and print its id."""
    with catalog.opened() as management:
        made = management.volumes.create(
            lambda _snapshot, made_id: VolumeRow(made_id, name, size, data_center_id),
            catalog.caller(),
        )
    click.echo(made.row.id)


@network_volumes.command(name="update")
@click.argument("volume_id", metavar="ID")
@click.option("--name", help="Another name.")
@click.option("--size", type=click.IntRange(1, LARGEST_GB), help="A larger size in GB.")
def update_volume(volume_id: str, name: str | None, size: int | None) -> None:
    """Give a network volume another name, or a larger size."""
    if not name and size is None:
        raise BadRequest("--name or --size is needed")
    with catalog.opened() as management:
        management.volumes.update(
            volume_id,
            lambda row: replace(row, name=name or row.name, size_gb=size or row.size_gb),
            catalog.caller(),
        )
    click.echo(f"changed {volume_id}")


@network_volumes.command(name="delete")
@click.argument("volume_id", metavar="ID")
def delete_volume(volume_id: str) -> None:
    """Delete a network volume that no endpoint has."""
    _delete(lambda management: management.volumes, volume_id)


@click.group()
def registries() -> None:
    """List, add, change and delete credentials of container registries. Uses the Redis of this host's settings.

    A password is read from the standard input, or from a hidden prompt in a terminal. It is encrypted like the
    secrets of `ownpod secrets`.
    """


@registries.command(name="list")
@hosts.json_option
def list_registries(*, as_json: bool) -> None:
    """List the credentials, the newest first, with the endpoints that use each; never their passwords."""
    _list(
        lambda management: management.registries.list(),
        lambda endpoint, row: row.id == endpoint.container.registry,
        REGISTRIES,
        lambda row, used: (
            *(row.id, tables.one_line(row.name), tables.one_line(row.username)),
            *(tables.ago(row.created_ms), used),
        ),
        _registry if as_json else None,
    )


@registries.command(name="add")
@click.argument("name")
@click.option("--username", required=True, help="The account.")
def add_registry(name: str, username: str) -> None:
    """Add credentials, and print their id.

    \b
      ownpod registries add hub --username me < password.txt
    """  # noqa: D301 - click's mark for lines that it must not wrap
    _save_registry(name, username, None)


@registries.command(name="update")
@click.argument("registry_id", metavar="ID")
@click.option("--username", help="Another account.")
def update_registry(registry_id: str, username: str | None) -> None:
    """Give credentials another password, and perhaps another account."""
    _save_registry("", username, registry_id)


def _save_registry(name: str, username: str | None, registry_id: str | None) -> None:
    with catalog.opened() as management, telling_of_new_key():
        if registry_id is not None:
            row = management.registries.get(registry_id)
            name, username = row.name, username or row.username
        if not name or not username:
            raise BadRequest("the name and the account must have at least one character")
        done = management.registries.save(
            name, username, read_value(), catalog.caller(), registry_id=registry_id
        )
        click.echo(done.row.id)


@registries.command(name="delete")
@click.argument("registry_id", metavar="ID")
def delete_registry(registry_id: str) -> None:
    """Delete credentials that no endpoint uses; templates that have them lose them."""
    _delete(lambda management: management.registries, registry_id)


@click.command()
@click.option("-n", "--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@hosts.json_option
def audit(limit: int, *, as_json: bool) -> None:
    """List the last changes of the catalog, the newest first: who made them, and what changed.

    BY is the beginning of the digest of an API key, or a command with its user.
    """
    with catalog.opened() as management:
        entries = management.catalog.audits(limit)
    if as_json:
        print_json([_audit(entry) for entry in entries])
        return
    tables.show(AUDIT, map(_cells, entries))


def _template(row: TemplateRow) -> dict[str, Any]:
    return {**show_template(row), "env": catalog.hidden(row.container.env)}


def _registry(row: RegistryRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "username": row.username}


def _list(
    listed: Callable[[Management], Sequence[R]],
    uses: Callable[[EndpointRow, R], bool],
    columns: Sequence[str],
    cells: Callable[[R, str], tuple[object, ...]],
    shown: Callable[[R], Mapping[str, Any]] | None,
) -> None:
    """Prints rows with the endpoints that use each.

    Args:
        listed: the rows.
        uses: whether an endpoint uses a row.
        columns: of the table.
        cells: of a row, whose endpoints are in one text.
        shown: a row as JSON; None: a table is wanted.
    """
    with catalog.opened() as management:
        rows = listed(management)
        endpoints = management.catalog.read().endpoints.values()
    used = {row.id: [e.id for e in endpoints if uses(e, row)] for row in rows}
    if shown is not None:
        print_json([{**shown(row), "usedBy": used[row.id]} for row in rows])
    else:
        tables.show(columns, (cells(row, " ".join(used[row.id])) for row in rows))


def _delete(calls: Callable[[Management], Templates | Volumes | Registries], row_id: str) -> None:
    """Deletes a row by the managing calls of its kind."""
    with catalog.opened() as management:
        calls(management).delete(row_id, catalog.caller())
    click.echo(f"deleted {row_id}")


def _changes(entry: AuditEntry) -> dict[str, list[str]]:
    try:
        found = json.loads(entry.audit.difference or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _audit(entry: AuditEntry) -> dict[str, Any]:
    audit = entry.audit
    return {
        "at": time_text(entry.at_ms),
        "by": audit.by,
        "door": audit.door,
        "action": audit.action,
        "target": audit.target,
        "diff": _changes(entry),
    }


def _cells(entry: AuditEntry) -> tuple[object, ...]:
    audit = entry.audit
    changes = "; ".join(
        f"{field}: {' -> '.join(part or '-' for part in map(str, parts))}"
        for field, parts in _changes(entry).items()
    )
    return (
        *(time_text(entry.at_ms), tables.one_line(audit.by), audit.door, audit.action),
        *(audit.target, tables.one_line(changes)),
    )
