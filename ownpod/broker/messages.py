"""The templates of messages, as Celery and kombu would write them.

A message is a ticket: it holds the job's id and nothing else, which is also its task id and its
delivery tag.
"""

import base64
import functools
import json
import logging
from typing import Any

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from ownpod.broker.names import (
    AWAIT_RUN,
    CHECK_RUNS,
    HOUSEKEEPING_QUEUE,
    PRIORITY_SEPARATOR,
    PRIORITY_STEPS,
    RUN_JOB,
    SEND_WEBHOOK,
    endpoint_queue,
)
from ownpod.store.messages import Templates

log = logging.getLogger(__name__)

_JOB, _PRIORITY = "@job@", "@priority@"
_ORIGIN = "ownpod"


def notify_node(app: Celery, node: str) -> None:
    """Makes a node check now whether its jobs are still its own, instead of at its next renewal of leases."""
    try:
        app.control.broadcast(CHECK_RUNS, destination=[node])
    except OperationalError as error:
        log.info("node %s was not notified: %s", node, error)


def make_queue(name: str) -> Queue:
    return Queue(name, Exchange(name, type="direct"), routing_key=name)


@functools.cache
def make_templates(app: Celery, *, description_prefix: str, log_inputs: bool = True) -> Templates:
    """The messages that ``celery`` itself would publish, with placeholders; publishes nothing.

    Celery makes one of each, through kombu's in-memory transport. So a record and its message can be
    written to Redis in one step, at a quarter of the cost of ``apply_async``, and a new Celery version
    changes the messages by itself.

    Args:
        app: the Celery application; its tasks need not be loaded.
        description_prefix: the beginning of each description that Flower shows.
        log_inputs: descriptions have the beginning of the input.
    """
    normal, low = PRIORITY_STEPS
    return Templates(
        job=_template(app, RUN_JOB, task_id=_JOB, shown="@description@"),
        await_run=_template(app, AWAIT_RUN, task_id=f"await-{_JOB}", shown="@description@ ends"),
        webhook=_template(
            app,
            SEND_WEBHOOK,
            # A task id of its own, because Flower would take the job's id for the job.
            task_id=f"webhook-{_JOB}",
            queue=HOUSEKEEPING_QUEUE,
            shown=f"{description_prefix} webhook of {_JOB}",
        ).replace(_PRIORITY, str(normal)),
        webhook_list=HOUSEKEEPING_QUEUE,
        queue_prefix=endpoint_queue(""),
        low_suffix=f"{PRIORITY_SEPARATOR}{low}",
        priorities=(normal, low),
        description_prefix=description_prefix,
        log_inputs=log_inputs,
    )


def _template(app: Celery, task: str, *, task_id: str, queue: str = "@queue@", shown: str) -> str:
    """A task's message. Its body is plain text instead of base64, so that it can contain a placeholder."""
    message = _published(app, task, task_id, queue)
    message["body"] = base64.b64decode(message["body"]).decode()
    message["headers"] |= {"argsrepr": shown, "origin": _ORIGIN}
    message["properties"] |= {
        "body_encoding": "utf-8",
        "delivery_tag": task_id,
        "priority": _PRIORITY,
        # Celery's is another one in each process, and a message is found in its list by its whole text.
        "reply_to": _ORIGIN,
    }
    # In JSON the priority is a number.
    return json.dumps(message).replace(f'"{_PRIORITY}"', _PRIORITY)


def _published(app: Celery, task: str, task_id: str, queue_name: str) -> dict[str, Any]:
    with Connection("memory://") as connection:
        channel = connection.channel()
        queue = make_queue(queue_name)(channel)
        queue.declare()
        with app.amqp.Producer(channel) as producer:
            app.send_task(
                task,
                [_JOB],
                task_id=task_id,
                queue=queue,
                producer=producer,
                priority=PRIORITY_STEPS[0],
            )
        message: dict[str, Any] = channel._get(queue_name)  # noqa: SLF001 - as kombu's consumers do
        queue.delete()
    return message
