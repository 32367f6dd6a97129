"""Every kind of process is killed, by chance with a fixed seed, while jobs go through.

Short in `make test`; `make chaos` runs it for longer and prints what it saw.
"""

import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import psutil
import pytest
import requests
from helpers import answers, overlaps, sdk_worker, wait_until

from ownpod.processes import free_port

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
PAUSE_S = (0.4, 1.6)
"""Between two kills."""

PARTS = {
    "API worker": lambda line, depth: "gunicorn" in line and depth == 2,
    "dispatcher": lambda line, depth: "ownpod dispatch" in line and depth == 1,
    "node": lambda line, _: "celeryd: 127" in line,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
    "Redis": lambda line, _: "redis-server" in line,
}
KINDS = [*PARTS, "RunPod worker"]


class Workers:
    """Real workers that are started again when they are killed."""

    def __init__(self, directory: Path, kinds: list[str]) -> None:
        self._dir = directory
        self._places = [(kind, free_port()) for kind in kinds]
        self.urls = [f"http://127.0.0.1:{port}" for _, port in self._places]
        self._processes = [self._start(n) for n in range(len(kinds))]
        for url in self.urls:
            wait_until(lambda url=url: answers(url), 60, "the workers")

    def _start(self, number: int):
        kind, port = self._places[number]
        return sdk_worker(port, self._dir / f"{kind}-{port}.log", kind=kind)

    def kill(self, chance: random.Random) -> None:
        number = chance.randrange(len(self._processes))
        self._processes[number].kill()
        self._processes[number] = self._start(number)

    def end(self) -> None:
        for process in self._processes:
            process.kill()


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

    def __init__(self, ownpod, runs: Path, chance: random.Random) -> None:
        self.accepted: dict[str, str] = {}
        self.stop = threading.Event()
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
            self.stop.wait(0.06)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.timeout(120 + 4 * SECONDS)
def test_every_accepted_job_is_completed_whatever_is_killed(start_ownpod, tmp_path, capsys):
    chance = random.Random(SEED)
    workers = Workers(tmp_path, ["sync", "async", "sync"])
    file = tmp_path / "workers.yaml"
    lines = "\n".join(f"      - url: {url}" for url in workers.urls)
    # More attempts than by default: in a minute here more dies than elsewhere in a year.
    file.write_text(f"endpoints:\n  local-ep:\n    maxAttempts: 50\n    workers:\n{lines}\n")
    runs = tmp_path / "runs"
    try:
        ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_LEASE_S=4)
        client = Client(ownpod, runs, random.Random(SEED + 1))
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
            f"\nseed {SEED}: {len(ended)} jobs accepted in {SECONDS:g} s, {sum(killed.values())} kills: "
            + ", ".join(f"{kind} {killed[kind]}" for kind in KINDS)
            + f"\n{more} runs, all done {longest:.1f} s after the last kill"
        )
        with capsys.disabled():
            print(said)
        assert Counter(status["status"] for status in ended.values()) == {"COMPLETED": len(ended)}
        assert {i: s["output"]["echo"] for i, s in ended.items()} == client.accepted
        assert overlaps(runs) == []
        assert ownpod.ended(ownpod.submit(text="next"), 60)["status"] == "COMPLETED"
        assert len(ended) > SECONDS
        assert set(killed) == set(KINDS)
    finally:
        workers.end()
