"""Fixtures; each level's tests stand in a folder of their own and get its marker by it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from helpers import RedisServer
from no_skips import (  # noqa: F401 - pytest's hooks
    pytest_addoption,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

from ownpod.store.client import connect

for _name in list(os.environ):
    if _name.startswith(("OWNPOD_", "REDIS_", "RUNPOD_", "CELERY_", "FLOWER_")):
        del os.environ[_name]
# Nothing listens there: a test that reaches for a Redis without asking for one fails.
os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"


LONGEST = "pull"
"""The folder of the tests that take longest: they begin first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        level = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        item.add_marker(level)
    items.sort(key=lambda item: item.path.parent.name != LONGEST)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of an empty Redis."""
    with connect(redis_server.url) as found:
        found.flushall()
        yield found
