"""``ownpod apply`` and ``ownpod export``: endpoints as a file."""

import sys
from pathlib import Path

import click

from ownpod.errors import BadRequest, CatalogNotFound, OwnPodError
from ownpod.management import Applied, applied_file
from ownpod.management.applied_file import AppliedFile
from ownpod.rules.catalog import Kind
from ownpod.tools import catalog, hosts

CHANGES = 2
"""Exit code of ``--plan --exit-code`` where something would change."""

FAILED = 1
"""Exit code of an error with ``--exit-code``."""


@click.command()
@click.option("-f", "--file", "name", required=True, help="The file; - is the standard input.")
@catalog.plan_option
@click.option(
    "--prune", is_flag=True, help="Delete endpoints that an earlier apply of this file made."
)
@click.option(
    "--exit-code",
    "with_code",
    is_flag=True,
    help="With --plan: exit with 2 if something would change, 1 on an error, 0 otherwise.",
)
@hosts.json_option
def apply(name: str, *, planned: bool, prune: bool, with_code: bool, as_json: bool) -> None:
    """Make endpoints as a file describes them: all of them in one step, or none.

    The file has the keys of workers.yaml. Uses the Redis of this host's settings.

    \b
      ownpod apply -f endpoints.yaml --plan
      ownpod apply -f endpoints.yaml --prune
    """  # noqa: D301 - click's mark for lines that it must not wrap
    if with_code and not planned:
        raise click.UsageError("--exit-code needs --plan")
    try:
        made = _apply(name, planned=planned, prune=prune)
    except OwnPodError as error:
        if not with_code:
            raise
        click.echo(f"ownpod: {error}", err=True)
        sys.exit(FAILED)
    catalog.show_steps(made, planned=planned, as_json=as_json)
    if with_code and made.steps:
        sys.exit(CHANGES)


def _apply(name: str, *, planned: bool, prune: bool) -> Applied:
    file = _read(name)
    mark = file.project or ("" if name == "-" else str(Path(name).resolve()))
    if prune and not mark:
        raise BadRequest(
            "--prune needs the key `project` in a file that comes from the standard input, because its earlier "
            "endpoints are found by it"
        )
    with catalog.opened() as management:
        return management.applies.apply(
            lambda _snapshot: file.endpoints,
            catalog.caller(planned=planned),
            applied=mark,
            prune=prune,
        )


def _read(name: str) -> AppliedFile:
    place = "the standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return applied_file.read(data.decode(), place)
    except OSError as error:
        raise BadRequest(f"{place}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadRequest(f"{place}: cannot be read: it is not UTF-8") from None


@click.command()
@click.argument("endpoint_ids", nargs=-1, metavar="[ENDPOINT]...")
@click.option(
    "--with-values", is_flag=True, help="With the values of variables, which may be secrets."
)
def export(endpoint_ids: tuple[str, ...], *, with_values: bool) -> None:
    """Print endpoints as a file for `ownpod apply`; by default all that are not of workers.yaml.

    Variables have no value, which keeps the values that they have when the file is applied.
    """
    with catalog.opened() as management:
        rows = management.catalog.read().endpoints
    for endpoint_id in endpoint_ids:
        if endpoint_id not in rows:
            raise CatalogNotFound(Kind.ENDPOINT, endpoint_id)
    found = [row for name, row in sorted(rows.items()) if not endpoint_ids or name in endpoint_ids]
    click.echo(applied_file.write(found, with_values=with_values), nl=False)
