"""References of images, the list of allowed ones, and the words of a pull's progress."""

import pytest

from ownpod.rules.images import PullProgress, allowed, check_pattern, normalise, size_words

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("reference", "complete"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04"),
        ("runpod/worker-vllm", "docker.io/runpod/worker-vllm:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io/runpod/x", "docker.io/runpod/x:latest"),
        ("GHCR.io/team/worker:1", "ghcr.io/team/worker:1"),
        ("localhost/worker", "localhost/worker:latest"),
        ("registry:5000/worker", "registry:5000/worker:latest"),
        ("registry.example:5000/a/b:c", "registry.example:5000/a/b:c"),
        (f"ubuntu@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
        (f"ubuntu:24.04@{DIGEST}", f"docker.io/library/ubuntu@{DIGEST}"),
    ],
)
def test_a_reference_is_completed_as_docker_does(reference, complete):
    assert str(normalise(reference)) == complete
    assert str(normalise(complete)) == complete


@pytest.mark.parametrize(
    "reference",
    [
        *("", " ", "Ubuntu", "Team/worker", "a//b", "/a", "a/", "a:", "a b", "a:b:c", "-a", "../a"),
        *("a@sha256:1", f"a@{DIGEST}0", f"@{DIGEST}", "0a" * 32, "http://ghcr.io/a", "a\n", "ü"),
        "a" * 513,
    ],
)
def test_what_is_no_reference_is_refused_with_one_line(reference):
    with pytest.raises(ValueError, match="^image .*must have|^image .*must be") as refused:
        normalise(reference)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("**", ["ubuntu", "ghcr.io/a/b/c:1", f"x@{DIGEST}"], []),
        ("ubuntu", ["ubuntu:24.04", f"ubuntu@{DIGEST}"], ["evil/ubuntu", "ghcr.io/ubuntu"]),
        ("*", ["ubuntu"], ["runpod/worker", "ghcr.io/a"]),
        ("runpod/*", ["runpod/worker:1"], ["runpod/a/b", "ghcr.io/runpod/worker", "runpodx/a"]),
        ("ghcr.io/team/*", ["ghcr.io/team/a"], ["ghcr.io/team/a/b", "ghcr.io/teams/a"]),
        ("ghcr.io/team/**", ["ghcr.io/team/a/b", "ghcr.io/team/a"], ["ghcr.io/other/team/a"]),
        ("ghcr.io/*/worker", ["ghcr.io/a/worker"], ["ghcr.io/a/b/worker", "evil.io/a/worker"]),
        ("ghcr.io/**", ["ghcr.io/a/b"], ["xghcr.io/a", "ghcrxio/a", "evil.com/ghcr.io/a"]),
        ("nvcr.io/nvidia/*", ["nvcr.io/nvidia/k8s/a/b", "nvcr.io/nvidia/pytorch:1"], ["nvcr.io/a"]),
        ("registry:5000/*", ["registry:5000/a"], ["registry:5001/a", "registry/a"]),
        ("team/a:1.*", ["team/a:1.2"], ["team/a:2", "team/a", f"team/a:1.2@{DIGEST}"]),
        (f"team/a@{DIGEST}", [f"team/a@{DIGEST}"], ["team/a", f"team/a@{DIGEST[:-1]}1"]),
        ("*/team/a", ["ghcr.io/team/a", "team/a"], ["ghcr.io/x/team/a"]),
    ],
)
def test_the_list_allows_what_its_patterns_match_and_nothing_else(pattern, yes, no):
    check_pattern(pattern)
    assert [image for image in yes if not allowed(normalise(image), [pattern])] == []
    assert [image for image in no if allowed(normalise(image), [pattern])] == []


def test_an_empty_list_allows_no_image():
    assert not allowed(normalise("ubuntu"), [])


@pytest.mark.parametrize("pattern", ["", "a b", "a***", "a//b", "a?", "[a]", "a\n"])
def test_a_wrong_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="must be an image like"):
        check_pattern(pattern)


def of(*lines):
    progress = PullProgress()
    for layer, status, *sizes in lines:
        detail = dict(zip(("current", "total"), sizes, strict=False))
        progress.take({"id": layer, "status": status, "progressDetail": detail})
    return progress.words()


def test_the_words_of_a_pull_have_share_and_size_once_all_sizes_are_known():
    assert of() == "image pull"
    assert of(("a", "Pulling fs layer")) == "image pull, 0 MB, 0 of 1 layers"
    loads = ("a", "Downloading", 2_100_000_000, 4_900_000_000)
    assert of(loads) == "image pull 42 %, 2.1 of 4.9 GB"
    assert of(loads, ("b", "Waiting")) == "image pull, 2.1 GB, 0 of 2 layers"
    assert of(loads, ("b", "Already exists")) == "image pull 42 %, 2.1 of 4.9 GB"
    small = ("a", "Downloading", 12_000_000, 80_000_000)
    assert of(small) == "image pull 15 %, 12 of 80 MB"


def test_the_words_of_a_pull_count_layers_once_all_are_loaded():
    lines = [("a", "Downloading", 1, 10), ("a", "Download complete"), ("b", "Already exists")]
    assert of(*lines) == "image unpacks, 1 of 2 layers"
    assert of(*lines, ("a", "Extracting", 5, 10)) == "image unpacks, 1 of 2 layers"
    assert of(*lines, ("a", "Pull complete")) == "image unpacks, 2 of 2 layers"


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"status": "Pulling from library/ubuntu", "id": "latest"},
        {"status": "Digest: sha256:1"},
        {"id": 3, "status": "Downloading"},
    ],
)
def test_lines_that_are_of_no_layer_change_nothing(line):
    progress = PullProgress()
    progress.take(line)
    assert progress.words() == "image pull"


def test_a_size_that_the_registry_does_not_send_is_not_invented():
    progress = PullProgress()
    for detail in ({"current": 5_000_000, "total": -1}, {"current": "x"}, None):
        progress.take({"id": "a", "status": "Downloading", "progressDetail": detail})
    assert progress.words() == "image pull, 5 MB, 0 of 1 layers"


def test_sizes_are_in_decimal_units():
    assert size_words(999_000_000) == "999 MB"
    assert size_words(1_000_000_000) == "1.0 GB"
