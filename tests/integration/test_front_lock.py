"""The directory of a front: one runs in it, and what a killed one left behind is ended."""

import subprocess
import sys

import psutil
import pytest
from helpers import load_settings, wait_until

from ownpod.errors import StartError
from ownpod.front.lock import FILE, PID_FILE, end_orphan, front_directory, locked

SLEEP = "import time; time.sleep(60)"


def program(directory, *arguments):
    """A process in a directory, noted in the file that names HAProxy's."""
    directory.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", SLEEP, *arguments], cwd=directory)
    # Until then, the process has the command line of this one.
    wait_until(lambda: SLEEP in psutil.Process(process.pid).cmdline(), 10, "the program")
    (directory / PID_FILE).write_text(f"{process.pid}\n")
    return process


@pytest.fixture
def haproxy(tmp_path):
    """Stands for an HAProxy with a configuration file in its directory."""
    process = program(tmp_path / "front", "-f", FILE)
    yield process
    process.kill()
    process.wait()


def test_each_port_has_a_directory_of_its_own(tmp_path):
    config = load_settings(OWNPOD_DATA_DIR=tmp_path)
    assert front_directory(config, 8000) == tmp_path / "front" / "8000"


def test_one_front_at_a_time_runs_in_a_directory(tmp_path):
    with locked(tmp_path / "front"):
        problem = "another front runs in .*; stop it, or set OWNPOD"
        with pytest.raises(StartError, match=problem), locked(tmp_path / "front", wait_s=0.05):
            pass
        assert (tmp_path / "front").stat().st_mode & 0o777 == 0o700
    with locked(tmp_path / "front", wait_s=0):
        pass


def test_a_directory_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    problem = "OWNPOD_DATA_DIR: .*/file/front cannot be used: Not a"
    with pytest.raises(StartError, match=problem), locked(tmp_path / "file" / "front"):
        pass


@pytest.mark.slow
def test_what_a_killed_front_left_behind_is_ended(tmp_path, haproxy):
    end_orphan(tmp_path / "front")
    assert haproxy.wait(60) == -15


def test_the_haproxy_of_a_front_that_runs_is_kept(tmp_path, haproxy):
    with locked(tmp_path / "front"):
        end_orphan(tmp_path / "front")
    assert haproxy.poll() is None


def test_a_process_that_has_the_pid_of_an_earlier_haproxy_is_kept(tmp_path):
    other = program(tmp_path / "front", "-f", "another.cfg")
    elsewhere = program(tmp_path / "elsewhere", "-f", FILE)
    try:
        for process in (other, elsewhere):
            (tmp_path / "front" / PID_FILE).write_text(f"{process.pid}\n")
            end_orphan(tmp_path / "front")
            assert process.poll() is None
    finally:
        for process in (other, elsewhere):
            process.kill()
            process.wait()


@pytest.mark.parametrize("text", ["", "x", "999999999", "-1"])
def test_a_file_without_a_process_is_no_orphan(tmp_path, text):
    (tmp_path / PID_FILE).write_text(text)
    end_orphan(tmp_path)
    end_orphan(tmp_path / "not-there")
