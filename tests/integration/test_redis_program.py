"""Which Redis the tests themselves use: CI's matrix of versions depends on it."""

import os

import pytest
from helpers import RedisServer, redis_program

from ownpod.onehost.embedded import find_server


@pytest.fixture
def variable():
    """Sets TEST_REDIS_SERVER for one test."""
    before = os.environ.pop("TEST_REDIS_SERVER", None)

    def set_it(value):
        os.environ["TEST_REDIS_SERVER"] = str(value)

    yield set_it
    os.environ.pop("TEST_REDIS_SERVER", None)
    if before is not None:
        os.environ["TEST_REDIS_SERVER"] = before


def test_the_redis_that_the_variable_names_is_the_one_that_is_started(variable, tmp_path):
    program = tmp_path / "redis-of-the-matrix"
    started = tmp_path / "started"
    program.write_text(f'#!/bin/sh\ntouch {started}\nexec {find_server()} "$@"\n')
    program.chmod(0o755)
    variable(program)
    server = RedisServer(tmp_path)
    server.stop()
    assert started.exists()


def test_without_the_variable_the_tests_use_the_redis_of_ownpod_up(variable):
    assert redis_program() == find_server()
    variable("")
    assert redis_program() == find_server()


def test_the_redis_under_test_has_the_version_that_the_matrix_names(client):
    wanted = os.environ.get("TEST_REDIS_VERSION", "")
    assert client.info("server")["redis_version"].startswith(wanted)
