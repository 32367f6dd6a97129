"""Which queues a node consumes, by the state of its worker. Celery's consumer is a stand-in."""

from decimal import Decimal
from types import SimpleNamespace

import pytest
from helpers import load_settings, worker_spec

from ownpod.broker import names
from ownpod.node.node import Node
from ownpod.rules.endpoints import WorkerKind
from ownpod.rules.overflow import CloudSpec

OWN, SHARED = names.worker_queue("ep", "w"), names.endpoint_queue("ep")


class Consumer:
    """Consumes both queues at the start, as Celery's consumer does."""

    def __init__(self):
        self.queues = [OWN, SHARED]
        self.pool = SimpleNamespace(limit=0)
        self.task_consumer = SimpleNamespace(consuming_from=self.queues.__contains__)
        self.app = SimpleNamespace(
            amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=self.queues))
        )
        self.add_task_queue = self.queues.append
        self.cancel_task_queue = self.queues.remove

    def call_soon(self, call):
        call()


def node_of(kind, *, orphans=(), private=False, cloud=None):
    free = SimpleNamespace(
        owner=lambda _: None, acquire=lambda *_, **__: True, paused=lambda _: None
    )
    runs = SimpleNamespace(
        orphans=lambda _: list(orphans), adopt=lambda *_, **__: "waits", get=lambda *_: None
    )
    node = Node(
        config=load_settings(OWNPOD_LEASE_S=1),
        registry=SimpleNamespace(fleet=free, worker=lambda _: None),
        store=SimpleNamespace(runs=runs),
        worker=SimpleNamespace(probe=lambda: None),
        spec=worker_spec("http://w", id="w", kind=kind, private=private, cloud=cloud),
        name="w@host",
    )
    node.acquire()
    return node


@pytest.mark.parametrize(
    ("kind", "orphans", "first"),
    [
        (WorkerKind.PULL, [], []),
        (WorkerKind.PULL, [("job-1", 1)], [OWN]),
        (WorkerKind.PUSH, [], [OWN]),
    ],
)
def test_a_pulling_workers_first_fetch_has_the_endpoints_queue(kind, orphans, first):
    node, consumer = node_of(kind, orphans=orphans), Consumer()
    node.attach(consumer)
    assert consumer.queues == first
    node.breaker.ready()
    assert consumer.queues == [OWN, SHARED]
    node.breaker.open("down")
    assert consumer.queues == [OWN]


@pytest.mark.parametrize("kind", [WorkerKind.PULL, WorkerKind.CONTAINER])
@pytest.mark.parametrize("orphans", [[], [("job-1", 1)]])
def test_a_private_worker_gets_jobs_from_its_own_queue_only(kind, orphans):
    node, consumer = node_of(kind, orphans=orphans, private=True), Consumer()
    assert node.queues == [OWN]
    node.attach(consumer)
    assert consumer.queues == ([OWN] if orphans else [])
    node.breaker.ready()
    assert consumer.queues == [OWN]


def test_a_cloud_workers_node_fetches_from_its_own_queue_only():
    cloud = CloudSpec(key="", after_s=30, price_micro_per_s=Decimal(0))
    node, consumer = node_of(WorkerKind.CLOUD, cloud=cloud), Consumer()
    assert node.queues == [OWN]
    consumer.queues.remove(SHARED)
    node.attach(consumer)
    node.breaker.ready()
    assert consumer.queues == [OWN]
