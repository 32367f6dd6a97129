"""``ownpod settings``: every environment variable, its value and where the value comes from."""

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import click

from ownpod.rules.secrets import PREFIX as SECRET_PREFIX
from ownpod.settings import CLIENT_VARIABLES, VARIABLES, Variable, problems
from ownpod.tools import tables

PREFIX = "OWNPOD_"


@dataclass(frozen=True)
class Row:
    """A variable and its value in an environment.

    ``value``: as it is written in the environment, without secrets; None: there is none.
    ``source``: ``default``, ``environment``, the variable's alias, or the name of the variable whose file has the value.
    """

    variable: Variable
    value: str | None
    source: str


@click.command("settings")
@click.option("-v", "--verbose", is_flag=True, help="Show the purpose of each variable, too.")
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON, for programs.")
def settings(*, verbose: bool, as_json: bool) -> None:
    """Show all settings of this environment, and where each value comes from.

    A secret is shown as ***. A wrong value is exit code 2. An unknown variable OWNPOD_... is a warning.
    """
    for warning in unknown(os.environ):
        click.echo(f"ownpod: {warning}", err=True)
    if wrong := problems(os.environ):
        for problem in wrong:
            click.echo(f"ownpod: {problem}", err=True)
        sys.exit(2)
    shown = rows(os.environ)
    if as_json:
        click.echo(json.dumps([_record(row) for row in shown]))
        return
    columns = ("VARIABLE", "VALUE", "SOURCE", *(["PURPOSE"] if verbose else []))
    tables.show(columns, (_cells(row, verbose=verbose) for row in shown))


def rows(environ: Mapping[str, str]) -> list[Row]:
    """All variables with their values, in the order of README's table."""
    found: list[Row] = []
    for variable in VARIABLES:
        given = environ.get(variable.name)
        alias = "" if variable.alias is None else variable.alias.name
        other = environ.get(alias)
        if given:
            found.append(Row(variable, variable.shown(given), "environment"))
        elif other:
            found.append(Row(variable, variable.shown(other), alias))
        else:
            found.append(Row(variable, variable.default_text, "default"))
        if variable.file and given:
            # The row before is that of the variable with the same values.
            keys = found[-2]
            sources = [variable.name] if keys.source == "default" else [keys.source, variable.name]
            found[-2] = Row(keys.variable, "***", ", ".join(sources))
    return found


def unknown(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each variable that begins with ``OWNPOD_`` and is none of OwnPod's."""
    known = {v.name for v in VARIABLES if v.name.startswith(PREFIX)}.union(CLIENT_VARIABLES)
    for name in sorted(environ):
        # Secrets of templates, which the agent reads.
        is_secret = name.startswith(SECRET_PREFIX)
        if name.startswith(PREFIX) and name not in known and not is_secret:
            # Without the prefix, because it makes all names alike.
            near = difflib.get_close_matches(
                name.removeprefix(PREFIX), [k.removeprefix(PREFIX) for k in sorted(known)], n=1
            )
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            yield f"{name} is unknown and has no effect{hint}"


def _record(row: Row) -> dict[str, object]:
    return {
        "variable": row.variable.name,
        "value": row.value,
        "source": row.source,
        "default": row.variable.default_text,
        "secret": row.variable.secret,
        "purpose": row.variable.purpose,
    }


def _cells(row: Row, *, verbose: bool) -> list[str]:
    value = row.variable.unset if row.value is None else row.value
    cells = [row.variable.name, value, row.source]
    if verbose:
        cells.append(row.variable.purpose)
    # Backquotes are for README.
    return [cells[0], *(cell.replace("`", "") for cell in cells[1:])]
