"""``ownpod worker-env``: prints the variables with which an unmodified RunPod container pulls jobs from OwnPod."""

import shlex

import click
import yaml

from ownpod import settings
from ownpod.errors import BadRequest
from ownpod.rules.credentials import Credential, matches
from ownpod.rules.pulling import worker_environment
from ownpod.settings import DEFAULT_ENDPOINT
from ownpod.validation import NAME

ABOUT = {
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "without this the SDK exits where it cannot reach 8.8.8.8:53",
    "RUNPOD_AI_API_KEY": "one of OWNPOD_WORKER_KEYS; without a key the SDK does not ping",
    "RUNPOD_POD_ID": "the worker's id; each container needs its own",
}
"""Comments for the variables that need one."""


@click.command("worker-env")
@click.argument("endpoint", default=DEFAULT_ENDPOINT)
@click.option("--id", "worker_id", default="gpu-1", show_default=True, help="The worker's id.")
@click.option(
    "--url",
    envvar="OWNPOD_URL",
    default="http://localhost:8000",
    show_default=True,
    help="The API's base URL, as the container reaches it; also OWNPOD_URL.",
)
@click.option(
    "--key", help="The worker's key; by default the first plain key of OWNPOD_WORKER_KEYS."
)
@click.option(
    "--form",
    type=click.Choice(["shell", "docker", "compose"]),
    default="shell",
    show_default=True,
    help="The syntax of the output.",
)
def worker_env(endpoint: str, worker_id: str, url: str, key: str | None, form: str) -> None:
    """Print the variables for a worker that pulls.

    With these variables an unmodified RunPod container pulls jobs of ENDPOINT.

    \b
    Examples:
      eval "$(ownpod worker-env)" && python handler.py
      docker run $(ownpod worker-env my-endpoint --id gpu-2 --url http://10.0.0.5:8000 --form docker) you/your-worker
      ownpod worker-env --form compose      # goes below a service in a compose file
    """  # noqa: D301 - click's mark for lines that it must not wrap
    for name, value in (("ENDPOINT", endpoint), ("--id", worker_id)):
        if not NAME.fullmatch(value):
            raise BadRequest(f"{name}: {value!r} must be letters, digits, - and _")
    keys = settings.current().worker_keys
    key = _key_of(endpoint, worker_id, key, keys)
    values = worker_environment(f"{url.rstrip('/')}/v2/{endpoint}", worker_id, key=key)
    match form:
        case "shell":
            for name, value in values.items():
                about = f"  # {ABOUT[name]}" if name in ABOUT else ""
                click.echo(f"export {name}={shlex.quote(value)}{about}")
        case "docker":
            # Unquoted, because the output is used as $(...): no value has a space, and the shell expands no $ in it.
            click.echo(" ".join(f"-e {name}={value}" for name, value in values.items()))
        case "compose":
            # Compose expands a single $, and takes $$ for one.
            doubled = {name: value.replace("$", "$$") for name, value in values.items()}
            click.echo(yaml.safe_dump({"environment": doubled}, sort_keys=False), nl=False)


def _key_of(endpoint: str, worker_id: str, key: str | None, keys: tuple[Credential, ...]) -> str:
    """The key to print; "any" if the API needs no key, because the SDK does not ping without one.

    Raises:
        BadRequest: this worker cannot use the key.
    """
    if not keys:
        return "any" if key is None else key
    if key is None:
        plain = (known.plain for known in keys if known.plain is not None)
        if (first := next(plain, None)) is not None:
            return first
        raise BadRequest(
            "--key: is needed, because OWNPOD_WORKER_KEYS has digests only; "
            "`ownpod keys new --worker` makes a key"
        )
    credentials = matches(key, keys)
    if not credentials:
        raise BadRequest("--key: must be one of OWNPOD_WORKER_KEYS")
    if not any(known.permits(endpoint, worker_id) for known in credentials):
        raise BadRequest("--key: is bound to another endpoint or worker; see OWNPOD_WORKER_KEYS")
    return key
