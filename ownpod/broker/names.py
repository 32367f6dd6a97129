"""Names of queues and nodes, and the message of a job as Celery and kombu would write it.

A message is a ticket: it holds the job's id and nothing else, which is also its task id and its
delivery tag.
"""

import socket

from ownpod.validation import NAME

RUN_JOB = "ownpod.run_job"
"""The name of the task that runs a job."""

AWAIT_RUN = "ownpod.await_run"
"""The name of the task that keeps a slot until the worker is done with a run of an earlier node."""

SEND_WEBHOOK = "ownpod.send_webhook"
"""The name of the task that calls a finished job's webhook."""

LOOK = "ownpod_look"
"""Remote control: a node looks at once whether its jobs are still its own."""

HOUSEKEEPING_QUEUE = "ownpod-housekeeping"
"""Celery's default queue: what runs on no worker. No endpoint's queue can have this name."""

PRIORITY_STEPS = [0, 9]
"""Normal jobs go before low ones. Step 0 is the plain list ``<queue>``, step 9 a list of its own
beside it (kombu: lower goes first)."""

PRIORITY_SEPARATOR = "\x06\x16"


def endpoint_queue(endpoint: str) -> str:
    """Where an endpoint's jobs wait until a node has a free slot."""
    return f"ownpod.{endpoint}"


def worker_queue(endpoint: str, worker_id: str) -> str:
    """The queue of one worker, for what must run there."""
    return f"ownpod.{endpoint}.{worker_id}"


def endpoint_of(queue: str) -> str | None:
    """The endpoint whose queue this is; None for a worker's own and all other queues."""
    prefix, _, name = queue.partition(".")
    return name if prefix == "ownpod" and NAME.fullmatch(name) else None


def is_job_queue(name: str) -> bool:
    return name.startswith("ownpod.")


def node_name(worker_id: str, host: str | None = None) -> str:
    """The Celery node of a worker: ``<worker id>@<host>``."""
    return f"{worker_id}@{host or socket.gethostname()}"


def worker_of(node: str) -> str:
    """The worker id in a node's name."""
    return node.partition("@")[0]
