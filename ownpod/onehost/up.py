"""``ownpod up``: Redis, API, front, supervisor and Flower as one group of processes with one log.

Redis starts first and ends last, because draining nodes write results and requeue jobs. The front stops accepting first,
and ends after the API, whose last responses it passes on.
"""

import contextlib
import functools
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

from ownpod.configuration import load_endpoints
from ownpod.errors import ConfigurationError, OwnPodError, RedisUnavailable, StartError
from ownpod.front.lock import end_orphan, front_directory
from ownpod.onehost import flower, front, templates
from ownpod.onehost.embedded import EmbeddedRedis
from ownpod.processes import HeldPort, check_port
from ownpod.registry import Registry
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.settings import Settings
from ownpod.store import schema
from ownpod.store.agents import Agents
from ownpod.store.client import connect, schema_version
from ownpod.store.fleet import Fleet
from ownpod.store.secrets import Secrets
from ownpod.supervised import START_S, Child, Group, write

KILL_AFTER_S = 15.0
"""Seconds after the grace period until processes that still run are killed."""

SERVES_S = 5.0
"""Seconds since its last heartbeat up to which the agent counts as serving at the start."""

ANSWER_S = 1.0
"""Longest wait in seconds for the answer to a check. It is short, because the log is not copied meanwhile."""


class Up:
    """All parts on one host.

    Args:
        config: the settings; without ``REDIS_URL`` an embedded Redis is started.
        host: the address on which the API listens.
        port: the port on which the API listens.
        flower_port: the port on which Flower listens; None: Flower is not started.
    """

    def __init__(
        self, config: Settings, *, host: str, port: int, flower_port: int | None = None
    ) -> None:
        self._flower_port = flower_port
        self._config = config
        self._host = host
        self._port = port
        self._group = Group()
        self._has_front = False
        self._api_port: HeldPort | None = None
        """The API's, if the front has the public one."""
        self._missing = self._said = ""
        """Why there is no front, and what the log last said about that."""
        self._start_agent: Callable[[Child], None] | None = None
        """Starts the agent in front of the supervisor; None: it runs."""

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT, or until a part ends that never served; returns the exit code.

        Raises:
            OwnPodError: the start failed before any process was started.
        """
        endpoints = load_endpoints(self._config)
        templates.check_images(self._config, endpoints)
        haproxy = front.choose(self._config)
        self._has_front, self._missing = haproxy.path is not None, haproxy.problem
        self._check_ports()
        if self._flower_port is not None:
            flower.check(self._config, endpoints.values())
            check_port(self._host, self._flower_port)
        self._group.handle_signals()
        embedded = None
        if not self._config.redis_url:
            embedded = EmbeddedRedis(self._config.data_dir, appendfsync=self._config.appendfsync)
        try:
            registry, dispatch = self._start(endpoints, embedded)
            reloads = 0
            while not self._group.stopping:
                self._group.supervise()
                reloads = self._reload(registry, reloads)
                self._follow(registry, dispatch)
                self._tell_absence(registry)
        except OwnPodError as error:
            if not self._group.children:
                raise
            write("ownpod", f"error: {error}")
            code = 1
        else:
            write("ownpod", "stopping")
            code = 0
        finally:
            self._group.end(self._config.shutdown_grace_s + KILL_AFTER_S)
            if self._has_front:
                # A front that failed has left its HAProxy to the next one.
                end_orphan(front_directory(self._config, self._port))
            if self._api_port is not None:
                self._api_port.close()
            if embedded is not None:
                embedded.ended()
        write("ownpod", "stopped")
        return code

    def _check_ports(self) -> None:
        if self._has_front:
            front.check_ports(self._config, self._host, self._port)
        else:
            check_port(self._host, self._port)

    def _tell_absence(self, registry: Registry) -> None:
        """Says once what does not work without the front, and again when an endpoint is added that needs it."""
        if self._has_front:
            return
        line = front.absence(self._config, self._missing, registry.endpoints.values())
        if line is not None and line != self._said:
            write("ownpod", line)
            self._said = line

    def _start(
        self, endpoints: Mapping[str, Endpoint], embedded: EmbeddedRedis | None
    ) -> tuple[Registry, Child]:
        """Starts all parts, and writes the ready line when all of them serve.

        Returns:
            The registry, and the supervisor.

        Raises:
            OwnPodError: a part did not come up.
        """
        url = self._config.redis_url or ""
        if embedded is not None:
            embedded.prepare()
            if warning := embedded.warning():
                write("ownpod", f"warning: {warning}")
            redis = self._group.add("redis", embedded.start, serves=embedded.answers)
            embedded.wait(redis.process)
            redis.check()
            url = embedded.url
        client = connect(url, client_name="ownpod-up")
        registry = Registry(endpoints, Fleet(client), self._config)
        self._check(registry, lambda: schema_version(client))
        stored = Secrets(client, self._config.secrets_key_path())
        if line := templates.secrets_warning(registry.endpoints, stored, os.environ):
            write("ownpod", line)
        environ = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "ownpod"]
        agent = functools.partial(self._spawn_agent, command, environ, Agents(client))
        if _has_template(registry.endpoints):
            # Before the nodes, so that it ends after them: their jobs end, or are requeued, before their workers do.
            agent(None)
            self._until_serving()
        else:
            self._start_agent = agent
        dispatch = self._group.spawn(
            *("dispatch", [*command, "dispatch"], environ),
            serves=lambda: _has_nodes(registry),
            reloads=True,
        )
        self._tell_absence(registry)
        self._spawn_api(command, environ)
        self._until_probed(registry)
        if self._flower_port is not None and not self._group.stopping:
            # Last, because Flower asks for nodes only once, when it starts.
            port = self._flower_port
            listen = ["--host", self._host, "--port", str(port)]
            self._group.spawn(
                *("flower", [*command, "flower", *listen], environ),
                serves=lambda: self._answers(port, "/healthcheck"),
            )
        self._until_serving()
        self._group.settle()
        # A part may have ended while the output settled.
        self._until_serving()
        if not self._group.stopping:
            write("ownpod", self._ready_line(registry))
        return registry, dispatch

    def _reload(self, registry: Registry, reloads: int) -> int:
        """Reads the configuration again after a SIGHUP. Returns the number of those that were followed."""
        if reloads != self._group.reloads:
            # What is wrong with the file is logged by the supervisor and the API.
            with contextlib.suppress(ConfigurationError):
                registry.reload(load_endpoints(self._config))
        return self._group.reloads

    def _follow(self, registry: Registry, dispatch: Child) -> None:
        """Starts the agent with the first template."""
        if self._start_agent is not None and _has_template(registry.endpoints):
            write("ownpod", "an endpoint has a template now; starting the agent")
            self._start_agent(dispatch)
            self._start_agent = None

    def _spawn_api(self, command: list[str], environ: dict[str, str]) -> None:
        """Starts the API. With the front it gets a port on loopback, which it keeps over restarts, and the front gets the
        public one.
        """
        listen = ["--host", self._host, "--port", str(self._port)]
        if not self._has_front:
            self._group.spawn(
                *("api", [*command, "api", *listen], environ),
                serves=lambda: self._answers(self._port, "/health"),
                reloads=True,
            )
            return
        self._api_port = HeldPort()
        port = self._api_port.number
        to_api = ["--api", f"http://127.0.0.1:{port}"]
        # Before the API, so that it ends after it.
        self._group.spawn(
            *("front", [*command, "front", *listen, *to_api], environ),
            # The front is asked once the API serves, because it would try to reach the API again a moment later only.
            serves=lambda: api.served_since is not None and self._answers(self._port, "/health"),
            reloads=True,
            drains=True,
        )
        behind = ["--host", "127.0.0.1", "--port", str(port), "--behind-front", self._host]
        api = self._group.spawn(
            *("api", [*command, "api", *behind], environ),
            serves=lambda: _answers("127.0.0.1", port, "/health"),
            reloads=True,
        )

    def _spawn_agent(
        self, command: list[str], environ: dict[str, str], agents: Agents, before: Child | None
    ) -> None:
        config, host = self._config, self._config.agent_host
        url = config.worker_api_url or f"http://{self._own_host}:{self._port}"
        options = ["--end-workers"] if config.workers_on_stop == "stop" else []

        def serves() -> bool:
            try:
                return any(
                    agent.host == host and agent.silent_s < SERVES_S for agent in agents.agents()
                )
            except RedisUnavailable:
                return False

        agent = [*command, "agent", "--url", url, *options]
        self._group.spawn("agent", agent, environ, serves=serves, before=before, reloads=True)

    def _check(self, registry: Registry, version: Callable[[], str | None]) -> None:
        try:
            schema.check(version())
            registry.fleet.statuses(tuple(registry.workers()))
        except RedisUnavailable as error:
            raise StartError(f"REDIS_URL: {error}") from None

    def _until_serving(self) -> None:
        while not self._group.stopping and not self._group.serving:
            self._group.supervise()

    def _until_probed(self, registry: Registry) -> None:
        """Waits until each worker's node has probed its worker once, for at most :data:`START_S`. A node that
        fails again and again delays the start, but does not prevent it.
        """
        until = time.monotonic() + START_S
        while not self._group.stopping and time.monotonic() < until:
            self._group.supervise()
            if self._group.serving and all(map(_probed, _statuses(registry, with_nodes=True))):
                return

    @property
    def _own_host(self) -> str:
        """The name in URLs by which this host reaches what listens on ``host``."""
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._host, self._host)  # noqa: S104

    def _answers(self, port: int, path: str) -> bool:
        """Whether an HTTP server answers on the public address with a status below 500."""
        return _answers(self._own_host, port, path)

    def _ready_line(self, registry: Registry) -> str:
        statuses = _statuses(registry)
        ready = sum(status.state is WorkerState.READY for status in statuses)
        endpoints = ", ".join(sorted(registry.endpoints))
        line = (
            f"ready: http://{self._host}:{self._port}/v2/<endpoint>  endpoints: {endpoints}  "
            f"workers: {ready} of {len(statuses)} ready"
        )
        if self._flower_port is not None:
            line += f"  Flower: http://{self._host}:{self._flower_port}"
        return line


def _answers(host: str, port: int, path: str) -> bool:
    """Whether an HTTP server answers with a status below 500."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=ANSWER_S):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (urllib.error.URLError, OSError):
        return False


def _has_template(endpoints: Mapping[str, Endpoint]) -> bool:
    return any(endpoint.managed is not None for endpoint in endpoints.values())


def _statuses(registry: Registry, *, with_nodes: bool = False) -> list[WorkerStatus]:
    """The status of each worker that OwnPod does not start itself. While Redis is away: one that counts as not probed.

    ``with_nodes``: without those that the front probes, because they may take minutes to be ready.
    """
    workers = (w for w in registry.workers() if not w.is_managed and (w.has_node or not with_nodes))
    try:
        return list(registry.fleet.statuses(tuple(workers)).values())
    except RedisUnavailable:
        return [WorkerStatus(WorkerState.UNHEALTHY, has_no_node=True)]


def _probed(status: WorkerStatus) -> bool:
    """Whether the worker's node has probed it at least once."""
    done = {WorkerState.READY, WorkerState.BUSY, WorkerState.PAUSED, WorkerState.STANDBY}
    return status.state in done or (
        status.state is WorkerState.UNHEALTHY and not status.has_no_node
    )


def _has_nodes(registry: Registry) -> bool:
    """Whether the supervisor has started nodes: at least one has published a status, or there are no workers that have one."""
    statuses = _statuses(registry, with_nodes=True)
    return not statuses or any(not status.has_no_node for status in statuses)
