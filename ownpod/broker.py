"""Names of queues and nodes, and the message of a job as Celery and kombu would write it.

A message is a ticket: it holds the job's id and nothing else, which is also its task id and its
delivery tag (so ``HEXISTS unacked <job id>`` tells whether a node holds it).
"""

import base64
import functools
import json
import re
import socket
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue

RUN_JOB = "ownpod.run_job"
"""The name of the task that runs a job."""

HOUSEKEEPING = "housekeeping"
HOUSEKEEPING_QUEUE = "ownpod-housekeeping"
"""Celery's default queue: what runs on no worker. No endpoint's queue can have this name."""

PRIORITY_STEPS = [0, 9]
"""Normal jobs go before low ones. Step 0 is the plain list ``<queue>``, step 9 a list of its own
beside it (kombu: lower goes first)."""

PRIORITY_SEPARATOR = "\x06\x16"

_JOB_ID = "00000000-ownpod-template-0000"
_QUEUE = "ownpod-template"


def endpoint_queue(endpoint: str) -> str:
    """Where an endpoint's jobs wait until a node has a free slot."""
    return f"ownpod.{endpoint}"


def worker_queue(endpoint: str, worker_id: str) -> str:
    """The queue of one worker, for what must run there."""
    return f"ownpod.{endpoint}.{worker_id}"


def is_job_queue(name: str) -> bool:
    return name.startswith("ownpod.")


def node_name(worker_id: str, host: str | None = None) -> str:
    """The Celery node of a worker: ``<worker id>@<host>``."""
    return f"{worker_id}@{host or socket.gethostname()}"


def worker_of(node: str) -> str:
    """The worker id in a node's name."""
    return node.partition("@")[0]


def make_queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


class JobMessages:
    """Makes the messages that ``celery`` itself would publish for a job, without publishing.

    Celery makes one, through kombu's in-memory transport; it is the template for all others. So a
    record and its message can be written to Redis in one step, at a quarter of the cost of
    ``apply_async``, and a new Celery version changes the messages by itself.

    Args:
        app: the Celery application; its task ``ownpod.run_job`` need not be loaded.
        description_prefix: see :meth:`description`.
    """

    def __init__(self, app: Celery, *, description_prefix: str) -> None:
        self._app = app
        self._prefix = description_prefix

    def for_job(self, job_id: str, endpoint: str) -> tuple[str, str]:
        """The Redis list and the message to push: always the same for the same job."""
        queue = endpoint_queue(endpoint)
        body = base64.b64encode(self._body.replace(_JOB_ID, job_id).encode()).decode()
        description = json.dumps(self.description(job_id, endpoint))[1:-1]
        start, middle, end = self._around
        message = f"{start}{body}{middle}{description}{end}"
        return queue, message.replace(_JOB_ID, job_id).replace(_QUEUE, queue)

    def lists(self, endpoint: str) -> list[str]:
        """The Redis lists of an endpoint's queue, one for each priority step."""
        queue = endpoint_queue(endpoint)
        return [f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]

    def description(self, job_id: str, endpoint: str) -> str:
        """What Flower and ``celery inspect`` show as a job's arguments."""
        return f"{self._prefix} {endpoint} {job_id}"

    @functools.cached_property
    def _around(self) -> tuple[str, str, str]:
        """The message's text before the body, between body and description, and after."""
        message = self._template
        marked = message | {"body": "\0", "headers": message["headers"] | {"argsrepr": "\0"}}
        start, middle, end = json.dumps(marked).split(json.dumps("\0")[1:-1])
        return start, middle, end

    @functools.cached_property
    def _body(self) -> str:
        return base64.b64decode(self._template["body"]).decode()

    @functools.cached_property
    def _template(self) -> dict[str, Any]:
        with Connection("memory://") as connection:
            channel = connection.channel()
            queue = make_queue(_QUEUE)(channel)
            queue.declare()
            with self._app.amqp.Producer(channel) as producer:
                self._app.send_task(
                    RUN_JOB, [_JOB_ID], task_id=_JOB_ID, queue=queue, producer=producer, priority=0
                )
            message: dict[str, Any] = channel._get(_QUEUE)  # noqa: SLF001 - as kombu's consumers do
            queue.delete()
        message["properties"]["delivery_tag"] = _JOB_ID
        return message


NAME = re.compile(r"[A-Za-z0-9_-]+")
"""What endpoint ids, worker ids and job ids look like; also valid in queue and node names."""
