"""Names of queues, nodes, tasks and remote commands, as Celery sees them.

Nodes of another version know these names, so a change of one breaks a rolling upgrade.
"""

import socket

from ownpod.validation import NAME

RUN_JOB = "ownpod.run_job"
"""Name of the task that runs a job."""

AWAIT_RUN = "ownpod.await_run"
"""Name of the task that occupies a slot until the worker has ended a run that an earlier node started."""

SEND_WEBHOOK = "ownpod.send_webhook"
"""Name of the task that sends an ended job's webhook."""

CHECK_RUNS = "ownpod_look"
"""Name of the remote command with which a node checks at once whether its jobs were cancelled."""

HOUSEKEEPING_QUEUE = "ownpod-housekeeping"
"""Celery's default queue, for tasks that need no worker. No endpoint's queue can have this name."""

PRIORITY_STEPS = [0, 9]
"""kombu's priorities of normal and of low jobs; the lower number is fetched first. The Redis list of step 0 has the
queue's name, the list of step 9 has the name ``<queue><separator>9``."""

PRIORITY_SEPARATOR = "\x06\x16"
"""kombu's default, written here because the store makes the same names of lists."""


def endpoint_queue(endpoint: str) -> str:
    """The queue of an endpoint's jobs, from which the nodes of all of its workers fetch."""
    return f"ownpod.{endpoint}"


def worker_queue(endpoint: str, worker_id: str) -> str:
    """The queue of one worker, for tasks that only its node can run."""
    return f"ownpod.{endpoint}.{worker_id}"


def endpoint_of(queue: str) -> str | None:
    """The endpoint id in the name of an endpoint's queue; None for all other queues."""
    prefix, _, name = queue.partition(".")
    return name if prefix == "ownpod" and NAME.fullmatch(name) else None


def is_job_queue(name: str) -> bool:
    """Whether a queue belongs to an endpoint or to a worker."""
    return name.startswith("ownpod.")


def node_name(worker_id: str, host: str | None = None) -> str:
    """The name of a worker's Celery node: ``<worker id>@<host>``; None: this host."""
    return f"{worker_id}@{host or socket.gethostname()}"


def worker_of(node: str) -> str:
    """The worker id in the name of a node."""
    return node.partition("@")[0]
