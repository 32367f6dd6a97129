"""README's commands, from README's own text. Those with Docker: tests/docker/test_compose.py."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, Process, environment, readme_blocks, wait_until

from ownpod.processes import free_port

ELSEWHERE = {
    "make demo": "test_the_demo_runs_once",
    "make demo PULL=1": "test_the_demo_runs_once",
    "make test": "this run",
    "make install": "this run's .venv",
}


@pytest.fixture
def bash(tmp_path, start_worker):
    """Runs a command as README has it, but on other ports and in a directory of its own."""
    worker, _ = start_worker("sync")
    port = free_port()
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "inputs.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    environ = {"OWNPOD_URL": f"http://127.0.0.1:{port}", "OWNPOD_LEASE_S": 3, "PYTHONPATH": ROOT}

    def command(line):
        line = line.replace("http://localhost:8000", f"http://127.0.0.1:{port}")
        line = re.sub(r"http://localhost:1800[01]\b", worker, line)
        if "ownpod up" in line:
            line = line.split(",")[0] + f" --port {port}"
        return line

    def run(line):
        return subprocess.run(
            ["bash", "-euc", command(line)],
            cwd=tmp_path,
            env=environment(**environ),
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    def start(line):
        words = shlex.split(command(line), comments=True)
        words[0] = tmp_path / words[0]
        return Process(*words, log=tmp_path / "up.log", cwd=tmp_path, **environ)

    run.start = start
    return run


def test_every_command_outside_docker_works(bash):
    lines = [line for block in readme_blocks(docker=False) for line in block.splitlines() if line]
    commands = [line for line in lines if line.partition(" #")[0].strip() not in ELSEWHERE]
    (up,) = [line for line in commands if "ownpod up" in line]
    commands.remove(up)
    ownpod = bash.start(up)
    said = {}
    try:
        wait_until(lambda: "| ready: " in ownpod.output or not ownpod.running, 40)
        for line in commands:
            if "ownpod top" in line:
                # It would go on for ever.
                line = line.replace("ownpod top", "ownpod top --count 1")  # noqa: PLW2901
            done = bash(line)
            assert done.returncode == 0, (line, done.stdout, done.stderr, ownpod.output)
            said[line.partition("#")[0]] = done.stdout
    finally:
        ownpod.stop()
    found = "".join(said.values())
    assert '"echo": "hello"' in found
    assert "COMPLETED" in found
    assert (
        json.loads(said[next(line for line in said if "/health" in line)])["jobs"]["completed"] == 3
    )


def test_the_first_part_of_readme_is_short():
    text = (ROOT / "README.md").read_text()
    before = text.partition("## The API")[0]
    assert len(before.splitlines()) <= 100
