"""The scripts of `.ci/` and of the Docker tests, with small programs instead of apt and Docker."""

import os
import platform
import re
import shlex
import subprocess

import pytest
from helpers import ROOT, environment

STANDINS = ROOT / "tests/docker/standins.sh"
ENGINE = ROOT / ".ci/engine"


@pytest.fixture
def run(tmp_path):
    """Runs a script; ``programs`` (name: shell script) come first on its PATH."""

    def made(*command, path=os.environ["PATH"], **programs):
        for name, text in programs.items():
            program = tmp_path / name.replace("_", "-")
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(0o755)
        return subprocess.run(
            command,
            env=environment(PATH=f"{tmp_path}:{path}", DOCKER_HOST="unix:///nowhere"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return made


def test_the_stand_ins_come_from_the_machines_own_mirror(run):
    try:
        here = platform.freedesktop_os_release()
    except OSError:
        pytest.skip("no /etc/os-release: not Linux")
    origin, release = here["ID"].capitalize(), here.get("VERSION_CODENAME", "")
    targets = [
        f"Other {release} main http://packages.example.com/",
        f"{origin} {release} universe http://mirror.example.com/distribution/",
        f"{origin} {release} main http://mirror.example.com/distribution/",
        f"{origin} {release}-updates main http://updates.example.com/",
    ]
    output = run(STANDINS, "apt-source", apt_get=f"printf '%s\\n' {shlex.join(targets)}")
    assert output.stdout == f"http://mirror.example.com/distribution/ {release} main,universe\n"
    nothing = run(STANDINS, "apt-source", apt_get="true")
    assert nothing.returncode == 1
    assert "apt-get update" in nothing.stderr


def test_no_script_names_the_host_of_a_registry():
    for script in (STANDINS, ENGINE, ROOT / ".ci/run", ROOT / "Dockerfile"):
        assert re.findall(r"https?://[\w.]+", script.read_text()) == [], script


def test_an_engine_that_answers_is_used_and_the_commands_exit_code_kept(run):
    assert run(ENGINE, "sh", "-c", "echo ran; exit 3", docker="exit 0").returncode == 3


def test_without_an_engine_the_reason_is_printed_and_nothing_runs(run):
    # Docker's client is installed, but no program that can start an engine.
    tools = "/usr/bin:/bin"
    output = run(ENGINE, "echo", "ran", path=tools, docker="exit 1", id="echo 0", dockerd="exit 1")
    assert (output.returncode, output.stdout) == (70, "")
    assert "no Docker engine can start here" in output.stderr
    output = run(ENGINE, "echo", "ran", path=tools, docker="exit 1", id="echo 1000")
    assert (output.returncode, output.stdout) == (70, "")
    assert "not root" in output.stderr
