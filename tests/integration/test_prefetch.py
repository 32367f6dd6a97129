"""Images of releases on a host: got before the first worker, the same on every host, and checked again on request."""

import time
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
from ownpod.rules.releases import HostImage
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SPEC = ManagedSpec(Template(image="team/w:1"))


class Rig:
    def __init__(self, client, name="h"):
        self.client = client
        self.managed = Managed(client)
        self.releases = self.managed.releases
        self.engine = FakeEngine(self.managed.instance().id)
        self.now_s = time.monotonic()
        self.name, self.environ = name, {}
        self.agent = self.made()

    def made(self):
        return Agent(
            Host(self.name, "http://127.0.0.1:8000", {}),
            self.engine,
            Devices(DeviceChoice(stand_ins=1), {}, pools_of=pools_of),
            managed=self.managed,
            agents=Agents(self.client),
            outputs=Outputs(self.client),
            wakeups=Wakeups(self.client),
            environ=self.environ,
            clock=lambda: self.now_s,
        )

    def restart(self):
        self.agent.leave()
        self.agent = self.made()

    def turn_until(self, condition):
        def turned():
            self.agent.turn()
            return condition()

        return wait_until(turned, 20)

    def image(self, number=1, host="h"):
        return self.releases.images("ep", number).get(host)


@pytest.fixture
def make_rig(client):
    made = []

    def make(name="h"):
        made.append(Rig(client, name))
        return made[-1]

    yield make
    for rig in made:
        rig.agent.leave()


@pytest.fixture
def rig(make_rig):
    return make_rig()


def test_the_image_of_the_next_release_is_got_by_its_digest_and_once(rig):
    rig.engine.digests["team/w:1"] = A
    rig.releases.note("ep", SPEC)
    rig.turn_until(lambda: rig.image() == HostImage(ready=True))
    assert rig.releases.digest("ep", SPEC.release) == A
    for _ in range(3):
        rig.agent.turn()
    assert [template.digest for template in rig.engine.prepared] == [A]


def test_a_host_that_cannot_run_the_release_gets_no_image(rig):
    rig.releases.note("ep", replace(SPEC, gpu=GpuNeed((), 2)))
    for _ in range(3):
        rig.agent.turn()
    assert (rig.engine.prepared, rig.image()) == ([], None)


def test_an_image_that_cannot_be_had_is_explained_and_tried_again_after_a_pause(rig):
    rig.engine.prepare_error = "the registry has no such image"
    rig.releases.note("ep", SPEC)
    rig.turn_until(lambda: rig.image() == HostImage(tries=1, words=rig.engine.prepare_error))
    rig.agent.turn()
    assert rig.image().tries == 1
    rig.now_s += 1.1
    rig.turn_until(lambda: rig.image() == HostImage(tries=2, words=rig.engine.prepare_error))
    rig.engine.prepare_error = ""
    rig.now_s += 2.1
    rig.turn_until(lambda: rig.image() == HostImage(ready=True))


def test_a_host_that_may_not_run_the_image_publishes_that(rig):
    rig.engine.refused = "team/w:1"
    rig.releases.note("ep", SPEC)
    rig.turn_until(lambda: (found := rig.image()) and "cannot be run here" in found.words)
    assert rig.engine.prepared == []


def test_the_workers_of_two_hosts_have_the_image_that_the_first_one_found(rig, make_rig):
    other = make_rig("other")
    rig.engine.digests["team/w:1"], other.engine.digests["team/w:1"] = A, B
    on_gpu = replace(SPEC, gpu=GpuNeed((), 1))
    for worker in (W, X):
        assert rig.managed.want(worker, "ep", spec=on_gpu)
    rig.turn_until(lambda: rig.engine.launched)
    other.turn_until(lambda: other.engine.launched)
    for engine in (rig.engine, other.engine):
        assert [launch.template.digest for launch in engine.launched] == [A]


def test_a_worker_has_its_own_releases_image(rig):
    rig.releases.pin("ep", "c" * 12, B)
    rig.engine.digests["team/w:1"] = A
    assert rig.managed.want(W, "ep", spec=SPEC, release="c" * 12)
    rig.turn_until(lambda: rig.engine.launched)
    assert rig.engine.launched[0].template.digest == B


@pytest.mark.parametrize("broken", [False, True])
def test_a_worker_starts_by_its_tag_if_no_digest_can_be_had(rig, broken):
    if broken:
        rig.client.set(keys.of_endpoint("ep", "digests"), "no hash")
    assert rig.managed.want(W, "ep", spec=SPEC)
    rig.turn_until(lambda: rig.managed.get(W).phase is Phase.STARTING)
    assert rig.engine.launched[0].template == SPEC.template


def test_a_check_of_the_tag_finds_the_same_image_or_makes_a_release(rig):
    rig.engine.digests["team/w:1"] = A
    rig.releases.note("ep", SPEC)
    rig.releases.begin("ep", 1)
    rig.releases.pin("ep", SPEC.release, A)
    asked = rig.releases.look("ep")
    rig.turn_until(lambda: rig.releases.look_result("ep", asked) == ("the same image", False))
    rig.engine.digests["team/w:1"] = B
    asked = rig.releases.look("ep")
    rig.turn_until(lambda: rig.releases.look_result("ep", asked) == ("release 2", False))
    rig.turn_until(lambda: rig.image(2) == HostImage(ready=True))
    assert rig.engine.prepared[-1].digest == B


def test_a_check_that_finds_nothing_is_explained(rig):
    rig.releases.note("ep", SPEC)
    rig.releases.begin("ep", 1)
    asked = rig.releases.look("ep")
    words = "host h: no registry and no image of this host shows what the tag means"
    rig.turn_until(lambda: rig.releases.look_result("ep", asked) == (words, True))


def test_a_release_waits_for_its_secrets_before_its_image(rig):
    env = {"TOKEN": "{{ SECRET_hub }}"}
    needs = replace(SPEC, template=replace(SPEC.template, env=env))
    rig.releases.note("ep", needs)
    rig.turn_until(rig.image)
    assert rig.image().words.startswith("secret 'hub' is not there: use `ownpod secrets set hub`")
    assert (rig.image().ready, rig.image().tries, rig.engine.prepared) == (False, 0, [])
    rig.environ["OWNPOD_SECRET_hub"] = "value"
    rig.restart()
    rig.turn_until(lambda: rig.image().ready)
    assert rig.engine.prepared


def test_with_the_engine_of_processes_a_release_waits_for_its_secrets_too(rig):
    rig.engine.name = "process"
    needs = ManagedSpec(Template(command=("handler",), env={"TOKEN": "{{ SECRET_hub }}"}))
    rig.releases.note("ep", needs)
    rig.turn_until(rig.image)
    assert rig.image().words.startswith("secret 'hub' is not there")
    assert (rig.image().ready, rig.image().tries) == (False, 0)
    rig.environ["OWNPOD_SECRET_hub"] = "value"
    rig.restart()
    rig.turn_until(lambda: rig.image().ready)


def test_the_engine_of_processes_checks_no_tags_and_publishes_no_images(rig):
    rig.engine.name = "process"
    rig.releases.note("ep", SPEC)
    asked = rig.releases.look("ep")
    for _ in range(3):
        rig.agent.turn()
    rig.agent.leave()
    assert rig.image() is None
    assert rig.releases.look_result("ep", asked) == ("", True)
