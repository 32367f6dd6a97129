"""Releases: what makes one, how two differ, when one begins, and when it is given up."""

from dataclasses import replace

import pytest

from ownpod.rules.managed import HOST_SILENT_S, AgentInfo, Device, HostVolume
from ownpod.rules.releases import (
    FAILURES_ROLL_BACK,
    UNHEARD_S,
    HostImage,
    Release,
    Rollout,
    changed,
    could_run,
    effective,
    last_good,
    must_roll_back,
    prepared,
    recorded,
    state,
    to_check,
    why_none_can_run,
)
from ownpod.rules.templates import (
    GpuNeed,
    Limits,
    ManagedSpec,
    Protocol,
    Scaling,
    Sharing,
    Template,
    VolumeMount,
)

TEMPLATE = Template(image="team/worker:1", command=("python", "w.py"), env={"TOKEN": "s3cret"})
SPEC = ManagedSpec(TEMPLATE, Scaling(workers_max=2), GpuNeed(("low",), 1))
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def release(number=1, spec=SPEC, **values):
    return Release(
        number, **{"id": spec.release, "made_ms": 1000, "spec": recorded(spec), **values}
    )


def with_template(**changes):
    return replace(SPEC, template=replace(TEMPLATE, **changes))


MAKES_ONE = [
    (with_template(image="team/worker:2"), ("image",)),
    (with_template(entrypoint=("sh",)), ("entrypoint",)),
    (with_template(command=("python", "x.py")), ("command",)),
    (with_template(env={"TOKEN": "other", "NEW": "1"}), ("env.NEW", "env.TOKEN")),
    (with_template(env={}), ("env.TOKEN",)),
    (with_template(limits=Limits(memory_bytes=1, pids=2)), ("limits.memory", "limits.pids")),
    (with_template(limits=Limits(shm_bytes=1, cpus=2)), ("limits.cpus", "limits.shm")),
    (with_template(protocol=Protocol.PUSH), ("protocol",)),
    (with_template(volumes=(VolumeMount("models"),)), ("volumes",)),
    (with_template(egress=False), ("egress",)),
    (replace(SPEC, gpu=None), ("gpu",)),
    (replace(SPEC, gpu=GpuNeed(("high",), 2)), ("gpu.pools", "gpu.count")),
]


@pytest.mark.parametrize(("spec", "names"), MAKES_ONE)
def test_what_workers_are_started_from_makes_a_release_and_is_named_without_values(spec, names):
    assert spec.release != SPEC.release
    assert changed(release(), release(2, spec)) == names
    assert "s3cret" not in str(changed(release(), release(2, spec)))


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, scaling=Scaling(1, 9, 60)),
        replace(SPEC, expires_ms=5, timezone="UTC", auto_rollback=True),
        with_template(init_timeout_s=9),
        with_template(sharing=Sharing(pinned=True)),
        with_template(digest=A),
    ],
)
def test_scaling_time_outs_and_sharing_make_no_release(spec):
    assert spec.release == SPEC.release
    assert recorded(spec) == recorded(SPEC)
    assert changed(release(), release(2, spec)) == ()


def test_a_tag_that_has_moved_is_a_change_of_the_digest():
    assert changed(release(digest=A), release(2, digest=B)) == ("image's digest",)
    assert changed(release(), release(2, digest=B)) == ()
    other = with_template(image="team/worker:2")
    assert changed(release(digest=A), release(2, other, digest=B)) == ("image",)


def test_workers_have_the_releases_spec_and_the_configured_scaling():
    old = release(spec=with_template(env={"MODEL": "small"}), digest=A)
    now = replace(SPEC, scaling=Scaling(1, 7), auto_rollback=True)
    now = replace(now, template=replace(now.template, init_timeout_s=9, sharing=Sharing(weight=2)))
    found = effective(old, now)
    assert found.template.env == {"MODEL": "small"}
    assert (found.template.digest, found.template.init_timeout_s) == (A, 9)
    assert (found.template.sharing.weight, found.scaling.workers_max) == (2, 7)
    assert found.auto_rollback
    assert found.release == old.id


# The image.


GONE = HostVolume("models", "directory", "/srv", problem="it is not there")


def host(name="h", engine="docker", **values):
    return AgentInfo(name, engine, (Device("cpu-0", 0, "cpu", pools=("low",)),), **values)


def ask(*agents, images=None, old=(), waited_s=1.0, spec=SPEC):
    return prepared(spec, agents, images or {}, old_hosts=old, waited_s=waited_s)


def test_a_release_waits_until_a_host_has_its_image():
    assert not ask(host()).done
    waits = ask(host(), images={"h": HostImage(words="image pull 43 %")})
    assert (waits.done, waits.reason) == (False, "host h: image pull 43 %")
    assert ask(host(), images={"h": HostImage(ready=True)}).done


@pytest.mark.parametrize("engine", ["process", "docker"])
def test_a_release_waits_for_its_secrets_whatever_the_engine_and_without_an_image(engine):
    needs = replace(SPEC, template=Template(command=("h",), env={"A": "{{ SECRET_hub }}"}))
    agent = replace(host(), engine=engine)
    assert not ask(agent, spec=needs).done
    waits = ask(agent, spec=needs, images={"h": HostImage(words="secret 'hub' is not there")})
    assert (waits.done, waits.failed) == (False, False)
    assert waits.reason == "host h: secret 'hub' is not there"
    assert ask(agent, spec=needs, images={"h": HostImage(ready=True)}).done
    without = replace(SPEC, template=Template(command=("h",), env={"A": "b"}))
    assert ask(agent, spec=without).done


def test_a_host_with_old_workers_must_have_the_image_too_and_another_need_not():
    both = (host("a"), host("b"))
    ready = {"a": HostImage(ready=True)}
    assert ask(*both, images=ready).done
    assert ask(*both, images=ready, old=["a"]).done
    assert ask(*both, images=ready, old=["b"]).reason == "host b: it is about to get the image"
    assert ask(*both, images={**ready, "b": HostImage(tries=1)}, old=["b"]).done


def test_a_release_that_no_host_can_get_is_explained_and_fails_after_three_tries():
    problem = "the registry has no such image"
    for tries, failed in ((1, False), (FAILURES_ROLL_BACK, True)):
        found = ask(host(), images={"h": HostImage(tries=tries, words=problem)})
        assert (found.done, found.reason, found.failed) == (False, f"host h: {problem}", failed)


def test_a_release_does_not_wait_where_no_host_would_get_its_image():
    assert ask(host(engine="process")).done


@pytest.mark.parametrize(
    ("agents", "reason"),
    [
        ((), "no agent is running"),
        ([host(draining=True)], "host h is drained"),
        ([host(silent_s=HOST_SILENT_S + 1)], "no agent is running: the last heartbeat"),
        ([host(engine="process")], "no host has the volume models"),
        ([host(volumes=(GONE,))], "volume models of host h cannot be used: it is not there"),
    ],
)
def test_a_release_that_no_host_could_run_waits_and_says_why(agents, reason):
    needs = with_template(image=None, volumes=(VolumeMount("models"),))
    found = ask(*agents, spec=needs)
    assert (found.done, found.failed) == (False, False)
    assert found.reason.startswith(reason)
    assert why_none_can_run(needs, agents) == found.reason


def test_a_template_without_an_image_and_a_silent_agent_do_not_keep_a_release():
    assert ask(host(), spec=with_template(image=None)).done
    assert ask(host(), waited_s=UNHEARD_S).done


def test_only_hosts_that_could_run_a_worker_get_its_image():
    assert could_run(SPEC, host())
    assert not could_run(replace(SPEC, gpu=GpuNeed(("high",))), host())
    assert not could_run(replace(SPEC, gpu=GpuNeed((), 2)), host())
    assert could_run(replace(SPEC, gpu=None), replace(host(), devices=()))
    needs = with_template(volumes=(VolumeMount("models"),))
    assert not could_run(needs, host())
    assert not could_run(needs, host(volumes=(GONE,)))
    assert could_run(needs, host(volumes=(HostVolume("models", "directory", "/srv"),)))


def test_the_pauses_between_tries_grow():
    assert [HostImage(tries=n).retry_s for n in (0, 1, 2, 3)] == [0, 1, 2, 4]


def test_reading_the_configuration_again_checks_the_tags_of_unchanged_endpoints():
    pinned = with_template(image=f"team/worker@{A}")
    now = {"a": SPEC, "b": with_template(image="i:2"), "c": pinned, "d": None, "e": SPEC}
    now |= {"f": with_template(image=None)}
    before = {"a": SPEC, "b": SPEC, "c": pinned, "d": None, "f": with_template(image=None)}
    assert to_check(before, now) == ["a"]


# Back.


def test_a_release_goes_back_to_the_last_one_that_came_up():
    other, third = with_template(image="i:2"), with_template(image="i:3")
    good, failed = release(1, ready_ms=5), release(2, other, ended="it failed")
    new = release(3, third)
    assert last_good([new, failed, good], new) == good
    assert last_good([new, failed], new) is None
    # One with the same workers is no other release.
    assert last_good([good, release(4)], release(4)) is None


def test_only_a_release_that_never_came_up_is_given_up_and_after_three_starts():
    assert not must_roll_back(release(), FAILURES_ROLL_BACK - 1)
    assert must_roll_back(release(), FAILURES_ROLL_BACK)
    assert not must_roll_back(release(ready_ms=1), 99)


def test_each_state_is_a_phrase():
    old, new = release(1, ended="3 starts failed"), release(2, with_template(image="i:2"))
    rollout = Rollout(current=new)
    assert state(old, rollout, {}) == "given up: 3 starts failed"
    assert state(replace(old, ended=""), rollout, {}) == "earlier"
    assert state(new, rollout, {new.id: 1}) == "current"
    words = "rolls out: 1 of 3 workers have it"
    assert state(new, rollout, {new.id: 1, old.id: 2}) == words
    assert state(new, rollout, {}, failing="exit code 1") == "fails: exit code 1"
    third = release(3)
    waits = state(third, Rollout(current=new, next=third), {}, waits_for="host h: image pull")
    assert waits == "prepares: host h: image pull"
