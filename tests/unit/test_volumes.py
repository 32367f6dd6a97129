"""Volumes: what hosts offer, what templates name, and which host a worker with volumes gets."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from ownpod.agent.container_options import options
from ownpod.agent.engine import Launch
from ownpod.agent.images import Image
from ownpod.configuration import make_endpoint
from ownpod.rules.launching import environment
from ownpod.rules.managed import AgentInfo, Device, HostVolume, ManagedWorker, Phase
from ownpod.rules.placement import ABOUT_TO_START, place, why_waits
from ownpod.rules.templates import Template, VolumeMount, spec_in, spec_text
from ownpod.rules.volumes import (
    VolumeSource,
    describe_volume,
    parse_mounts,
    parse_sources,
    variable_of,
)

MODELS = HostVolume("models", "directory", "/srv/models", 2048, 1024)


def test_a_host_names_its_volumes():
    assert parse_sources(" models=/srv/models , cache = docker:my.cache ,") == (
        VolumeSource("models", "directory", "/srv/models"),
        VolumeSource("cache", "docker", "my.cache"),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models", "'models' must be <name>=<directory> or <name>=docker:<volume>"),
        ("Models=/srv", "a name has lower-case letters, digits, - and _, at most 63"),
        ("../x=/srv", "must be <name>=<directory>"),
        ("-a=/srv", "must be <name>=<directory>"),
        (f"{'a' * 64}=/srv/x", "must be <name>=<directory>"),
        ("a=", "a: the directory must be an absolute path"),
        ("a=srv/models", "must be an absolute path"),
        ("a=/srv/../etc", "must be an absolute path"),
        ("a=/srv//x", "must be an absolute path"),
        ("a=/srv/", "must be an absolute path"),
        ("a=/srv/./x", "must be an absolute path"),
        ("a=/a:b", "must be an absolute path"),
        ("a=/a\nb", "must be an absolute path"),
        ("a=/" + "x" * 1024, "at most 1024 bytes"),
        ("a=/", "must not be /"),
        ("a=/proc", "must not be in /proc"),
        ("a=/sys/fs", "must not be in /sys"),
        ("a=/dev/shm", "must not be in /dev"),
        ("a=/etc", "must not be in /etc"),
        ("a=docker:", "must name a Docker volume"),
        ("a=docker:../x", "must name a Docker volume"),
        ("a=docker:-x", "must name a Docker volume"),
        ("a=docker:/srv", "must name a Docker volume"),
        ("a=/srv/a,a=/srv/b", "a must be there once"),
        (",".join(f"v{n}=/srv/{n}" for n in range(101)), "must have at most 100 volumes"),
    ],
)
def test_a_wrong_volume_of_a_host_is_one_line(text, problem):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        parse_sources(text)
    assert problem in str(caught.value)


@given(st.text() | st.from_regex(r"[a-c]=(/|docker:)[a-z./:,-]*", fullmatch=True))
def test_any_text_is_a_list_of_plain_volumes_or_one_error(text):
    found, problem = (), ""
    try:
        found = parse_sources(text)
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
    for volume in found:
        assert ".." not in volume.source.split("/")
        assert volume.source.startswith("/") == (volume.kind == "directory")
        assert volume.source not in {"/", "/etc", "/proc"}


@pytest.mark.parametrize(
    ("value", "mounts"),
    [
        ("models", [VolumeMount("models", "/runpod-volume")]),
        ([], []),
        ({"models": "/models", "b": "/b c"}, [VolumeMount("models", "/models"), VolumeMount("b", "/b c")]),
        (["models", {"name": "b", "path": "/b"}], [VolumeMount("models"), VolumeMount("b", "/b")]),
        ([{"name": "b", "readOnly": True}], [VolumeMount("b", read_only=True)]),
        ({"a": "/usr/share/models", "b": "/var/lib/x"}, [VolumeMount("a", "/usr/share/models"), VolumeMount("b", "/var/lib/x")]),
    ],
)  # fmt: skip
def test_a_template_names_its_volumes(value, mounts):
    endpoint = make_endpoint("a", {"template": {"command": "x", "volumes": value}})
    assert list(endpoint.managed.template.volumes) == mounts
    assert spec_in(spec_text(endpoint.managed)) == endpoint.managed


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "must name at least one volume"),
        (5, "must be a volume's name, an object like models: /runpod-volume"),
        (["a"] * 21, "a list of at most 20 objects"),
        ("A", "must name each volume with lower-case letters"),
        ([5], "must have only the keys name, path and readOnly"),
        ([{"name": "a", "host": "/x"}], "must have only the keys name, path and readOnly"),
        ([{"path": "/x"}], "must name each volume"),
        ({5: "/x"}, "must name each volume"),
        ({"a": 5}, "must have a path for a"),
        ({"a": None}, "must have a path for a"),
        ([{"name": "a", "readOnly": "no"}], "must have true or false as readOnly of a"),
        ({"a": "x"}, "has a wrong path for a: it must be an absolute path"),
        ({"a": "/x/.."}, "must be an absolute path"),
        ({"a": "/x,y"}, "must be an absolute path"),
        ({"a": "/x\udc80"}, "must be an absolute path"),
        ({"a": "/"}, "it must not be /"),
        ({"a": "/proc/1"}, "must not be in /proc"),
        ({"a": "/dev"}, "must not be in /dev"),
        ({"a": "/etc/x"}, "must not be in /etc"),
        ({"a": "/bin"}, "must not be in /bin"),
        ({"a": "/var/run/x"}, "must not be in /var/run"),
        ({"a": "/usr"}, "must not be /usr"),
        ({"a": "/home"}, "must not be /home"),
        (["a", "b"], "must have paths that are not in each other, unlike those of a and b"),
        ({"a": "/x", "b": "/x/y"}, "must have paths that are not in each other"),
        ([{"name": "a", "path": "/x"}, {"name": "a", "path": "/y"}], "must have each volume once"),
        ({"a-b": "/x", "a_b": "/y"}, "must have each volume once"),
    ],
)  # fmt: skip
def test_a_wrong_volume_of_a_template_is_one_line_at_its_field(value, problem):
    with pytest.raises(ValidationError) as caught:
        make_endpoint("a", {"template": {"command": "x", "volumes": value}})
    found = str(caught.value)
    assert "volumes" in found
    assert problem in found
    assert "\n" not in found


def test_paths_beside_each_other_with_one_beginning_are_allowed():
    assert len(parse_mounts({"a": "/x", "b": "/xy"})) == 2


def test_another_volume_is_another_release_and_none_is_that_of_before():
    def release(**more):
        return make_endpoint("a", {"template": {"command": "x", **more}}).managed.release

    names = [release(), release(volumes="a"), release(volumes="b"), release(volumes={"a": "/x"})]
    assert len(set(names)) == 4
    assert release(volumes=[]) == release()


def test_a_worker_has_the_path_of_each_volume_in_its_environment():
    mounts = (VolumeMount("my-models"), VolumeMount("cache", "/cache"))
    template = Template(command=("x",), volumes=mounts, env={"OWNPOD_VOLUME_CACHE": "/other"})
    found = environment(template, worker_id="w", endpoint="ep", base_url="http://a", key="k")
    assert found[variable_of("my-models")] == "/runpod-volume"
    assert found["OWNPOD_VOLUME_CACHE"] == "/cache"
    assert found["RUNPOD_VOLUME_ID"] == "my-models"


def test_a_worker_without_a_volume_at_runpods_path_has_no_volume_id():
    template = Template(command=("x",), volumes=(VolumeMount("a", "/a"),))
    found = environment(template, worker_id="w", endpoint="ep", base_url="http://a", key="k")
    assert "RUNPOD_VOLUME_ID" not in found


# Placement


def agent(host="h", *volumes, devices=(), **values):
    return AgentInfo(host, "process", devices, volumes=volumes, **values)


def wants(*volumes, count=0):
    return ManagedWorker("w", "ep", "r", Phase.WANTED, 0, gpu_count=count, volumes=volumes)


def test_a_worker_goes_to_a_host_that_has_all_of_its_volumes():
    cache = HostVolume("cache", "docker", "c")
    assert place([wants("models", "cache")], agent("h", MODELS), ()) == []
    assert len(place([wants("models", "cache")], agent("h", cache, MODELS), ())) == 1
    assert len(place([wants()], agent("h"), ())) == 1


def test_a_volume_with_a_problem_is_none_for_workers():
    broken = replace(MODELS, problem="/srv/models does not exist")
    assert place([wants("models")], agent("h", broken), ()) == []
    assert why_waits(wants("models"), [agent("g"), agent("h", broken)], {}) == (
        "volume models of host h cannot be used: /srv/models does not exist"
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("models",), "no host has the volume models: set OWNPOD_VOLUMES where its agent runs"),
        (
            ("a", "b", "models"),
            "no host has the volumes a, b and models: set OWNPOD_VOLUMES where its agent runs",
        ),
    ],
)
def test_a_worker_for_which_no_host_has_the_volumes_waits_with_their_names(names, reason):
    assert why_waits(wants(*names), [agent()], {}) == reason


def test_only_devices_of_hosts_with_the_volumes_count():
    device = Device("d", 0, "card")
    near, far = agent("near", MODELS), agent("far", devices=(device,))
    assert why_waits(wants("models", count=1), [near, far], {}) == "no host has a device"
    with_both = agent("both", MODELS, devices=(device,))
    assert why_waits(wants("models", count=1), [far, with_both], {}) == ABOUT_TO_START
    assert why_waits(wants("models"), [far, near], {}) == ABOUT_TO_START


# Containers


def test_a_container_gets_directories_as_binds_and_docker_volumes_by_name():
    mounts = (VolumeMount("models", "/models", read_only=True), VolumeMount("cache"))
    launch = Launch("w" * 14, "ep", "i", Template(image="i:1", volumes=mounts), {})
    sources = parse_sources("models=/srv/models,cache=docker:c")
    image = Image("i:1", "sha256:1", (), ())
    made = options(launch, image, volumes=list(zip(mounts, sources, strict=True)))
    assert made.host["mounts"] == [
        {"Type": "bind", "Source": "/srv/models", "Target": "/models", "ReadOnly": True},
        {"Type": "volume", "Source": "c", "Target": "/runpod-volume", "ReadOnly": False},
    ]
    assert "mounts" not in options(launch, image).host


def test_sizes_that_are_not_known_are_null():
    assert describe_volume(MODELS)["freeMb"] == 1024
    unknown = describe_volume(HostVolume("c", "docker", "c"))
    assert (unknown["totalMb"], unknown["freeMb"]) == (None, None)
