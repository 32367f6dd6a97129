"""Every kind of process is killed, by chance with a fixed seed, while jobs go through.

Short in `make test`; `make chaos` runs it for longer and prints what it saw.
"""

import json
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import requests
from helpers import Process, answers, overlaps, pull_worker, sdk_worker, wait_until

from ownpod.processes import free_port

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
PAUSE_S = (0.4, 1.6)
"""Between two kills."""

PARTS = {
    "API worker": lambda line, depth: "gunicorn" in line and depth == 2,
    "dispatcher": lambda line, depth: "ownpod dispatch" in line and depth == 1,
    "node": lambda line, _: "celeryd: 127" in line or "celeryd: gpu" in line,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
    "Redis": lambda line, _: "redis.sock" in line,
}
KINDS = [*PARTS, "RunPod worker"]
HANDLERS = ["sync", "async", "sync"]


class Workers:
    """Real workers that are started again when they are killed."""

    def __init__(self, start: Callable[[int], Process], count: int) -> None:
        self._start = start
        self._processes = [start(number) for number in range(count)]

    def kill(self, chance: random.Random) -> None:
        number = chance.randrange(len(self._processes))
        self._processes[number].kill()
        self._processes[number] = self._start(number)

    def end(self) -> None:
        for process in self._processes:
            process.kill()


def push_workers(directory: Path) -> tuple[Callable[[int], Process], list[str]]:
    """What starts them, and their URLs."""
    ports = [free_port() for _ in HANDLERS]

    def start(number: int) -> Process:
        port = ports[number]
        return sdk_worker(port, directory / f"worker-{port}.log", kind=HANDLERS[number])

    return start, [f"http://127.0.0.1:{port}" for port in ports]


def processes_of(ownpod, part: str) -> list[psutil.Process]:
    """Living processes of a kind, by their command lines and their depth below `ownpod up`."""
    found, level = [], [psutil.Process(ownpod.process.pid)]
    for depth in (1, 2, 3):
        below = []
        for process in level:
            try:
                below += process.children()
            except psutil.Error:
                continue
        for process in below:
            try:
                if PARTS[part](" ".join(process.cmdline()), depth):
                    found.append(process)
            except psutil.Error:
                continue
        level = below
    return found


def soon(find):
    """What is found within some seconds: what was just killed is started again after a pause."""
    until = time.monotonic() + 3
    while not (found := find()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


class Client:
    """Submits jobs as a careful client does: again, under the same key, until there is an answer."""

    def __init__(self, ownpod, runs: Path, chance: random.Random, pause_s: float) -> None:
        self.accepted: dict[str, str] = {}
        self.stop = threading.Event()
        self._pause_s = pause_s
        self._ownpod = ownpod
        self._runs = runs
        self._chance = chance
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self.stop.is_set():
            text, key = f"job {number}", str(uuid.UUID(int=self._chance.getrandbits(128)))
            seconds = self._chance.choice([0, 0.01, 0.1, 0.5])
            body = {"input": {"text": text, "seconds": seconds, "runs": str(self._runs)}}
            while True:
                try:
                    answer = requests.post(
                        f"{self._ownpod.endpoint}/run",
                        json=body,
                        headers={"Idempotency-Key": key},
                        timeout=10,
                    )
                except requests.RequestException:
                    time.sleep(0.05)
                    continue
                if answer.status_code == 200:
                    self.accepted[answer.json()["id"]] = text
                    break
                assert answer.status_code == 503, answer.text
                time.sleep(0.05)
            number += 1
            self.stop.wait(self._pause_s)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.timeout(120 + 4 * SECONDS)
@pytest.mark.parametrize("protocol", ["push", "pull"])
def test_every_accepted_job_is_completed_whatever_is_killed(
    start_ownpod, tmp_path, capsys, protocol
):
    chance = random.Random(SEED)
    start, urls = push_workers(tmp_path) if protocol == "push" else (None, [])
    file = tmp_path / "workers.yaml"
    # More attempts than by default: in a minute here more dies than elsewhere in a year.
    endpoint = {"maxAttempts": 50, "workers": [{"url": url} for url in urls]}
    file.write_text(json.dumps({"endpoints": {"local-ep": endpoint}}))
    runs = tmp_path / "runs"
    workers = None
    try:
        if start is not None:
            workers = Workers(start, len(HANDLERS))
            for url in urls:
                wait_until(lambda url=url: answers(url), 60, "the workers")
        ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_LEASE_S=4)
        if workers is None:

            def pull(number: int) -> Process:
                name = f"gpu-{number}"
                log = tmp_path / f"{name}.log"
                return pull_worker(ownpod.port, log, name=name, kind=HANDLERS[number])

            workers = Workers(pull, len(HANDLERS))
            ready = lambda: ownpod.get("/health")["workers"]["ready"] == len(HANDLERS)  # noqa: E731
            wait_until(ready, 60, "the workers")
        # In production mode the SDK runs about a job a second, as it pauses so long between them.
        pause_s = 0.06 if protocol == "push" else 0.4
        client = Client(ownpod, runs, random.Random(SEED + 1), pause_s)
        killed: Counter[str] = Counter()
        began, longest = time.monotonic(), 0.0
        until = began + SECONDS
        deck: list[str] = []
        while time.monotonic() < until or deck:
            time.sleep(chance.uniform(*PAUSE_S))
            deck = deck or chance.sample(KINDS, len(KINDS))
            kind = deck.pop()
            if kind == "RunPod worker":
                workers.kill(chance)
                killed[kind] += 1
            elif victims := soon(lambda kind=kind: processes_of(ownpod, kind)):
                os.kill(chance.choice(victims).pid, signal.SIGKILL)
                killed[kind] += 1
        client.end()
        ended: dict[str, dict] = {}
        drained = time.monotonic()

        def all_ended() -> bool:
            for job_id in client.accepted.keys() - ended.keys():
                try:
                    status = ownpod.status(job_id)
                except (requests.RequestException, ValueError):
                    return False
                if status.get("status") not in {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"}:
                    return False
                ended[job_id] = status
            return True

        wait_until(all_ended, 60 + SECONDS, "the end of all jobs")
        longest = time.monotonic() - drained
        more = len([line for line in runs.read_text().splitlines() if line.startswith("+")])
        said = (
            f"\n{protocol}, seed {SEED}: {len(ended)} jobs accepted in {SECONDS:g} s, {sum(killed.values())} kills: "
            + ", ".join(f"{kind} {killed[kind]}" for kind in KINDS)
            + f"\n{more} runs, all done {longest:.1f} s after the last kill"
        )
        with capsys.disabled():
            print(said)
        assert Counter(status["status"] for status in ended.values()) == {"COMPLETED": len(ended)}
        assert {i: s["output"]["echo"] for i, s in ended.items()} == client.accepted
        assert overlaps(runs) == []
        assert ownpod.ended(ownpod.submit(text="next"), 60)["status"] == "COMPLETED"
        assert len(ended) > SECONDS * (1 if protocol == "push" else 0.5)
        assert set(killed) == set(KINDS)
    finally:
        if workers is not None:
            workers.end()
