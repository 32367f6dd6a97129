"""The API of integration tests, in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import flask
import pytest
import redis
from helpers import RedisServer, load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of


@pytest.fixture
def new_app(
    redis_server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
) -> Iterator[Callable[..., flask.Flask]]:
    """Makes apps from the text of a workers file and from settings. After the test none of them holds a request."""
    apps: list[flask.Flask] = []

    def make(workers: str, **environ: object) -> flask.Flask:
        file = tmp_path / "workers.yaml"
        file.write_text(workers)
        values = {"REDIS_URL": redis_server.url, "OWNPOD_WORKERS_FILE": file} | environ
        apps.append(create_app(load_settings(**values)))
        return apps[-1]

    yield make
    for app in apps:
        services_of(app).notices.stop()
