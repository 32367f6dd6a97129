"""``ownpod agent``: starts, watches and stops the managed workers of this host."""

import os

import click

from ownpod import settings

OPTIONS = {
    "engine": "OWNPOD_ENGINE",
    "devices": "OWNPOD_DEVICES",
    "labels": "OWNPOD_LABELS",
    "name": "OWNPOD_AGENT_NAME",
    "url": "OWNPOD_WORKER_API_URL",
}
"""Options, and the variables that they set."""

DEFAULT_API_URL = "http://127.0.0.1:8000"


@click.command()
@click.option(
    "--engine", metavar="ENGINE", help="auto, docker or process; the same as OWNPOD_ENGINE."
)
@click.option(
    "--devices",
    metavar="DEVICES",
    help="auto, indexes or UUIDs of GPUs, or cpu:N for N stand-ins; the same as OWNPOD_DEVICES.",
)
@click.option("--labels", metavar="LABELS", help="Labels of this host; the same as OWNPOD_LABELS.")
@click.option("--name", help="The name of this host; the same as OWNPOD_AGENT_NAME.")
@click.option(
    "--url",
    help="The API's base URL as workers reach it; the same as OWNPOD_WORKER_API_URL. "
    f"Default: {DEFAULT_API_URL}.",
)
@click.option("--end-workers", is_flag=True, hidden=True)
def agent(end_workers: bool, **options: str | None) -> None:  # noqa: FBT001 - click
    """Start, watch and stop the managed workers of this host.

    One agent runs on each host, with the same REDIS_URL. Its end, at SIGTERM or Ctrl-C, ends no worker: the next agent
    of this host adopts them.
    """
    for name, value in options.items():
        if value is not None:
            os.environ[OPTIONS[name]] = value
    config = settings.current()
    # Imported late, because other commands need no engine.
    from ownpod.agent.run import run

    run(config, api_url=config.worker_api_url or DEFAULT_API_URL, end_workers=end_workers)
