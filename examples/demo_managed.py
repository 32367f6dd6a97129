"""`make demo MANAGED=1`: OwnPod starts workers by itself while jobs wait, and stops them when none do."""

import json
import sys
import time
from typing import Any

import requests
from managed_demo import API, ManagedDemo, play

from ownpod.supervised import Group

ENDPOINT = f"{API}/v2/managed-ep"
JOBS, SECONDS = 6, 2


class Demo(ManagedDemo):
    """Submits jobs, and writes a line for each change until the endpoint has no worker again."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._shown = ""
        self._phases: dict[str, str] = {}
        self.most = 0
        self._before = 0
        """Jobs that an earlier demo has completed in the same Redis."""

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
        self.began = time.monotonic()
        self._before = self.completed(requests.get(f"{ENDPOINT}/health", timeout=5).json())
        for number in range(JOBS):
            job = {"input": {"text": f"job {number}", "seconds": SECONDS}}
            requests.post(f"{ENDPOINT}/run", json=job, timeout=5).raise_for_status()
        self.say(f"POST {ENDPOINT}/run, {JOBS} times: {JOBS} jobs of {SECONDS} s; no worker runs")
        self.until(lambda: self.completed(self.health()) == JOBS, "the jobs")
        if self.group.stopping:
            return False
        self.say("all jobs are COMPLETED; a worker is stopped after 5 s without a job")
        self.until(lambda: not self._is_served(), "the end of the workers")
        self.say(f"from no worker to {self.most} and back")
        return not self.group.stopping

    def _is_served(self) -> bool:
        self.health()
        return bool(self._phases)


def main() -> int:
    """Runs the demo. The exit code is 0 only if all jobs are COMPLETED and the workers have ended."""
    return play(
        Demo,
        about=__doc__,
        folder="managed",
        devices="cpu:2",
        endpoint="managed-ep",
        try_next=(
            f"  curl -s -X POST {ENDPOINT}/run -d '{json.dumps({'input': {'seconds': 1}})}'",
            f"  curl -s {ENDPOINT}/health",
            "  .venv/bin/ownpod workers list",
            "  .venv/bin/ownpod gpus list",
            "  .venv/bin/ownpod top",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
