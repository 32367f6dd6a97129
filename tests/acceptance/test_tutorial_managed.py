"""The commands of docs/tutorial-managed.md, as a reader runs them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, Process, environment, wait_until

from ownpod.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STARTED = "| ready: "


def blocks(page):
    """Language and text of each block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


class Reader:
    """The reader of the page, with another port and a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.file = folder / "managed.yaml"
        self.port = free_port()
        self.variables = {}
        self.ownpod = None
        self.starts = 0
        (folder / "examples").symlink_to(ROOT / "examples")

    @property
    def environ(self):
        return environment(
            OWNPOD_URL=f"http://127.0.0.1:{self.port}",
            PYTHONPATH=ROOT,
            PATH=f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
            **self.variables,
        )

    def export(self, block):
        self.variables = dict(re.findall(r"(?m)^export (\w+)=(.*)$", block))

    def write(self, text):
        """The file, or the line of it that replaces the command."""
        if self.ownpod is None:
            self.file.write_text(text)
            return
        self.stop()
        self.file.write_text(re.sub(r"(?m)^ *command: .*\n", text, self.file.read_text()))
        self.start("ownpod up")

    def start(self, line):
        program, *words = shlex.split(f"{line} --port {self.port}")
        log = self.folder / "up.log"
        self.starts += 1
        self.ownpod = Process(
            *(Path(sys.prefix) / "bin" / program, *words),
            log=log,
            cwd=self.folder,
            **self.environ,
        )
        wait_until(lambda: self.log.count(STARTED) == self.starts, 120, "OwnPod is ready")

    @property
    def log(self):
        return self.ownpod.output

    def run(self, block):
        done = subprocess.run(
            ["bash", "-euc", block.replace("localhost:8000", f"127.0.0.1:{self.port}")],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr, self.log)
        return done.stdout

    def stop(self):
        if self.ownpod is not None:
            self.ownpod.stop()

    def until(self, block, condition):
        """Repeats a block until its output is as expected. Returns: the output."""
        return wait_until(lambda: condition(text := self.run(block)) and text, 90, block)


def test_the_tutorial_of_managed_workers_works_as_it_is_written(tmp_path):
    reader, printed = Reader(tmp_path), []

    def read_block(kind, block):
        if kind == "yaml":
            reader.write(block)
        elif block.startswith(". .venv"):
            reader.export(block)
        elif block == "ownpod up\n":
            reader.start(block)
        elif block.startswith("curl") or "/health" in block:
            printed.append((block, reader.until(block, lambda text: "exit code 2" in text)))
        elif "--status completed" in block:
            printed.append((block, reader.until(block, lambda text: text.count("COMPLETED") == 6)))
        elif "jobs list" in block:
            printed.append((block, reader.until(block, lambda text: text.count("COMPLETED") == 5)))
            reader.until("ownpod workers list", lambda text: "hello" not in text)
        elif block != "make install\n":
            printed.append((block, reader.run(block)))

    def of(part):
        return next(text for block, text in printed if part in block)

    try:
        for kind, block in blocks(ROOT / "docs" / "tutorial-managed.md"):
            read_block(kind, block)
        log = reader.log
    finally:
        reader.stop()
    assert "cpu-1" in of("gpus list")
    assert json.loads(of("--wait"))["echo"] == {"text": "hello", "seconds": 1}
    # Before the mistake: the first one, and another one beside it.
    assert log.partition("handlers.py")[0].count("one more worker is wanted") >= 2, log
    assert "can't open file" in of("/health")
