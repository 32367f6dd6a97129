"""What the demos of managed workers share: an `ownpod up` with a file of endpoints, lines for people, and the end."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import requests

from ownpod.errors import OwnPodError
from ownpod.processes import check_port
from ownpod.supervised import Group, write

HERE = Path(__file__).parent
API = "http://127.0.0.1:8000"
LONGEST_S = 120.0


class ManagedDemo:
    """Writes what happens, with the seconds since the first job."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Writes a line with the seconds since the first job."""
        write("demo", f"{time.monotonic() - self.began:6.1f} s  {text}")

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Copies the log until a condition is true. Raises: OwnPodError after :data:`LONGEST_S`."""
        deadline = time.monotonic() + LONGEST_S
        while not self.group.stopping and not reached():
            if time.monotonic() > deadline:
                raise OwnPodError(f"{what}: not within {LONGEST_S:g} s")
            self.group.supervise(0.1)

    def run(self) -> bool:
        """Submits the demo's jobs. True: everything went as it should."""
        raise NotImplementedError


def play(
    make: Callable[[Group], ManagedDemo],
    *,
    about: str | None,
    folder: str,
    devices: str,
    endpoint: str,
    try_next: Sequence[str],
) -> int:
    """Starts OwnPod and runs a demo; returns the exit code, 0 only if the demo went as it should.

    Args:
        make: the demo.
        about: the help text of the command.
        folder: in this folder, has the demo's ``workers.yaml``.
        devices: ``OWNPOD_DEVICES`` where it is not set.
        endpoint: one of the demo's, whose health shows that OwnPod serves.
        try_next: lines for people, written after the jobs.
    """
    options = argparse.ArgumentParser(description=about)
    options.add_argument("--once", action="store_true", help="end after the jobs")
    chosen = options.parse_args()
    group, done = Group(), False
    group.handle_signals()
    environ = {
        "OWNPOD_WORKERS_FILE": str(HERE / folder / "workers.yaml"),
        "OWNPOD_ENGINE": os.environ.get("OWNPOD_ENGINE", "process"),
        "OWNPOD_DEVICES": os.environ.get("OWNPOD_DEVICES", devices),
        # The template's `python` is the one that runs this demo.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }

    def serves() -> bool:
        try:
            return requests.get(f"{API}/v2/{endpoint}/health", timeout=2).ok
        except requests.RequestException:
            return False

    try:
        check_port("127.0.0.1", 8000)
        command = [sys.executable, "-m", "ownpod", "up"]
        group.spawn("ownpod up", command, {**os.environ, **environ}, serves=serves)
        demo = make(group)
        demo.until(serves, "OwnPod")
        done = demo.run()
        # The log so far, which otherwise comes below the lines for people.
        for _ in range(20):
            if group.stopping or not group.supervise(0.1):
                break
        for line in ("", "try next:", *try_next, ""):
            write("demo", line)
        while not chosen.once and not group.stopping:
            group.supervise(1.0)
    except (OwnPodError, requests.RequestException) as error:
        write("demo", f"error: {error}")
        done = False
    finally:
        group.end(60)
    return 0 if done else 1
