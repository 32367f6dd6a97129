"""``ownpod flower``: Celery's page, for admin keys, or read-only for API keys."""

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
    "Flower shows all endpoints and there are keys for single ones only: set OWNPOD_ADMIN_KEYS, too"
)


@dataclass(frozen=True)
class Door:
    """The keys that open Flower; without keys every program on this machine may use it."""

    keys: tuple[Credential, ...]
    read_only: bool


def door(config: Settings, endpoints: Iterable[Endpoint]) -> Door:
    """The keys that open Flower, by the settings.

    Flower can revoke jobs and end nodes, so it needs admin keys. With API keys only, Flower takes these
    and is read-only, because the API does not manage then either.

    Raises:
        StartError: it would show all endpoints to the holder of a single endpoint's key.
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
    """Becomes Flower. Where there are keys, its user is "ownpod" and any of them the password.

    Raises:
        ExtraMissing: Flower is not installed.
        StartError: see :func:`door`.
    """
    _require_flower()
    found = door(config, endpoints)
    if found.read_only and not config.flower_read_only:
        sys.stderr.write(
            "ownpod: Flower shows and changes nothing, because there are API keys and no admin key: "
            "set OWNPOD_ADMIN_KEYS\n"
        )
    # The guard in ownpod.onehost.flower_guard checks keys, digests too; Flower's own check knows plain ones only.
    environ = {
        **os.environ,
        "FLOWER_PERSISTENT": "false",
        "FLOWER_UNAUTHENTICATED_API": "true",
    }
    command = [sys.executable, "-m", "ownpod.onehost.flower_guard", "-A", "ownpod", "flower"]
    # Flower takes its options only with "=".
    command += [f"--port={port}", f"--address={host}"]
    if found.read_only:
        command.append("--read_only")
    os.execve(sys.executable, command, environ)  # noqa: S606
