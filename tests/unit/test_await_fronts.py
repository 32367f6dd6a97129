"""A call that makes a load-balanced endpoint ends once all fronts have it."""

import pytest

from ownpod.errors import RedisUnavailable, WorkerRecordBroken
from ownpod.management.fronts import await_fronts, no_fronts
from ownpod.rules.balancing import RouteReading
from ownpod.rules.homes import Front

FRONTS = (Front("a", None), Front("b", None))
HAS = {"web": RouteReading()}


def test_it_waits_until_the_last_front_has_all_endpoints():
    answers = [
        (FRONTS, {"a": {}, "b": {}}),
        (FRONTS, {"a": HAS, "b": {}}),
        (FRONTS, {"a": HAS, "b": HAS}),
    ]
    assert await_fronts(lambda: answers.pop(0), ["web"])
    assert answers == []


def test_without_a_front_or_an_endpoint_it_does_not_wait():
    assert await_fronts(no_fronts, ["web"])
    assert await_fronts(lambda: pytest.fail("nothing to wait for"), [])


@pytest.mark.parametrize("error", [RedisUnavailable("away"), WorkerRecordBroken("broken")])
def test_the_endpoint_is_made_also_where_redis_does_not_answer(error):
    def living():
        raise error

    assert not await_fronts(living, ["web"])
