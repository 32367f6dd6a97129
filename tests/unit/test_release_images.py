"""Which image a tag means, and by which names the engine docker has it; without an engine."""

from types import SimpleNamespace

import pytest

from ownpod.agent.docker_api import NotThere
from ownpod.agent.engine import EngineError
from ownpod.agent.images import Images
from ownpod.rules.templates import Template

A, B, ID = ("sha256:" + letter * 64 for letter in "abc")
NAME = "ghcr.io/team/w"
TEMPLATE = Template(image=f"{NAME}:1")


class Api:
    """The Docker engine's API. ``images``: what the engine has by name; ``registry``: digests by reference."""

    local = False

    def __init__(self, images=None, registry=None):
        self.images, self.registry, self.pulled = images or {}, registry or {}, []

    def call(self, action):
        return action(SimpleNamespace(inspect_image=self.inspect_image))

    def inspect_image(self, name):
        if name not in self.images:
            raise NotThere("no such image")
        return {"Id": ID, "RepoDigests": self.images[name], "Config": {}}

    def digest(self, reference, _login=None):
        if reference not in self.registry:
            raise EngineError("the registry has no such image")
        return self.registry[reference]

    def pull(self, name, version, _registry, _login=None):
        self.pulled.append((name, version))
        self.images[f"{name}@{version}"] = self.images[ID] = [f"{name}@{version}"]
        yield {}


def digest(api, template=TEMPLATE, **options):
    return Images(api, **options).digest(template)


def test_a_tag_means_what_its_registry_has():
    registry = {f"{NAME}:1": B}
    assert digest(Api(registry=registry)) == B
    assert digest(Api({f"{NAME}:1": [f"{NAME}@{A}"]}, registry)) == B


def test_an_image_that_was_built_here_is_not_asked_for_in_a_registry():
    registry = {f"{NAME}:1": B}
    assert digest(Api({f"{NAME}:1": []}, registry)) == ID
    # It is there under another name too.
    assert digest(Api({f"{NAME}:1": [f"docker.io/other/w@{A}", "<none>@<none>"]}, registry)) == ID


def test_without_a_registry_the_image_that_is_here_counts():
    assert digest(Api({f"{NAME}:1": [f"{NAME}@{A}"]})) == A
    assert digest(Api()) == ""


def test_a_reference_with_a_digest_means_that_one():
    assert digest(Api(), Template(image=f"{NAME}@{A}")) == A


def test_an_image_that_may_not_run_is_not_looked_up():
    with pytest.raises(EngineError, match="OWNPOD_IMAGES"):
        digest(Api(registry={f"{NAME}:1": B}), allow=["docker.io/**"])


def test_a_release_is_pulled_by_its_digest_and_its_tag_decides_whether_it_may_run():
    api = Api({f"{NAME}:1": [f"{NAME}@{A}"]})
    images, release = Images(api, [f"{NAME}:1"]), Template(image=f"{NAME}:1", digest=B)
    with pytest.raises(EngineError, match="not on this host"):
        images.get(release)
    images.prepare(release, lambda _: None)
    assert api.pulled == [(NAME, B)]
    assert images.get(release).reference == f"{NAME}@{B}"
    images.prepare(release, lambda _: None)
    assert len(api.pulled) == 1


def test_an_image_that_was_built_here_is_started_by_its_id():
    api = Api({ID: []})
    images, release = Images(api), Template(image=f"{NAME}:1", digest=ID)
    images.prepare(release, lambda _: None)
    assert (images.get(release).id, api.pulled) == (ID, [])
