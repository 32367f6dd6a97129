"""Fixtures for all tests. A test gets the marker of its level from the folder that it is in."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis
import werkzeug.routing
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
# No server listens there, so that a test which uses a Redis without the fixture fails.
os.environ["REDIS_URL"] = "redis://127.0.0.1:1/0"


# Hypothesis measures each example against a deadline, which a loaded machine misses.
hypothesis.settings.register_profile("ownpod", deadline=None)
hypothesis.settings.load_profile("ownpod")

_make_builder = werkzeug.routing.Rule._compile_builder
_builders: dict[object, Callable[..., tuple[str, str]]] = {}


def _builder(rule: werkzeug.routing.Rule, append_unknown: bool = True) -> Callable[..., object]:
    """Werkzeug's function for the URLs of a rule, made once for all apps of this process.

    It is compiled from what is its key here. Made for each app, it costs more than the rest of an app.
    """
    key = (rule.rule, append_unknown, *rule._trace)
    if rule.defaults or key not in _builders:
        _builders[key] = _make_builder(rule, append_unknown)
    return _builders[key]


werkzeug.routing.Rule._compile_builder = _builder  # type: ignore[method-assign]


LONGEST = "pull"
"""The folder of the longest tests. They start first, so that the other tests run beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        level = Path(item.path).relative_to(Path(__file__).parent).parts[0]
        item.add_marker(level)
    items.sort(key=lambda item: item.path.parent.name != LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    # The garbage collector does not go through the imported modules and the collected tests again and again.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
