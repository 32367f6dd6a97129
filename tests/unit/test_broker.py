import base64
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import job_messages

from ownpod.broker import names
from ownpod.broker.messages import JobMessages, make_queue
from ownpod.celery import app


def published(task, job_id, queue_name, priority=0, task_id=None):
    """The message that Celery itself publishes, through kombu's in-memory transport."""
    app.loader.import_default_modules()
    with app.connection_for_write("memory://") as connection:
        channel = connection.channel()
        queue = make_queue(queue_name)
        with app.amqp.Producer(channel) as producer:
            app.tasks[task].apply_async(
                [job_id],
                task_id=task_id or job_id,
                queue=queue,
                producer=producer,
                priority=priority,
            )
        return channel._get(queue.name)


def same_but_for_how_it_was_made(made, theirs):
    for message in (made, theirs):
        assert message["properties"].pop("delivery_tag")
        assert message["headers"].pop("argsrepr")
        assert message["headers"].pop("origin")
        # Celery sets these by the call that made the message, and no node reads them.
        message["headers"].pop("ignore_result")
        message["properties"].pop("reply_to")
    return made == theirs


@pytest.mark.parametrize(("low", "priority"), [(False, 0), (True, 9)])
def test_a_message_is_what_celery_would_publish(low, priority):
    description = job_messages().description("ep", '{"a": "x"}')
    queue, text = job_messages().for_job("job-1", "ep", low=low, description=description)
    made = json.loads(text)
    theirs = published(names.RUN_JOB, "job-1", "ownpod.ep", priority)

    assert queue == job_messages().lists("ep")[low]
    assert made["properties"]["delivery_tag"] == "job-1"
    assert made["headers"]["argsrepr"] == 'ownpod ep {"a": "x"}'
    assert json.loads(base64.b64decode(made.pop("body"))) == json.loads(
        base64.b64decode(theirs.pop("body"))
    )
    assert same_but_for_how_it_was_made(made, theirs)


def test_a_webhooks_message_is_what_celery_would_publish_but_for_its_encoding():
    queue, text = job_messages().for_webhook("@job@")
    made = json.loads(text.replace("@job@", "job-1"))
    # Another task id than the job's, because Flower would show the webhook as the job.
    theirs = published(
        names.SEND_WEBHOOK, "job-1", names.HOUSEKEEPING_QUEUE, task_id="webhook-job-1"
    )
    assert made["headers"]["id"] == made["properties"]["delivery_tag"] == "webhook-job-1"

    assert queue == names.HOUSEKEEPING_QUEUE
    assert made["properties"].pop("body_encoding") == "utf-8"
    assert theirs["properties"].pop("body_encoding") == "base64"
    assert json.loads(made.pop("body")) == json.loads(base64.b64decode(theirs.pop("body")))
    assert same_but_for_how_it_was_made(made, theirs)


def test_a_description_has_the_beginning_of_the_input():
    assert job_messages().description("ep", "x" * 100) == f"ownpod ep {'x' * 77}..."
    assert job_messages().description("ep", '{"a"}') == 'ownpod ep {\\"a\\"}'
    quiet = JobMessages(app, description_prefix="mine", log_inputs=False)
    assert quiet.description("ep", "secret") == "mine ep"


@pytest.mark.parametrize("number", [0, 1])
def test_a_workers_own_messages_are_what_celery_would_publish(number):
    queue, *texts = job_messages().for_worker("job-1", 2, "ep", "w")
    made = json.loads(texts[number].replace("@description@", "ownpod ep {}"))
    task, argument = [(names.RUN_JOB, "job-1"), (names.AWAIT_RUN, "job-1:2")][number]
    task_id = ["job-1", "await-job-1:2"][number]
    theirs = published(task, argument, "ownpod.ep.w", task_id=task_id)
    assert queue == "ownpod.ep.w"
    assert made["properties"].pop("body_encoding") == "utf-8"
    assert theirs["properties"].pop("body_encoding") == "base64"
    assert json.loads(made.pop("body")) == json.loads(base64.b64decode(theirs.pop("body")))
    assert same_but_for_how_it_was_made(made, theirs)


def test_the_same_job_has_the_same_message():
    messages = job_messages()
    assert messages.for_job("a", "ep") == messages.for_job("a", "ep")
    assert messages.for_job("a", "ep") != messages.for_job("b", "ep")


@pytest.mark.parametrize(
    ("queue", "endpoint"),
    [
        ("ownpod.ep", "ep"),
        ("ownpod.ep.worker", None),
        (names.HOUSEKEEPING_QUEUE, None),
        ("celery", None),
        ("ownpod.", None),
    ],
)
def test_an_endpoint_is_known_by_its_queue(queue, endpoint):
    assert names.endpoint_of(queue) == endpoint


def test_no_endpoint_can_have_the_housekeeping_queue():
    assert not names.is_job_queue(names.HOUSEKEEPING_QUEUE)
    assert names.is_job_queue(names.endpoint_queue("x"))
    assert names.is_job_queue(names.worker_queue("x", "w"))


def test_lists_are_named_as_kombu_names_them():
    from kombu.transport.redis import Channel

    class Named(Channel):
        def __init__(self):
            self.priority_steps = names.PRIORITY_STEPS
            self.sep = names.PRIORITY_SEPARATOR

    channel = Named()
    theirs = [channel._q_for_pri("ownpod.ep", step) for step in names.PRIORITY_STEPS]
    assert job_messages().lists("ep") == theirs


def test_threads_may_ask_for_the_message_of_a_webhook_at_the_same_time():
    messages = job_messages()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(messages.for_webhook, ["@job@"] * 64))
    assert found == {messages.for_webhook("@job@")}
