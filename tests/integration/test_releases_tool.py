"""`ownpod releases` and `ownpod rollback`, on a real Redis."""

import json
import threading
from dataclasses import replace

import pytest
from commands import running_commands
from helpers import wait_until

from ownpod.rules.releases import HostImage
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.store.managed import Managed

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SPEC = ManagedSpec(Template(image="team/w:1", env={"TOKEN": "s3cret"}))
NEW = replace(SPEC, template=Template(image="team/w:2", env={"TOKEN": "t0ken", "MODEL": "m"}))


@pytest.fixture
def managed(client):
    return Managed(client)


@pytest.fixture
def releases(managed):
    return managed.releases


@pytest.fixture
def run(redis_server, monkeypatch):
    with running_commands(monkeypatch, REDIS_URL=redis_server.url) as run:
        yield run


@pytest.fixture
def two(releases):
    """Two releases; the second one is the current one."""
    for number, spec in ((1, SPEC), (2, NEW)):
        releases.note("ep", spec)
        releases.begin("ep", number)
    releases.came_up("ep", 1)
    releases.pin("ep", SPEC.release, A)


@pytest.mark.usefixtures("two")
def test_the_releases_are_listed_with_the_names_of_what_has_changed(run, managed):
    managed.want("w0rker00000001", "ep", spec=SPEC)
    done = run("releases", "ep")
    assert done.code == 0, done.errors
    head, second, first = (line.split() for line in done.output.splitlines())
    assert head == ["NUMBER", "RELEASE", "MADE", "IMAGE", "DIGEST", "WORKERS", "STATE", "CHANGED"]
    assert second[:2] == ["2", NEW.release]
    assert "image, env.MODEL, env.TOKEN" in done.output
    assert "rolls out: 0 of 1 workers have it" in done.output
    assert {"team/w:1", A[:19], "1", "earlier"} <= set(first)
    assert not {"s3cret", "t0ken"} & set(done.output.replace(",", " ").split())
    rows = json.loads(run("releases", "ep", "--json").output)
    assert [row["workers"] for row in rows] == [0, 1]
    assert rows[0]["changed"] == ["image", "env.MODEL", "env.TOKEN"]


@pytest.mark.usefixtures("two")
def test_a_release_that_waits_for_its_image_is_explained(run, releases):
    releases.note("ep", replace(NEW, template=replace(NEW.template, image="team/w:3")))
    releases.publish_image("ep", 3, "h", HostImage(words="image pull 43 %"))
    assert "prepares: host h: image pull 43 %" in run("releases", "ep").output


@pytest.mark.usefixtures("client")
def test_an_endpoint_without_releases_is_a_sentence(run):
    assert "has no releases" in run("releases", "ep").output
    for command in (("rollback", "ep"), ("releases", "ep", "--again")):
        done = run(*command)
        assert (done.code, "has no releases" in done.errors) == (2, True)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("number", [[], ["1"]])
def test_a_rollback_makes_a_release_of_the_earlier_one(run, releases, number):
    done = run("rollback", "ep", *number)
    assert done.output == "release 3 is release 1 again, instead of 2\n"
    coming = releases.rollout("ep").next
    assert (coming.number, coming.id, coming.digest) == (3, SPEC.release, A)
    listed = run("releases", "ep").output
    assert "given up: rolled back to release 1" in listed
    assert "rollback to 1: image, env.MODEL, env.TOKEN" in listed
    (noted,) = json.loads(run("audit", "--json").output)
    assert (noted["door"], noted["action"], noted["target"]) == ("cli", "rollback endpoint", "ep")
    assert noted["diff"] == {"release": ["2", "3, which is 1 again"]}
    # Back once more would be the same workers.
    done = run("rollback", "ep", "1")
    assert (done.code, "has the same workers" in done.errors) == (2, True)


@pytest.mark.usefixtures("two")
def test_a_rollback_to_what_is_not_there_names_what_is(run, releases):
    assert "the releases are 2, 1" in run("rollback", "ep", "7").errors
    run("rollback", "ep", "1")
    done = run("rollback", "ep")
    assert (done.code, "name one by its number" in done.errors) == (2, True)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("digest", "text"), [(A, "the same image"), (B, "release 3")])
def test_again_waits_for_a_host_that_checks_the_tag(run, releases, digest, text):
    releases.pin("ep", NEW.release, A)

    def answer():
        wait_until(lambda: releases.tasks()[1], 20)
        releases.looked("ep", releases.tasks()[1]["ep"], digest=digest)

    thread = threading.Thread(target=answer)
    thread.start()
    done = run("releases", "ep", "--again")
    thread.join()
    assert (done.code, done.output.splitlines()[0]) == (0, f"its tag means {text}")
