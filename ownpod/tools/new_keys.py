"""``ownpod keys new``: generates a key, and the line with its digest for OwnPod's configuration."""

import re
import secrets

import click

from ownpod.errors import BadRequest
from ownpod.rules.credentials import PREFIX, digest_of
from ownpod.validation import NAME

BYTES = 32
"""Random bytes in a key. With so many a plain SHA-256 digest is safe to store: no search finds the key."""


@click.group()
def keys() -> None:
    """Generate API, admin and worker keys."""


@keys.command()
@click.option("--admin", is_flag=True, help="For the management of workers, and for Flower.")
@click.option("--endpoint", metavar="ID", help="For the jobs of one endpoint.")
@click.option("--worker", is_flag=True, help="For workers that pull.")
@click.option(
    "--bind",
    metavar="ENDPOINT[/WORKER]",
    help="With --worker: for one endpoint or one worker only.",
)
def new(
    admin: bool,  # noqa: FBT001 - click
    endpoint: str | None,
    worker: bool,  # noqa: FBT001 - click
    bind: str | None,
) -> None:
    """Generate a key, by default for the jobs of all endpoints.

    Nothing is stored: give the key to its user, and the line with its digest to OwnPod.

    \b
    Examples:
      ownpod keys new                                 # jobs of all endpoints
      ownpod keys new --admin
      ownpod keys new --endpoint my-endpoint
      ownpod keys new --worker --bind my-endpoint/gpu-1
    """  # noqa: D301 - click's mark for lines that it must not wrap
    if sum((admin, endpoint is not None, worker)) > 1:
        raise BadRequest("--admin, --endpoint and --worker: choose one")
    if bind is not None and not worker:
        raise BadRequest("--bind: only worker keys are bound; add --worker")
    if endpoint is not None and not NAME.fullmatch(endpoint):
        raise BadRequest(f"--endpoint: {endpoint!r} must be letters, digits, - and _")
    if bind is not None and not re.fullmatch(rf"{NAME.pattern}(/{NAME.pattern})?", bind):
        raise BadRequest(f"--bind: {bind!r} must be <endpoint> or <endpoint>/<worker>")
    key = secrets.token_urlsafe(BYTES)
    line = PREFIX + digest_of(key)
    if bind is not None:
        line += f"@{bind}"
    where, use = _where(admin=admin, endpoint=endpoint, worker=worker)
    click.echo(f"key:   {key}")
    click.echo(f"line:  {line}")
    click.echo(f"\nThe key is for {use}. It is shown once, and OwnPod keeps only its digest.")
    click.echo(
        f"Put the line into {where}. Then restart OwnPod; if the line is in a file, SIGHUP is enough."
    )


def _where(*, admin: bool, endpoint: str | None, worker: bool) -> tuple[str, str]:
    """The place of the line in the configuration, and the use of the key; in words."""
    sent = "is sent as 'Authorization: Bearer <key>'"
    if admin:
        use = f"the management of workers and for all jobs; it {sent}, in Flower as the password"
        return _either("ADMIN"), use
    if worker:
        use = "workers that pull: their RUNPOD_AI_API_KEY, see `ownpod worker-env --key`"
        return _either("WORKER"), use
    if endpoint is not None:
        return f"apiKeys of {endpoint} in workers.yaml", f"the jobs of {endpoint}; it {sent}"
    return _either("API"), f"the jobs of all endpoints; it {sent}"


def _either(kind: str) -> str:
    name = f"OWNPOD_{kind}_KEYS"
    return f"{name}, or a line of the file that {name}_FILE names"
