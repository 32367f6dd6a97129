"""Properties of the rules for managed workers, in schedules by chance; the world is in tests/simulated.py."""

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

SCHEDULES = st.binary(min_size=30, max_size=80)


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
