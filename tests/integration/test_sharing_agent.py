"""A device goes from one worker to another while the agent of its host is replaced in every step."""

from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from helpers import wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.devices import Devices
from ownpod.agent.steps import Host
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.managed import Phase
from ownpod.rules.placement import pools_of
from ownpod.rules.sharing import Evict, Victim
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

A, B, C = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb", "cccccccccccccc"
SPEC = ManagedSpec(Template(image="i:1", command=("python", "w.py")), gpu=GpuNeed((), 1))


class Rig:
    """One host with one device. Its agent may end at any moment; the next one knows nothing of it."""

    def __init__(self, client):
        self.client = client
        self.managed, self.agents = Managed(client), Agents(client)
        self.engine = FakeEngine(self.managed.instance().id)
        self.environ = {}
        self.made = []
        self.agent = self.make()

    def make(self):
        self.client.hdel(keys.AGENTS_SEEN, "h")
        agent = Agent(
            Host("h", "http://127.0.0.1:8000", {}),
            self.engine,
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=self.managed,
            agents=self.agents,
            outputs=Outputs(self.client),
            wakeups=Wakeups(self.client),
            environ=self.environ,
        )
        self.made.append(agent)
        return agent

    def replace(self):
        """Ends the agent as SIGKILL does between two steps, and starts the next one."""
        wait_until(lambda: not self.agent.steps.under_way)
        self.agent = self.make()

    def turn_until(self, condition, *, replaced):
        def turned():
            if replaced:
                self.replace()
            self.agent.turn()
            return condition()

        return wait_until(turned, 20)

    def phase(self, worker):
        return self.managed.get(worker).phase


@pytest.fixture
def rig(client):
    found = Rig(client)
    yield found
    for agent in found.made:
        agent.leave()


@pytest.mark.parametrize("replaced", [False, True])
def test_the_next_worker_starts_after_the_end_of_the_one_that_gave_way(rig, replaced):
    assert rig.managed.want(A, "a", spec=SPEC)
    rig.turn_until(lambda: rig.phase(A) is Phase.STARTING, replaced=replaced)
    assert rig.managed.ready(A)
    assert rig.managed.want(C, "c", spec=SPEC)
    assert rig.managed.want(B, "b", spec=SPEC)
    choice = Evict("h", (Victim(A, "a", "its device goes to b"),), ("cpu-0#0",), "")
    assert rig.managed.evict(choice, B)
    rig.turn_until(lambda: rig.phase(B) is Phase.STARTING, replaced=replaced)
    assert rig.phase(A) is Phase.STOPPED
    assert rig.engine.stopped == [A]
    # The older one did not get what was freed for the other.
    assert rig.phase(C) is Phase.WANTED
    assert [launch.worker_id for launch in rig.engine.launched] == [A, B]
    assert [(h.worker, h.next) for h in rig.agents.holds("h")] == [(B, None)]


def test_a_worker_with_a_job_gives_way_after_it(rig):
    assert rig.managed.want(A, "a", spec=SPEC)
    rig.turn_until(lambda: rig.phase(A) is Phase.STARTING, replaced=False)
    assert rig.managed.ready(A)
    rig.client.hset(keys.running("a"), "job-1", A)
    assert rig.managed.want(B, "b", spec=SPEC)
    choice = Evict("h", (Victim(A, "a", "its device goes to b", busy=True),), ("cpu-0#0",), "")
    assert rig.managed.evict(choice, B)
    for _ in range(3):
        rig.agent.turn()
        wait_until(lambda: not rig.agent.steps.under_way)
    assert (rig.phase(A), rig.phase(B)) == (Phase.DRAINING, Phase.WANTED)
    assert rig.engine.stopped == []
    rig.client.hdel(keys.running("a"), "job-1")
    rig.turn_until(lambda: rig.phase(B) is Phase.STARTING, replaced=False)


def test_a_host_that_cannot_start_a_worker_records_it_until_it_can(rig):
    secret = replace(SPEC.template, env={"TOKEN": "{{ RUNPOD_SECRET_hf }}"})
    assert rig.managed.want(B, "b", spec=replace(SPEC, template=secret))
    rig.agent.turn()
    assert rig.managed.get(B).refused_by == ("h",)
    rig.agent.turn()
    assert rig.managed.get(B).refused_by == ("h",)
    rig.environ["OWNPOD_SECRET_hf"] = "x"
    rig.turn_until(lambda: rig.phase(B) is Phase.STARTING, replaced=True)
    assert rig.managed.get(B).refused_by == ()
