"""Releases in Redis: each is made once, begins once, has one image, and can be gone back to."""

from dataclasses import replace

import pytest

from ownpod.errors import BadRequest, WorkerRecordBroken
from ownpod.rules.releases import KEPT, HostImage, recorded
from ownpod.rules.templates import ManagedSpec, Scaling, Template
from ownpod.store import keys
from ownpod.store.catalog import Audit, Catalog
from ownpod.store.releases import Releases

SPEC = ManagedSpec(Template(image="team/w:1", env={"TOKEN": "s3cret"}), Scaling(1, 2))
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def spec(number):
    return replace(SPEC, template=replace(SPEC.template, image=f"team/w:{number}"))


@pytest.fixture
def releases(client):
    return Releases(client)


def made(releases, *numbers):
    """A release for each spec, all of which have begun."""
    for number in numbers:
        releases.begin("ep", releases.note("ep", spec(number)))


def test_a_configured_spec_makes_one_release(releases):
    assert releases.rollout("ep").latest is None
    assert [releases.note("ep", SPEC) for _ in range(3)] == [1, 0, 0]
    assert releases.note("ep", replace(SPEC, scaling=Scaling(0, 9, 60))) == 0
    rollout = releases.rollout("ep")
    assert (rollout.configured, rollout.current) == (SPEC.release, None)
    assert (rollout.next.number, rollout.next.id, rollout.next.spec) == (
        *(1, SPEC.release, recorded(SPEC)),
    )
    assert releases.tasks()[0] == {"ep": 1}


def test_a_release_begins_once_and_only_while_it_is_the_next_one(releases):
    releases.note("ep", spec(1))
    assert [releases.begin("ep", 1), releases.begin("ep", 1)] == [True, True]
    assert releases.tasks()[0] == {}
    releases.note("ep", spec(2))
    releases.note("ep", spec(3))
    assert not releases.begin("ep", 2)
    assert releases.begin("ep", 3)
    assert releases.rollout("ep").current.number == 3


def test_the_spec_of_an_earlier_release_makes_a_release_whose_workers_are_other_ones(releases):
    made(releases, 1, 2)
    # Its tag may mean another image now.
    releases.pin("ep", spec(1).release, A)
    made(releases, 1)
    first, third = releases.get("ep", 1), releases.get("ep", 3)
    assert first.id != third.id
    assert (first.digest, third.digest) == (A, "")


def test_the_first_digest_that_a_host_finds_counts(releases):
    made(releases, 1)
    name = spec(1).release
    assert releases.digest("ep", name) == ""
    assert [releases.pin("ep", name, A), releases.pin("ep", name, B)] == [A, A]
    assert releases.digest("ep", name) == releases.rollout("ep").current.digest == A
    with pytest.raises(BadRequest, match="sha256"):
        releases.pin("ep", name, "latest")


def test_a_rollback_makes_a_release_with_the_earlier_workers_and_image(releases):
    made(releases, 1, 2)
    releases.pin("ep", spec(1).release, A)
    assert releases.roll_back("ep", 2, 1, "3 starts failed\n") == 3
    back, first = releases.rollout("ep").next, releases.get("ep", 1)
    assert (back.id, back.spec, back.digest) == (first.id, first.spec, A)
    assert back.why == "rollback to 1"
    assert releases.get("ep", 2).ended == "3 starts failed"
    # A repeated call, and one of a release that is gone.
    assert releases.roll_back("ep", 2, 1, "again") == 0
    assert releases.roll_back("ep", 3, 99, "again") == 0
    # The configuration has not changed, so nothing comes of it.
    assert releases.note("ep", spec(2)) == 0
    assert releases.note("ep", spec(3)) == 4


def test_the_spec_to_which_an_endpoint_went_back_makes_no_release_when_it_is_configured(releases):
    made(releases, 1, 2)
    releases.roll_back("ep", 2, 1, "why")
    assert releases.note("ep", spec(1)) == 0
    assert releases.rollout("ep").configured == spec(1).release


def test_a_tag_that_means_another_image_makes_a_release(releases):
    made(releases, 1)
    releases.pin("ep", spec(1).release, A)
    asked = releases.look("ep")
    assert releases.tasks()[1] == {"ep": asked}
    assert releases.look_result("ep", asked) == ("", True)
    assert releases.looked("ep", asked, digest=A) == 0
    assert releases.look_result("ep", asked) == ("the same image", False)
    # An answer that comes late.
    assert releases.looked("ep", asked, digest=B) == 0
    assert releases.rollout("ep").next is None
    asked = releases.look("ep")
    assert releases.looked("ep", asked, digest=B) == 2
    assert releases.look_result("ep", asked) == ("release 2", False)
    second = releases.rollout("ep").next
    assert (second.digest, second.why) == (B, "the tag of its image has moved")
    assert (second.spec, second.id != spec(1).release) == (recorded(spec(1)), True)


def test_a_host_that_cannot_check_a_tag_leaves_it_to_others(releases):
    made(releases, 1)
    asked = releases.look("ep")
    releases.looked("ep", asked, problem="the registry cannot be reached")
    assert releases.look_result("ep", asked) == ("the registry cannot be reached", True)
    # No digest was known, so this is the release's.
    assert releases.looked("ep", asked, digest=A) == 0
    assert releases.rollout("ep").current.digest == A


def test_an_answer_that_comes_minutes_late_does_not_count(releases, client):
    made(releases, 1)
    releases.pin("ep", spec(1).release, A)
    late = str(int(releases.look("ep")) - 601_000)
    client.hset(keys.RELEASES_LOOKS, "ep", late)
    assert releases.looked("ep", late, digest=B) == 0
    assert releases.tasks()[1] == {}


def test_hosts_publish_the_image_of_a_release_that_exists(releases):
    made(releases, 1)
    found = HostImage(words="image pull 43 %", tries=1)
    releases.publish_image("ep", 1, "h", found)
    releases.publish_image("ep", 7, "h", found)
    assert releases.images("ep", 1) == {"h": found}
    assert releases.images("ep", 7) == {}


def test_the_first_worker_that_is_ready_counts(releases, client):
    made(releases, 1)
    assert releases.get("ep", 1).ready_ms is None
    releases.came_up("ep", 1)
    first = releases.get("ep", 1).ready_ms
    client.hset(keys.of_endpoint("ep", "release:1"), "ready_ms", first - 5)
    releases.came_up("ep", 1)
    releases.came_up("ep", 7)
    assert releases.get("ep", 1).ready_ms == first - 5
    assert releases.get("ep", 7) is None


def test_the_last_releases_are_kept_and_no_more(releases, client):
    for number in range(1, KEPT + 6):
        releases.note("ep", spec(number))
        releases.pin("ep", spec(number).release, A)
        releases.publish_image("ep", number, "h", HostImage(ready=True))
    found = releases.releases("ep")
    assert [release.number for release in found] == [*range(KEPT + 5, 5, -1)]
    assert len(client.keys("ownpod:endpoint:ep:release:*")) <= 2 * KEPT
    assert client.hlen(keys.of_endpoint("ep", "digests")) <= KEPT + 1


def test_broken_records_of_one_endpoint_leave_the_others(releases, client):
    made(releases, 1)
    client.set(keys.of_endpoint("wrong", "release"), "no hash")
    client.hset(keys.of_endpoint("odd", "release"), mapping={"current": "x"})
    client.hset(keys.of_endpoint("spec", "release"), mapping={"current": "1", "number": "1"})
    client.hset(
        keys.of_endpoint("spec", "release:1"), mapping={"id": "a", "made_ms": "1", "spec": "{"}
    )
    found = releases.rollouts(["ep", "wrong", "odd", "spec"])
    assert found["ep"].current.number == 1
    assert all(isinstance(found[n], WorkerRecordBroken) for n in ("wrong", "odd", "spec"))
    assert releases.releases("spec") == []
    with pytest.raises(WorkerRecordBroken):
        releases.note("wrong", SPEC)


def test_the_values_of_the_environment_are_not_in_errors(releases, client):
    releases.note("ep", SPEC)
    assert "s3cret" not in repr(releases.rollout("ep"))
    with pytest.raises(BadRequest):
        releases.note("e p", SPEC)


def test_a_rollback_has_its_audit_entry_and_a_refused_one_has_none(releases, client):
    audit = Audit("me", "cli", "rollback endpoint", "ep", "{}")
    made(releases, 1, 2)
    assert releases.roll_back("ep", 1, 1, "not the last", audit) == 0
    assert Catalog(client).audits() == []
    assert releases.roll_back("ep", 2, 1, "why", audit) == 3
    assert [entry.audit for entry in Catalog(client).audits()] == [audit]
