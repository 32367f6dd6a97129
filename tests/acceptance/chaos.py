"""What the chaos tests share: parts that are killed, a Redis that is paused, a careful client, a counting receiver."""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import requests
from helpers import Process, RedisServer, answers, run_command, sdk_worker, wait_until

from ownpod.processes import free_port

SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
KILL_PAUSE_S = (0.4, 1.6)
"""Between two kills."""
REDIS_STOPPED_S = (1.0, min(20.0, max(1.5, SECONDS / 6)))
"""How long Redis is stopped at a time."""
REDIS_RUNS_S = (2.0, min(15.0, SECONDS / 4))
"""How long Redis runs between two stops."""
SETTLED_S = 3.0
"""After the last webhook: one that comes twice comes within this."""

Parts = dict[str, Callable[[str, int], bool]]
"""Tells processes by their command line, and by their depth below `ownpod up`."""

PARTS: Parts = {
    "API worker": lambda line, depth: "gunicorn" in line and depth == 2,
    "dispatcher": lambda line, depth: "ownpod dispatch" in line and depth == 1,
    "node": lambda line, _: "celeryd: 127" in line or "celeryd: gpu" in line,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
    "Redis": lambda line, _: "redis.sock" in line,
}
KINDS = [*PARTS, "RunPod worker"]
HANDLERS = ["sync", "async", "sync"]
TERMINAL = {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"}


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


def processes_of(ownpod, part: str, parts: Parts = PARTS) -> list[psutil.Process]:
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
                if parts[part](" ".join(process.cmdline()), depth):
                    found.append(process)
            except psutil.Error:
                continue
        level = below
    return found


def soon(find, seconds=3.0):
    """What is found within some seconds: what was just killed is started again after a pause."""
    until = time.monotonic() + seconds
    while not (found := find()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


class RedisPauses(threading.Thread):
    """Stops Redis with SIGSTOP, at random, and lets it go on; ``find`` is its pid, None while there is none."""

    def __init__(self, find: Callable[[], int | None], chance: random.Random) -> None:
        super().__init__(daemon=True)
        self.lengths: list[float] = []
        self._find = find
        self._chance = chance
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(self._chance.uniform(*REDIS_RUNS_S)):
            length = self._chance.uniform(*REDIS_STOPPED_S)
            pid = self._find()
            # Killed or ended meanwhile: a pid is not used again within seconds.
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGSTOP)
                    self.lengths.append(length)
                    self._ended.wait(length)
                    os.kill(pid, signal.SIGCONT)

    def end(self) -> None:
        self._ended.set()
        self.join(30)

    def __str__(self) -> str:
        longest = max(self.lengths, default=0)
        return f"Redis stopped {len(self.lengths)} times, {sum(self.lengths):.0f} s, at most {longest:.1f} s"


class Receiver:
    """Counts webhooks by the job's id."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        counts, lock = self.counts, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_args: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    counts[body["id"]] += 1
                self.send_response(200)
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def settled(self, jobs: set[str], seconds: float) -> Counter[str]:
        """Webhooks by job, when each of the jobs has had one and no more come."""
        wait_until(lambda: self.counts.keys() >= jobs, seconds, "a webhook of each job")
        last, since = self.counts.total(), time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            if self.counts.total() != last:
                last, since = self.counts.total(), time.monotonic()
            time.sleep(0.05)
        return self.counts

    def end(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Client:
    """Submits jobs as a careful client does: again, under the same key, until there is an answer."""

    def __init__(
        self,
        endpoint: str,
        runs: Path,
        chance: random.Random,
        pause_s: float,
        webhook: str | None = None,
        lengths_s: Sequence[float] = (0, 0.01, 0.1, 0.5),
    ) -> None:
        self._lengths_s = lengths_s
        self.accepted: dict[str, str] = {}
        self.stop = threading.Event()
        self._pause_s = pause_s
        self._endpoint = endpoint
        self._runs = runs
        self._chance = chance
        self._webhook = webhook
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self.stop.is_set():
            self.submit(number)
            number += 1
            self.stop.wait(self._pause_s)

    def submit(self, number: int) -> None:
        text, key = f"job {number}", str(uuid.UUID(int=self._chance.getrandbits(128)))
        seconds = self._chance.choice(self._lengths_s)
        job_input = {"text": text, "seconds": seconds, "runs": str(self._runs)}
        body = {"input": job_input} | ({"webhook": self._webhook} if self._webhook else {})
        while True:
            try:
                answer = requests.post(
                    f"{self._endpoint}/run",
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
            # 502: the API was killed before its answer. The key makes the next try the same job.
            assert answer.status_code in {502, 503}, answer.text
            time.sleep(0.05)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def all_ended(self, seconds: float) -> dict[str, dict]:
        """The last status of each accepted job."""
        ended: dict[str, dict] = {}

        def look() -> bool:
            for job_id in self.accepted.keys() - ended.keys():
                try:
                    status = requests.get(f"{self._endpoint}/status/{job_id}", timeout=70).json()
                except (requests.RequestException, ValueError):
                    return False
                if status.get("status") not in TERMINAL:
                    return False
                ended[job_id] = status
            return True

        wait_until(look, seconds, "the end of all jobs")
        return ended


def started_runs(runs: Path) -> int:
    """Runs that workers have begun; see handlers.py."""
    return len([line for line in runs.read_text().splitlines() if line.startswith("+")])


WRONG_CLOCK = """
import time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {offset_s}
time.time_ns = lambda: _time_ns() + {offset_s} * 10**9
"""
"""Runs before anything else in a process. Not libfaketime: with it Python's `time.sleep` is an EINVAL, or its
waits with a time-out end too late, because it does not know all of the functions that wait on the monotonic clock.
"""


def wrong_clock(directory: Path, offset_s: int) -> dict[str, str]:
    """The environment of a Python process whose clock is wrong by so many seconds."""
    folder = directory / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(offset_s=offset_s))
    environ = {"PYTHONPATH": str(folder)}
    found = run_command(sys.executable, "-c", "import time; print(time.time())", **environ)
    assert abs(float(found.stdout) - offset_s - time.time()) < 30
    return environ


class TwoHosts:
    """An API, and two supervisors with workers of their own, one of whose clocks is wrong; one Redis."""

    def __init__(self, directory: Path, urls: list[list[str]], offset_s: int, lease_s: int) -> None:
        self.redis = RedisServer(directory)
        self._started: list[Process] = []
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
        common = {"REDIS_URL": self.redis.url, "OWNPOD_LEASE_S": lease_s}
        wrong = wrong_clock(directory, offset_s)
        supervisors = [
            ("right", ("dispatch",), urls[0], {}),
            ("wrong", ("dispatch",), urls[1], wrong),
        ]
        # The first to sweep is mostly the one that does: that is the host whose clock is ahead, for which leases
        # of the other seem to be over.
        supervisors.sort(key=lambda part: (part[0] == "wrong") != (offset_s > 0))
        parts = [("api", ("api", "--port", port), [*urls[0], *urls[1]], {}), *supervisors]
        for name, arguments, listed, clock in parts:
            file = directory / f"{name}.yaml"
            endpoint = {"workers": [{"url": url} for url in listed]}
            file.write_text(json.dumps({"endpoints": {"local-ep": endpoint}}))
            command = (sys.executable, "-m", "ownpod", *arguments)
            log = directory / f"{name}.log"
            environ = {**common, **clock, "OWNPOD_WORKERS_FILE": file}
            process = Process(*command, log=log, **environ)
            self._started.append(process)
            if name != "api":
                wait_until(lambda process=process: "ready." in process.output, 30, name)

    def wait_until_ready(self, workers: int) -> None:
        def ready() -> bool:
            if not answers(f"{self.endpoint}/health"):
                return False
            health = requests.get(f"{self.endpoint}/health", timeout=60)
            return health.ok and health.json()["workers"]["ready"] == workers

        wait_until(ready, 60, "the workers")

    @property
    def output(self) -> str:
        return "\n".join(f"{p.log.name}:\n{p.output}" for p in self._started)

    def end(self) -> None:
        for process in reversed(self._started):
            process.stop()
        self.redis.stop()


@contextlib.contextmanager
def ending(*things: object) -> Iterator[None]:
    """Ends what has an ``end``, whatever happens."""
    try:
        yield
    finally:
        for thing in things:
            if thing is not None:
                thing.end()  # type: ignore[attr-defined]
