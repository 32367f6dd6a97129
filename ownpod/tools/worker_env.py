"""``ownpod worker-env``: the variables that make an unmodified RunPod container pull jobs from here."""

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
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "without it the SDK ends where it cannot reach 8.8.8.8:53",
    "RUNPOD_AI_API_KEY": "one of OWNPOD_WORKER_KEYS; without any the SDK does not ping",
    "RUNPOD_POD_ID": "the worker's id: another for each container",
}


@click.command("worker-env")
@click.argument("endpoint", default=DEFAULT_ENDPOINT)
@click.option("--id", "worker_id", default="gpu-1", show_default=True, help="The worker's id.")
@click.option(
    "--url",
    envvar="OWNPOD_URL",
    default="http://localhost:8000",
    show_default=True,
    help="OwnPod as the container reaches it; also OWNPOD_URL.",
)
@click.option("--key", help="Its key; by default the first plain one of OWNPOD_WORKER_KEYS.")
@click.option(
    "--form",
    type=click.Choice(["shell", "docker", "compose"]),
    default="shell",
    show_default=True,
)
def worker_env(endpoint: str, worker_id: str, url: str, key: str | None, form: str) -> None:
    """Print what makes a RunPod container a worker of ENDPOINT that pulls.

    \b
    Examples:
      eval "$(ownpod worker-env)" && python handler.py
      docker run $(ownpod worker-env my-endpoint --id gpu-2 --url http://10.0.0.5:8000 --form docker) you/your-worker
      ownpod worker-env --form compose      # goes below a service in a compose file
    """  # noqa: D301 - click's mark for lines as they are
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
            # For $(...) unquoted: no value has a space, and a $ stays one.
            click.echo(" ".join(f"-e {name}={value}" for name, value in values.items()))
        case "compose":
            # Compose takes $$ for a $.
            doubled = {name: value.replace("$", "$$") for name, value in values.items()}
            click.echo(yaml.safe_dump({"environment": doubled}, sort_keys=False), nl=False)


def _key_of(endpoint: str, worker_id: str, key: str | None, keys: tuple[Credential, ...]) -> str:
    """The key to print; "any" where no key is needed. Raises: BadRequest, if this worker cannot use the key."""
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
    found = matches(key, keys)
    if not found:
        raise BadRequest("--key: must be one of OWNPOD_WORKER_KEYS")
    if not any(known.permits(endpoint, worker_id) for known in found):
        raise BadRequest("--key: is bound to another endpoint or worker; see OWNPOD_WORKER_KEYS")
    return key
