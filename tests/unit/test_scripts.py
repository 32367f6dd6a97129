"""Lua as commands: constants, and what a command's script carries."""

import pytest
import redis
from helpers import job_messages

from ownpod.store.scripts import constants, lua
from ownpod.store.store import REPEATABLE, Store


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ('a "b" \\ \n', '"a \\034b\\034 \\092 \\010"'),
        ("\x06\x169", '"\\006\\0229"'),
        ("é", '"\\195\\169"'),
        (7, "7"),
        (("a", 1), '{"a", 1}'),
        ({"a": True, "b": {"c": 2}}, "{a = true, b = {c = 2}}"),
    ],
)
def test_a_value_is_written_as_lua(value, text):
    assert lua(value) == text
    assert constants(NAME=value) == f"local NAME = {text}\n"


@pytest.fixture(scope="module")
def sources():
    return Store(redis.Redis(), job_messages(), result_ttl_s=60).scripts.sources


def test_a_commands_script_carries_only_the_locals_that_it_uses(sources):
    assert "local function move(" in sources["finish"]
    assert "local function requeue(" not in sources["finish"]
    assert "local JOB_MESSAGE" in sources["create"]
    assert "local JOB_MESSAGE" not in sources["renew"]
    assert "local now" not in sources["clear_run"]
    assert all("--" not in source.partition("local JOB_MESSAGE")[0] for source in sources.values())


def test_all_commands_but_one_may_be_repeated(sources):
    assert set(sources) - REPEATABLE == {"republish"}
    assert set(sources) >= REPEATABLE
