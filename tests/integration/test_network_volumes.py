"""Network volumes on hosts: made where the first worker starts, on one host only, kept for a day after their deletion."""

import threading
import time
from dataclasses import replace

import pytest
from helpers import wait_until

from ownpod.agent.network_volumes import TRASH, TRASH_S, NetworkVolumeDirectories
from ownpod.agent.volumes import Volumes
from ownpod.errors import RedisUnavailable
from ownpod.rules.managed import AgentInfo, HostVolume, ManagedWorker, Phase
from ownpod.rules.placement import ABOUT_TO_START, why_waits
from ownpod.rules.templates import Template, VolumeMount
from ownpod.rules.volumes import ANY_NETWORK, VolumeSource, has_all, reachable, variables
from ownpod.store import keys
from ownpod.store.network_volumes import NetworkVolumes

NAME = "nv-abcdefghij"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stored(client):
    return NetworkVolumes(client)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def directories(stored, tmp_path, clock):
    return NetworkVolumeDirectories(tmp_path / "volumes", "a", stored, clock=clock)


def read(directories):
    """What is published, also on a machine that is slow today."""
    return directories.read(time.monotonic() + 30)


def agent(host, directories):
    return AgentInfo(host, "process", volumes=tuple(read(directories)))


def test_a_host_offers_to_make_volumes_and_lists_its_own(directories, stored):
    (offer,) = read(directories)
    assert (offer.name, offer.problem) == (ANY_NETWORK, "")
    assert offer.total_mb > 0
    assert directories.settle([NAME, "models"])
    assert [volume.name for volume in read(directories)] == [ANY_NETWORK, NAME]
    assert stored.homes() == {NAME: "a"}


def test_a_volume_is_made_at_its_first_use_with_its_id_as_its_name(directories, tmp_path):
    volumes = Volumes(network=directories)
    template = Template(command=("x",), volumes=(VolumeMount(NAME),))
    ((mount, source),) = volumes.of(template)
    assert (mount.path, source.source) == ("/runpod-volume", str(tmp_path / "volumes/abcdefghij"))
    assert (tmp_path / "volumes" / "abcdefghij").is_dir()
    assert variables(template.volumes)["RUNPOD_VOLUME_ID"] == "abcdefghij"


def test_a_volume_is_on_one_host_only(directories, stored, tmp_path, clock):
    other = NetworkVolumeDirectories(tmp_path / "other", "b", stored, clock=clock)
    assert has_all(agent("b", other), [NAME])
    assert directories.settle([NAME])
    assert not other.settle([NAME])
    clock.now += 60
    both = [agent("a", directories), agent("b", other)]
    assert not other.may_have([NAME])
    assert directories.may_have([NAME])
    assert [found.host for found in reachable(both, [NAME])[0]] == ["a"]
    worker = ManagedWorker("w", "e", "r", Phase.WANTED, 1, volumes=(NAME,))
    assert why_waits(worker, both, {}) == ABOUT_TO_START
    drained = [replace(both[0], draining=True), both[1]]
    assert why_waits(worker, drained, {}) == "network volume abcdefghij is on host a"


def test_a_volume_of_the_hosts_setting_is_shared_and_has_no_home(directories, stored, tmp_path):
    volumes = Volumes([VolumeSource(NAME, "directory", str(tmp_path))], network=directories)
    assert volumes.settle([NAME])
    assert stored.homes() == {}
    found = {volume.name: volume.source for volume in volumes.read("process")}
    assert found[NAME] == str(tmp_path)


def test_a_deleted_volume_stays_in_the_trash_for_a_day(
    directories, stored, client, tmp_path, clock
):
    directories.settle([NAME])
    path = tmp_path / "volumes" / "abcdefghij"
    directories.source(NAME)
    (path / "model").write_text("weights")
    directories.tidy()
    assert path.exists()
    client.zadd(keys.VOLUMES_DELETED, {NAME: int(client.time()[0]) * 1000})
    clock.now += 60
    directories.tidy()
    trash = tmp_path / "volumes" / TRASH / NAME
    assert not path.exists()
    assert (trash / "model").read_text() == "weights"
    client.zadd(keys.VOLUMES_DELETED, {NAME: 1000 * (int(client.time()[0]) - TRASH_S - 60)})
    clock.now += 60
    directories.tidy()
    assert not trash.exists()
    assert (stored.deleted(), stored.homes()) == ({}, {})


def test_another_host_does_not_forget_a_deleted_volume(
    directories, stored, client, tmp_path, clock
):
    directories.settle([NAME])
    directories.source(NAME)
    other = NetworkVolumeDirectories(tmp_path / "other", "b", stored, clock=clock)
    other.read()
    client.zadd(keys.VOLUMES_DELETED, {NAME: 1})
    other.tidy()
    assert NAME in stored.deleted()


def test_a_redis_without_data_deletes_nothing(directories, client, tmp_path, clock):
    directories.settle([NAME])
    directories.source(NAME)
    client.flushall()
    clock.now += 120
    directories.tidy()
    assert (tmp_path / "volumes" / "abcdefghij").is_dir()


@pytest.mark.slow
def test_a_directory_that_does_not_answer_takes_no_workers_until_it_does(stored, tmp_path):
    go, begun = threading.Event(), []

    def blocks():
        begun.append(1)
        go.wait(30)
        return HostVolume(ANY_NETWORK, "directory", "", 1000, 500)

    directories = NetworkVolumeDirectories(tmp_path, "a", stored, every_s=0, measure=blocks)
    assert directories.settle([NAME])
    for _ in range(3):
        found = Volumes(network=directories).read("process")
        assert [volume.problem for volume in found] == [f"{tmp_path} does not answer"] * 2
        assert not has_all(AgentInfo("a", "process", volumes=found), [NAME])
    assert len(begun) == 1
    go.set()
    offer, mine = read(directories)
    assert (offer.problem, offer.free_mb, mine.free_mb) == ("", 500, 500)
    assert mine.source == str(tmp_path / "abcdefghij")


def test_the_removal_of_much_data_does_not_keep_the_agent_from_its_turn(stored, tmp_path):
    go, begun = threading.Event(), []

    class Slow(NetworkVolumeDirectories):
        def tidy(self):
            begun.append(1)
            go.wait(30)
            raise RedisUnavailable

    volumes = Volumes(network=Slow(tmp_path, "a", stored))
    for _ in range(3):
        volumes.tidy()
    wait_until(lambda: begun)
    assert begun == [1]
    go.set()

    def begins_again():
        volumes.tidy()
        return len(begun) > 1

    wait_until(begins_again)
