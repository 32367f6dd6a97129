"""What the commands that call the API over HTTP share: their options, and JSON output.

These commands need no Redis, so that they run on any host that reaches the API.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import click

from ownpod.settings import DEFAULT_ENDPOINT
from ownpod.tools.client import Client

Command = Callable[..., Any]

_url_option = click.option(
    "--url",
    envvar="OWNPOD_URL",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="The API's base URL; also OWNPOD_URL.",
)
_key_option = click.option(
    "--key", envvar="OWNPOD_API_KEY", help="An API key; also OWNPOD_API_KEY."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def remote(command: Command) -> Command:
    """Adds the options that name an API, and passes a :class:`Client` of that API as the first argument.

    The client of ``submit --jsonl`` is patient, because a long batch should outlive a restart of the API.
    """

    @_url_option
    @_key_option
    @click.option(
        "-e", "--endpoint", default=DEFAULT_ENDPOINT, show_default=True, help="The endpoint."
    )
    @_json_option
    @functools.wraps(command)
    def wrapped(url: str, key: str | None, endpoint: str, **options: Any) -> Any:
        patient = options.get("jsonl") is not None
        return command(Client(url, key, endpoint, patient=patient), **options)

    return wrapped


def remote_api(command: Command) -> Command:
    """As :func:`remote`, for commands that are about no endpoint. A refusal with 503 is raised at once."""

    @_url_option
    @_key_option
    @_json_option
    @functools.wraps(command)
    def wrapped(url: str, key: str | None, **options: Any) -> Any:
        return command(Client(url, key, DEFAULT_ENDPOINT, repeat_503=False), **options)

    return wrapped


def print_json(value: Any) -> None:
    """Prints a value as one line of JSON."""
    click.echo(json.dumps(value))
