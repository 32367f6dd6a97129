"""``ownpod up``: Redis, API and dispatcher in one, with one log, ending together.

One thread: it copies the children's output, each line behind its process's name, and starts again
what has ended by itself. Starts Redis first and ends it last, so that nodes can hand back what they have.
"""

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from types import FrameType
from typing import IO

from ownpod import flower, schema
from ownpod.connection import connect, schema_version
from ownpod.embedded import EmbeddedRedis
from ownpod.endpoints import Endpoint, load_endpoints
from ownpod.errors import OwnPodError, RedisUnavailable, StartError
from ownpod.processes import Pauses, check_port, describe_exit, die_with_parent
from ownpod.registry import Registry, WorkerState
from ownpod.settings import Settings

logger = logging.getLogger(__name__)

LOOK_S, LONGEST_LOOK_S = 0.1, 0.5
SETTLE_S = 0.3
KILL_AFTER_S = 15.0
"""Beyond the grace: what has not ended by then is killed."""

START_S = 60.0


class Child:
    """A process, and its successors, whose output is copied line by line behind its name."""

    def __init__(
        self, name: str, launch: Callable[[], subprocess.Popen[bytes]], *, reloads: bool
    ) -> None:
        self.name = name
        self.reloads = reloads
        """It reads the configuration again at SIGHUP."""
        self._launch = launch
        self._rest = b""
        self.pauses = Pauses()
        self.start_at: float | None = None
        """When it is to be started again, on the monotonic clock; None: it runs."""
        self.start()

    def start(self) -> None:
        """Starts it, for the first time or again."""
        self.process = self._launch()
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        self.stdout: IO[bytes] = self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.started = time.monotonic()
        self.start_at = None

    def copy(self) -> bool:
        """Copies what there is; False when there will be no more."""
        data = self.stdout.read(65536)
        if data is None:
            return True
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if not data and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        say(self.name, *(line.decode(errors="replace") for line in lines))
        return bool(data)


def say(name: str, *lines: str) -> None:
    """Lines of the common log, written at once."""
    sys.stdout.write("".join(f"{name:<10} | {line}\n" for line in lines))
    sys.stdout.flush()


class Group:
    """Child processes with one log, ended in the reverse order of their start."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self.stopping = False
        self.reloading = False
        self.restarting = False
        """Children that end are started again; else that is an error."""

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT set ``stopping``; SIGHUP is passed on to those that read settings."""

        def stop(_signum: int, _frame: FrameType | None) -> None:
            self.stopping = True

        def reload(_signum: int, _frame: FrameType | None) -> None:
            self.reloading = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)

    def spawn(
        self, name: str, arguments: list[str], environ: dict[str, str], *, reloads: bool = False
    ) -> Child:
        """Starts a program."""

        def launch() -> subprocess.Popen[bytes]:
            # A session of its own: Ctrl-C comes here only, and children are ended in order.
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
            )

        return self.add(name, launch, reloads=reloads)

    def add(
        self, name: str, launch: Callable[[], subprocess.Popen[bytes]], *, reloads: bool = False
    ) -> Child:
        """Starts a process in a way of its own."""
        child = Child(name, launch, reloads=reloads)
        self.children.append(child)
        self._selector.register(child.stdout, selectors.EVENT_READ, child)
        return child

    def attend(self, timeout_s: float) -> bool:
        """Copies output for so long, or until there has been some: True. Restarts what has ended.

        Raises:
            StartError: a child has ended by itself, before all were up.
        """
        copied = self._copy(timeout_s)
        if self.reloading:
            self.reloading = False
            for child in self.children:
                if child.reloads and child.process.poll() is None:
                    child.process.send_signal(signal.SIGHUP)
        for child in self.children:
            code = child.process.poll()
            if code is not None and not self.stopping:
                self._restart(child, code)
        return copied

    def _restart(self, child: Child, code: int) -> None:
        now = time.monotonic()
        if child.start_at is None:
            self._copy(0.2)
            if not self.restarting:
                raise StartError(f"{child.name} {describe_exit(code)}; ending everything")
            pause_s = child.pauses.next_s(now - child.started)
            child.start_at = now + pause_s
            say("ownpod", f"{child.name} {describe_exit(code)}; starting it again in {pause_s:g} s")
        elif child.start_at <= now:
            if child.stdout in self._files():
                self._selector.unregister(child.stdout)
            child.start()
            self._selector.register(child.stdout, selectors.EVENT_READ, child)

    def _files(self) -> list[object]:
        return [key.fileobj for key in self._selector.get_map().values()]

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Attends until something is so. Raises: StartError if it takes a minute."""
        deadline = time.monotonic() + START_S
        while not self.stopping and not ready():
            if time.monotonic() > deadline:
                raise StartError(f"{what} did not come up within {START_S:g} s; ending everything")
            self.attend(LOOK_S)

    def settle(self) -> None:
        """Attends until the children have said nothing for a moment: what is said next stands last."""
        quiet_since = time.monotonic()
        while not self.stopping and time.monotonic() - quiet_since < SETTLE_S:
            if self.attend(SETTLE_S):
                quiet_since = time.monotonic()

    def end(self, kill_after_s: float) -> None:
        """Ends all children, the last started first, one after the other."""
        self.stopping = True
        for child in reversed(self.children):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + kill_after_s
            while child.process.poll() is None:
                if time.monotonic() > deadline:
                    say("ownpod", f"{child.name} did not end, killing it")
                    child.process.kill()
                    child.process.wait()
                self._copy(LOOK_S)
        self._copy(0)

    def _copy(self, timeout_s: float) -> bool:
        if not self._selector.get_map():
            time.sleep(timeout_s)
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            if not key.data.copy():
                self._selector.unregister(key.fileobj)
        return bool(ready)


class Up:
    """Everything on one host.

    Args:
        config: the settings; with no ``REDIS_URL`` a Redis is started too.
        host: where the API listens.
        port: where the API listens.
        flower_port: where Flower listens; None: without it.
    """

    def __init__(
        self, config: Settings, *, host: str, port: int, flower_port: int | None = None
    ) -> None:
        self._flower_port = flower_port
        self._config = config
        self._host = host
        self._port = port
        self._group = Group()

    def run(self) -> int:
        """Until SIGTERM, SIGINT or the end of a part; the exit code.

        Raises:
            OwnPodError: it cannot start; nothing is left running.
        """
        endpoints = load_endpoints(self._config)
        check_port(self._host, self._port)
        if self._flower_port is not None:
            flower.check(self._config, endpoints.values())
            check_port(self._host, self._flower_port)
        self._group.handle_signals()
        embedded = None
        if not self._config.redis_url:
            embedded = EmbeddedRedis(self._config.data_dir, appendfsync=self._config.appendfsync)
        try:
            self._start(endpoints, embedded)
            self._group.restarting = True
            while not self._group.stopping:
                self._group.attend(LONGEST_LOOK_S)
        except OwnPodError as error:
            if not self._group.children:
                raise
            say("ownpod", f"error: {error}")
            code = 1
        else:
            say("ownpod", "stopping")
            code = 0
        finally:
            self._group.end(self._config.shutdown_grace_s + KILL_AFTER_S)
            if embedded is not None:
                embedded.ended()
        say("ownpod", "stopped")
        return code

    def _start(self, endpoints: Mapping[str, Endpoint], embedded: EmbeddedRedis | None) -> None:
        """All parts, one after the other, until all can serve. Raises: OwnPodError."""
        url = self._config.redis_url or ""
        if embedded is not None:
            embedded.prepare()
            redis = self._group.add("redis", embedded.start)
            embedded.wait(redis.process)
            url = embedded.url
        client = connect(url, client_name="ownpod-up")
        registry = Registry(endpoints, client, self._config)
        self._check(registry, lambda: schema_version(client))
        environ = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "ownpod"]
        self._group.spawn("dispatch", [*command, "dispatch"], environ, reloads=True)
        listen = ["--host", self._host, "--port", str(self._port)]
        self._group.spawn("api", [*command, "api", *listen], environ, reloads=True)
        self._group.until(self._serving, "the API")
        self._group.until(lambda: self._initialized(registry), "the dispatcher")
        if self._flower_port is not None and not self._group.stopping:
            # It looks for nodes when it starts, and not again by itself.
            listen = ["--host", self._host, "--port", str(self._flower_port)]
            self._group.spawn("flower", [*command, "flower", *listen], environ)
        self._group.settle()
        if not self._group.stopping:
            say("ownpod", self._ready_line(registry))

    def _check(self, registry: Registry, version: Callable[[], str | None]) -> None:
        try:
            schema.check(version())
            registry.statuses(tuple(registry.workers()))
        except RedisUnavailable as error:
            raise StartError(f"REDIS_URL: {error}") from None

    def _serving(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104
        try:
            with urllib.request.urlopen(f"http://{host}:{self._port}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    @staticmethod
    def _initialized(registry: Registry) -> bool:
        """Each worker's node has looked at it once: it is ready, or known not to be."""
        statuses = registry.statuses(tuple(registry.workers())).values()
        return all(
            status.state in {WorkerState.READY, WorkerState.BUSY, WorkerState.PAUSED}
            or (status.state is WorkerState.UNHEALTHY and not status.unattended)
            for status in statuses
        )

    def _ready_line(self, registry: Registry) -> str:
        statuses = registry.statuses(tuple(registry.workers())).values()
        ready = sum(status.state is WorkerState.READY for status in statuses)
        endpoints = ", ".join(sorted(registry.endpoints))
        line = (
            f"ready: http://{self._host}:{self._port}/v2/<endpoint>  endpoints: {endpoints}  "
            f"workers: {ready} of {len(statuses)} ready"
        )
        if self._flower_port is not None:
            line += f"  Flower: http://{self._host}:{self._flower_port}"
        return line
