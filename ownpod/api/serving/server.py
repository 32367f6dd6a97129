"""gunicorn's settings for ``ownpod api`` and, through ``gunicorn.conf.py``, for ``gunicorn wsgi:app``.

``GUNICORN_CMD_ARGS`` wins over them, as gunicorn documents.
"""

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

from flask import Flask
from gunicorn.glogging import Logger

from ownpod import log, settings
from ownpod.api import create_app
from ownpod.api.auth import MANAGING_IS_OFF
from ownpod.api.guard import add_own_hosts
from ownpod.api.services import services_of
from ownpod.api.serving.lane import Lane, may_answer
from ownpod.configuration import keep_endpoints, kept_endpoints
from ownpod.errors import ConfigurationError, RedisUnavailable
from ownpod.processes import die_with_parent, is_loopback
from ownpod.registry import Registry
from ownpod.settings import Settings
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet

FRONT = settings.of_environment("OWNPOD_BEHIND_FRONT")
"""The address on which the front before this API listens, from ``ownpod api --behind-front``; None: there is none."""

worker_class = "ownpod.api.serving.worker.PromptWorker"
try:
    workers = settings.current().api_processes
except ConfigurationError as error:
    settings.exit_on(error)
# A request that waits for its job occupies a thread. Threads are created when needed, and a waiting one costs 40 KB.
# Connections are not spread evenly over two processes, therefore each one has threads for 2,000 requests.
threads = 2048
# At this number of connections, the one that has been slow or idle longest is dropped for a new one.
worker_connections = 4096
# The front closes idle connections before this time (its `timeout server` is an hour), because a POST that meets a
# connection which the API is just closing would be lost: the front sends no request twice.
keepalive = 75 if FRONT is None else 4000
# A ping has the ids of all runs of its worker in the request line.
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190
# With sendfile, gunicorn waits for a slow client without a time limit; see ownpod.api.serving.channel.
sendfile = False
# The main thread sends the heartbeats, so this limit does not end requests that wait for their jobs.
timeout = 30
graceful_timeout = 10
control_socket_disable = True
proc_name = "ownpod-api"


class GunicornLog(Logger):  # type: ignore[misc]
    """gunicorn's log in OwnPod's format: JSON where it is set, and escaped, so that a client cannot forge lines."""

    def setup(self, cfg: Any) -> None:
        """Sets the formatters; gunicorn calls this at the start and at a reload."""
        super().setup(cfg)
        form = settings.current().log_format
        for logger, line in ((self.error_log, self.error_fmt), (self.access_log, self.access_fmt)):
            text = log.text_formatter(line, self.datefmt)
            for handler in logger.handlers:
                handler.setFormatter(log.formatter("api", "json") if form == "json" else text)


logger_class = GunicornLog

NO_LANE = (
    "chunks of streams go through gunicorn one by one, because it logs, counts or closes each request "
    "(an access log, statsd, max_requests, hooks, keepalive 0); without that, a process passes on about twice as many"
)

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Signals that end the server."""


def on_starting(server: Any) -> None:
    """Raises the limit of open files, so of connections, to the system's maximum, and loads the endpoints."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        keep_endpoints(settings.current())
    except ConfigurationError as error:
        settings.exit_on(error)
    server.wait_for_signals = partial(_each_once, server.wait_for_signals)


def _each_once(wait_for_signals: Callable[..., list[int]], timeout: float) -> list[int]:
    """The signals that have arrived, each once, and no SIGHUP beside one that ends the server.

    gunicorn 27 waits at each SIGHUP until the old processes have ended. Without this, five changes of a file within a
    second would delay the next change, and the end, by five such waits.
    """
    signals = list(dict.fromkeys(wait_for_signals(timeout=timeout)))
    if ENDING.isdisjoint(signals):
        return signals
    return [signum for signum in signals if signum != signal.SIGHUP]


def on_reload(server: Any) -> None:
    """Reads the key files and ``workers.yaml`` again at SIGHUP. If one is invalid, the earlier keys, or endpoints, stay:
    the new processes would end at their start, and no process would answer.
    """
    try:
        settings.reload()
    except ConfigurationError as error:
        server.log.warning("settings stay as they were: %s", error)
    try:
        keep_endpoints(settings.current())
    except ConfigurationError as error:
        server.log.error("the old configuration stays: %s", error)  # noqa: TRY400 - one line


def application() -> Flask:
    """The application for ``ownpod api``, which may be started in any folder."""
    try:
        return create_app(settings.current(), behind_front=FRONT is not None)
    except ConfigurationError as error:
        settings.exit_on(error)


def _endpoints_have_keys(config: Settings) -> bool:
    try:
        configured, url = kept_endpoints(config), config.broker_url()
    except ConfigurationError as error:
        settings.exit_on(error)
    with connect(url, client_name="ownpod-api") as client:
        try:
            return Registry(configured, Fleet(client), config).has_keys
        except RedisUnavailable:
            return False


def _hosts(server: Any) -> list[str]:
    """The addresses on which this server, and the front before it, listen."""
    hosts = [str(address[0]) for address in server.cfg.address if isinstance(address, tuple)]
    return [*hosts, FRONT] if FRONT else hosts


def when_ready(server: Any) -> None:
    """Warns if the API listens on other addresses than loopback without keys."""
    config = settings.current()
    keys_needed = bool(config.api_keys) or _endpoints_have_keys(config)
    open_to = [host for host in _hosts(server) if not is_loopback(host)]
    if open_to and not keys_needed:
        server.log.warning(
            "the API listens on %s and no key is needed: every program that reaches it can run jobs%s; "
            "set OWNPOD_API_KEYS, or listen on 127.0.0.1",
            ", ".join(open_to),
            "" if config.admin_keys else " and add workers",
        )
    elif keys_needed and not config.admin_keys:
        server.log.info(MANAGING_IS_OFF)


def post_fork(_server: Any, _worker: Any) -> None:
    """Ends this process with its parent. Otherwise the processes of a killed gunicorn would keep the port for up to ten
    seconds, and the next gunicorn could not listen.
    """
    die_with_parent()


def worker_exit(_server: Any, _worker: Any) -> None:
    """Ends a process that was stopped in order at once, because Python needs up to a second of CPU time to take all modules
    apart, and gunicorn waits for that at each reload and at the end.
    """
    ending = sys.exception()
    if isinstance(ending, SystemExit) and ending.code == 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def max_waiting(threads: int) -> int:
    """Maximum number of requests that wait for a job at the same time; the remaining threads are for other requests."""
    return max(1, threads - max(1, threads // 48))


def post_worker_init(worker: Any) -> None:
    """Prepares a process for its first request.

    SIGTERM gets a handler: requests that wait for a job are answered at once with its present state, because gunicorn ends
    them after its graceful timeout.
    """
    config = settings.current()
    log.configure(config.log_level, "api", config.log_format)
    add_own_hosts(worker.wsgi, _hosts(worker))
    services = services_of(worker.wsgi)
    # GUNICORN_CMD_ARGS may have chosen another class.
    if (leave_lane := getattr(worker, "leave_lane", None)) is not None:
        if may_answer(worker.cfg):
            worker.lane = Lane(services.reports, services.store.chunks, leave_lane)
        else:
            worker.log.info(NO_LANE)
    notices = services.notices
    notices.max_waiting = max_waiting(worker.cfg.threads)
    # Otherwise a full collection visits the objects of all modules, and stops every thread, so all streams, for 100 ms.
    gc.collect()
    gc.freeze()
    finish_requests = signal.getsignal(signal.SIGTERM)

    def stop(signum: int, frame: FrameType | None) -> None:
        notices.stop()
        if callable(finish_requests):
            finish_requests(signum, frame)

    signal.signal(signal.SIGTERM, stop)
