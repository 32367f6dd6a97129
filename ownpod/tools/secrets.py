"""``ownpod secrets``: the secrets of templates, encrypted in Redis."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.errors import BadRequest, ConfigurationError
from ownpod.management.secrets import SecretCalls
from ownpod.registry import Registry
from ownpod.rules.secrets import LONGEST_SECRET, check_name, used_by
from ownpod.store.catalog import Catalog
from ownpod.store.fleet import Fleet
from ownpod.store.secrets import Secrets
from ownpod.tools import catalog, hosts, tables
from ownpod.tools.remote import print_json

COLUMNS = ("NAME", "SET", "USED BY", "PROBLEM")


@click.group()
def secrets() -> None:
    """Store, list and remove the secrets that templates name: {{ SECRET_name }} in a value of `env`.

    They are encrypted in the Redis of this host's settings. The key is in a file of this host, OWNPOD_SECRETS_KEY_FILE;
    each other host with an agent needs a copy of it.
    """


@secrets.command(name="set")
@click.argument("name")
@click.argument("more", nargs=-1, metavar="")
def set_secret(name: str, more: tuple[str, ...]) -> None:
    """Store a secret, or another value of it.

    The value is read from the standard input without the end of its last line, or from a hidden prompt in a terminal.
    Workers that run keep the value that they were started with.
    """
    check_name(name)
    if more:
        raise BadRequest(
            "a secret's value is read from the standard input or from a prompt, because other users see arguments: "
            f"`ownpod secrets set {name} < file`"
        )
    value = read_value()
    with _opened() as (calls, users), telling_of_new_key():
        calls.put(name, value, catalog.caller())
        click.echo(f"set {name}{_for(users.get(name, []))}")


@secrets.command(name="list")
@hosts.json_option
def list_secrets(*, as_json: bool) -> None:
    """List the names of all secrets, when each was set, and the endpoints that use it; never their values."""
    with _opened() as (calls, users):
        found = calls.secrets.all()
    rows: list[dict[str, Any]] = [
        {
            "name": secret.name,
            "setMs": secret.set_ms,
            "usedBy": users.get(secret.name, []),
            "problem": secret.problem,
        }
        for secret in found
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("there are no secrets: `ownpod secrets set NAME` stores one", err=True)
    tables.show(COLUMNS, map(_cells, rows))


@secrets.command()
@click.argument("name")
def rm(name: str) -> None:
    """Remove a secret. Workers that run keep its value; no new ones start that need it."""
    with _opened() as (calls, users):
        if not calls.remove(name, catalog.caller()):
            known = ", ".join(secret.name for secret in calls.secrets.all())
            raise BadRequest(f"secret {name!r} not found; known secrets: {known or 'none'}")
    click.echo(f"removed {name}{_for(users.get(name, []))}")


@secrets.command()
def rotate() -> None:
    """Encrypt all secrets with a new key, and remove the old one. May be interrupted, and then repeated, at any time."""
    with _opened() as (calls, _):
        count = calls.rotate(catalog.caller())
    click.echo(f"encrypted {count} secret{'' if count == 1 else 's'} with a new key")
    click.echo(
        f"copy {calls.secrets.file.path} to each other host with an agent now: until then these start no workers that need a secret",
        err=True,
    )


@contextlib.contextmanager
def _opened() -> Iterator[tuple[SecretCalls, dict[str, list[str]]]]:
    """The managing calls of secrets, and the endpoints that use each one by its name. Raises: ConfigurationError."""
    config = settings.current()
    with hosts.connected() as client:
        users = dict[str, list[str]]()
        try:
            endpoints = Registry(load_endpoints(config), Fleet(client), config).endpoints
            users = used_by({e.id: e.managed for e in endpoints.values() if e.managed is not None})
        except ConfigurationError as error:
            # A secret must be removable while the file of the endpoints is being edited.
            click.echo(f"ownpod: the endpoints that use secrets are not known: {error}", err=True)
        yield SecretCalls(Catalog(client), Secrets(client, config.secrets_key_path())), users


def read_value() -> str:
    """The value of a secret: of the standard input, or of a prompt that does not show it. Raises: BadRequest."""
    if sys.stdin.isatty():
        value: str = click.prompt("value", hide_input=True, confirmation_prompt=True)
        return value
    data = sys.stdin.buffer.read(LONGEST_SECRET + 3)
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise BadRequest("a secret's value must be UTF-8") from None


@contextlib.contextmanager
def telling_of_new_key() -> Iterator[None]:
    """Prints, after a command that has made the key file, what to do about it."""
    path = settings.current().secrets_key_path()
    was_there = path.exists()
    yield
    if not was_there and path.exists():
        click.echo(
            f"made the key file {path}: keep a backup, because no secret can be read without it, and copy "
            "it with mode 600 to each other host with an agent",
            err=True,
        )


def _for(users: list[str]) -> str:
    return f", used by {', '.join(users)}" if users else ""


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    age = f"{tables.ago(row['setMs'])} ago" if row["setMs"] is not None else "?"
    return row["name"], age, ", ".join(row["usedBy"]), row["problem"]
