"""From release to release: the scaler makes them, waits for their images, and gives up those that do not come up."""

import time
from dataclasses import replace

import pytest
from helpers import load_settings

from ownpod.housekeeping.scaler import Scaler, new_worker_id
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import AgentInfo, HostVolume, Phase
from ownpod.rules.releases import FAILURES_ROLL_BACK, HostImage
from ownpod.rules.templates import ManagedSpec, Scaling, Template, VolumeMount
from ownpod.store import keys
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed

A = "sha256:" + "a" * 64
SPEC = ManagedSpec(Template(image="team/w:1"), Scaling(1, 2), auto_rollback=True)


def of_image(number, *, volumes=(), **changes):
    template = replace(SPEC.template, image=f"team/w:{number}", volumes=volumes)
    return replace(SPEC, template=template, **changes)


class Rig:
    """A scaler that decides when a test says so, with one host whose engine pulls images."""

    def __init__(self, client):
        self.client = client
        self.managed, self.agents = Managed(client), Agents(client)
        self.releases = self.managed.releases
        self.registry = Registry({}, Fleet(client), load_settings())
        self.scaler = Scaler(self.registry, self.managed, self.agents, Wakeups(client))
        self.agents.heartbeat(AgentInfo("h", "docker"), "h:1")

    def configure(self, spec):
        managed = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=spec)
        self.registry.reload({"ep": managed})
        self.scaler.once()

    @property
    def rollout(self):
        return self.releases.rollout("ep")

    def image(self, number, **values):
        self.releases.publish_image("ep", number, "h", HostImage(**values))
        self.scaler.once()

    def workers(self, *phases):
        return [w for w in self.managed.list("ep") if not phases or w.phase in phases]

    def bring_up(self):
        """The wanted worker becomes ready."""
        (worker,) = self.workers(Phase.WANTED)
        assert self.managed.place(worker.id, "h", "h:1")
        assert self.managed.started(worker.id, "h")
        assert self.managed.ready(worker.id)
        self.scaler.once()
        return worker.id

    def fail(self, reason="exit code 1"):
        """The wanted worker ends before it is ready, and the pause after that is over."""
        (worker,) = self.workers(Phase.WANTED)
        assert self.managed.place(worker.id, "h", "h:1")
        assert self.managed.stopped(worker.id, "h", exit_code=1, reason=reason, failed=True)
        self.client.hset(f"{keys.MANAGED_FAILURES}ep", "until_ms", 1)
        self.scaler.once()


@pytest.fixture
def rig(client):
    return Rig(client)


@pytest.fixture
def up(rig):
    """The endpoint's first release is up."""
    rig.configure(SPEC)
    rig.bring_up()
    assert rig.rollout.current.ready_ms is not None
    return rig


def test_the_first_release_waits_for_no_image(rig):
    rig.configure(SPEC)
    assert rig.rollout.current.number == 1
    assert [w.release for w in rig.workers()] == [SPEC.release]


def test_a_changed_idle_timeout_makes_no_release_and_counts_at_once(up):
    before = up.workers()
    up.configure(replace(SPEC, scaling=Scaling(2, 2, 60)))
    assert (up.rollout.latest.number, up.rollout.next) == (1, None)
    assert len(up.workers()) == 2
    assert up.workers()[0] == before[0]


def test_a_new_release_begins_when_its_image_is_on_the_host(up):
    (old,) = up.workers()
    up.configure(of_image(2))
    assert (up.rollout.current.number, up.rollout.next.number) == (1, 2)
    up.image(2, words="image pull 43 %")
    assert up.workers() == [old]
    up.image(2, ready=True)
    assert up.rollout.current.number == 2
    assert up.managed.get(old.id).phase is Phase.READY
    new = up.bring_up()
    assert up.managed.get(old.id).phase is Phase.DRAINING
    assert up.managed.get(new).release == of_image(2).release


def test_with_processes_and_one_worker_at_most_a_missing_secret_leaves_the_earlier_worker_serving(
    rig,
):
    rig.agents.heartbeat(AgentInfo("h", "process"), "h:1")
    plain = ManagedSpec(Template(command=("handler",)), Scaling(1, 1))
    rig.configure(plain)
    old = rig.bring_up()
    env = {"TOKEN": "{{ SECRET_hub }}"}
    rig.configure(replace(plain, template=replace(plain.template, env=env)))
    for _ in range(3):
        rig.image(2, words="secret 'hub' is not there")
    assert rig.managed.get(old).phase is Phase.READY
    assert (rig.rollout.current.number, rig.rollout.next.number) == (1, 2)
    rig.image(2, ready=True)
    assert rig.rollout.current.number == 2
    assert rig.managed.get(old).phase is Phase.DRAINING


def test_while_the_image_comes_the_earlier_release_is_scaled_as_before(up):
    up.configure(of_image(2, scaling=Scaling(2, 3)))
    assert {w.release for w in up.workers()} == {SPEC.release}
    assert len(up.workers()) == 2


def test_an_endpoint_without_workers_begins_its_release_at_once(rig):
    rig.configure(replace(SPEC, scaling=Scaling(0, 2)))
    rig.configure(of_image(2, scaling=Scaling(0, 2)))
    assert rig.rollout.current.number == 2


def test_workers_get_the_digest_of_their_release(rig):
    rig.releases.note("ep", SPEC)
    rig.releases.pin("ep", SPEC.release, A)
    rig.configure(SPEC)
    ((_, spec),) = rig.managed.wanted()
    assert (spec.template.digest, spec.template.image) == (A, "team/w:1")


def test_a_release_that_does_not_start_is_given_up_and_the_old_worker_serves_on(up):
    (old,) = up.workers()
    up.configure(of_image(2))
    up.image(2, ready=True)
    for _ in range(FAILURES_ROLL_BACK):
        assert up.managed.get(old.id).phase is Phase.READY
        up.fail("no module named torch")
    up.scaler.once()
    assert next(r.why for r in up.releases.releases("ep")) == "rollback to 1"
    failed = up.releases.get("ep", 2)
    assert failed.ended == "3 starts in a row failed: no module named torch"
    up.image(3, ready=True)
    assert (up.rollout.current.number, up.rollout.current.id) == (3, SPEC.release)
    assert [(w.id, w.phase) for w in up.workers()] == [(old.id, Phase.READY)]
    up.scaler.once()
    assert up.rollout.latest.number == 3


def test_without_auto_rollback_the_release_stays_and_so_does_the_old_worker(up):
    (old,) = up.workers()
    up.configure(of_image(2, auto_rollback=False))
    up.image(2, ready=True)
    for _ in range(FAILURES_ROLL_BACK + 1):
        up.fail()
    assert up.rollout.latest.number == 2
    assert up.managed.get(old.id).phase is Phase.READY


VOLUMES = (VolumeMount("models"),)
HAS = (HostVolume("models", "directory", "/srv"),)


def test_the_only_worker_serves_on_while_no_host_has_the_volume_of_the_next_release(rig):
    only = Scaling(1, 1)
    rig.configure(replace(SPEC, scaling=only))
    old = rig.bring_up()
    rig.configure(of_image(2, scaling=only, volumes=VOLUMES))
    assert rig.rollout.next.number == 2
    assert rig.managed.rolled_out("ep").image_waits.startswith("no host has the volume models")
    rig.agents.heartbeat(AgentInfo("h", "docker", volumes=HAS), "h:1")
    rig.image(2, ready=True)
    assert rig.rollout.current.number == 2
    assert rig.managed.get(old).phase is Phase.DRAINING


def test_a_volume_that_vanishes_after_a_release_has_begun_ends_no_earlier_worker(up):
    (old,) = up.workers()
    up.agents.heartbeat(AgentInfo("h", "docker", volumes=HAS), "h:1")
    up.configure(of_image(2, volumes=VOLUMES))
    up.agents.heartbeat(AgentInfo("h", "docker"), "h:1")
    assert up.releases.begin("ep", 2)
    up.scaler.once()
    (trial,) = up.workers(Phase.WANTED)
    up.client.hset(keys.managed(trial.id), "created_ms", trial.created_ms - 60_000)
    up.scaler.once()
    assert up.managed.get(old.id).phase is Phase.READY
    # Where the volume is there again, the earlier worker makes room for the one that has waited.
    up.agents.heartbeat(AgentInfo("h", "docker", volumes=HAS), "h:1")
    up.scaler.once()
    assert up.managed.get(old.id).phase is Phase.DRAINING


def test_an_earlier_worker_makes_no_room_for_one_that_its_host_refuses(up):
    (old,) = up.workers()
    up.configure(of_image(2))
    up.image(2, ready=True)
    (trial,) = up.workers(Phase.WANTED)
    assert up.managed.refused(trial.id, "h", refuses=True)
    up.client.hset(keys.managed(trial.id), "created_ms", trial.created_ms - 60_000)
    up.scaler.once()
    assert up.managed.get(old.id).phase is Phase.READY
    assert up.managed.refused(trial.id, "h", refuses=False)
    up.scaler.once()
    assert up.managed.get(old.id).phase is Phase.DRAINING


def test_a_release_whose_image_no_host_gets_is_given_up(up):
    (old,) = up.workers()
    up.configure(of_image(2))
    up.image(2, tries=1, words="the registry has no such image")
    assert up.rollout.next.number == 2
    up.image(2, tries=3, words="the registry has no such image")
    ended = up.releases.get("ep", 2).ended
    assert ended == "no host can get its image: host h: the registry has no such image"
    up.image(3, ready=True)
    assert up.rollout.current.id == SPEC.release
    assert up.managed.get(old.id).phase is Phase.READY


def test_a_release_that_was_up_is_not_given_up(up):
    worker = up.workers()[0].id
    for _ in range(FAILURES_ROLL_BACK):
        up.managed.stopped(worker, "h", exit_code=1, reason="x", failed=True)
        up.client.hset(f"{keys.MANAGED_FAILURES}ep", mapping={"count": 9, "until_ms": 1})
        up.client.hset(f"{keys.MANAGED_FAILURES}ep", "release", SPEC.release)
        up.scaler.once()
    assert up.rollout.latest.number == 1


def test_an_endpoint_whose_releases_are_broken_is_started_from_the_configuration(rig):
    rig.client.set(keys.of_endpoint("ep", "release"), "no hash")
    rig.configure(SPEC)
    assert [w.release for w in rig.workers()] == [SPEC.release]


def test_workers_from_before_there_were_releases_stay(rig):
    worker_id = new_worker_id()
    assert rig.managed.want(worker_id, "ep", spec=SPEC)
    assert rig.managed.place(worker_id, "h", "h:1")
    rig.managed.started(worker_id, "h")
    rig.managed.ready(worker_id)
    rig.configure(SPEC)
    assert [(w.id, w.phase) for w in rig.workers()] == [(worker_id, Phase.READY)]


def test_a_successor_of_the_scaler_makes_nothing_again(up):
    up.configure(of_image(2))
    for _ in range(2):
        up.scaler = Scaler(up.registry, up.managed, up.agents, Wakeups(up.client), clock=time.time)
        up.scaler.once()
    assert up.rollout.latest.number == 2
