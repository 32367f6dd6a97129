"""The message of a job as Celery and kombu would write it.

A message is a ticket: it holds the job's id and nothing else, which is also its task id and its
delivery tag.
"""

import base64
import json
import logging
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from ownpod.broker.names import (
    AWAIT_RUN,
    HOUSEKEEPING_QUEUE,
    LOOK,
    PRIORITY_SEPARATOR,
    PRIORITY_STEPS,
    RUN_JOB,
    SEND_WEBHOOK,
    endpoint_queue,
    worker_queue,
)

log = logging.getLogger(__name__)

DESCRIPTION = "@description@"
"""In a message, in place of the job's description: ``transitions.lua`` has it from the record."""

SHOWN = 80
"""Characters of a job's input in its description."""

_WEBHOOK, _AWAIT = "webhook-", "await-"
_JOB_ID = "00000000-ownpod-template-0000"
_QUEUE = "ownpod-template"
_ORIGIN = "ownpod"


def notify_node(app: Celery, node: str) -> None:
    """Makes a node look now whether its jobs are still its own; it would anyway, a bit later."""
    try:
        app.control.broadcast(LOOK, destination=[node])
    except OperationalError as error:
        log.info("node %s was not told to look: %s", node, error)


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
        log_inputs: descriptions have the beginning of the input.
    """

    def __init__(self, app: Celery, *, description_prefix: str, log_inputs: bool = True) -> None:
        self._app = app
        self._prefix = description_prefix
        self._log_inputs = log_inputs
        # Here and not at the first job: threads must not make templates at the same time.
        self._around = [self._parts(priority) for priority in PRIORITY_STEPS]
        self._go_on = self._template(RUN_JOB, PRIORITY_STEPS[0])
        self._await = self._template(AWAIT_RUN, PRIORITY_STEPS[0])
        self._webhook = self._template(SEND_WEBHOOK, PRIORITY_STEPS[0])
        self._body = base64.b64decode(self._template(RUN_JOB, 0)["body"]).decode()

    def for_job(
        self, job_id: str, endpoint: str, *, low: bool = False, description: str = DESCRIPTION
    ) -> tuple[str, str]:
        """The Redis list and the message to push: always the same for the same job.

        ``description`` is from :meth:`description`, or the placeholder for it.
        """
        queue = endpoint_queue(endpoint)
        body = base64.b64encode(self._body.replace(_JOB_ID, job_id).encode()).decode()
        start, middle, end = (
            part.replace(_JOB_ID, job_id).replace(_QUEUE, queue) for part in self._around[low]
        )
        return self.lists(endpoint)[low], f"{start}{body}{middle}{description}{end}"

    def either(self, job_id: str, endpoint: str) -> tuple[str, str, str, str]:
        """List and message of the job with normal, then with low priority."""
        return *self.for_job(job_id, endpoint), *self.for_job(job_id, endpoint, low=True)

    def for_webhook(self, placeholder: str) -> tuple[str, str]:
        """The list and the message of a webhook's task, with the placeholder for the job's id.

        Its body is plain text instead of base64, so that the id can be put in anywhere.
        """
        shown = f"{self._prefix} webhook of {placeholder}"
        task_id = f"{_WEBHOOK}{placeholder}"
        return HOUSEKEEPING_QUEUE, _filled(
            self._webhook, placeholder, task_id, HOUSEKEEPING_QUEUE, shown=shown
        )

    def for_worker(
        self, job_id: str, attempt: int, endpoint: str, worker_id: str
    ) -> tuple[str, str, str]:
        """A worker's own list, the message to go on with a run, and the one to wait for its end."""
        queue = worker_queue(endpoint, worker_id)
        shown = DESCRIPTION
        name = f"{job_id}:{attempt}"
        go_on = _filled(self._go_on, job_id, job_id, queue, shown=shown)
        wait = _filled(self._await, name, f"{_AWAIT}{name}", queue, shown=f"{shown} ends")
        return queue, go_on, wait

    def lists(self, endpoint: str) -> list[str]:
        """The Redis lists of an endpoint's queue: for normal and for low priority."""
        queue = endpoint_queue(endpoint)
        return [f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue for step in PRIORITY_STEPS]

    def description(self, endpoint: str, job_input: str) -> str:
        """What Flower and ``celery inspect`` show as a job's arguments, as it stands in JSON."""
        start = job_input if len(job_input) <= SHOWN else f"{job_input[: SHOWN - 3]}..."
        text = (
            f"{self._prefix} {endpoint} {start}"
            if self._log_inputs
            else f"{self._prefix} {endpoint}"
        )
        return json.dumps(text)[1:-1]

    def _parts(self, priority: int) -> list[str]:
        """A message's text before the body, between body and description, and after."""
        message = self._template(RUN_JOB, priority)
        message["body"] = message["headers"]["argsrepr"] = "\0"
        return json.dumps(message).split(json.dumps("\0")[1:-1])

    def _template(self, task: str, priority: int) -> dict[str, Any]:
        with Connection("memory://") as connection:
            channel = connection.channel()
            queue = make_queue(_QUEUE)(channel)
            queue.declare()
            with self._app.amqp.Producer(channel) as producer:
                self._app.send_task(
                    task,
                    [_JOB_ID],
                    task_id=_JOB_ID,
                    queue=queue,
                    producer=producer,
                    priority=priority,
                )
            message: dict[str, Any] = channel._get(_QUEUE)  # noqa: SLF001 - as kombu's consumers do
            queue.delete()
        message["properties"]["delivery_tag"] = _JOB_ID
        message["headers"]["origin"] = _ORIGIN
        return message


def _filled(
    template: dict[str, Any], argument: str, task_id: str, queue: str, *, shown: str
) -> str:
    """A message of a template: its task's argument and id, its queue, and what Flower shows.

    Its body is plain text instead of base64, so that a placeholder stays one.
    """
    body = base64.b64decode(template["body"]).decode().replace(_JOB_ID, argument)
    message = template | {"body": "\0", "headers": template["headers"] | {"argsrepr": shown}}
    message["properties"] = template["properties"] | {"body_encoding": "utf-8"}
    text = json.dumps(message).replace(_JOB_ID, task_id).replace(_QUEUE, queue)
    return text.replace('"\\u0000"', json.dumps(body))
