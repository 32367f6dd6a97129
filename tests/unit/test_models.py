"""The rules of models: sources, names from outside, which give way, what a worker gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.agent.outside import Outside, outside, own_ids
from ownpod.rules.model_mounts import model_mount
from ownpod.rules.model_news import News, State, news_in, news_text, progress_words
from ownpod.rules.models import (
    KEY,
    Kept,
    Manifest,
    ModelFile,
    ModelSource,
    NoRoom,
    check_file,
    check_source,
    evictions,
    manifest_in,
    manifest_text,
)

HUB = ModelSource("tiny", "hf://org/tiny")


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("hf://org/tiny", "hf"),
        ("https://x/y", "http"),
        ("file:///srv/x", "file"),
        ("s3://b/x", "remote"),
        ("file-service:", "file-service"),
        ("", ""),
    ],
)
def test_a_source_has_its_kind(source, kind):
    found = ModelSource("x", source)
    check_source(found)
    assert found.kind == kind


@pytest.mark.parametrize(
    "source",
    [
        ModelSource("x", "ssh://host/x"),
        ModelSource("x", "hf://org/../x"),
        ModelSource("x", "hf://a/b/c"),
        ModelSource("x", "hf://org/tiny", "../../refs"),
        ModelSource("x", "https:///x"),
        ModelSource("x", "file:///srv/../etc"),
        ModelSource("x", "file://ownpod"),
        ModelSource("x", "file://."),
        ModelSource("x", "https://x/a b"),
        ModelSource("../x", "hf://org/tiny"),
        ModelSource("x" * 201, "hf://org/tiny"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(source):
    with pytest.raises(ValueError) as caught:
        check_source(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b.c", "a b", "é/x", ".gitattributes"])
def test_a_plain_relative_path_is_taken(name):
    assert check_file(name) == name


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb", "x" * 256]
)
def test_another_path_is_refused(name):
    with pytest.raises(ValueError, match="refused"):
        check_file(name)


@given(st.text(min_size=1, max_size=30), st.text(max_size=40), st.text(max_size=10))
def test_a_key_is_always_the_name_of_a_file(model_id, source, revision):
    assert KEY.fullmatch(ModelSource(model_id, source, revision).key)


def test_another_revision_or_layout_is_stored_beside_the_first():
    others = [
        ModelSource("tiny", "hf://org/tiny", "v2"),
        ModelSource("tiny", "hf://org/tiny", flat=True),
    ]
    assert len({source.key for source in (HUB, *others)}) == 3


def test_what_is_secret_in_a_url_is_not_shown():
    assert ModelSource("x", "https://user:pw@host/x?sig=1").shown == "https://host/x"


def test_a_manifest_survives_its_text_and_a_bad_one_is_refused():
    manifest = Manifest(HUB, "hub/x", "snapshots/c", (ModelFile("a", 3, "ff"),), 5, "c")
    assert manifest_in(manifest_text(manifest)) == manifest
    for text in ("", "[]", "{}", manifest_text(manifest).replace('"a"', '"../a"')):
        with pytest.raises(ValueError):
            manifest_in(text)


def test_news_survive_their_text():
    news = News("k", "tiny", "x", State.FETCHING, 1, 2, workers=("w",), origin=HUB)
    assert news_in(news_text(news)) == news
    with pytest.raises(ValueError):
        news_in("{}")


def test_the_progress_in_words():
    news = News("k", "tiny", "x", State.FETCHING, 3 * 10**9, 12 * 10**9)
    assert progress_words(news) == "model tiny is being fetched: 3.0 GB of 12.0 GB, 25 %"
    assert (
        progress_words(News("k", "tiny", "x", State.WAITING)) == "model tiny is about to be fetched"
    )


GB = 10**9


def test_no_model_goes_when_there_is_room():
    assert evictions([Kept("a", GB, 1)], GB, free=100 * GB, total=100 * GB, quota=None) == ()


def test_the_least_recently_used_go_first_and_as_few_as_needed():
    kept = [Kept("new", GB, 9), Kept("old", GB, 1), Kept("mid", GB, 5)]
    assert evictions(kept, GB, free=100 * GB, total=100 * GB, quota=3 * GB) == ("old",)
    assert evictions(kept, 2 * GB, free=100 * GB, total=100 * GB, quota=3 * GB) == ("old", "mid")


def test_a_bound_model_stays_and_the_numbers_are_in_the_error():
    kept = [Kept("a", 2 * GB, 1, bound=True), Kept("b", GB, 2)]
    with pytest.raises(NoRoom, match="3.0 GB needed"):
        evictions(kept, 3 * GB, free=100 * GB, total=100 * GB, quota=3 * GB)
    with pytest.raises(NoRoom, match="90.0 GB needed, 86.0 GB free"):
        evictions(kept, 90 * GB, free=90 * GB, total=100 * GB, quota=None)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9), st.booleans()), max_size=8),
    st.integers(0, 100),
    st.integers(0, 200),
    st.one_of(st.none(), st.integers(0, 200)),
)
def test_what_goes_makes_room_and_is_never_bound(models, need, free, quota):
    kept = [Kept(str(n), size, used, bound) for n, (size, used, bound) in enumerate(models)]
    try:
        gone = evictions(kept, need, free=free, total=400, quota=quota)
    except NoRoom:
        return
    left = sum(model.size for model in kept if model.key not in gone)
    freed = sum(model.size for model in kept if model.key in gone)
    assert not any(model.bound for model in kept if model.key in gone)
    assert quota is None or left + need <= quota
    assert free + freed - need >= 20


def test_a_container_gets_the_repository_because_a_snapshot_has_links_only():
    manifest = Manifest(HUB, "hub/models--org--tiny", "snapshots/c")
    found = model_mount(manifest, "/m", container=True)
    assert found.mounts == {
        "/models": "/m/hub/models--org--tiny",
        "/runpod-volume/huggingface-cache/hub": "/m/hub",
    }
    assert found.env == {
        "MODEL_PATH": "/models/snapshots/c",
        "MODEL_NAME": "org/tiny",
        "HF_HUB_CACHE": "/runpod-volume/huggingface-cache/hub",
        "HF_HUB_OFFLINE": "1",
    }


def test_a_volume_above_the_cache_keeps_its_place_and_one_at_models_is_refused():
    manifest = Manifest(HUB, "hub/x", "snapshots/c")
    assert list(model_mount(manifest, "/m", container=True, taken=["/runpod-volume"]).mounts) == [
        "/models"
    ]
    with pytest.raises(ValueError, match="/models is the path of the model"):
        model_mount(manifest, "/m", container=True, taken=["/models"])


def test_a_process_gets_paths_of_the_host():
    found = model_mount(Manifest(HUB, "hub/x", "snapshots/c"), "/m", container=False)
    assert found.mounts == {}
    assert found.env["MODEL_PATH"] == "/m/hub/x/snapshots/c"
    assert found.env["HF_HUB_CACHE"] == "/m/hub"


def test_a_path_of_a_container_is_found_on_the_engines_host():
    mounts = [
        {"Destination": "/app", "Source": "/srv/app"},
        {"Destination": "/app/var", "Source": "/var/lib/docker/volumes/var/_data"},
        {"Destination": "/tmpfs", "Source": ""},
    ]
    assert outside("/app/var/models", mounts) == "/var/lib/docker/volumes/var/_data/models"
    assert outside("/app/models", mounts) == "/srv/app/models"
    assert outside("/tmpfs/models", mounts) is None
    assert outside("/application", mounts) is None


def test_an_agent_in_a_container_knows_where_its_host_has_the_models():
    mounts = ({"Destination": "/data", "Source": "/srv/data"},)
    assert Outside().of("/data/models") == "/data/models"
    assert Outside("/data/models", "/big", mounts).of("/data/models") == "/big"
    assert Outside("/data/models", "/big", mounts).of("/data/other") == "/srv/data/other"
    assert Outside("/data/models", None, mounts).of("/data/models") == "/srv/data/models"
    with pytest.raises(
        ValueError, match=r"^/models is in no mount .* or set OWNPOD_MODELS_HOST_DIR$"
    ):
        Outside("/models", None, mounts).of("/models")
    with pytest.raises(
        ValueError, match="^/given is in no mount .*: mount a directory of the host there$"
    ):
        Outside("/models", "/big", mounts).of("/given")


def test_a_container_has_its_id_in_the_mounts_of_its_engine():
    docker, podman = "a" * 64, "b" * 64
    lines = [
        f"1 2 8:1 /lib/docker/containers/{docker}/resolv.conf /etc/resolv.conf rw - ext4 /dev/sda rw",
        f"1 2 8:1 /lib/docker/containers/{docker}/hostname /etc/hostname rw - ext4 /dev/sda rw",
        f"1 2 0:9 /containers/overlay-containers/{podman}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw",
        f"1 2 8:1 /lib/docker/containers/{'c' * 64}/x /data rw - ext4 /dev/sda rw",
    ]
    assert own_ids("\n".join(lines), "host") == [docker, podman, "host"]
    assert own_ids("", "host") == ["host"]
