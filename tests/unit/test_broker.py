import base64
import json

from helpers import job_messages

from ownpod import broker
from ownpod.celery import app


def published(job_id, endpoint):
    """The message that Celery itself publishes, through kombu's in-memory transport."""
    with app.connection_for_write("memory://") as connection:
        channel = connection.channel()
        queue = broker.make_queue(broker.endpoint_queue(endpoint))
        with app.amqp.Producer(channel) as producer:
            app.tasks[broker.RUN_JOB].apply_async(
                [job_id], task_id=job_id, queue=queue, producer=producer, priority=0
            )
        return channel._get(queue.name)


def test_a_message_is_what_celery_would_publish():
    app.loader.import_default_modules()
    queue, text = job_messages().for_job("job-1", "ep")
    made, theirs = json.loads(text), published("job-1", "ep")

    assert queue == "ownpod.ep"
    assert made["properties"].pop("delivery_tag") == "job-1"
    assert theirs["properties"].pop("delivery_tag")
    assert made["headers"].pop("argsrepr") == "ownpod ep job-1"
    assert theirs["headers"].pop("argsrepr") == "['job-1']"
    assert json.loads(base64.b64decode(made.pop("body"))) == json.loads(
        base64.b64decode(theirs.pop("body"))
    )
    # Made by another call of Celery, so these may differ in what no node reads.
    for message in (made, theirs):
        message["headers"].pop("ignore_result")
        message["properties"].pop("reply_to")
    assert made == theirs


def test_the_same_job_has_the_same_message():
    messages = job_messages()
    assert messages.for_job("a", "ep") == messages.for_job("a", "ep")
    assert messages.for_job("a", "ep") != messages.for_job("b", "ep")


def test_no_endpoint_can_have_the_housekeeping_queue():
    assert not broker.is_job_queue(broker.HOUSEKEEPING_QUEUE)
    assert broker.is_job_queue(broker.endpoint_queue("x"))
    assert broker.is_job_queue(broker.worker_queue("x", "w"))


def test_lists_are_named_as_kombu_names_them():
    from kombu.transport.redis import Channel

    class Named(Channel):
        def __init__(self):
            self.priority_steps = broker.PRIORITY_STEPS
            self.sep = broker.PRIORITY_SEPARATOR

    channel = Named()
    theirs = [channel._q_for_pri("ownpod.ep", step) for step in broker.PRIORITY_STEPS]
    assert job_messages().lists("ep") == theirs
