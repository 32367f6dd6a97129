"""The contract of ``ownpod.broker.workarounds`` with Celery and kombu.

Each test fails when a new version no longer needs the change, or changed what the change relies on.
"""

import contextlib
import inspect
import sys
import threading

import pytest
from celery.concurrency.thread import TaskPool
from celery.exceptions import WorkerShutdown
from celery.worker import state
from helpers import run_command, wait_until
from kombu import Connection, Queue
from kombu.transport import redis as kombu_redis
from kombu.transport.redis import Channel

import ownpod.celery  # noqa: F401 - installs the workarounds
from ownpod.broker import workarounds
from ownpod.celeryconfig import broker_transport_options

QUEUE = "contract"


class RestoringChannel(Channel):
    """kombu's channel without OwnPod's setting."""

    do_restore = True


class RestoringTransport(kombu_redis.Transport):
    Channel = RestoringChannel


@pytest.fixture
def connect(redis_server, client):
    """Opens a connection to an empty Redis with OwnPod's own transport options."""
    assert client.dbsize() == 0
    opened = []

    def made(transport=None):
        connection = Connection(
            redis_server.url, transport=transport, transport_options=broker_transport_options
        )
        opened.append(connection)
        return connection

    yield made
    for connection in opened:
        connection.close()


def publish(connection, *texts):
    with connection.SimpleQueue(QUEUE) as queue:
        for text in texts:
            queue.put(text)


def consume(connection, received):
    """A consumer with a prefetch of one message that acknowledges nothing."""
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    consumer = connection.Consumer([Queue(QUEUE)], channel=channel, on_message=received.append)
    consumer.consume()
    return channel


def drain(connection, seconds):
    """Handles events until there are none for so many seconds."""
    with contextlib.suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=seconds)


def test_kombu_creates_a_client_for_each_command_and_the_workaround_reuses_one(connect):
    channel = connect().channel()
    original = Channel._ownpod_create_client
    assert original(channel) is not original(channel), "kombu reuses clients: drop _reuse_client"
    client = channel._create_client()
    assert channel._create_client() is client
    assert client.ping()
    channel._disconnect_pools()
    assert channel._create_client() is not client
    assert channel._create_client().ping()


def test_kombus_purge_takes_a_queue_and_deletes_its_list(connect, client):
    assert list(inspect.signature(Channel._ownpod_purge).parameters) == ["self", "queue"]
    connection = connect()
    publish(connection, "a", "b")
    assert connection.channel().queue_purge(QUEUE) == 2
    assert not client.exists(QUEUE)


def test_a_purge_of_a_queue_that_the_function_knows_leaves_its_list_to_the_function(
    connect, client
):
    class Mine(Channel):
        pass

    class MyTransport(kombu_redis.Transport):
        Channel = Mine

    workarounds.on_purge(lambda queue: 7 if queue == QUEUE else None, Mine)
    connection = connect(MyTransport)
    publish(connection, "a")
    channel = connection.channel()
    assert channel.queue_purge(QUEUE) == 7
    assert client.llen(QUEUE) == 1
    assert channel.queue_purge("another") == 0


@pytest.mark.parametrize(("transport", "left"), [(RestoringTransport, 1), (None, 0)])
def test_kombu_requeues_what_a_lost_channel_had_fetched_unless_that_is_off(
    connect, client, transport, left
):
    publish(connect(), "a")
    connection = connect(transport)
    received = []
    consume(connection, received)
    connection.drain_events(timeout=60)
    assert len(received) == 1
    connection.close()
    assert client.llen(QUEUE) == left


def test_without_ack_emulation_the_prefetch_limit_still_holds_and_no_copy_is_kept(connect, client):
    assert broker_transport_options["ack_emulation"] is False
    publish(connect(), "a", "b")
    connection = connect()
    received = []
    consume(connection, received)

    def received_so_many(count):
        drain(connection, 0.5)
        return len(received) >= count

    wait_until(lambda: received_so_many(1))
    assert [message.body for message in received] == [b"a"]
    assert client.llen(QUEUE) == 1
    assert not client.exists("unacked", "unacked_index")
    received[0].ack()
    wait_until(lambda: received_so_many(2))
    assert [message.body for message in received] == [b"a", b"b"]


@pytest.mark.parametrize(("pool", "waits"), [(TaskPool, True), (workarounds.JobPool, False)])
def test_celerys_pool_waits_for_running_tasks_when_it_stops_and_ours_does_not(pool, waits):
    running, end = threading.Event(), threading.Event()

    def task():
        running.set()
        end.wait(200)

    made = pool(limit=1)
    made.executor.submit(task)
    assert running.wait(60)
    stop = threading.Thread(target=made.on_stop)
    stop.start()
    stop.join(1 if waits else 60)
    try:
        assert stop.is_alive() == waits
    finally:
        end.set()
        stop.join(60)
        made.executor.shutdown()


def test_a_node_that_is_stopped_ends_with_code_0():
    try:
        workarounds.stop_node()
        with pytest.raises(WorkerShutdown) as end:
            state.maybe_shutdown()
    finally:
        state.should_stop = None
    assert end.value.code == 0


ROOT_WARNS = """
from celery import platforms
platforms._warn_or_raise_security_error(0, 0, 0, 0, False)
"""

RECONNECT_WARNS = """
from types import SimpleNamespace
from celery.worker.consumer import Consumer
from ownpod.celery import app
app.conf.worker_enable_prefetch_count_reduction = False
consumer = SimpleNamespace(app=app, connection=None)
Consumer.on_connection_error_after_connected(consumer, OSError("lost"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [ROOT_WARNS, RECONNECT_WARNS], ids=["root", "reconnect"])
@pytest.mark.parametrize("applied", [False, True])
def test_celery_warns_where_the_warning_is_of_no_use_unless_it_is_off(redis_server, code, applied):
    install = "from ownpod.broker import workarounds\nworkarounds.apply()\n"
    reset = "import warnings\nimport ownpod.celery\nwarnings.resetwarnings()\n"
    strict = "warnings.simplefilter('error')\n"
    program = reset + strict + (install if applied else "") + code
    done = run_command(sys.executable, "-c", program, REDIS_URL=redis_server.url)
    assert done.returncode == (0 if applied else 1), done.stderr
    assert ("Warning" in done.stderr) is not applied
