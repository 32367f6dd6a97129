"""Shared parts of tests: waiting for conditions, servers on free ports, small workers over HTTP."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import redis
import requests
from ports import free_port

from ownpod import settings
from ownpod.broker.messages import make_templates
from ownpod.celery import app
from ownpod.onehost.embedded import find_server
from ownpod.processes import die_with_parent
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.jobs import JobStatus, NewJob
from ownpod.rules.pulling import worker_environment
from ownpod.rules.runs import Attempt
from ownpod.store.client import connect
from ownpod.store.messages import Templates
from ownpod.store.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parent
CHECK_INTERVAL_S = 0.01
"""Seconds between two checks of a condition."""
LEAST_S = 60.0
"""Seconds that a condition gets at least. On a loaded machine a start of Python takes 10 s, and no test is about speed."""


def wait_until(condition: Callable[[], object], seconds: float = LEAST_S, what: str = "") -> object:
    """Waits until a condition is true; returns its value. Fails the test after ``seconds``, and not before :data:`LEAST_S`.

    ``what``: its name in the failure.
    """
    seconds = max(seconds, LEAST_S)
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(CHECK_INTERVAL_S)


def environment(**values: object) -> dict[str, str]:
    """The environment for a process, with the given variables and without others of OwnPod."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OWNPOD_", "REDIS_", "RUNPOD_", "CELERY_", "FLOWER_"))
    }
    return kept | {name: str(value) for name, value in values.items()}


def now_ms() -> int:
    """This host's clock in ms since the epoch, which is also the clock of a Redis on this host."""
    return time.time_ns() // 1_000_000


class Process:
    """A process with its output in a file. ``session``: start it in a new session, which :meth:`kill` ends as a whole."""

    def __init__(
        self,
        *command: object,
        log: Path,
        cwd: Path = ROOT,
        session: bool = False,
        **environ: object,
    ) -> None:
        self.log = log
        self._session = session
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env=environment(**environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=session,
                preexec_fn=die_with_parent,
            )
        self.pid = self._popen.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """Sends SIGKILL to the process, or to its whole session if it has its own."""
        if self._session:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.send(signal.SIGKILL)
        self.wait()

    def send(self, signum: signal.Signals) -> None:
        if self.running:
            self._popen.send_signal(signum)

    def wait(self, seconds: float = 120) -> int:
        return self._popen.wait(seconds)

    def stop(self, seconds: float = 120) -> int:
        self.send(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def run_command(
    *command: object, cwd: Path = ROOT, stdin: str = "", timeout: float = 200, **environ: object
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, which it must reach within ``timeout`` s; returns its exit code and output."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def node_processes(ownpod: "OwnPod", name: str = "") -> list[psutil.Process]:
    """The running nodes of an `ownpod up`: all, or that of one worker."""
    found = []
    for process in psutil.Process(ownpod.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            line = " ".join(process.cmdline())
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and f"celeryd: {name and f'{name}@'}" in line
            ):
                found.append(process)
    return found


def agent_of(ownpod: "OwnPod") -> psutil.Process | None:
    """The agent's process of an `ownpod up`; None while there is none."""
    for process in psutil.Process(ownpod.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "agent" in process.cmdline():
                return process
    return None


def readme_blocks(*, docker: bool) -> list[str]:
    """README's blocks of shell commands: those with Docker, or those without."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if ("docker" in block) == docker]


def redis_program() -> str:
    """The path of the Redis that unit and integration tests start: ``TEST_REDIS_SERVER``, or the one that
    ``ownpod up`` would start. CI tests several versions by the variable; one of them has known holes, so
    that ``ownpod up`` would pass it by.
    """
    return os.environ.get("TEST_REDIS_SERVER") or find_server()


class RedisServer:
    """A real Redis on a free port of loopback, with an append-only file."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self._files = directory / "redis"
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        self._files.mkdir(exist_ok=True)
        options = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --save".split()
        self.process = Process(
            *(redis_program(), *options, "", "--dir", self._files), log=self._dir / "redis.log"
        )
        with connect(self.url) as client:
            wait_until(lambda: _pings(client), what="redis")

    def stop(self) -> None:
        self.process.stop()


def _pings(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def load_settings(**environ: object) -> settings.Settings:
    return settings.load({name: str(value) for name, value in environ.items()})


@functools.cache
def job_messages() -> Templates:
    return make_templates(app, description_prefix="ownpod")


def job_message(job_id: str, *, low: bool = False) -> tuple[str, str]:
    """The Redis list and the message of a :func:`new_job`."""
    messages = job_messages()
    values = {
        "job": job_id,
        "queue": messages.queue("ep"),
        "priority": str(messages.priorities[low]),
        "description": messages.description("ep", "{}"),
    }
    text = re.sub("@([a-z]+)@", lambda found: values[found[1]], messages.job)
    return messages.lists("ep")[low], text


def job_store(client: redis.Redis, *, result_ttl_s: int = 1800) -> Store:
    return Store(client, job_messages(), result_ttl_s=result_ttl_s)


def new_job(job_id: str = "job-1", endpoint: str = "ep", **changes: object) -> NewJob:
    values: dict = {
        "id": job_id,
        "endpoint": endpoint,
        "input": "{}",
        "s3_config": None,
        "webhook": None,
        "execution_timeout_ms": 600_000,
        "ttl_ms": 86_400_000,
        "low_priority": False,
        "max_attempts": 3,
        "created_ms": None,
    }
    return NewJob(**values | changes)


def attempt(**changes: object) -> Attempt:
    values: dict = {
        "job_id": "job-1",
        "endpoint": "ep",
        "worker_id": "w",
        "number": 1,
        "input": '{"x": 1}',
        "s3_config": None,
        "execution_timeout_ms": 600_000,
        "expires_ms": now_ms() + 86_400_000,
        "started_ms": now_ms(),
    }
    return Attempt(**values | changes)


def worker_spec(url: str, *, capacity: int = 1, **changes: object) -> WorkerSpec:
    values: dict = {
        "id": "worker-1",
        "endpoint": "ep",
        "url": url,
        "capacity": capacity,
        "headers": {},
        "verify_tls": True,
        "ca_bundle": None,
    }
    return WorkerSpec(**values | changes)


@dataclass
class Answer:
    """An answer of a :class:`FakeWorker`.

    ``hold``: the answer waits until this is set. ``parts``: sent one by one without a length, instead of ``body``.
    """

    status: int = 200
    body: object = None
    kind: str = "application/json"
    parts: Iterable[bytes] | None = None
    hold: threading.Event | None = None
    hang_up: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeWorker:
    """A small worker over HTTP.

    ``routes`` maps "POST /run" to an answer, or to a function that makes one from the path and the parsed body.
    ``seen`` has the method, path and parsed body of each request.
    """

    routes: dict[str, object] = field(default_factory=dict)
    seen: list[tuple[str, str, object]] = field(default_factory=list)
    port: int = 0
    raw: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """The headers and the body of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def paths(self, start: str) -> list[str]:
        return [f"{m} {path}" for m, path, _ in self.seen if f"{m} {path}".startswith(start)]

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeWorker"]:
        worker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_args: object) -> None:
                pass

            def handle(self) -> None:
                # HAProxy ends the connection of a health check with a reset.
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                body = json.loads(raw) if raw else None
                worker.raw.append((dict(self.headers), raw))
                worker.seen.append((self.command, self.path, body))
                key = f"{self.command} /{self.path.split('/')[1]}"
                made = worker.routes.get(key, Answer(404, {"detail": "Not Found"}))
                answer = made(self.path, body) if callable(made) else made
                if answer.hold is not None:
                    answer.hold.wait(30)
                if answer.hang_up:
                    self.close_connection = True
                    return
                if answer.parts is not None:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.kind)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    with contextlib.suppress(OSError):
                        for part in answer.parts:
                            self.wfile.write(part)
                    return
                data = answer.body if isinstance(answer.body, bytes) else None
                data = json.dumps(answer.body).encode() if data is None else data
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(data)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            do_POST = do_GET  # noqa: N815

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def sdk_worker(port: int, log: Path, *, kind: str = "sync", **environ: object) -> Process:
    """A worker with the real SDK and its local API; ``kind`` is a handler of ``acceptance/handlers.py``."""
    serve = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", port)
    handlers = HERE / "acceptance" / "handlers.py"
    return Process(sys.executable, handlers, *serve, log=log, HANDLER=kind, **environ)


def pull_worker(
    port: int,
    log: Path,
    *,
    name: str = "gpu-1",
    kind: str = "sync",
    python: object = sys.executable,
    handler: Path = HERE / "acceptance" / "handlers.py",
    **environ: object,
) -> Process:
    """A worker with the real SDK that pulls jobs from the OwnPod at a port."""
    base = f"http://127.0.0.1:{port}/v2/local-ep"
    values = worker_environment(base, name, key="k") | {"RUNPOD_PING_INTERVAL": "1000"}
    # In a session, because the SDK sends pings from a process that outlives the worker.
    return Process(python, handler, log=log, session=True, HANDLER=kind, **values | environ)


def worker_states(ownpod: "OwnPod") -> dict[str, str]:
    """The state of each worker, by its id."""
    found = ownpod.get("/health")["ownpod"]["workers"]
    return {worker["id"]: worker["state"] for worker in found}


def begun(runs: Path, name: str = "a") -> Callable[[], bool]:
    """A condition that is true once the run of this name has started; see acceptance/handlers.py."""
    return lambda: runs.exists() and f" {name}\n" in runs.read_text()


def overlaps(runs: Path) -> list[str]:
    """Runs that started in a worker's process during another run; see acceptance/handlers.py."""
    going: dict[str, str] = {}
    found = []
    for line in runs.read_text().splitlines():
        sign, pid, name = line.split(" ", 2)
        if sign == "-":
            if going.get(pid) == name:
                del going[pid]
        elif pid in going:
            found.append(f"{name} started while {going[pid]} was running")
        else:
            going[pid] = name
    return found


def answers(url: str) -> bool:
    try:
        requests.get(url, timeout=2)
    except requests.RequestException:
        return False
    return True


@contextlib.contextmanager
def one_api(directory: Path, redis_url: str, *options: object) -> Iterator[tuple[int, Process]]:
    """Gunicorn with one API process and the endpoint `ep`: its port, and its process. ``options``: more of gunicorn's."""
    file, port = directory / "workers.yaml", free_port()
    file.write_text("endpoints: {ep: {}}")
    process = Process(
        *(sys.executable, "-m", "gunicorn", "-w", "1", "-b", f"127.0.0.1:{port}"),
        *(*options, "wsgi:app"),
        log=directory / "api.log",
        REDIS_URL=redis_url,
        OWNPOD_WORKERS_FILE=file,
    )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 20, "the API")
        yield port, process
    finally:
        process.stop()
        print(process.output)


class OwnPod:
    """``ownpod up`` with an embedded Redis, on free ports."""

    def __init__(
        self,
        directory: Path,
        *options: object,
        workers: str = "",
        port: int = 0,
        **environ: object,
    ) -> None:
        self._dir = directory
        self._options = options
        self.port = port or free_port()
        self.base = f"http://127.0.0.1:{self.port}/v2"
        self.endpoint = f"{self.base}/local-ep"
        self.environ = {
            "OWNPOD_DATA_DIR": directory / "var",
            "OWNPOD_WORKERS": workers,
            # A process of a loaded machine may get no CPU for seconds. Tests about the end of leases have shorter ones.
            "OWNPOD_LEASE_S": 10,
            "PYTHONPATH": ROOT,
            **environ,
        }
        configuration = directory / "workers.yaml"
        if not workers and not configuration.exists():
            # The default without a file is the worker of `make demo`, which may run in another test.
            configuration.write_text("endpoints: {local-ep: {}}")
        self.start()

    def start(self) -> None:
        """Starts ``ownpod up``, and waits for its ready line."""
        before = self.output.count("| ready: ") if (self._dir / "up.log").exists() else 0
        command = (sys.executable, "-m", "ownpod", "up", "--port", self.port, *self._options)
        self.process = Process(*command, log=self._dir / "up.log", cwd=self._dir, **self.environ)
        wait_until(
            lambda: self.output.count("| ready: ") > before or not self.process.running,
            120,
            "the ready line",
        )
        assert self.process.running, self.output

    @property
    def output(self) -> str:
        return (self._dir / "up.log").read_text(errors="replace")

    @property
    def redis_url(self) -> str:
        return (self._dir / "var" / "redis.url").read_text().strip()

    def post(self, path: str, body: object = None, **options: object) -> dict:
        return requests.post(f"{self.endpoint}{path}", json=body, timeout=70, **options).json()

    def get(self, path: str) -> dict:
        return requests.get(f"{self.endpoint}{path}", timeout=70).json()

    def submit(self, **job_input: object) -> str:
        return self.post("/run", {"input": job_input})["id"]

    def status(self, job_id: str) -> dict:
        return self.get(f"/status/{job_id}")

    def ended(self, job_id: str, seconds: float = LEAST_S) -> dict:
        """Waits until the job ends; returns its last status."""

        def last_status() -> dict | None:
            status = self.status(job_id)
            assert "status" in status, status
            return status if JobStatus(status["status"]).terminal else None

        return wait_until(last_status, seconds, f"the end of {job_id}")  # type: ignore[return-value]

    def stop(self) -> int:
        return self.process.stop()
