"""Sharing of devices: who gives way, when, and that nobody loses what was promised."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ownpod.rules.managed import AgentInfo, Device, Hold, HostVolume, Phase
from ownpod.rules.sharing import (
    Evict,
    Resident,
    Wait,
    Waiting,
    choose,
    hold_s,
    keep,
)
from ownpod.rules.templates import Sharing


def agent(count=1, host="h", slots=1, **values):
    devices = tuple(Device(f"d{i}", i, "RTX", pools=("P",), slots=slots) for i in range(count))
    return AgentInfo(host, "process", devices, **values)


def resident(name="a", slot="d0#0", **values):
    values = {"idle_s": 41.0, "load_s": 5.0, "ready_s": 60.0, "endpoint": f"ep-{name}"} | values
    slots = tuple(slot.split())
    return Resident(worker=name, host=values.pop("host", "h"), slots=slots, **values)


def waiting(**values):
    return Waiting("w", "b", **({"oldest_wait_s": 1.0} | values))


def held(*residents):
    holds = {}
    for r in residents:
        for slot in r.slots:
            device, _, number = slot.rpartition("#")
            holds.setdefault(r.host, []).append(Hold(device, r.worker, slot=int(number)))
    return holds


def chosen(wants, *residents, agents=None, holds=None, **options):
    agents = [agent(2 if len(residents) > 1 else 1)] if agents is None else agents
    return choose(wants, residents, agents, held(*residents) if holds is None else holds, **options)


def victims(found):
    assert isinstance(found, Evict), found
    return [v.worker for v in found.victims]


def test_an_idle_worker_gives_its_device_to_one_that_waits():
    found = chosen(waiting(), resident())
    assert isinstance(found, Evict)
    (victim,) = found.victims
    assert (victim.worker, victim.busy, found.host, found.slots) == ("a", False, "h", ("d0#0",))
    assert victim.reason == "its device goes to b, it was idle for 41 s"
    assert found.reason == "GPU 0 is being freed (ep-a, idle 41 s)"


@pytest.mark.parametrize(
    "values",
    [
        {"jobs": 1},
        {"queued": 1},
        {"above_min": 0},
        {"sharing": Sharing(evictable=False)},
        {"sharing": Sharing(pinned=True)},
        {"phase": Phase.STARTING},
        {"ready_s": 9.0},
        {"load_s": 61.0},
        {"sharing": Sharing(residency_s=61)},
        {"endpoint": "b"},
    ],
)
def test_a_worker_that_works_is_promised_or_has_just_come_stays(values):
    found = chosen(waiting(), resident(**values))
    assert isinstance(found, Wait)


def test_what_waits_for_a_residency_says_how_long():
    found = chosen(waiting(), resident(ready_s=12, load_s=30))
    assert found == Wait("ep-a may be swapped in 18 s", 18.0)


def test_a_free_device_needs_no_victim():
    assert chosen(waiting(), resident(), agents=[agent(2)]) is None
    assert chosen(waiting(count=0), resident()) is None


def test_a_need_that_no_host_can_ever_fit_evicts_none():
    assert chosen(waiting(count=2), resident()) is None
    assert chosen(waiting(pools=("Q",)), resident()) is None


@pytest.mark.parametrize(
    "host",
    [
        {"draining": True},
        {"silent_s": 61.0},
        {"host": "h2"},
    ],
)
def test_workers_of_a_host_that_takes_none_stay(host):
    wants = waiting(refused_by=frozenset({"h2"}))
    r = resident(host=host.get("host", "h"))
    assert choose(wants, [r], [agent(**host)], held(r)) is None


def test_the_host_must_have_the_volumes():
    wants, r = waiting(volumes=("models",)), resident()
    has = HostVolume("models", "directory", "/srv/models")
    broken = HostVolume("models", "directory", "/srv/models", problem="it is not there")
    assert chosen(wants, r) is None
    assert chosen(wants, r, agents=[agent(volumes=(broken,))]) is None
    assert victims(chosen(wants, r, agents=[agent(volumes=(has,))])) == ["a"]


def test_a_reserved_or_broken_device_is_nobodys():
    r = resident()
    reserved = {"h": [*held(r)["h"], Hold("d0", reserved="by hand")]}
    assert chosen(waiting(), r, holds=reserved) is None
    broken = AgentInfo("h", "process", (Device("d0", 0, "RTX", problem="lost"),))
    assert chosen(waiting(), r, agents=[broken]) is None


def test_the_victim_is_the_one_that_is_idle_longest_for_what_its_load_costs():
    dear = resident("dear", "d0#0", idle_s=100, load_s=40, ready_s=200)
    cheap = resident("cheap", "d1#0", idle_s=50, load_s=5)
    assert victims(chosen(waiting(), dear, cheap)) == ["cheap"]
    heavy = resident("cheap", "d1#0", idle_s=50, load_s=5, sharing=Sharing(weight=8))
    assert victims(chosen(waiting(), dear, heavy)) == ["dear"]


def test_of_two_that_are_worth_the_same_the_least_recently_used_goes():
    old = resident("old", "d0#0", idle_s=80, load_s=10)
    new = resident("new", "d1#0", idle_s=40, load_s=5)
    assert victims(chosen(waiting(), new, old)) == ["old"]


def test_several_victims_give_way_only_if_they_are_enough():
    first, second = resident("a", "d0#0"), resident("c", "d1#0")
    found = chosen(waiting(count=2), first, second)
    assert sorted(victims(found)) == ["a", "c"]
    assert sorted(found.slots) == ["d0#0", "d1#0"]
    assert isinstance(chosen(waiting(count=2), first, resident("c", "d1#0", jobs=1)), Wait)


def test_what_is_free_counts_towards_the_need():
    found = chosen(waiting(count=2), resident(), agents=[agent(2)])
    assert victims(found) == ["a"]
    assert sorted(found.slots) == ["d0#0", "d1#0"]


def test_a_victim_that_others_make_unnecessary_stays():
    one = resident("one", "d0#0", idle_s=100)
    both = resident("both", "d1#0 d2#0", idle_s=50)
    found = chosen(waiting(count=2), one, both, agents=[agent(3)])
    assert victims(found) == ["both"]


def test_an_endpoint_keeps_as_many_workers_as_its_least():
    two = [
        resident(name, f"d{i}#0", endpoint="a", above_min=1) for i, name in enumerate(["x", "y"])
    ]
    assert isinstance(chosen(waiting(count=2), *two), Wait)
    assert len(victims(chosen(waiting(), *two))) == 1


def test_two_workers_on_one_device_count_as_one_device():
    x, y = resident("x", "d0#0"), resident("y", "d0#1")
    hosts = [agent(2, slots=2)]
    assert len(victims(chosen(waiting(count=2), x, y, agents=hosts))) == 1
    full = [resident("z", "d1#0", jobs=1), resident("v", "d1#1", jobs=1)]
    assert isinstance(chosen(waiting(count=2), x, y, *full, agents=hosts), Wait)
    assert len(victims(chosen(waiting(), x, y, *full, agents=hosts))) == 1


def test_a_preferred_pool_comes_first():
    devices = (Device("d0", 0, "RTX", pools=("low",)), Device("d1", 1, "RTX", pools=("high",)))
    hosts = [AgentInfo("h", "process", devices)]
    low, high = resident("low", "d0#0", idle_s=500), resident("high", "d1#0")
    assert victims(chosen(waiting(pools=("high", "low")), low, high, agents=hosts)) == ["high"]


# An endpoint with work.

WORKS = {"jobs": 1, "queued": 9, "idle_s": 0.0, "oldest_wait_s": 20.0}


def test_an_endpoint_with_work_gives_way_after_its_hold():
    r = resident(load_s=20, ready_s=200, **WORKS)
    bound = hold_s(20, 5)
    assert bound == 75
    assert chosen(waiting(oldest_wait_s=70, load_s=5), r) == Wait("ep-a may be swapped in 5 s", 5.0)
    (victim,) = chosen(waiting(oldest_wait_s=76, load_s=5), r).victims
    assert victim.busy
    assert victim.reason == "its device goes to b, whose oldest job has waited for 76 s"


def test_the_hold_is_at_least_30_seconds_and_may_be_shorter_in_tests():
    r = resident(load_s=1, **WORKS)
    assert hold_s(1, 1) == 30
    assert isinstance(chosen(waiting(oldest_wait_s=29), r), Wait)
    assert victims(chosen(waiting(oldest_wait_s=4), r, hold_least_s=1)) == ["a"]


def test_an_endpoint_with_work_keeps_a_device_that_it_has_just_got_for_its_hold():
    r = resident(ready_s=20, **WORKS)
    assert chosen(waiting(oldest_wait_s=300), r) == Wait("ep-a may be swapped in 10 s", 10.0)


def test_an_endpoint_that_is_served_makes_no_other_give_way_that_works():
    found = chosen(waiting(oldest_wait_s=300, has_serving=True), resident(**WORKS))
    assert found == Wait("ep-a works", None)


def test_an_idle_worker_goes_before_one_that_works():
    busy = resident("busy", "d0#0", **WORKS)
    idle = resident("idle", "d1#0", idle_s=1)
    assert victims(chosen(waiting(oldest_wait_s=300), busy, idle)) == ["idle"]
    found = chosen(waiting(oldest_wait_s=300, count=2), busy, idle)
    assert [(v.worker, v.busy) for v in found.victims] == [("idle", False), ("busy", True)]


def test_a_worker_with_jobs_for_which_an_older_one_waits_gives_way_to_no_younger_one():
    # c loads for 20 s and waits for a hold of 75 s; the younger b would get the device after 30 s, and again and again.
    busy = resident(ready_s=40, **WORKS)
    older = replace(waiting(oldest_wait_s=300, load_s=20), worker="older", endpoint="c")
    found = chosen(older, busy)
    assert isinstance(found, Wait)
    assert found.workers == {"a"}
    younger = waiting(oldest_wait_s=200)
    assert victims(chosen(younger, busy)) == ["a"]
    assert chosen(replace(younger, behind=found.workers), busy) == Wait("ep-a works", None)
    idle = resident(ready_s=40)
    assert victims(chosen(replace(younger, behind=found.workers), idle)) == ["a"]


@pytest.mark.parametrize(
    ("wants", "values"),
    [
        ({"oldest_wait_s": 0.0}, {}),
        ({"oldest_wait_s": 300.0, "count": 2}, {}),
        ({"oldest_wait_s": 300.0}, {"sharing": Sharing(pinned=True)}),
        ({"oldest_wait_s": 300.0, "has_serving": True}, {}),
    ],
)
def test_one_without_jobs_or_hope_keeps_none_from_younger_ones(wants, values):
    busy = resident(ready_s=9, **WORKS, **values)
    pinned = resident("pinned", "d1#0", **WORKS, sharing=Sharing(pinned=True))
    found = chosen(waiting(**wants), busy, pinned)
    assert isinstance(found, Wait)
    assert found.workers == frozenset()


def test_an_endpoint_whose_starts_fail_makes_none_give_way():
    found = chosen(waiting(unhealthy=True), resident())
    assert found == Wait("its last starts have failed, so no other worker gives way")


# What is being freed.


def test_one_that_waits_for_the_end_of_a_job_gets_an_idle_worker_instead():
    r, other = resident(phase=Phase.DRAINING, jobs=1), resident("c", "d1#0", jobs=1)
    holds = keep(held(r, other), "h", ["d0#0"], "w")
    found = chosen(waiting(oldest_wait_s=999), r, other, agents=[agent(2)], holds=holds)
    assert found == Wait("GPU 0 is being freed (ep-a)", 0.0, "h", ("d0#0",))
    idle = resident("c", "d1#0")
    found = chosen(waiting(oldest_wait_s=999), r, idle, agents=[agent(2)], holds=holds)
    assert (victims(found), found.slots) == (["c"], ("d1#0",))


def test_what_is_freed_for_another_is_not_counted():
    r = resident(phase=Phase.DRAINING)
    holds = keep(held(r), "h", ["d0#0"], "other")
    assert chosen(waiting(), r, holds=holds) is None
    kept = keep({}, "h", ["d0#0"], "other")
    assert chosen(waiting(), agents=[agent(1)], holds=kept) is None
    assert victims(
        chosen(
            waiting(),
            resident("c", "d1#0"),
            agents=[agent(2)],
            holds=kept | {"h": [*kept["h"], *held(resident("c", "d1#0"))["h"]]},
        )
    ) == ["c"]


def test_a_device_that_is_left_anyway_is_waited_for():
    r = resident(phase=Phase.STOPPING)
    found = chosen(waiting(), r, resident("c", "d1#0"))
    assert found == Wait("GPU 0 is being freed (ep-a, idle 41 s)", 0.0, "h", ("d0#0",))
    # The next one of the same turn does not count on the same device.
    holds = keep(held(r, resident("c", "d1#0")), found.host, found.slots, "w")
    second = choose(Waiting("v", "b"), [r, resident("c", "d1#0")], [agent(2)], holds)
    assert victims(second) == ["c"]


def test_the_reason_lists_what_has_the_devices():
    found = chosen(waiting(), resident(**WORKS), resident("c", "d1#0", ready_s=2))
    assert found == Wait("ep-a may be swapped in 29 s, ep-c may be swapped in 8 s", 8.0)


# Properties.

SHARINGS = st.builds(
    Sharing,
    evictable=st.booleans(),
    pinned=st.booleans(),
    weight=st.sampled_from([0.1, 1.0, 5.0]),
    residency_s=st.sampled_from([0.0, 10.0, 60.0]),
)


@st.composite
def worlds(draw):
    """Hosts whose devices are held by workers, at random, and a worker that waits."""
    agents, residents, holds = [], [], {}
    for number in range(draw(st.integers(1, 3))):
        host = f"h{number}"
        count, slots = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        flags = {
            "draining": draw(st.booleans()),
            "silent_s": draw(st.sampled_from([0.0, 0.0, 99.0])),
        }
        info = agent(count, host, slots, **flags)
        agents.append(info)
        places = [f"{d.id}#{s}" for d in info.devices for s in range(slots)]
        while places and draw(st.booleans()):
            name = f"{host}-{len(residents)}"
            mine = {}
            for place in draw(
                st.lists(st.sampled_from(places), unique=True, min_size=1, max_size=3)
            ):
                mine.setdefault(place.partition("#")[0], place)
            places = [place for place in places if place not in mine.values()]
            endpoint = draw(st.sampled_from(["a", "b", "c", "d"]))
            busy = draw(st.booleans())
            residents.append(
                Resident(
                    name,
                    endpoint,
                    host,
                    tuple(mine.values()),
                    draw(st.sampled_from([Phase.READY, Phase.READY, *Phase])),
                    idle_s=0.0 if busy else draw(st.floats(0, 500)),
                    load_s=draw(st.sampled_from([0.0, 2.0, 30.0])),
                    ready_s=draw(st.floats(0, 500)),
                    jobs=int(busy),
                    queued=draw(st.integers(0, 2)),
                    above_min=draw(st.integers(0, 2)),
                    sharing=draw(SHARINGS),
                )
            )
    holds = held(*residents)
    for host, mine in holds.items():
        holds[host] = [
            Hold(
                h.device, h.worker, next=draw(st.sampled_from([None, None, "w", "x"])), slot=h.slot
            )
            for h in mine
        ]
    wants = Waiting(
        "w",
        draw(st.sampled_from(["a", "b"])),
        count=draw(st.integers(1, 4)),
        oldest_wait_s=draw(st.floats(0, 500)),
        load_s=draw(st.sampled_from([0.0, 2.0, 30.0])),
        has_serving=draw(st.booleans()),
    )
    return agents, residents, holds, wants


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_whatever_the_world_no_worker_loses_what_was_promised(world):
    agents, residents, holds, wants = world
    found = choose(wants, residents, agents, holds)
    if not isinstance(found, Evict):
        return
    by_id = {r.worker: r for r in residents}
    going = [by_id[v.worker] for v in found.victims]
    assert len({r.worker for r in going}) == len(going) > 0
    for victim in found.victims:
        r = by_id[victim.worker]
        assert r.host == found.host
        assert r.phase is Phase.READY
        assert r.endpoint != wants.endpoint
        assert r.sharing.evictable
        assert not r.sharing.pinned
        assert r.ready_s >= max(r.sharing.residency_s, r.load_s)
        assert victim.busy == (r.jobs > 0 or r.queued > 0)
        if victim.busy:
            bound = hold_s(r.load_s, wants.load_s)
            assert wants.oldest_wait_s >= bound
            assert r.ready_s >= bound
            assert not wants.has_serving
    for endpoint, count in Counter(r.endpoint for r in going).items():
        assert count <= max(r.above_min for r in going if r.endpoint == endpoint)
    # Enough for the whole need, on a host that takes workers, or nothing at all.
    info = next(a for a in agents if a.host == found.host)
    assert not info.draining
    assert info.silent_s <= 60
    assert len(found.slots) == wants.count
    assert len({slot.partition("#")[0] for slot in found.slots}) == wants.count
    others = {s for r in residents if r not in going and not r.leaves for s in r.slots}
    mine = {f"{h.device}#{h.slot}" for h in holds.get(found.host, ()) if h.next == "w"}
    taken_on_host = {s for r in residents if r.host == found.host for s in r.slots} & others
    assert not set(found.slots) & (taken_on_host - mine) - {s for r in going for s in r.slots}
    kept = {f"{h.device}#{h.slot}" for h in holds.get(found.host, ()) if h.next == "x"}
    assert not set(found.slots) & kept


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_after_an_eviction_the_worker_waits_and_evicts_no_more(world):
    agents, residents, holds, wants = world
    found = choose(wants, residents, agents, holds)
    if isinstance(found, Evict):
        after = keep(holds, found.host, found.slots, "w")
        going = {v.worker for v in found.victims}
        left = [replace(r, phase=Phase.DRAINING) if r.worker in going else r for r in residents]
        assert isinstance(choose(wants, left, agents, after), Wait)


@settings(max_examples=50, deadline=None)
@given(worlds())
def test_what_waits_for_a_time_is_served_after_it_if_nothing_else_changes(world):
    agents, residents, holds, wants = world
    if wants.count != 1:
        return
    found = choose(wants, residents, agents, holds)
    if isinstance(found, Wait) and found.in_s:
        later = [replace(r, ready_s=r.ready_s + found.in_s + 1) for r in residents]
        after = replace(wants, oldest_wait_s=wants.oldest_wait_s + found.in_s + 1)
        assert isinstance(choose(after, later, agents, holds), Evict)
