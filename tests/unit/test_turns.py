"""Whether a device for one more worker is free or freeable, as the scaler's next turn finds it."""

from dataclasses import replace

import pytest
from test_sharing_rules import agent, held, resident, waiting

from ownpod.rules.managed import Hold, Phase
from ownpod.rules.residents import Waiting
from ownpod.rules.templates import Sharing
from ownpod.rules.turns import Turn, has_room

NEW = Waiting("", "new")


def turn(*residents, count=None, holds=None, **options):
    agents = [agent(count or max(len(residents), 1))]
    return Turn(residents, agents, held(*residents) if holds is None else holds, **options)


def other(worker="w", **values):
    return replace(waiting(**values), worker=worker)


def test_a_free_device_is_room_and_one_that_starts_or_works_is_none():
    assert has_room(turn(), [], NEW)
    assert has_room(turn(resident(phase=Phase.STARTING), count=2), [], NEW)
    assert not has_room(turn(resident(phase=Phase.STARTING)), [], NEW)
    assert not has_room(turn(resident(jobs=1, ready_s=9999)), [], NEW)
    assert not has_room(turn(resident(queued=1, ready_s=9999)), [], NEW)


def test_an_idle_worker_of_another_endpoint_past_its_residency_is_room():
    assert has_room(turn(resident()), [], NEW)


@pytest.mark.parametrize(
    "values",
    [
        {"ready_s": 1.0},
        {"sharing": Sharing(residency_s=61)},
        {"sharing": Sharing(pinned=True)},
        {"sharing": Sharing(evictable=False)},
        # A session that is not evictable, or a worker within workersMin.
        {"above_min": 0},
        {"endpoint": "new"},
    ],
)
def test_a_worker_that_does_not_give_way_now_is_no_room(values):
    assert not has_room(turn(resident(**values)), [], NEW)


def test_a_worker_with_jobs_is_no_room_although_it_would_give_way():
    busy = resident(jobs=1, ready_s=9999)
    # The scaler would choose it at once, because there is no hold. But the end of its job is not known.
    assert not has_room(turn(busy, hold_least_s=0), [], replace(NEW, oldest_wait_s=9999))


def test_a_device_that_is_being_freed_for_nobody_is_room():
    leaving = resident(phase=Phase.DRAINING)
    assert has_room(turn(leaving), [], NEW)
    kept = {"h": [Hold("d0", leaving.worker, next="w")]}
    assert not has_room(turn(leaving, holds=kept), [other()], NEW)
    assert not has_room(turn(resident(phase=Phase.DRAINING, jobs=1)), [], NEW)


def test_the_workers_that_wait_already_come_first():
    assert not has_room(turn(), [other()], NEW)
    assert not has_room(turn(resident()), [other()], NEW)
    assert has_room(turn(resident("a"), resident("b", "d1#0")), [other()], NEW)
    both = [other("v"), other("w")]
    assert not has_room(turn(resident("a"), resident("b", "d1#0")), both, NEW)
    # What workersMin promises is promised to all of them together.
    one = [resident(name, slot, endpoint="e") for name, slot in (("a", "d0#0"), ("b", "d1#0"))]
    assert not has_room(turn(*one), [other()], NEW)
    assert has_room(turn(*(replace(r, above_min=2) for r in one)), [other()], NEW)


def test_slots_that_are_kept_in_vain_are_room():
    kept = {"h": [Hold("d0", None, next="w")]}
    assert not has_room(turn(holds=kept), [other()], NEW)
    assert has_room(turn(count=2, holds=kept), [other()], NEW)
    refused = replace(other(), refused_by=frozenset("h"))
    assert has_room(turn(holds=kept), [refused], NEW)
    # It needs two devices of this host, which has one that can be used.
    assert has_room(turn(holds=kept), [replace(other(), count=2)], NEW)


def test_several_devices_are_room_only_together():
    two = replace(NEW, count=2)
    assert has_room(turn(resident("a"), count=2), [], two)
    assert has_room(turn(resident("a"), resident("b", "d1#0")), [], two)
    assert not has_room(turn(resident("a"), resident("b", "d1#0", jobs=1)), [], two)
    assert not has_room(turn(resident("a")), [], two)


def test_an_endpoint_whose_starts_have_failed_frees_nothing():
    assert not has_room(turn(resident()), [], replace(NEW, unhealthy=True))
