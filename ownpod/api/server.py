"""gunicorn's settings, for ``ownpod api`` and, through ``gunicorn.conf.py``, for ``gunicorn wsgi:app``.

``WEB_CONCURRENCY`` and ``GUNICORN_CMD_ARGS`` work as gunicorn says.
"""

import os
import resource
import signal
from types import FrameType
from typing import Any

from flask import Flask

from ownpod import log, settings
from ownpod.api import create_app
from ownpod.api.services import needs_keys, services_of
from ownpod.endpoints import load_endpoints
from ownpod.processes import die_with_parent, is_loopback

worker_class = "ownpod.api.worker.PromptWorker"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# A request that waits for its job takes a thread, which is made when it is needed and costs some 40 KB
# while it waits. Two processes share the connections unevenly, so each can take 2,000 by itself.
threads = 2048
worker_connections = 4096
keepalive = 75
# Threads beat by themselves: this ends only a process that is stuck.
timeout = 30
graceful_timeout = 10
control_socket_disable = True
proc_name = "ownpod-api"


def on_starting(server: Any) -> None:
    """Gunicorn's own lines look as all others; as many connections as the system allows."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = settings.current()
    if config.log_format == "json":
        for handler in (*server.log.error_log.handlers, *server.log.access_log.handlers):
            handler.setFormatter(log.formatter("api", "json"))


def application() -> Flask:
    """What gunicorn serves for ``ownpod api``, wherever that is started."""
    return create_app(settings.current())


def when_ready(server: Any) -> None:
    """Says so, when anybody who reaches this host may use the workers."""
    config = settings.current()
    endpoints = load_endpoints(config).values()
    open_to = [
        str(host)
        for host, *_ in (address for address in server.cfg.address if isinstance(address, tuple))
        if not is_loopback(host)
    ]
    if open_to and not needs_keys(config, endpoints):
        server.log.warning(
            "the API listens on %s and no key is needed: whoever reaches it can run jobs; "
            "set OWNPOD_API_KEYS, or listen on 127.0.0.1",
            ", ".join(open_to),
        )


def post_fork(_server: Any, _worker: Any) -> None:
    """A process of a killed gunicorn would keep the port for up to ten seconds, so that the next
    gunicorn could not listen.
    """
    die_with_parent()


def post_worker_init(worker: Any) -> None:
    """At SIGTERM requests that wait for a job are answered at once, with its present state."""
    config = settings.current()
    log.configure(config.log_level, "api", config.log_format)
    events = services_of(worker.wsgi).events
    finish_requests = signal.getsignal(signal.SIGTERM)

    def stop(signum: int, frame: FrameType | None) -> None:
        events.stop()
        if callable(finish_requests):
            finish_requests(signum, frame)

    signal.signal(signal.SIGTERM, stop)
