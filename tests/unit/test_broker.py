import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import job_messages

from ownpod.broker import names
from ownpod.broker.messages import make_queue, make_templates
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


def filled(template, **values):
    return json.loads(re.sub("@([a-z]+)@", lambda found: values[found[1]], template))


def same_but_for_its_encoding(made, theirs):
    assert made["properties"].pop("body_encoding") == "utf-8"
    assert theirs["properties"].pop("body_encoding") == "base64"
    assert json.loads(made.pop("body")) == json.loads(base64.b64decode(theirs.pop("body")))
    return same_but_for_how_it_was_made(made, theirs)


@pytest.mark.parametrize(("low", "priority"), [(False, 0), (True, 9)])
@pytest.mark.parametrize("queue", ["ownpod.ep", "ownpod.ep.w"])
def test_a_message_is_what_celery_would_publish(low, priority, queue):
    messages = job_messages()
    description = messages.description("ep", '{"a": "x"}')
    made = filled(
        messages.job,
        job="job-1",
        queue=queue,
        priority=str(messages.priorities[low]),
        description=description,
    )
    theirs = published(names.RUN_JOB, "job-1", queue, priority)
    assert made["properties"]["delivery_tag"] == made["headers"]["id"] == "job-1"
    assert made["headers"]["argsrepr"] == 'ownpod ep {"a": "x"}'
    assert same_but_for_its_encoding(made, theirs)


def test_a_webhooks_message_is_what_celery_would_publish():
    made = filled(job_messages().webhook, job="job-1")
    # Another task id than the job's, because Flower would show the webhook as the job.
    theirs = published(
        names.SEND_WEBHOOK, "job-1", names.HOUSEKEEPING_QUEUE, task_id="webhook-job-1"
    )
    assert made["headers"]["id"] == made["properties"]["delivery_tag"] == "webhook-job-1"
    assert made["headers"]["argsrepr"] == "ownpod webhook of job-1"
    assert job_messages().webhook_list == names.HOUSEKEEPING_QUEUE
    assert same_but_for_its_encoding(made, theirs)


def test_the_message_that_waits_for_a_run_is_what_celery_would_publish():
    made = filled(
        job_messages().await_run,
        job="job-1:2",
        queue="ownpod.ep.w",
        priority="0",
        description="ownpod ep {}",
    )
    theirs = published(names.AWAIT_RUN, "job-1:2", "ownpod.ep.w", task_id="await-job-1:2")
    assert made["headers"]["argsrepr"] == "ownpod ep {} ends"
    assert same_but_for_its_encoding(made, theirs)


def test_a_description_has_the_beginning_of_the_input():
    assert job_messages().description("ep", "x" * 100) == f"ownpod ep {'x' * 77}..."
    assert job_messages().description("ep", '{"a"}') == 'ownpod ep {\\"a\\"}'
    quiet = make_templates(app, description_prefix="mine", log_inputs=False)
    assert quiet.description("ep", "secret") == "mine ep"


def test_queues_are_named_in_the_templates_as_by_the_broker():
    messages = job_messages()
    assert messages.queue("ep") == names.endpoint_queue("ep")
    assert f"{messages.queue('ep')}.w" == names.worker_queue("ep", "w")


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


def test_messages_of_all_processes_are_the_same_because_they_are_found_by_their_text():
    def made(_=None):
        return make_templates.__wrapped__(app, description_prefix="ownpod")

    with ThreadPoolExecutor(1) as pool:
        # Celery's own id for replies differs between threads, as between processes.
        other = pool.submit(made).result()
    assert other == made()
