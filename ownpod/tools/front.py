"""``ownpod front``: HAProxy before an API, and before the workers of load-balanced endpoints."""

import re
import sys

import click

from ownpod import settings
from ownpod.errors import StartError
from ownpod.front.binary import find_haproxy
from ownpod.front.lock import front_directory, locked
from ownpod.front.run import run
from ownpod.tools.connection import check_redis

API = "http://127.0.0.1:8000"
"""Where ``ownpod api`` listens by default."""

PORT = 8080

_API = re.compile(r"http://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")


def api_address(url: str) -> str:
    """``<host>:<port>`` of an API's base URL. Raises: StartError."""
    match = _API.fullmatch(url)
    port = int(match[2] or 80) if match else 0
    if match is None or not 0 < port < 65536:
        raise StartError(f"--api {url!r}: must be http://<host>:<port>, where `ownpod api` listens")
    return f"{match[1]}:{port}"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--api",
    "api",
    metavar="URL",
    default=API,
    show_default=True,
    help="The API that gets all other requests, started with --behind-front.",
)
def front(host: str, port: int, api: str) -> None:
    """Run the front: HAProxy before the API and before the workers of load-balanced endpoints.

    `ownpod up` starts one by itself. Elsewhere each host may have one, with the same REDIS_URL; at
    OWNPOD_FRONT_ADDRESS the others reach it. It needs HAProxy from 2.8 on.
    """
    config = settings.current()
    address = api_address(api)
    haproxy = find_haproxy()
    if haproxy.path is None:
        raise StartError(haproxy.problem)
    check_redis(config)
    # The front before it may still pass on what is open, after its supervisor was killed.
    with locked(front_directory(config, port), wait_s=min(50.0, config.shutdown_grace_s + 5)):
        sys.exit(run(config, host, port, address))
