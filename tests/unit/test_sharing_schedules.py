"""Properties of sharing in schedules by chance: workers never leave for being idle, so devices only change hands by it."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from simulated import World

from ownpod.rules.managed import Hold, Phase
from ownpod.rules.residents import let_leave
from ownpod.rules.sharing import (
    Evict,
    Resident,
    Waiting,
    choose,
    free_slots,
    is_kept_in_vain,
    keep,
    unkeep,
)
from ownpod.rules.templates import Sharing

NEVER_S = 1_000_000
SHARING = {"x": Sharing(residency_s=0), "y": Sharing(weight=3.0, residency_s=4), "z": Sharing()}
SCHEDULES = st.binary(min_size=30, max_size=60)


class SharedWorld(World):
    """The world with what Redis does for ``next``, and the scaler's last part of a turn."""

    def __init__(self, schedule):
        super().__init__(schedule)
        for endpoint in self.endpoints.values():
            endpoint.scaling = replace(endpoint.scaling, idle_timeout_s=NEVER_S)
        self.next: dict[tuple[str, str, int], str] = {}
        self.started, self.ready = {}, {}
        self.swaps = 0

    # What Redis does

    def wanted(self, worker):
        return worker in self.records and self.records[worker].phase is Phase.WANTED

    def kept(self):
        return {slot: worker for slot, worker in self.next.items() if self.wanted(worker)}

    def placed(self, worker, host, devices):
        own = self.holds
        others = {slot: w for slot, w in self.kept().items() if w != worker.id and slot not in own}
        self.holds = own | others
        done = super().placed(worker, host, devices)
        self.holds = {slot: w for slot, w in self.holds.items() if slot not in others}
        return done

    def holds_of(self, host):
        kept = {slot: w for slot, w in self.kept().items() if slot[0] == host.name}
        held = {slot: w for slot, w in self.holds.items() if slot[0] == host.name}
        holds = [
            Hold(slot[1], held.get(slot), next=kept.get(slot), slot=slot[2])
            for slot in sorted(held | kept)
        ]
        return holds + [h for h in super().holds_of(host) if h.is_reservation]

    def move(self, worker_id, phase, host=None, **values):
        done = super().move(worker_id, phase, host, **values)
        if done and phase in {Phase.STARTING, Phase.READY}:
            times = self.started if phase is Phase.STARTING else self.ready
            times[worker_id] = self.now_s
        return done

    # What the scaler does

    def scale(self, endpoint):
        super().scale(endpoint)
        if endpoint is [*self.endpoints.values()][-1]:
            self.swap()

    def residents(self):
        slots = {}
        for (host, device, slot), worker in self.holds.items():
            slots.setdefault((worker, host), []).append(f"{device}#{slot}")
        ready = Counter(r.endpoint for r in self.records.values() if r.phase is Phase.READY)
        for r in self.records.values():
            if r.host is None or (r.id, r.host) not in slots:
                continue
            endpoint, ready_at = self.endpoints[r.endpoint], self.ready.get(r.id)
            yield Resident(
                r.id,
                r.endpoint,
                r.host,
                tuple(slots[r.id, r.host]),
                r.phase,
                idle_s=0.0
                if self.jobs[r.id]
                else self.now_s - self.idle_since.get(r.id, self.now_s),
                load_s=0.0 if ready_at is None else ready_at - self.started.get(r.id, ready_at),
                ready_s=0.0 if ready_at is None else self.now_s - ready_at,
                jobs=self.jobs[r.id],
                queued=len(endpoint.queue),
                above_min=max(ready[r.endpoint] - endpoint.scaling.workers_min, 0),
                sharing=SHARING[r.endpoint],
            )

    def swap(self):
        agents = [replace(h.info, silent_s=self.now_s - h.seen_s) for h in self.hosts.values()]
        holds = {h.name: self.holds_of(h) for h in self.hosts.values()}
        residents = list(self.residents())
        wanted = [r for r in self.records.values() if r.phase is Phase.WANTED and r.gpu_count]
        for r in sorted(wanted, key=lambda r: (r.created_ms, r.id)):
            endpoint = self.endpoints[r.endpoint]
            waiting = Waiting(
                r.id,
                r.endpoint,
                r.pools,
                r.gpu_count,
                oldest_wait_s=self.now_s - min(endpoint.queue, default=self.now_s),
                has_serving=any(
                    o.endpoint == r.endpoint and o.phase is Phase.READY
                    for o in self.records.values()
                ),
            )
            if is_kept_in_vain(waiting, agents, holds):
                self.next = {slot: w for slot, w in self.next.items() if w != r.id}
                holds = unkeep(holds, r.id)
            if (free := free_slots(waiting, agents, holds)) is not None:
                holds = keep(holds, *free, r.id)
                continue
            found = choose(waiting, residents, agents, holds)
            if isinstance(found, Evict):
                self.evict(found, r.id)
                going = {v.worker for v in found.victims}
                residents = let_leave(residents, going)
                holds = keep(unkeep(holds, r.id), found.host, found.slots, r.id)
            elif found is not None and found.slots:
                holds = keep(holds, found.host, found.slots, r.id)

    def evict(self, found, worker):
        for victim in found.victims:
            record = self.records[victim.worker]
            endpoint = self.endpoints[record.endpoint]
            works = bool(self.jobs[victim.worker] or endpoint.queue)
            self._demand("none that works gives way before its hold", victim.busy == works)
            ready = [
                r
                for r in self.records.values()
                if r.endpoint == record.endpoint and r.phase is Phase.READY
            ]
            self._demand("within min and max", len(ready) > endpoint.scaling.workers_min)
            self._demand("one step", self.move(victim.worker, Phase.DRAINING, reason=victim.reason))
            self.swaps += 1
        self.next = {slot: w for slot, w in self.next.items() if w != worker}
        for name in found.slots:
            device, _, slot = name.rpartition("#")
            self.next[found.host, device, int(slot)] = worker


def check(prove, examples):
    @seed(1)
    @settings(max_examples=examples, deadline=None, database=None)
    @given(SCHEDULES)
    def holds(schedule):
        world = SharedWorld(schedule)
        world.run()
        assert not +world.problems
        prove(world)

    holds()


def all_jobs_are_served(world):
    assert world.settle() == []
    assert not +world.problems


def nothing_moves_without_jobs(world):
    world.settle()
    for endpoint in world.endpoints.values():
        endpoint.queue.clear()
    for _ in range(40):
        world.finish()
        world.become_ready()
        world.turn(elapse_s=3.0)
    swaps, number = world.swaps, world._number
    for _ in range(40):
        world.turn(elapse_s=3.0)
    assert (world.swaps, world._number) == (swaps, number)


@pytest.mark.slow
@pytest.mark.parametrize("prove", [all_jobs_are_served, nothing_moves_without_jobs])
def test_in_twenty_schedules(prove):
    check(prove, 20)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("prove", [all_jobs_are_served, nothing_moves_without_jobs])
def test_in_three_hundred_schedules(prove):
    check(prove, 300)


@pytest.mark.slow
def test_devices_do_change_hands():
    swaps = []

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(SCHEDULES)
    def look(schedule):
        world = SharedWorld(schedule)
        world.run()
        world.settle()
        swaps.append(world.swaps)

    look()
    assert sum(count > 0 for count in swaps) > 3
