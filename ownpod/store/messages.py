"""The messages in Celery's lists, as templates: text with placeholders that Lua fills.

:func:`ownpod.broker.messages.make_templates` makes them, so that nothing here imports Celery.
"""

import json
import re
from dataclasses import dataclass

SHOWN = 80
"""Characters of a job's input in its description."""


def pieces(template: str) -> list[str]:
    """A template, cut at its placeholders: text, name of a placeholder, text, and so on."""
    return re.split("@([a-z]+)@", template)


@dataclass(frozen=True)
class Templates:
    """The names of Celery's lists, and the templates of their messages.

    Placeholders in messages: ``@job@``, ``@queue@``, ``@priority@`` and ``@description@``. The last one is
    JSON text without its quotes, see :meth:`description`.
    """

    job: str
    """Of the task that runs a job; all four placeholders."""
    await_run: str
    """Of the task that waits for the end of a run; ``@job@`` is "<job id>:<attempt>"."""
    webhook: str
    """Of the task that calls a webhook; ``@job@``."""
    webhook_list: str
    """The list of webhooks' messages."""
    queue_prefix: str
    """Before the endpoint's id: the name of its queue. The name of a worker's own queue is "<prefix><endpoint>.<worker id>"."""
    low_suffix: str
    """After a queue's name: the name of its list for low priority; the list for normal priority has the name of the queue."""
    priorities: tuple[int, int]
    """The priority in a message of normal and of low priority."""
    description_prefix: str
    log_inputs: bool = True
    """Descriptions have the beginning of the input."""

    def queue(self, endpoint: str) -> str:
        """The endpoint's queue, which all its workers consume."""
        return f"{self.queue_prefix}{endpoint}"

    def own_queue(self, endpoint: str, worker_id: str) -> str:
        """The queue that only this worker consumes."""
        return f"{self.queue(endpoint)}.{worker_id}"

    def worker_of(self, endpoint: str, queue: str) -> str:
        """The id of the worker whose own queue this is."""
        return queue[len(self.queue(endpoint)) + 1 :]

    def lists_of(self, queue: str) -> list[str]:
        """The Redis lists of a queue: for normal and for low priority."""
        return [queue, f"{queue}{self.low_suffix}"]

    def lists(self, endpoint: str) -> list[str]:
        """The Redis lists of an endpoint's queue."""
        return self.lists_of(self.queue(endpoint))

    def description(self, endpoint: str, job_input: str) -> str:
        """What Flower and ``celery inspect`` show as a job's arguments, as JSON text without its quotes."""
        start = job_input if len(job_input) <= SHOWN else f"{job_input[: SHOWN - 3]}..."
        text = f"{self.description_prefix} {endpoint}"
        return json.dumps(f"{text} {start}" if self.log_inputs else text)[1:-1]
