"""`make demo SHARE=1`: two endpoints share one device; the one with work gets it from the idle one, never in the middle."""

import re
import sys
import time
from typing import Any

import requests
from managed_demo import API, ManagedDemo, play

from ownpod.supervised import Group

IMAGES, TEXT = "images-ep", "text-ep"
SWAPS = re.compile(r'ownpod_worker_swaps_total\{endpoint="([^"]+)",for="([^"]+)"\} ([0-9.]+)')


class Demo(ManagedDemo):
    """Submits jobs of two endpoints, and writes a line for each change of their workers and jobs."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self._workers: dict[str, tuple[str, str]] = {}
        """By id: endpoint and phase."""
        self._jobs: dict[tuple[str, str], str] = {}
        """The state of each, by endpoint and id."""
        self._said: set[tuple[str, str, str]] = set()
        self._names: dict[str, str] = {}
        self.order: list[str] = []
        """The endpoints of the jobs, in the order of their ends."""

    def submit(self, endpoint: str, name: str, seconds: float) -> None:
        """Submits a job of so many seconds."""
        job = {"input": {"seconds": seconds}}
        answer = requests.post(f"{API}/v2/{endpoint}/run", json=job, timeout=5)
        answer.raise_for_status()
        job_id = answer.json()["id"]
        self._jobs[endpoint, job_id] = ""
        self._names[job_id] = name
        self.say(f"POST /v2/{endpoint}/run: job {name}, {seconds:g} s")

    def look(self) -> bool:
        """Writes what has changed. True: all jobs have ended."""
        for endpoint in (IMAGES, TEXT):
            health: dict[str, Any] = requests.get(f"{API}/v2/{endpoint}/health", timeout=5).json()
            self._look_at_workers(endpoint, health["ownpod"]["managed"]["workers"])
        for (endpoint, job_id), state in self._jobs.items():
            if state != "COMPLETED":
                self._look_at_job(endpoint, job_id)
        return all(state == "COMPLETED" for state in self._jobs.values())

    def _look_at_workers(self, endpoint: str, workers: list[dict[str, Any]]) -> None:
        for worker in workers:
            now = endpoint, worker["phase"]
            if self._workers.get(worker["id"]) != now:
                words = f"worker of {endpoint}: {worker['phase']}"
                self.say(f"{words}, {worker['reason']}" if worker["reason"] else words)
                self._workers[worker["id"]] = now
        there = {worker["id"] for worker in workers}
        for worker_id, (of, _) in list(self._workers.items()):
            if of == endpoint and worker_id not in there:
                self.say(f"worker of {endpoint}: stopped, its device is free")
                del self._workers[worker_id]

    def _look_at_job(self, endpoint: str, job_id: str) -> None:
        job = requests.get(f"{API}/v2/{endpoint}/status/{job_id}", timeout=5).json()
        state = self._jobs[endpoint, job_id] = job["status"]
        why = job.get("waitingReason", "") if state == "IN_QUEUE" else ""
        # Each API process caches a reason for a second, so an earlier one may come again; and seconds count down.
        line = (job_id, state, re.sub(r"[0-9]+", "", why))
        if line in self._said:
            return
        self._said.add(line)
        if state == "COMPLETED":
            self.order.append(endpoint)
        self.say(f"job {self._names[job_id]} {state}" + (f": {why}" if why else ""))

    def run(self) -> bool:
        """A A B A, then A again. True: they ran as A A A B A."""
        # An earlier demo's swaps are in the same Redis.
        before, self.began = swaps(), time.monotonic()
        self.say(f"one device; {IMAGES} loads 3 s, {TEXT} loads 1 s")
        self.submit(IMAGES, "A1", 2)
        self.submit(IMAGES, "A2", 2)
        self.submit(TEXT, "B1", 1)
        self.submit(IMAGES, "A3", 2)
        self.until(self.look, "the first jobs")
        self.submit(IMAGES, "A4", 1)
        self.until(self.look, "the last job")
        if self.group.stopping:
            return False
        letters = {IMAGES: "A", TEXT: "B"}
        order = " ".join(letters[endpoint] for endpoint in self.order)
        self.say(f"the jobs came as A A B A A and ran as {order}")
        for pair, count in swaps().items():
            endpoint, other = pair
            new = count - before.get(pair, 0)
            self.say(f"swaps in /metrics: {endpoint} gave its device to {other}: {new:g}")
        return order == "A A A B A"


def swaps() -> dict[tuple[str, str], float]:
    """How often an endpoint has given its device to another one."""
    text = requests.get(f"{API}/metrics", timeout=5).text
    return {(endpoint, other): float(count) for endpoint, other, count in SWAPS.findall(text)}


def main() -> int:
    """Runs the demo. The exit code is 0 only if the jobs ran in the order that costs the fewest swaps."""
    return play(
        Demo,
        about=__doc__,
        folder="sharing",
        devices="cpu:1",
        endpoint=IMAGES,
        try_next=(
            f'  curl -s -X POST {API}/v2/{TEXT}/run -d \'{{"input": {{"seconds": 1}}}}\'',
            "  .venv/bin/ownpod workers list",
            "  .venv/bin/ownpod gpus list",
            "  .venv/bin/ownpod top",
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
