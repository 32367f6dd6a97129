"""Volumes of a host: what its agent publishes, and the paths at which processes have them."""

import os
import sys
import textwrap
import threading

import pytest
from helpers import wait_until

from ownpod.agent import volumes as module
from ownpod.agent.engine import EngineError, Launch
from ownpod.agent.processes import ProcessEngine
from ownpod.agent.volumes import Volumes, check_link, make_link
from ownpod.rules.managed import HostVolume
from ownpod.rules.templates import Template, VolumeMount
from ownpod.rules.volumes import VolumeSource, parse_sources


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "models"
    found.mkdir()
    return found


def source(folder):
    return VolumeSource("models", "directory", str(folder))


def read(folder):
    (found,) = Volumes([source(folder)], every_s=0).read("process")
    return found


# What is published


def test_a_directory_has_its_sizes(folder):
    status = os.statvfs(folder)
    found = read(folder)
    assert (found.name, found.kind, found.source, found.problem) == (
        "models",
        "directory",
        str(folder),
        "",
    )
    assert found.total_mb == status.f_blocks * status.f_frsize // 2**20
    assert 0 < found.free_mb <= found.total_mb


def test_a_directory_that_vanishes_is_a_problem_until_it_is_back(folder):
    volumes = Volumes([source(folder)], every_s=0)
    assert volumes.read("process")[0].problem == ""
    folder.rmdir()
    assert volumes.read("process")[0].problem == f"{folder} does not exist"
    folder.write_text("")
    assert volumes.read("docker")[0].problem == f"{folder} is no directory"
    folder.unlink()
    folder.mkdir()
    assert volumes.read("process")[0].problem == ""


def test_a_link_must_not_lead_to_what_no_volume_may_be(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/proc/self")
    assert "must not be in /proc" in read(link).problem
    link.unlink()
    link.symlink_to(link)
    assert read(link).problem


def test_docker_volumes_need_the_engine_docker():
    volumes = Volumes(parse_sources("b=docker:cache,a=docker:other"))
    assert [v.problem for v in volumes.read("docker")] == ["", ""]
    assert [v.name for v in volumes.read("docker")] == ["a", "b"]
    assert volumes.read("process")[0].problem == "the engine process has no Docker volumes"


def test_only_the_engine_knows_directories_of_another_host(tmp_path):
    volumes = Volumes([source(tmp_path / "there")], every_s=0)
    volumes.elsewhere = True
    assert volumes.read("docker")[0].problem == ""
    (tmp_path / "there").write_text("")
    assert "is no directory" in volumes.read("docker")[0].problem


def test_a_directory_that_does_not_answer_blocks_the_agent_shortly_and_once(folder, monkeypatch):
    go, begun = threading.Event(), []

    def blocks(asked):
        begun.append(asked.name)
        go.wait(30)
        return HostVolume(asked.name, asked.kind, asked.source)

    monkeypatch.setattr(module, "measure", blocks)
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    many = [VolumeSource(f"v{n}", "directory", str(folder)) for n in range(5)]
    volumes = Volumes(many, every_s=0)
    for _ in range(3):
        assert {v.problem for v in volumes.read("process")} == {f"{folder} does not answer"}
    wait_until(lambda: len(begun) >= 5)
    assert len(begun) == 5
    go.set()
    wait_until(lambda: {v.problem for v in volumes.read("process")} == {""})


def test_no_volumes_cost_no_thread():
    before = threading.active_count()
    assert Volumes().read("process") == ()
    assert threading.active_count() == before


# Links of processes


def mount(path, **values):
    return VolumeMount("models", str(path), **values)


def test_a_path_becomes_a_link_to_the_directory_and_stays(folder, tmp_path):
    path = tmp_path / "new" / "deeper" / "volume"
    check_link(mount(path), source(folder))
    assert not path.parent.exists()
    make_link(mount(path), source(folder))
    make_link(mount(path), source(folder))
    check_link(mount(path), source(folder))
    assert path.readlink() == folder


def test_the_directory_itself_and_a_link_that_leads_there_are_used(folder, tmp_path):
    check_link(mount(folder), source(folder))
    make_link(mount(folder), source(folder))
    assert not folder.is_symlink()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to("models")
    make_link(mount(tmp_path / "a"), source(folder))


@pytest.mark.parametrize("kind", ["directory", "file", "link", "dangling"])
def test_what_is_at_the_path_already_is_never_replaced(folder, tmp_path, kind):
    path = tmp_path / "path"
    match kind:
        case "directory":
            path.mkdir()
        case "file":
            path.write_text("mine")
        case "link":
            path.symlink_to(tmp_path)
        case "dangling":
            path.symlink_to(tmp_path / "none")
    before = path.lstat().st_ino
    for call in (check_link, make_link):
        with pytest.raises(EngineError) as caught:
            call(mount(path), source(folder))
        assert str(caught.value) == (
            f"volume models: {path} exists on this host, and is not {folder}: choose another path in "
            "template.volumes, or move what is there"
        )
    assert path.lstat().st_ino == before


def test_a_path_that_cannot_be_made_is_refused_with_the_reason(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EngineError, match="cannot be made on this host, because this user may not write to"
    ):
        check_link(mount(tmp_path / "file" / "x"), source(folder))
    with pytest.raises(EngineError, match="is one of Docker"):
        check_link(mount(tmp_path / "x"), VolumeSource("models", "docker", "c"))


def test_a_link_is_not_made_to_a_directory_that_has_gone(folder, tmp_path):
    folder.rmdir()
    with pytest.raises(EngineError, match="does not exist any more"):
        make_link(mount(tmp_path / "x"), source(folder))
    assert not os.path.lexists(tmp_path / "x")


def test_workers_that_start_at_the_same_time_make_one_link(folder, tmp_path):
    path, problems = tmp_path / "x" / "y", []
    barrier = threading.Barrier(8)

    def make():
        barrier.wait()
        try:
            make_link(mount(path), source(folder))
        except EngineError as error:
            problems.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert path.readlink() == folder


# The engine process


@pytest.mark.slow
def test_a_process_reads_and_writes_its_volume(folder, tmp_path, caplog):
    path = tmp_path / "mounted"
    (folder / "weights").write_text("42")
    engine = ProcessEngine(tmp_path / "agent", "one", Volumes([source(folder)]))
    program = textwrap.dedent(f"""
        from pathlib import Path
        print(Path("{path}/weights").read_text(), flush=True)
        Path("{path}/made").write_text("x")
    """)
    template = Template(
        command=(sys.executable, "-c", program), volumes=(mount(path, read_only=True),)
    )
    engine.check_template(template)
    engine.start(Launch("w" * 14, "ep", "one", template, {}))
    wait_until(lambda: not engine.list()["w" * 14].running)
    assert engine.log("w" * 14) == "42"
    engine.remove("w" * 14)
    assert (folder / "made").exists()
    assert path.is_symlink()
    assert "does not enforce readOnly of volume models" in caplog.text


@pytest.mark.slow
def test_the_engine_refuses_a_volume_that_the_host_does_not_offer(tmp_path):
    engine = ProcessEngine(tmp_path, "one")
    template = Template(command=("true",), volumes=(mount("/x"),))
    for call in (
        engine.check_template,
        lambda t: engine.start(Launch("w" * 14, "ep", "one", t, {})),
    ):
        with pytest.raises(EngineError, match="this host has no volume models: set OWNPOD_VOLUMES"):
            call(template)
    assert engine.list() == {}
