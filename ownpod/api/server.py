"""gunicorn's settings, for ``ownpod api`` and, through ``gunicorn.conf.py``, for ``gunicorn wsgi:app``.

``WEB_CONCURRENCY`` and ``GUNICORN_CMD_ARGS`` work as gunicorn says.
"""

import os
import signal
from types import FrameType
from typing import Any

worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
# A request that waits for its job takes a thread, which costs little while it waits.
threads = 512
worker_connections = 2048
keepalive = 75
# Threads beat by themselves: this ends only a process that is stuck.
timeout = 30
graceful_timeout = 10
control_socket_disable = True
proc_name = "ownpod-api"


def post_worker_init(worker: Any) -> None:
    """At SIGTERM requests that wait for a job are answered at once, with its present state."""
    events = worker.wsgi.extensions["ownpod"].events
    finish_requests = signal.getsignal(signal.SIGTERM)

    def stop(signum: int, frame: FrameType | None) -> None:
        events.stop()
        if callable(finish_requests):
            finish_requests(signum, frame)

    signal.signal(signal.SIGTERM, stop)
