"""`make demo MANAGED=1`: OwnPod starts workers by itself while jobs wait, and stops them when none do."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from ownpod.errors import OwnPodError
from ownpod.processes import check_port
from ownpod.supervised import Group, write

HERE = Path(__file__).parent
API = "http://127.0.0.1:8000"
ENDPOINT = f"{API}/v2/managed-ep"
JOBS, SECONDS = 6, 2
LONGEST_S = 120.0


class Demo:
    """Submits jobs, and writes a line for each change until the endpoint has no worker again."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._began = time.monotonic()
        self._shown = ""
        self._phases: dict[str, str] = {}
        self.most = 0
        self._before = 0
        """Jobs that an earlier demo has completed in the same Redis."""

    def say(self, text: str) -> None:
        """Writes a line with the seconds since the first job."""
        write("demo", f"{time.monotonic() - self._began:6.1f} s  {text}")

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Copies the log and shows changes until a condition is true. Raises: OwnPodError after :data:`LONGEST_S`."""
        deadline = time.monotonic() + LONGEST_S
        while not self._group.stopping and not reached():
            if time.monotonic() > deadline:
                raise OwnPodError(f"{what}: not within {LONGEST_S:g} s")
            self._group.supervise(0.1)

    def health(self) -> dict[str, Any]:
        """The endpoint's ``/health``; changes of it are written."""
        body: dict[str, Any] = requests.get(f"{ENDPOINT}/health", timeout=5).json()
        managed = body["ownpod"].get("managed", {}).get("workers", [])
        self.most = max(self.most, len(managed))
        for worker in managed:
            reason = worker["reason"]
            if self._phases.get(worker["id"]) != worker["phase"]:
                self.say(f"worker {worker['id']} {worker['phase']:<9} {reason}")
                self._phases[worker["id"]] = worker["phase"]
        for gone in self._phases.keys() - {worker["id"] for worker in managed}:
            self.say(f"worker {gone} stopped")
            del self._phases[gone]
        jobs = body["jobs"]
        line = f"jobs: {jobs['inQueue']} wait, {jobs['inProgress']} run, {self.completed(body)} completed"
        if line != self._shown:
            self.say(line)
            self._shown = line
        return body

    def completed(self, health: dict[str, Any]) -> int:
        """Number of completed jobs of this demo, in an answer of ``/health``."""
        return int(health["jobs"]["completed"]) - self._before

    def run(self) -> bool:
        """From no worker to two and back. True: all jobs are COMPLETED."""
        self._began = time.monotonic()
        self._before = self.completed(requests.get(f"{ENDPOINT}/health", timeout=5).json())
        for number in range(JOBS):
            job = {"input": {"text": f"job {number}", "seconds": SECONDS}}
            requests.post(f"{ENDPOINT}/run", json=job, timeout=5).raise_for_status()
        self.say(f"POST {ENDPOINT}/run, {JOBS} times: {JOBS} jobs of {SECONDS} s; no worker runs")
        self.until(lambda: self.completed(self.health()) == JOBS, "the jobs")
        if self._group.stopping:
            return False
        self.say("all jobs are COMPLETED; a worker is stopped after 5 s without a job")
        self.until(lambda: not self._is_served(), "the end of the workers")
        self.say(f"from no worker to {self.most} and back")
        return not self._group.stopping

    def _is_served(self) -> bool:
        self.health()
        return bool(self._phases)


def main() -> int:
    """Runs the demo. The exit code is 0 only if all jobs are COMPLETED and the workers have ended."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--once", action="store_true", help="end after the jobs")
    chosen = options.parse_args()
    group, done = Group(), False
    group.handle_signals()
    environ = {
        "OWNPOD_WORKERS_FILE": str(HERE / "managed" / "workers.yaml"),
        "OWNPOD_ENGINE": os.environ.get("OWNPOD_ENGINE", "process"),
        "OWNPOD_DEVICES": os.environ.get("OWNPOD_DEVICES", "cpu:2"),
        # The template's `python` is the one that runs this demo.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    try:
        check_port("127.0.0.1", 8000)
        command = [sys.executable, "-m", "ownpod", "up"]
        group.spawn("ownpod up", command, {**os.environ, **environ}, serves=_serves)
        demo = Demo(group)
        demo.until(_serves, "OwnPod")
        done = demo.run()
        for line in (
            "",
            "try next:",
            f"  curl -s -X POST {ENDPOINT}/run -d '{json.dumps({'input': {'seconds': 1}})}'",
            f"  curl -s {ENDPOINT}/health",
            "  .venv/bin/ownpod workers list",
            "  .venv/bin/ownpod gpus list",
            "  .venv/bin/ownpod top",
            "",
        ):
            write("demo", line)
        while not chosen.once and not group.stopping:
            group.supervise(1.0)
    except (OwnPodError, requests.RequestException) as error:
        write("demo", f"error: {error}")
        done = False
    finally:
        group.end(60)
    return 0 if done else 1


def _serves() -> bool:
    try:
        return requests.get(f"{ENDPOINT}/health", timeout=2).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    sys.exit(main())
