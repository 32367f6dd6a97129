"""Volumes of managed workers on a real Docker engine: directories of the host, and the engine's own volumes."""

import gc
import os

import pytest
from helpers import wait_until
from test_docker_engine import IMAGE, Lab, archive, docker, inspect, remove_all, tiny

from ownpod.agent.containers import ContainerEngine
from ownpod.agent.engine import EngineError
from ownpod.agent.volumes import Volumes
from ownpod.rules.templates import VolumeMount
from ownpod.rules.volumes import parse_sources

__all__ = ["archive", "tiny"]

pytestmark = [
    pytest.mark.timeout(300),
    # docker-py leaves it to the garbage collector to close a socket that could not be connected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

NAMED = f"ownpod-test-{os.getpid()}"


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "models"
    found.mkdir()
    (found / "weights").write_text("42\n")
    return found


@pytest.fixture
def lab(tiny, request, folder):
    instance = f"test-{os.getpid()}-{abs(hash(request.node.name))}"
    made = Lab(instance)
    made.engine.close()
    sources = parse_sources(f"models={folder},cache=docker:{NAMED},gone={folder}/gone")
    made.engine = ContainerEngine(instance, volumes=Volumes(sources))
    yield made
    made.engine.close()
    remove_all(instance)
    docker("volume", "rm", "--force", NAMED)
    # Here, because later tests do not ignore its warnings.
    gc.collect()


def ran(lab, command, *mounts):
    """The exit code and the output of a worker that has ended and is removed."""
    worker = lab.start(("sh", "-c", command), volumes=mounts)
    code = lab.ended(worker).exit_code
    log = lab.engine.log(worker)
    lab.engine.remove(worker)
    return code, log


def test_a_directory_of_the_host_is_at_its_path_and_stays(lab, folder):
    code, log = ran(
        lab, "cat /runpod-volume/weights; echo x >/runpod-volume/made", VolumeMount("models")
    )
    assert (code, log) == (0, "42")
    assert (folder / "made").read_text() == "x\n"


def test_a_read_only_volume_cannot_be_written(lab, folder):
    mount = VolumeMount("models", "/models", read_only=True)
    code, log = ran(lab, "cat /models/weights; echo x >/models/made", mount)
    assert code != 0
    assert "42" in log
    assert "Read-only file system" in log
    assert not (folder / "made").exists()


def test_a_docker_volume_is_made_shared_and_kept(lab):
    cache = VolumeMount("cache", "/cache")
    assert ran(lab, "echo kept >/cache/file", cache)[0] == 0
    worker = lab.start(("sh", "-c", "cat /cache/file; sleep 60"), volumes=(cache,))
    wait_until(lambda: lab.engine.log(worker) == "kept", 30, "its output")
    (mount,) = inspect(f"ownpod-{worker}")["Mounts"]
    assert (mount["Type"], mount["Name"], mount["RW"]) == ("volume", NAMED, True)
    lab.engine.stop(worker, 0)
    lab.ended(worker)
    lab.engine.remove(worker)
    assert docker("volume", "ls", "--quiet", "--filter", f"name={NAMED}") == NAMED


def test_a_directory_that_does_not_exist_is_not_made_and_the_reason_names_it(lab, folder):
    with pytest.raises(EngineError, match=f"the directory {folder}/gone of a mount does not exist"):
        lab.start(volumes=(VolumeMount("gone"),))
    assert not (folder / "gone").exists()
    assert lab.engine.list() == {}


def test_a_volume_that_the_host_does_not_offer_is_refused(lab):
    launch = lab.launch(volumes=(VolumeMount("other"),))
    assert launch.template.image == IMAGE
    with pytest.raises(EngineError, match="this host has no volume other"):
        lab.engine.check_template(launch.template)
