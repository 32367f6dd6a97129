"""What the commands of the catalog share: the managing calls, their caller, and how they show a change."""

import contextlib
import os
import pwd
from collections.abc import Iterator, Mapping

import click

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.management import Applied, Caller, Management
from ownpod.registry import Registry
from ownpod.rules.applied import Step
from ownpod.rules.catalog import Door
from ownpod.rules.secrets import is_reference
from ownpod.store.agents import Agents
from ownpod.store.catalog import Catalog
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.store.secrets import Secrets
from ownpod.tools import tables
from ownpod.tools.remote import print_json

plan_option = click.option(
    "--plan", "planned", is_flag=True, help="Only print what would change; write nothing."
)


@contextlib.contextmanager
def opened() -> Iterator[Management]:
    """The managing calls, in the Redis that the settings name. Raises: ConfigurationError."""
    config = settings.current()
    with connect(config.broker_url(), client_name="ownpod-cli") as client:
        registry = Registry(load_endpoints(config), Fleet(client), config)
        yield Management.of(
            Catalog(client),
            registry,
            Secrets(client, config.secrets_key_path()),
            config.worker_quota,
            agents=Agents(client).agents,
            living=Fronts(client).living,
        )


def caller(*, planned: bool = False) -> Caller:
    """This command and its user, for the audit log."""
    context = click.get_current_context()
    words = [context.info_name or ""]
    while context.parent is not None:
        context = context.parent
        words.insert(0, context.info_name or "")
    return Caller(f"{' '.join(words)} ({_user()})", Door.CLI, dry_run=planned)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        # Containers run with ids that have no name.
        return f"uid {os.getuid()}"


def show_steps(applied: Applied, *, planned: bool, as_json: bool = False) -> None:
    """Prints what was changed, or would be; variables by name only."""
    if as_json:
        steps = [_as_json(step) for step in applied.steps]
        print_json({"planned": planned, "steps": steps, "leftOver": list(applied.left_over)})
        return
    for step in applied.steps:
        note = " (its workers are replaced)" if step.restarts and step.differences else ""
        click.echo(f"{step.action} {step.row.id}{note}")
        for difference in step.differences:
            old = f"{difference.old or '-'} -> " if step.action == "change" else ""
            click.echo(tables.one_line(f"    {difference.field}: {old}{difference.new or '-'}"))
    if applied.left_over:
        names = ", ".join(applied.left_over)
        click.echo(f"not in the file any more: {names}; --prune deletes them", err=True)
    if not applied.steps:
        click.echo("no changes")
    elif planned:
        click.echo(f"{len(applied.steps)} to change; nothing was written")


def _as_json(step: Step) -> dict[str, object]:
    return {
        "action": step.action.value,
        "id": step.row.id,
        "restarts": step.restarts,
        "diff": [{"field": d.field, "old": d.old, "new": d.new} for d in step.differences],
    }


def hidden(env: Mapping[str, str]) -> dict[str, str | None]:
    """Variables whose values may be shown: references to secrets; None in place of all others."""
    return {name: text if is_reference(text) else None for name, text in env.items()}
