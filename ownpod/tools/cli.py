"""The ``ownpod`` command."""

import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from ownpod import log, settings
from ownpod.errors import OwnPodError
from ownpod.processes import check_port
from ownpod.tools.connection import check_redis

if TYPE_CHECKING:
    from ownpod.registry import Registry
    from ownpod.store.store import Store

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


LATER = {
    "submit": "ownpod.tools.submit",
    "session": "ownpod.tools.sessions",
    "status": "ownpod.tools.jobs",
    "history": "ownpod.tools.jobs",
    "health": "ownpod.tools.health",
    "top": "ownpod.tools.top",
    "doctor": "ownpod.tools.doctor",
    "logs": "ownpod.tools.logs",
    "agent": "ownpod.tools.agent",
    "agents": "ownpod.tools.agents",
    "models": "ownpod.tools.models",
    "front": "ownpod.tools.front",
    "gpus": "ownpod.tools.gpus",
    "endpoints": "ownpod.tools.endpoints",
    "apply": "ownpod.tools.apply",
    "export": "ownpod.tools.apply",
    "templates": "ownpod.tools.catalog_lists",
    "network-volumes": "ownpod.tools.catalog_lists",
    "registries": "ownpod.tools.catalog_lists",
    "audit": "ownpod.tools.catalog_lists",
    "secrets": "ownpod.tools.secrets",
    "volumes": "ownpod.tools.volumes",
    "releases": "ownpod.tools.releases",
    "rollback": "ownpod.tools.releases",
    "worker-env": "ownpod.tools.worker_env",
    "env": "ownpod.tools.moving",
    "rewrite": "ownpod.tools.moving",
    "keys": "ownpod.tools.new_keys",
    "settings": "ownpod.tools.show_settings",
}
"""The module of each command. The module is imported when the command is used, because every command must start fast."""


class _Group(click.Group):
    """Ends with one line and exit code 2 on an error of OwnPod, instead of a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *LATER]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in LATER:
            command: click.Command = getattr(
                importlib.import_module(LATER[cmd_name]), cmd_name.replace("-", "_")
            )
            return command
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OwnPodError as error:
            settings.exit_on(error)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ownpod")
def main() -> None:
    """The RunPod v2 API for the RunPod worker containers you run yourself.

    `ownpod up` starts everything. `ownpod api`, `ownpod dispatch`, `ownpod front` and `ownpod flower` are its
    parts, for several hosts; they need REDIS_URL. Settings are environment variables: see `ownpod settings -v`.

    submit, session, status, history, health and top call a running API, on this host or at OWNPOD_URL.

    Completion for your shell: eval "$(_OWNPOD_COMPLETE=bash_source ownpod)", or zsh_source, fish_source.
    """


@main.command()
@host_option
@port_option
@click.option(
    "--workers",
    metavar="URLS",
    help="Comma-separated worker URLs of the endpoint local-ep; the same as OWNPOD_WORKERS.",
)
@click.option("--flower", is_flag=True, help="Start Flower as well.")
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    help="Flower's port.",
)
def up(
    host: str,
    port: int,
    workers: str | None,
    flower: bool,  # noqa: FBT001 - click
    flower_port: int,
) -> None:
    """Start everything, in the foreground, until Ctrl-C or SIGTERM."""
    from ownpod.onehost.up import Up

    if workers is not None:
        os.environ["OWNPOD_WORKERS"] = workers
    config = settings.current()
    up = Up(config, host=host, port=port, flower_port=flower_port if flower else None)
    sys.exit(up.run())


@main.command()
@host_option
@port_option
@click.option(
    "--behind-front",
    metavar="HOST",
    help="All requests come through `ownpod front`, which listens on HOST and sends the callers' addresses.",
)
def api(host: str, port: int, behind_front: str | None) -> None:
    """Serve the API (gunicorn). WEB_CONCURRENCY sets its processes, default 2.

    With --behind-front only the front may reach this port, because others could pretend to be any caller.
    """
    from ownpod.configuration import load_endpoints
    from ownpod.rules.homes import joined

    config = settings.current()
    load_endpoints(config)
    check_port(host, port)
    check_redis(config)
    if behind_front is not None:
        os.environ["OWNPOD_BEHIND_FRONT"] = behind_front
    server = "ownpod.api.serving.server"
    command = [sys.executable, "-m", "gunicorn", "-c", f"python:{server}", "-b", joined(host, port)]
    os.execv(sys.executable, [*command, f"{server}:application()"])  # noqa: S606


@main.command()
def dispatch() -> None:
    """Run the supervisor of the workers' nodes.

    The supervisor starts one Celery node for each worker, and restarts a node that ends.
    """
    from ownpod.configuration import keep_endpoints
    from ownpod.registry import Registry
    from ownpod.store.client import connect, schema_version
    from ownpod.store.fleet import Fleet
    from ownpod.store.releases import Releases
    from ownpod.store.schema import Guard

    config = settings.current()
    # Kept for nodes, which are forked later, perhaps while the file is being edited.
    endpoints = keep_endpoints(config)
    check_redis(config)
    log.configure(config.log_level, "supervisor", config.log_format)
    from ownpod.supervisor import Supervisor

    client = connect(config.broker_url())
    Guard(lambda: schema_version(client)).wait()
    registry = Registry(endpoints, Fleet(client), config)
    Supervisor(config, registry, Releases(client)).run()


@main.command()
@host_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    help="Port to listen on.",
)
def flower(host: str, port: int) -> None:
    """Serve Flower, Celery's web page. With keys: user "ownpod", an admin key as the password."""
    from ownpod.configuration import load_endpoints
    from ownpod.onehost.flower import serve

    config = settings.current()
    endpoints = load_endpoints(config)
    check_port(host, port)
    check_redis(config)
    serve(config, endpoints.values(), host=host, port=port)


@main.group()
def workers() -> None:
    """List, add, drain and remove workers while OwnPod runs. Uses the Redis of this host's settings."""


@workers.command(name="list")
def list_workers() -> None:
    """List all workers and their states; of managed workers also their phases, hosts and devices."""
    from ownpod.store.managed import Managed
    from ownpod.tools.celery_commands import show_workers
    from ownpod.tools.managed import show_managed

    registry, store = _parts()
    show_workers(registry, store)
    show_managed(Managed(store.client), registry)


@workers.command()
@click.argument("url")
@click.option(
    "-e",
    "--endpoint",
    default=settings.DEFAULT_ENDPOINT,
    show_default=True,
    help="The endpoint whose jobs it runs.",
)
@click.option("--id", "worker_id", help="The worker's id; by default made from the URL.")
@click.option(
    "--capacity",
    type=click.IntRange(1, 1000),
    help="Jobs that it runs at the same time, 1 by default; of a load-balanced endpoint, requests, by default as many as the "
    "endpoint states.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header of each request to it.",
)
@click.option("--no-verify-tls", is_flag=True, help="Accept any certificate.")
@click.option(
    "--ca-bundle",
    type=click.Path(exists=True, dir_okay=False),
    help="Certificate authorities for its certificate.",
)
def add(  # noqa: PLR0917 - click
    url: str,
    endpoint: str,
    worker_id: str | None,
    capacity: int | None,
    headers: tuple[str, ...],
    no_verify_tls: bool,  # noqa: FBT001 - click
    ca_bundle: str | None,
) -> None:
    """Add a worker, or change an added one. The worker stays until it is removed."""
    from ownpod.configuration import parse_headers

    values: dict[str, object] = {"url": url}
    if capacity is not None:
        values["capacity"] = capacity
    if worker_id is not None:
        values["id"] = worker_id
    if headers:
        values["headers"] = parse_headers(headers)
    if no_verify_tls:
        values["verifyTls"] = False
    if ca_bundle is not None:
        values["caBundle"] = os.path.abspath(ca_bundle)  # noqa: PTH100 - links stay links
    registry, _ = _parts()
    click.echo(f"added {registry.add(endpoint, values).id} to {endpoint}")


@workers.command(name="show")
@click.argument("worker_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def show_worker(worker_id: str, *, as_json: bool) -> None:
    """Show a worker that OwnPod starts, also after its end: phase, reason, times, exit code, last lines."""
    from ownpod.tools.logs import show

    show(worker_id, as_json=as_json)


@workers.command()
@click.argument("worker_id")
def drain(worker_id: str) -> None:
    """Stop giving jobs to a worker, also after restarts. The worker finishes its running jobs."""
    registry, _ = _parts()
    registry.fleet.pause(registry.find(worker_id).id, "drained")
    click.echo(f"draining {worker_id}; `ownpod workers resume {worker_id}` ends that")


@workers.command()
@click.argument("worker_id")
def resume(worker_id: str) -> None:
    """Give jobs to a drained or paused worker again."""
    registry, _ = _parts()
    registry.fleet.resume(registry.find(worker_id).id)
    click.echo(f"resumed {worker_id}")


@workers.command()
@click.argument("worker_id")
def remove(worker_id: str) -> None:
    """Remove an added worker. The worker finishes its running jobs."""
    registry, _ = _parts()
    registry.remove(worker_id)
    click.echo(f"removed {worker_id}")


def _parts() -> "tuple[Registry, Store]":
    """The registry and the job store, in the Redis that the settings name."""
    from ownpod.tools.celery_commands import open_parts

    return open_parts("ownpod-cli")
