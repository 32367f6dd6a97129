"""The commands of README and of the tutorial, from their own text. Those with Docker: tests/docker/test_compose.py."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from helpers import ROOT, Process, environment, readme_blocks, wait_until

from ownpod.processes import free_port

ELSEWHERE = {
    "make demo": "test_the_demo_runs_once",
    "make demo PULL=1": "test_the_demo_runs_once",
    "make demo MANAGED=1": "test_the_demo_of_managed_workers_goes_from_no_worker_to_two_and_back",
    "make demo LLM=1": "test_the_demo_of_openai_clients_asks_a_real_model",
    "make demo LB=1": "test_the_demo_of_load_balancing_holds_limits_streams_and_keeps_a_websocket",
    "make demo SESSION=1": "test_the_demo_of_sessions_loads_its_model_once_and_ends_when_it_is_idle",
    "make demo SHARE=1": "test_the_demo_of_sharing_swaps_twice_and_never_in_the_middle",
    "make test": "this run",
    "make install": "this run's .venv",
}


def answers(url):
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


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
            timeout=200,
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


class Tutorial:
    """The reader of docs/tutorial.md, with other ports and a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.worker = self.ownpod = None
        self.port, self.flower, self.worker_port = (free_port() for _ in range(3))
        self.environ = environment(
            OWNPOD_URL=f"http://127.0.0.1:{self.port}",
            OWNPOD_WORKERS=f"http://localhost:{self.worker_port}",
            PYTHONPATH=ROOT,
            PATH=f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
        )

    def start(self, line, log):
        line = line.replace("18000", f"{self.worker_port}")
        if line.startswith("ownpod up"):
            line += f" --port {self.port} --flower-port {self.flower}"
        program, *words = shlex.split(line)
        program = Path(sys.prefix) / "bin" / program
        return Process(program, *words, log=self.folder / log, cwd=self.folder, **self.environ)

    def start_worker(self):
        self.worker = self.start(self.worker_line, "worker.log")
        url = f"http://localhost:{self.worker_port}/openapi.json"
        wait_until(lambda: answers(url), 30)

    def write(self, text):
        """A block of Python: the file, or the line that replaces another."""
        file = self.folder / "hello.py"
        if "import runpod" not in text:
            self.worker.stop()
            text = re.sub(r"(?m)^    name = .*\n", text, file.read_text())
            file.write_text(text)
            self.start_worker()
        file.write_text(text)

    def do(self, block):
        """A block of shell commands. Returns: what it printed."""
        if block.startswith((". .venv", "make install")):
            return ""
        if block.startswith("python hello.py"):
            self.worker_line = block
            self.start_worker()
            return ""
        if block.startswith("ownpod up"):
            self.ownpod = self.start(block.strip(), "up.log")
            wait_until(lambda: "workers: 1 of 1 ready" in self.ownpod.output, 40)
            return ""
        if block.startswith("for name"):
            self.worker.stop()
        block = block.replace("http://localhost:8000", f"http://127.0.0.1:{self.port}")
        return self.nodes(block) if "inspect active" in block else self.run(block)

    def nodes(self, block):
        """What a command prints that asks the nodes, once the worker's node is not too busy to reply in a second."""
        name = f"localhost-{self.worker_port}"
        return wait_until(lambda: name in (said := self.run(block, check=False)) and said, 100)

    def run(self, block, *, check=True):
        done = subprocess.run(
            ["bash", "-euc", block],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert not check or done.returncode == 0, (block, done, self.ownpod.output)
        return done.stdout

    def stop(self):
        for process in (self.ownpod, self.worker):
            if process is not None:
                process.stop()


@pytest.mark.timeout(300)
def test_the_tutorial_works_as_it_is_written(tmp_path):
    text = (ROOT / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    reader = Tutorial(tmp_path)
    printed = {}
    try:
        for kind, block in blocks:
            if kind == "python":
                reader.write(block)
            else:
                if "--status completed" in block:
                    wait_until(lambda: reader.run(block).count("COMPLETED") == 3, 30)  # noqa: B023
                printed[block] = reader.do(block)
        log = reader.ownpod.output
    finally:
        reader.stop()

    def of(part):
        return next(printed[block] for block in printed if part in block)

    assert json.loads(of("--wait")) == {"greeting": "Hello, World!"}
    assert f"localhost-{reader.worker_port}" in of("inspect active"), log
    assert "KeyError" in of("nmae"), log
    assert " -> " in of("retry --failed")
    assert of("in_queue").count("IN_QUEUE") == 3, log
    assert of("purge -f").count("CANCELLED") == 3, log


def test_the_first_part_of_readme_is_short():
    text = (ROOT / "README.md").read_text()
    before = text.partition("## The API")[0]
    assert len(before.splitlines()) <= 100
