"""Starts and ends the measured processes, and reads their use of CPU and memory."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from client import allow_many_files, ask, request, together

from ownpod import settings
from ownpod.celery import open_store
from ownpod.processes import die_with_parent, free_port
from ownpod.rules.jobs import NewJob, new_job_id
from ownpod.rules.pulling import worker_environment
from ownpod.store.store import Store

HERE = Path(__file__).parent
ENDPOINT, PARKED = "local-ep", "parked"
"""The endpoint with workers, and one without workers, whose jobs stay in the queue."""

JOB_INPUT = '{"seconds": 0}'
KINDS = ("api", "node", "redis", "worker", "agent", "front")
QUIET = {"RUNPOD_DEBUG_LEVEL": "ERROR", "UVICORN_LOG_LEVEL": "error"}
FOREIGN = ("OWNPOD_", "REDIS_", "RUNPOD_", "CELERY_", "WEB_CONCURRENCY", "GUNICORN_")
END_S = 20
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def wait_for(what: str, condition: Callable[[], object], seconds: float = 90) -> None:
    """Waits for a condition. Raises: TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if condition():
                return
        time.sleep(0.01)
    raise TimeoutError(f"{what} did not happen within {seconds:g} s")


class Processes:
    """Processes with a common log, each in its own session, ended by their pids."""

    def __init__(self) -> None:
        allow_many_files()
        self._directory = tempfile.TemporaryDirectory()
        self.directory = Path(self._directory.name)
        self._log = (self.directory / "log").open("ab")
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: object, **environ: object) -> int:
        """Starts a Python program; returns its pid."""
        return self.run(sys.executable, *command, **environ)

    def run(self, *command: object, **environ: object) -> int:
        """Starts a program; returns its pid."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        process = subprocess.Popen(
            [*map(str, command)],
            env=kept | {name: str(value) for name, value in environ.items()},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._started.append(process)
        return process.pid

    def lives(self, pid: int) -> bool:
        """Raises: RuntimeError, if the process has ended."""
        if any(process.pid == pid and process.poll() is not None for process in self._started):
            raise RuntimeError("a process has ended by itself")
        return True

    def server(self, kind: str) -> int:
        """Starts a server of servers.py; returns its port."""
        port = free_port()
        self.start(HERE / "servers.py", kind, port)
        wait_for(f"server {kind}", lambda: listens(port))
        return port

    def workers(self, count: int) -> tuple[list[str], list[int]]:
        """Starts workers with the SDK's local API; returns their URLs and pids."""
        ports = [free_port() for _ in range(count)]
        serve = (HERE / "handler.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1")
        pids = [self.start(*serve, "--rp_api_port", port, **QUIET) for port in ports]
        for port in ports:
            wait_for("a worker", lambda port=port: listens(port))
        return [f"http://127.0.0.1:{port}" for port in ports], pids

    def log_tail(self) -> str:
        """The end of the log."""
        lines = (self.directory / "log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    def end(self) -> None:
        """Ends all processes, and all others in their sessions."""
        for process in reversed(self._started):
            process.terminate()
        until = time.monotonic() + END_S
        for process in reversed(self._started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._log.close()
        self._directory.cleanup()


@contextlib.contextmanager
def processes() -> Iterator[Processes]:
    """Processes that end with the block. If the block fails, the end of their log is printed."""
    started = Processes()
    try:
        yield started
    except Exception:
        print(started.log_tail(), file=sys.stderr)
        raise
    finally:
        started.end()


def listens(port: int) -> bool:
    """Whether a server accepts connections. Raises: OSError, if none does."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 2)):
        return True


class OwnPod:
    """An ``ownpod up`` with an embedded Redis and two endpoints: one with the given workers, and one without workers.

    Args:
        group: starts the processes.
        urls: of the workers.
        pids: of the workers.
        api: number of API processes.
        name: of the data directory.
        managed: further endpoints, as in ``workers.yaml``, by id. OwnPod starts their workers as processes.
        models: models with presets, as in ``workers.yaml``.
        environ: further variables.
    """

    def __init__(
        self,
        group: Processes,
        urls: list[str],
        pids: list[int],
        *,
        api: int = 2,
        name: str = "pod",
        managed: Mapping[str, dict] | None = None,
        models: Mapping[str, dict] | None = None,
        **environ: object,
    ) -> None:
        self.urls, self._worker_pids = urls, pids
        self.port = free_port()
        directory = group.directory / name
        directory.mkdir()
        workers = directory / "workers.yaml"
        listed = {ENDPOINT: {"workers": [{"url": url} for url in urls]}, PARKED: {}}
        listed |= managed or {}
        workers.write_text(json.dumps({"endpoints": listed, "models": models or {}}))
        self._environ = {"OWNPOD_DATA_DIR": str(directory), "OWNPOD_WORKERS_FILE": str(workers)}
        self.began = time.monotonic()
        up = ("-m", "ownpod", "up", "--port", self.port)
        environ = {"OWNPOD_ENGINE": "process", "OWNPOD_DEVICES": "cpu:4", **environ}
        self._pid = group.start(*up, **self._environ, WEB_CONCURRENCY=api, **environ)
        self._directory = directory
        wait_for("OwnPod", lambda: group.lives(self._pid) and self.health(PARKED))

    def ready(self, count: int) -> None:
        """Waits until ``count`` workers are ready."""
        wait_for("workers", lambda: self.health()["workers"]["ready"] == count)

    def health(self, endpoint: str = ENDPOINT) -> dict:
        return ask(self.port, request("GET", f"/v2/{endpoint}/health"), 10).json()

    def post(self, path: str, body: object = None, endpoint: str = ENDPOINT) -> dict:
        return ask(self.port, request("POST", f"/v2/{endpoint}{path}", body)).json()

    @property
    def redis_url(self) -> str:
        return (self._directory / settings.REDIS_URL_FILE).read_text().strip()

    def store(self) -> Store:
        return open_job_store(self.redis_url)

    def drain(self) -> None:
        """Pauses all workers, and waits for the end of their jobs."""
        for worker in self.health()["ownpod"]["workers"]:
            self.post(f"/workers/{worker['id']}/drain")
        wait_for("a rest", lambda: self._throttled() == len(self.urls))
        wait_for("a rest", lambda: self.health()["jobs"]["inProgress"] == 0)

    def resume(self) -> None:
        """Resumes all workers, and waits until their nodes take jobs."""
        for worker in self.health()["ownpod"]["workers"]:
            self.post(f"/workers/{worker['id']}/resume")
        self.ready(len(self.urls))

    def _throttled(self) -> int:
        return self.health()["workers"]["throttled"]

    def pids(self) -> dict[str, list[int]]:
        """Pids by kind; ``dispatch`` is the supervisor of the nodes."""
        found: dict[str, list[int]] = {kind: [] for kind in (*KINDS, "dispatch")}
        found["worker"] = list(self._worker_pids)
        for child in psutil.Process(self._pid).children():
            below = [process.pid for process in child.children(recursive=True)]
            line = " ".join(child.cmdline())
            if "redis" in line or "valkey" in line:
                found["redis"] += [child.pid]
            elif "ownpod agent" in line:
                # Without its workers, which are below it.
                found["agent"] += [child.pid]
            elif "ownpod front" in line:
                found["front"] += [child.pid, *below]
            elif "dispatch" in line:
                found["dispatch"] += [child.pid]
                found["node"] += below
            else:
                found["api"] += [child.pid, *below]
        return found

    def child(self, name: str) -> psutil.Process:
        """The process of a part, as ``ownpod <name>``."""
        (found,) = (
            child
            for child in psutil.Process(self._pid).children()
            if f"ownpod {name}" in " ".join(child.cmdline())
        )
        return found

    def below(self, name: str) -> list[psutil.Process]:
        """The processes that a part has started."""
        return self.child(name).children(recursive=True)

    def cpu_s(self) -> dict[str, float]:
        """CPU time in seconds by kind of process, and of this process as ``client``."""
        used = {kind: sum(map(cpu_s, pids)) for kind, pids in self.pids().items()}
        return used | {"client": time.process_time()}


def open_job_store(redis_url: str) -> Store:
    """The job store. Sets REDIS_URL as well, because Celery's settings read it."""
    os.environ["REDIS_URL"] = redis_url
    return open_store(settings.load({"REDIS_URL": redis_url}), client_name="bench")


def create_jobs(redis_url: str, count: int, endpoint: str = ENDPOINT) -> None:
    """Creates jobs without the API, with the same records and messages."""
    store = open_job_store(redis_url)
    for _ in range(count):
        store.jobs.create(
            NewJob(
                id=new_job_id(sync=False),
                endpoint=endpoint,
                input=JOB_INPUT,
                s3_config=None,
                webhook=None,
                execution_timeout_ms=600_000,
                ttl_ms=86_400_000,
                low_priority=False,
                max_attempts=3,
            )
        )


def completed(store: Store, endpoint: str = ENDPOINT) -> int:
    """The number of jobs that were ever COMPLETED."""
    return store.figures.counts(endpoint)[2].get("COMPLETED", 0)


class Stage:
    """A system of usual size, with four workers and two API processes, which several measures share."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._system: OwnPod | None = None

    def system(self) -> OwnPod:
        if self._system is None:
            group = self._kept.enter_context(processes())
            self._system = usual(group)
        return self._system

    def close(self) -> None:
        """Ends the system. The next measure that needs one starts another."""
        self._system = None
        self._kept.close()


def usual(group: Processes, *, api: int = 2, workers: int = 4) -> OwnPod:
    """Starts OwnPod with real workers, and waits until they are warm."""
    system = OwnPod(group, *group.workers(workers), api=api)
    system.ready(workers)
    # Not measured: the first job of a node waits for up to a second, and the first request of a process is slow.
    warm = request("POST", f"/v2/{ENDPOINT}/runsync", {"input": {}})
    together(system.port, [warm] * workers * 10, workers * 2)
    return system


def waiting_workers(group: Processes, count: int) -> OwnPod:
    """Starts OwnPod with ``count`` workers that only wait, in one small process; see servers.py."""
    port = group.server("waits")
    system = OwnPod(group, [f"http://127.0.0.1:{port}/w{number}" for number in range(count)], [])
    system.ready(count)
    return system


def pulling(group: Processes, workers: int) -> OwnPod:
    """Starts OwnPod with real workers that pull jobs."""
    system = OwnPod(group, [], [])
    endpoint = f"http://127.0.0.1:{system.port}/v2/{ENDPOINT}"
    for number in range(workers):
        values = worker_environment(endpoint, f"gpu-{number}", key="any")
        group.start(HERE / "handler.py", **QUIET, **values)
    system.ready(workers)
    return system


def cpu_s(pid: int) -> float:
    """CPU time of a process in seconds."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * TICK_S


def pss_mb(pid: int) -> float:
    """Memory of a process in MB, including its share of shared pages."""
    return _kb(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1000


def peak_mb(pid: int) -> float:
    """The largest memory that a process has had, in MB."""
    return _kb(Path(f"/proc/{pid}/status"), "VmHWM:") / 1000


def _kb(path: Path, field: str) -> float:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1.024
    return 0.0


class Used:
    """The CPU time of each job since this object was created."""

    def __init__(self, system: OwnPod) -> None:
        self._system = system
        self._before = system.cpu_s()

    def per_job(self, count: int) -> dict[str, float]:
        """CPU time in ms for each of ``count`` jobs, by kind of process: ``cpu_<kind>_ms``."""
        now = self._system.cpu_s()
        return {f"cpu_{k}_ms": (now[k] - self._before[k]) / count * 1000 for k in now}


def exit_at_signals() -> None:
    """Makes SIGTERM act like Ctrl-C, so that all started processes are ended."""

    def stop(signum: int, _frame: object) -> None:
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGTERM, stop)
