"""A group of small processes: when one is restarted, and when its end ends the start."""

import os
import sys
import time

import pytest
from helpers import wait_until

from ownpod.errors import StartError
from ownpod.supervised import Group, Supervised

CHATTER = "import time\nwhile True: print('busy', flush=True); time.sleep(0.01)"
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def group():
    found = Group()
    yield found
    found.end(60)


def spawn(group, name, code, serves):
    return group.spawn(name, [sys.executable, "-c", code], dict(os.environ), serves=serves)


def attend_until(group, condition, seconds=10):
    def attended():
        group.supervise()
        return condition()

    return wait_until(attended, seconds)


@pytest.mark.slow
def test_a_part_that_serves_is_restarted_while_others_do_not_serve_yet(group, capfd):
    serving = spawn(group, "a", CHATTER, lambda: True)
    waiting = spawn(group, "b", SLEEP, lambda: False)
    attend_until(group, lambda: serving.supervised)
    first = serving.process.pid
    serving.process.kill()
    attend_until(group, lambda: serving.process.pid != first and serving.served_since)
    assert waiting.process.poll() is None
    assert not group.serving
    assert "a ended by SIGKILL; starting it again" in capfd.readouterr().out


def test_a_part_that_ends_before_it_serves_ends_the_start_with_its_reason(group, capfd):
    spawn(group, "a", "import sys; print('no such thing'); sys.exit(2)", lambda: False)
    with pytest.raises(StartError, match="a ended with exit code 2; ending everything"):
        attend_until(group, lambda: False)
    assert "a          | no such thing" in capfd.readouterr().out


@pytest.mark.slow
def test_a_log_that_is_never_quiet_does_not_hold_up_the_ready_line(group):
    spawn(group, "a", CHATTER, lambda: True)
    attend_until(group, lambda: group.serving)
    began = time.monotonic()
    group.settle()
    # The log is never quiet.
    assert time.monotonic() - began < 30


def test_a_supervised_process_is_due_when_its_pause_is_over():
    part = Supervised("a")
    now = time.monotonic()
    assert part.is_due(now)
    part.began(pid=7)
    assert not part.is_due(now + 1000)
    assert part.ended(served_s=0.1) == 0.5
    assert not part.is_due(now)
    assert part.is_due(now + 100)


@pytest.mark.slow
def test_a_part_that_is_started_late_is_restarted_and_ends_after_the_one_before_which_it_is(
    tmp_path, capfd
):
    obeys = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(print('bye')))\n"
    up = f"{obeys}print('up', flush=True)\ntime.sleep(60)"
    once = f"import os, sys\nif not os.path.exists('{tmp_path}/x'): os.mkdir('{tmp_path}/x'), sys.exit(2)\n"
    group = Group()
    log = ""

    def logged(text):
        nonlocal log
        log += capfd.readouterr().out
        return text in log

    try:
        early = spawn(group, "early", up, lambda: True)
        attend_until(group, lambda: logged("early      | up"))
        command = [sys.executable, "-c", once + up]
        group.spawn("late", command, dict(os.environ), serves=lambda: False, before=early)
        attend_until(group, lambda: logged("late       | up"))
    finally:
        group.end(60)
    logged("")
    assert "late ended with exit code 2; starting it again" in log
    assert [line for line in log.splitlines() if "bye" in line] == [
        "early      | bye",
        "late       | bye",
    ]


DRAINS = """
import os, signal, sys, time
def drain(*_):
    print('no more', flush=True)
    while not os.path.exists('{path}/gone'): time.sleep(0.01)
    sys.exit(print('drained'))
signal.signal(signal.SIGTERM, drain)
print('up', flush=True)
time.sleep(60)
"""
ENDS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (os.mkdir('{path}/gone'), sys.exit(print('bye'))))
print('up', flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_part_that_drains_hears_of_the_end_first_and_ends_after_the_one_behind_it(
    tmp_path, capfd
):
    group = Group()
    log = ""

    def logged(text):
        nonlocal log
        log += capfd.readouterr().out
        return text in log

    def start(name, code, **options):
        command = [sys.executable, "-c", code.format(path=tmp_path)]
        group.spawn(name, command, dict(os.environ), serves=lambda: True, **options)
        attend_until(group, lambda: logged(f"{name:<10} | up"))

    try:
        start("front", DRAINS, drains=True)
        start("api", ENDS)
    finally:
        group.end(60)
    logged("")
    assert sorted(line for line in log.splitlines() if "up" not in line) == [
        "api        | bye",
        "front      | drained",
        "front      | no more",
    ]
