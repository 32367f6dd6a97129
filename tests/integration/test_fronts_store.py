"""The fronts in Redis: heartbeats, readings, the shared secret."""

import pytest

from ownpod.errors import RedisUnavailable, WorkerRecordBroken
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.homes import Front
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import TTL_S, Fronts

A, B = Front("a", "h:1"), Front("b")
ONE = {"ep": RouteReading(2, {"w": ServerReading(1, total=4)}, ("x",), 5, problem="no room")}


@pytest.fixture
def fronts(client):
    return Fronts(client)


def silence(client, front, seconds):
    """The last heartbeat of a front was so many seconds ago."""
    ms, _, address = client.hget(keys.FRONTS, front.id).partition(" ")
    client.hset(keys.FRONTS, front.id, f"{int(ms) - int(seconds * 1000)} {address}")


def test_all_fronts_that_live_have_one_secret_and_know_each_other(client, fronts):
    first = fronts.beat(A)
    second = Fronts(client).beat(B)
    assert first.secret == second.secret
    assert len(first.secret) == 64
    assert first.fronts == (A,)
    assert second.fronts == (A, B)


def test_the_loads_are_the_sum_over_fronts_that_live(client, fronts):
    fronts.beat(A, ONE)
    fronts.beat(B, ONE)
    assert fronts.loads()["ep"].requests == 4
    assert fronts.wishes() == {"ep": ("x",)}
    silence(client, B, TTL_S + 1)
    assert fronts.loads()["ep"] == ONE["ep"]
    assert fronts.beat(A).fronts == (A,)


def test_a_heartbeat_without_readings_keeps_those_before(fronts):
    assert not fronts.beat(A).reported
    fronts.beat(A, ONE)
    found = fronts.beat(A)
    assert found.reported
    assert found.readings == {"a": ONE}


def test_a_front_that_was_late_lives_again_with_its_readings(client, fronts):
    fronts.beat(A, ONE)
    silence(client, A, TTL_S + 1)
    assert fronts.loads() == {}
    fronts.beat(A)
    assert fronts.loads() == ONE


def test_a_front_that_is_long_dead_leaves_nothing(client, fronts):
    fronts.beat(A, ONE)
    silence(client, A, 60)
    fronts.beat(B)
    assert client.hkeys(keys.FRONTS) == ["b"]
    assert not client.hkeys(f"{keys.FRONTS}:readings")


def test_a_front_that_leaves_is_gone_at_once(fronts):
    fronts.beat(A, ONE)
    fronts.leave("a")
    assert fronts.living() == ((), {})


def test_a_heartbeat_has_the_paused_workers(client, fronts):
    Fleet(client).pause("w", "it is drained")
    assert fronts.beat(A).paused == {"w": "it is drained"}


def test_broken_data_of_a_front_counts_as_none(client, fronts):
    client.hset(keys.FRONTS, "c", "nonsense")
    client.hset(f"{keys.FRONTS}:readings", "a", "{")
    assert fronts.beat(A).fronts == (A,)
    assert fronts.loads() == {}


def test_a_reading_that_is_not_utf_8_is_an_error_of_ownpods_own(client, fronts):
    fronts.beat(A)
    client.hset(f"{keys.FRONTS}:readings", A.id, b"\xff")
    with pytest.raises(WorkerRecordBroken):
        fronts.living()


def test_without_redis_an_error_of_ownpods_own_is_raised():
    with connect("redis://127.0.0.1:1/0") as away, pytest.raises(RedisUnavailable):
        Fronts(away).beat(A)
