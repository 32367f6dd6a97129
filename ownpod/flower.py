"""``ownpod flower``: Celery's page, for whoever may use all of the API."""

import os
import sys
from collections.abc import Iterable
from typing import NoReturn

from ownpod.endpoints import Endpoint
from ownpod.errors import StartError
from ownpod.settings import Settings


def check(config: Settings, endpoints: Iterable[Endpoint]) -> None:
    """Raises StartError if it would show an endpoint to holders of another one's key."""
    if not config.api_keys and any(endpoint.api_keys for endpoint in endpoints):
        raise StartError(
            "Flower shows all endpoints and there are keys for single ones only: "
            "set OWNPOD_API_KEYS, too"
        )


def serve(config: Settings, endpoints: Iterable[Endpoint], *, host: str, port: int) -> NoReturn:
    """Becomes Flower. With keys its user is "ownpod", any of them the password.

    Raises:
        StartError: see :func:`check`.
    """
    check(config, endpoints)
    environ = {**os.environ, "FLOWER_PERSISTENT": "false"}
    if config.api_keys:
        environ["FLOWER_BASIC_AUTH"] = ",".join(f"ownpod:{key}" for key in config.api_keys)
    else:
        environ["FLOWER_UNAUTHENTICATED_API"] = "true"
    command = [sys.executable, "-m", "celery", "-A", "ownpod", "flower"]
    # Flower takes its options only with "=".
    command += [f"--port={port}", f"--address={host}"]
    if config.flower_read_only:
        command.append("--read_only")
    os.execve(sys.executable, command, environ)  # noqa: S606
