"""Managed workers on several hosts for real: an agent and a supervisor in network namespaces of their own.

Hosts: ``first`` has Redis and the API; ``a`` and ``b`` have an agent and a supervisor each, and one device.
"""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from helpers import ROOT, Process, begun, overlaps, redis_program, run_command, wait_until
from networks import Network

from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import HOST_SILENT_S, Phase
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HANDLERS = Path(__file__).with_name("handlers.py")
PASSWORD = "of-redis"
KEY = "of-clients"
ENDPOINT = {
    "template": {"command": [sys.executable, str(HANDLERS)], "env": {"HANDLER": "sync"}},
    "gpu": {"count": 1},
    "workersMax": 2,
    "idleTimeout": 120,
    "scalerType": "REQUEST_COUNT",
    "scalerValue": 1,
}


class Hosts:
    """The three hosts with their processes."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.redis_url = f"redis://:{PASSWORD}@{network.address}:6379/0"
        self.endpoint = f"http://{network.address}:8000/v2/local-ep"
        self.client = connect(self.redis_url)
        self.managed, self.agents = Managed(self.client), Agents(self.client)
        self._dir = directory
        self._http = requests.Session()
        self._http.headers["Authorization"] = f"Bearer {KEY}"
        self.processes = dict[str, Process]()
        self._loads = list[Load]()

    def start(self) -> None:
        (self._dir / "redis").mkdir()
        file = self._dir / "workers.yaml"
        file.write_text(yaml.safe_dump({"endpoints": {"local-ep": ENDPOINT}}))
        options = f"--bind 0.0.0.0 --port 6379 --requirepass {PASSWORD} --appendonly yes".split()
        self._run("first", "redis", redis_program(), *options, "--dir", self._dir / "redis")
        wait_until(lambda: self._quietly(self.client.ping), 20, "Redis")
        self._own("first", "api", "--host", "0.0.0.0", OWNPOD_API_KEYS=KEY)
        for host in ("a", "b"):
            self._own(host, "dispatch")
            self._own(host, "agent")
        wait_until(lambda: self._quietly(self.health), 60, "the API")
        wait_until(lambda: len(self.agents.agents()) == 2, 60, "both agents")

    def _own(self, host: str, *command: str, **environ: object) -> None:
        directory = self._dir / host
        directory.mkdir(exist_ok=True)
        values = {
            "REDIS_URL": self.redis_url,
            "OWNPOD_AGENT_NAME": host,
            "OWNPOD_DATA_DIR": directory / "var",
            "OWNPOD_DEVICES": "cpu:1",
            "OWNPOD_ENGINE": "process",
            "OWNPOD_WORKER_API_URL": f"http://{self.network.address}:8000",
            "OWNPOD_WORKERS_FILE": self._dir / "workers.yaml",
            "OWNPOD_LEASE_S": 10,
            "OWNPOD_SHUTDOWN_GRACE_S": 1,
            "PYTHONPATH": ROOT,
            **environ,
        }
        self._run(host, command[0], sys.executable, "-m", "ownpod", *command, **values)

    def _run(self, host: str, name: str, *command: object, **environ: object) -> None:
        log = self._dir / f"{host}-{name}.log"
        self.processes[f"{host}-{name}"] = self.network.run(host, *command, log=log, **environ)

    @staticmethod
    def _quietly(call):
        with contextlib.suppress(Exception):
            return call()
        return None

    def health(self) -> dict:
        return self._http.get(f"{self.endpoint}/health", timeout=9).json()

    def submit(self, **job_input: object) -> str:
        answer = self._http.post(f"{self.endpoint}/run", json={"input": job_input}, timeout=20)
        return answer.json()["id"]

    def status(self, job: str) -> dict:
        return self._http.get(f"{self.endpoint}/status/{job}", timeout=20).json()

    def ended(self, jobs: list[str], seconds: float) -> list[dict]:
        """Waits until all jobs have ended; returns their last statuses."""

        def last() -> list[dict] | None:
            found = [self.status(job) for job in jobs]
            return found if all(JobStatus(s["status"]).terminal for s in found) else None

        return wait_until(last, seconds, f"the end of {len(jobs)} jobs")  # type: ignore[return-value]

    def load(self, runs: Path) -> "Load":
        """Jobs that come until the load is stopped."""
        load = Load(self, runs)
        self._loads.append(load)
        load.start()
        return load

    def end(self) -> None:
        for load in self._loads:
            load.stop()
        self.client.close()
        self.network.remove()
        for process in self.processes.values():
            process.wait()

    def ready(self) -> dict[str, str]:
        """Ids of the READY workers, by host."""
        return {w.host: w.id for w in self.managed.list() if w.phase is Phase.READY and w.host}

    def holders(self, host: str) -> set[str | None]:
        """Ids of the workers that hold the devices of a host."""
        return {hold.worker for hold in self.agents.holds(host)}

    def command(self, *arguments: object) -> str:
        done = run_command(sys.executable, "-m", "ownpod", *arguments, REDIS_URL=self.redis_url)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if not (sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip")):
        pytest.skip("network namespaces need Linux, root and the command ip (iproute2)")
    network = Network("first", "a", "b")
    found = Hosts(network, tmp_path)
    try:
        found.start()
        yield found
    finally:
        found.end()
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-8000:]}")


def process_of(worker_id: str) -> psutil.Process | None:
    """The first process of a worker; None: nothing of it runs."""
    running = psutil.process_iter(["environ", "cmdline", "create_time"])
    # Not the one with the lowest number: these begin again at 32,768.
    for process in sorted(running, key=lambda process: process.info["create_time"]):
        environ = process.info["environ"] or {}
        if environ.get("RUNPOD_POD_ID") == worker_id and str(HANDLERS) in process.info["cmdline"]:
            return process
    return None


class Load(threading.Thread):
    """Submits a job every 1.2 s until it is stopped."""

    def __init__(self, hosts: Hosts, runs: Path) -> None:
        super().__init__(daemon=True)
        self._hosts, self._runs = hosts, runs
        self._end = threading.Event()
        self.jobs: list[str] = []

    def run(self) -> None:
        while not self._end.wait(1.2):
            text = f"load-{len(self.jobs)}"
            self.jobs.append(self._hosts.submit(text=text, seconds=0.4, runs=str(self._runs)))

    def stop(self) -> list[str]:
        self._end.set()
        self.join(30)
        return self.jobs


def on_both_hosts(hosts: Hosts, runs: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Lets one job run on each host until its file exists: (jobs, files), by host."""
    files = [runs.with_name(f"{runs.name}-go-{number}") for number in range(2)]
    jobs = [
        hosts.submit(text=f"held-{number}", runs=str(runs), until=str(file))
        for number, file in enumerate(files)
    ]
    for number in range(2):
        wait_until(begun(runs, f"held-{number}"), 90, "a job on each host")
    wait_until(lambda: len(hosts.ready()) == 2, 20, "a ready worker on each host")
    by_worker = {worker: host for host, worker in hosts.ready().items()}
    found = [by_worker[hosts.status(job)["workerId"]] for job in jobs]
    assert sorted(found) == ["a", "b"]
    return dict(zip(found, jobs, strict=True)), dict(zip(found, files, strict=True))


def test_jobs_run_on_both_hosts_and_a_drained_host_takes_no_more_workers(hosts, tmp_path):
    jobs, files = on_both_hosts(hosts, tmp_path / "runs")
    assert (len(hosts.holders("a")), len(hosts.holders("b"))) == (1, 1)
    for file in files.values():
        file.touch()
    done = hosts.ended(list(jobs.values()), 30)
    assert {status["status"] for status in done} == {"COMPLETED"}

    hosts.command("agents", "drain", "b")
    # Both workers end here; only host a may have another one.
    before = hosts.ready()
    for worker in before.values():
        process_of(worker).kill()
    wait_until(lambda: not hosts.holders("b"), 40, "host b is empty")
    more = [hosts.submit(text=f"more-{number}", seconds=0.5) for number in range(6)]
    done = hosts.ended(more, 60)
    assert {status["status"] for status in done} == {"COMPLETED"}
    assert {status["workerId"] for status in done} == {hosts.ready()["a"]}
    assert (hosts.holders("b"), set(hosts.ready())) == (set(), {"a"})
    assert "drained" in hosts.command("agents", "list")

    hosts.command("agents", "resume", "b")
    jobs, files = on_both_hosts(hosts, tmp_path / "more")
    for file in files.values():
        file.touch()
    assert {s["status"] for s in hosts.ended(list(jobs.values()), 30)} == {"COMPLETED"}


def test_a_host_that_is_cut_off_under_load_costs_no_job_and_serves_again_when_it_is_back(
    hosts, tmp_path
):
    runs = tmp_path / "runs"
    held, files = on_both_hosts(hosts, runs)
    files["a"].touch()
    lost = hosts.ready()["b"]
    process = process_of(lost)
    key = process.environ()["RUNPOD_AI_API_KEY"]
    load = hosts.load(runs)

    hosts.network.cut("b")
    stopped = wait_until(
        lambda: (w := hosts.managed.get(lost)) and w.phase is Phase.STOPPED and w,
        HOST_SILENT_S + 60,
        "the lost worker's record",
    )
    assert "its host b has been silent for 60 s" in stopped.reason
    # The worker runs, so its device stays held.
    assert process.is_running()
    assert hosts.holders("b") == {lost}
    # Its job goes on elsewhere, while its own process does not know that.
    wait_until(lambda: runs.read_text().count(" held-") == 4, 60, "another run of the held job")
    files["b"].touch()
    done = hosts.ended([held["b"]], 60)[0]
    assert (done["status"], done["workerId"]) == ("COMPLETED", hosts.ready()["a"])
    assert done["output"]["pid"] != process.pid
    # The lost worker's key opens nothing any more.
    take = requests.get(
        f"{hosts.endpoint}/job-take/{lost}?gpu=0", headers={"Authorization": key}, timeout=30
    )
    assert take.status_code == 429, take.text
    during = list(load.jobs)

    hosts.network.join("b")
    wait_until(lambda: process_of(lost) is None, 60, "the end of the lost worker")
    wait_until(lambda: lost not in hosts.holders("b"), 20, "the lost worker's device is free")
    # The load alone needs one worker; two jobs that wait for their files need both hosts.
    back, files = on_both_hosts(hosts, tmp_path / "back")
    assert hosts.ready()["b"] != lost
    for file in files.values():
        file.touch()
    statuses = hosts.ended([*held.values(), *back.values(), *load.stop()], 90)
    assert {status["status"] for status in statuses} == {"COMPLETED"}
    assert len(during) >= 10
    assert overlaps(runs) == []
    assert [name for name, process in hosts.processes.items() if not process.running] == []
