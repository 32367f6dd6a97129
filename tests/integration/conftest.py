"""The API of integration tests, in this process."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import flask
import pytest
import redis
from helpers import RedisServer, load_settings

from ownpod.api import create_app
from ownpod.api.services import services_of


@pytest.fixture(autouse=True, scope="module")
def stopped_notices() -> Iterator[None]:
    """Fails if a subscription outlives its module: it would write a line each half second once its Redis has stopped."""
    yield
    threads = [thread for thread in threading.enumerate() if thread.name == "job-events"]
    targets = [getattr(thread, "_target", None) for thread in threads]
    notices = [getattr(target, "__self__", None) for target in targets]
    assert [one for one in notices if one is not None and not one.stopped] == []


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
