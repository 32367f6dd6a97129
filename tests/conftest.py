"""Fixtures for all tests. A test gets the marker of its level from the folder that it is in."""

import copy
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
import redis.utils
import werkzeug.routing
import yaml
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

# redis-py reads the metadata of its package for each connection that it makes.
redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)

# Many tests load the same few lines again and again.
_load_yaml = functools.lru_cache(1000)(yaml.safe_load)
yaml.safe_load = lambda text: copy.deepcopy(_load_yaml(text))

_compile = werkzeug.routing.Rule.compile
_compiled: dict[object, dict[str, Any]] = {}


def _compile_once(rule: werkzeug.routing.Rule) -> None:
    """Werkzeug's expressions and functions for the URLs of a rule, made once for all apps of this process.

    They depend on what is their key here. Made for each app, they cost more than the rest of an app.
    """
    key = (rule.rule, rule.merge_slashes, rule.strict_slashes, rule.is_leaf)
    if rule.defaults or rule.subdomain or rule.host:
        _compile(rule)
        return
    if key not in _compiled:
        _compile(rule)
        made = ("arguments", "_parts", "_trace", "_converters", "_build", "_build_unknown")
        _compiled[key] = {name: getattr(rule, name) for name in made}
    vars(rule).update(_compiled[key])


werkzeug.routing.Rule.compile = _compile_once  # type: ignore[method-assign]


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
