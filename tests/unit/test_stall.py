import pytest

from ownpod.rules.stall import StallWatch

IDLE = {"could_fetch": True, "waiting": 3, "begun": 5}


@pytest.fixture
def watch():
    return StallWatch(patience_s=30, silence_s=60)


def looks(watch, times, **changes):
    return [watch.check(t, ticked=t, **IDLE | changes) for t in times]


def test_a_node_that_leaves_messages_lie_is_stalled(watch):
    assert looks(watch, range(0, 30, 3)) == [None] * 10
    assert watch.check(35, ticked=35, **IDLE) == "it fetched nothing for 32 s beside waiting jobs"


@pytest.mark.parametrize("changes", [{"waiting": 0}, {"could_fetch": False}])
def test_a_node_with_nothing_to_fetch_is_not(watch, changes):
    assert looks(watch, range(0, 300, 3), **changes) == [None] * 100


def test_a_node_that_begins_jobs_is_not(watch):
    for begun in range(100):
        assert watch.check(begun * 10, ticked=begun * 10, **IDLE | {"begun": begun}) is None


def test_a_pause_between_two_stalls_is_none(watch):
    looks(watch, range(0, 24, 3))
    looks(watch, [24], waiting=0)
    assert looks(watch, range(27, 54, 3)) == [None] * 9


def test_a_silent_event_loop_is_a_stall_whatever_waits(watch):
    assert watch.check(100, ticked=50, **IDLE | {"waiting": 0}) is None
    reason = watch.check(100, ticked=30, **IDLE | {"waiting": 0})
    assert reason == "its event loop has been silent for 70 s"
