"""``ownpod flower``: Celery's web page, for holders of admin keys, or read-only for holders of API keys."""

import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from ownpod.errors import ExtraMissing, StartError
from ownpod.rules.credentials import Credential
from ownpod.rules.endpoints import Endpoint
from ownpod.settings import Settings

SINGLE_KEYS = (
    "Flower shows all endpoints, but there are only keys of single endpoints: set OWNPOD_ADMIN_KEYS"
)


@dataclass(frozen=True)
class Door:
    """The keys that Flower accepts. With an empty tuple every program on this host may use Flower."""

    keys: tuple[Credential, ...]
    read_only: bool


def door(config: Settings, endpoints: Iterable[Endpoint]) -> Door:
    """The keys that Flower accepts, from the settings.

    Flower needs admin keys, because Flower can revoke jobs and end nodes. If there are only API keys, Flower
    accepts those and is read-only, because the API permits no management then either.

    Raises:
        StartError: there are only keys of single endpoints, and Flower shows all endpoints.
    """
    if config.admin_keys:
        return Door(config.admin_keys, read_only=config.flower_read_only)
    if config.api_keys:
        return Door(config.api_keys, read_only=True)
    if any(endpoint.api_keys for endpoint in endpoints):
        raise StartError(SINGLE_KEYS)
    return Door((), read_only=config.flower_read_only)


def check(config: Settings, endpoints: Iterable[Endpoint]) -> None:
    """Raises: ExtraMissing, Flower is not installed; StartError, see :func:`door`."""
    _require_flower()
    door(config, endpoints)


def _require_flower() -> None:
    if importlib.util.find_spec("flower") is None:
        raise ExtraMissing("Flower", "flower")


def serve(config: Settings, endpoints: Iterable[Endpoint], *, host: str, port: int) -> NoReturn:
    """Replaces this process by Flower. If there are keys, the user is "ownpod" and the password is one of them.

    Raises:
        ExtraMissing: Flower is not installed.
        StartError: see :func:`door`.
    """
    _require_flower()
    entrance = door(config, endpoints)
    if entrance.read_only and not config.flower_read_only:
        sys.stderr.write(
            "ownpod: Flower is read-only, because there are API keys and no admin key: "
            "set OWNPOD_ADMIN_KEYS\n"
        )
    # flower_guard checks the keys. Flower's own check is off, because it compares plain keys only, not digests.
    environ = {
        **os.environ,
        "FLOWER_PERSISTENT": "false",
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    command = [sys.executable, "-m", "ownpod.onehost.flower_guard", "-A", "ownpod", "flower"]
    # With "=", because Flower does not accept a value as a separate argument.
    command += [f"--port={port}", f"--address={host}"]
    if entrance.read_only:
        command.append("--read_only")
    os.execve(sys.executable, command, environ)  # noqa: S606
