"""The ``ownpod`` command."""

import os
import sys

import click

from ownpod import log, settings
from ownpod.errors import OwnPodError, StartError
from ownpod.processes import check_port
from ownpod.settings import Settings

HOST = "127.0.0.1"
PORT = 8000

host_option = click.option("--host", default=HOST, show_default=True, help="Address to listen on.")
port_option = click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=PORT,
    show_default=True,
    help="Port to listen on.",
)


class _Group(click.Group):
    """Errors of OwnPod's own end in one line, exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OwnPodError as error:
            settings.exit_on(error)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ownpod")
def main() -> None:
    """The RunPod v2 API for the RunPod worker containers you run yourself.

    `ownpod up` starts everything. `ownpod api` and `ownpod dispatch` are its two parts, for several
    hosts; they need REDIS_URL. Settings are environment variables, see README.md.
    """


@main.command()
@host_option
@port_option
@click.option(
    "--workers",
    metavar="URLS",
    help="Comma-separated worker URLs of the endpoint local-ep; as OWNPOD_WORKERS.",
)
def up(host: str, port: int, workers: str | None) -> None:
    """Start everything, in the foreground, until Ctrl-C or SIGTERM."""
    from ownpod.up import Up

    if workers is not None:
        os.environ["OWNPOD_WORKERS"] = workers
    config = settings.current()
    sys.exit(Up(config, host=host, port=port).run())


@main.command()
@host_option
@port_option
def api(host: str, port: int) -> None:
    """Serve the API (gunicorn). WEB_CONCURRENCY sets its processes, default 2."""
    from ownpod.registry import load_endpoints

    config = settings.current()
    load_endpoints(config)
    check_port(host, port)
    _check_redis(config)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = "ownpod.api.server"
    command = [sys.executable, "-m", "gunicorn", "-c", f"python:{server}", "-b", address]
    os.execv(sys.executable, [*command, f"{server}:application()"])  # noqa: S606


@main.command()
def dispatch() -> None:
    """Run the dispatcher: one Celery node for each worker."""
    from ownpod.registry import Registry, load_endpoints
    from ownpod.store import connect

    config = settings.current()
    endpoints = load_endpoints(config)
    _check_redis(config)
    log.configure(config.log_level, "dispatcher")
    from ownpod.dispatch import Dispatcher

    Dispatcher(config, Registry(endpoints, connect(config.broker_url()), config)).run()


def _check_redis(config: Settings) -> None:
    import redis

    url = config.broker_url()
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        where = "REDIS_URL" if config.redis_url else "the embedded Redis"
        raise StartError(f"{where}: cannot be used: {error}") from None
