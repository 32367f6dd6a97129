"""Properties of the rules for managed workers, in schedules by chance; the world is in tests/simulated.py."""

import sys
from collections import Counter

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from simulated import World

PROPERTIES = [
    "within min and max",
    "no device twice",
    "no busy worker is stopped",
    "whole need or nothing",
    "no starvation",
]

SCHEDULES = st.binary(min_size=30, max_size=60)


def violations(schedule: bytes, name: str) -> list[str]:
    """What a schedule violates; starvation is only looked for under its own name, because it takes long."""
    world = World(schedule)
    world.run()
    found = [f"{problem}: {count}" for problem, count in (+world.problems).items()]
    if name == "no starvation":
        found += [f"{name}: {endpoint}" for endpoint in world.settle()]
    return found


def check(name: str, examples: int) -> None:
    # Each property has schedules of its own, always the same ones.
    @seed(PROPERTIES.index(name))
    @settings(max_examples=examples, deadline=None, database=None)
    @given(SCHEDULES)
    def holds(schedule: bytes) -> None:
        assert violations(schedule, name) == []

    holds()


@pytest.mark.parametrize("name", PROPERTIES)
def test_in_forty_schedules_there_is(name):
    check(name, 40)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROPERTIES)
def test_in_two_thousand_schedules_there_is(name):
    check(name, 2000)


def test_the_schedules_come_to_every_phase_and_fill_the_devices():
    """Otherwise the properties would hold because nothing happens."""
    seen, full = Counter(), 0

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(SCHEDULES)
    def look(schedule: bytes) -> None:
        nonlocal full

        class Watched(World):
            def turn(self, **values):
                super().turn(**values)
                seen.update(record.phase for record in self.records.values())
                seen["job"] += sum(self.jobs.values())

        world = Watched(schedule)
        world.run()
        full += len(world.holds) > 2

    look()
    assert {"wanted", "preparing", "starting", "ready", "draining", "job"} <= seen.keys()
    assert full > 3


ONE_HOST_TWO_DEVICES = bytes([0, 2, 0, 0, 1])
"""One endpoint, REQUEST_COUNT, 0 to 1 workers with one device each."""


@pytest.mark.slow
def test_the_cost_of_a_decision_does_not_grow_with_finished_work():
    world = World(ONE_HOST_TWO_DEVICES)
    endpoint = world.endpoints["x"]

    def calls_of_one_life() -> int:
        """Calls of rules' functions from a job without a worker until its worker has stopped."""
        calls = 0

        def count(frame, event, _) -> None:
            nonlocal calls
            calls += event == "call" and "/ownpod/rules/" in frame.f_code.co_filename

        before = len(world.stopped)
        endpoint.queue.append(world.now_s)
        previous = sys.getprofile()
        sys.setprofile(count)
        try:
            for _ in range(20):
                world.turn()
                world.finish()
                world.become_ready()
        finally:
            sys.setprofile(previous)
        assert len(world.stopped) == before + 1
        assert not endpoint.queue
        assert not world.holds
        return calls

    first = calls_of_one_life()
    for _ in range(200):
        last = calls_of_one_life()
    assert 0 < last <= first
