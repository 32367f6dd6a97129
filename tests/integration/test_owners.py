"""What nodes say about their workers, and whose a worker is, in Redis."""

import subprocess

import pytest
from helpers import load_settings, wait_until

from ownpod.configuration import load_endpoints
from ownpod.processes import this_process
from ownpod.registry import Registry
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.store.fleet import Fleet, Heartbeat

HERE = this_process()


@pytest.fixture
def registry(client):
    settings = load_settings(OWNPOD_WORKERS="http://a:1")
    return Registry(load_endpoints(settings), Fleet(client), settings)


@pytest.fixture
def dead():
    """A process of this host that is gone."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return f"{HERE.rpartition(':')[0]}:{ended.pid}"


def test_a_worker_has_one_owner_at_a_time(registry):
    assert registry.fleet.acquire("w", "one:1", ttl_s=5)
    assert registry.fleet.acquire("w", "one:1", ttl_s=5)
    assert not registry.fleet.acquire("w", "two:2", ttl_s=5)
    assert registry.fleet.owner("w") == "one:1"
    assert registry.fleet.acquire("other", "two:2", ttl_s=5)


def test_a_worker_that_was_given_up_can_be_taken_at_once(registry):
    registry.fleet.acquire("w", "one:1", ttl_s=5)
    registry.fleet.release("w", "two:2")
    assert registry.fleet.owner("w") == "one:1"
    registry.fleet.release("w", "one:1")
    assert registry.fleet.owner("w") is None
    assert registry.fleet.acquire("w", "two:2", ttl_s=5)


def test_an_owner_that_renews_nothing_loses_its_worker(registry):
    registry.fleet.acquire("w", "one:1", ttl_s=60)
    assert not registry.fleet.acquire("w", "two:2", ttl_s=60)
    registry.fleet.acquire("w", "one:1", ttl_s=0.8)
    wait_until(lambda: registry.fleet.acquire("w", "two:2", ttl_s=60), 3)
    assert not registry.fleet.acquire("w", "one:1", ttl_s=60)


def test_a_dead_owner_of_this_host_is_succeeded_at_once(registry, dead):
    assert registry.fleet.acquire("w", dead, ttl_s=60)
    assert registry.fleet.owner("w") is None
    assert registry.fleet.acquire("w", HERE, ttl_s=60)
    assert registry.fleet.owner("w") == HERE
    assert not registry.fleet.acquire("w", "other-host:1", ttl_s=60)


def test_a_process_in_a_container_with_this_hosts_name_may_live(registry, dead):
    here, _, pid = dead.rpartition(":")
    elsewhere = f"{here.partition('/')[0]}/4026530000:{pid}"
    assert registry.fleet.acquire("w", elsewhere, ttl_s=60)
    assert registry.fleet.owner("w") == elsewhere
    assert not registry.fleet.acquire("w", HERE, ttl_s=60)


def test_a_status_expires_when_its_node_does_not_renew_it(registry):
    workers = registry.endpoint("local-ep").workers
    (worker,) = workers
    status = WorkerStatus(WorkerState.READY, lingering=1)
    registry.fleet.publish_status(worker.id, status, node="n@h", ttl_s=60)
    assert registry.fleet.statuses(workers)[worker.id] == status
    assert registry.fleet.node_of(worker.id) == "n@h"
    registry.fleet.publish_status(worker.id, status, node="n@h", ttl_s=0.8)
    wait_until(lambda: registry.fleet.statuses(workers)[worker.id].has_no_node, 10)
    assert registry.fleet.node_of(worker.id) is None


def test_one_trip_keeps_a_worker_announces_it_and_asks(registry, client):
    def supervise(process):
        return registry.fleet.heartbeat(
            "w",
            WorkerStatus(WorkerState.READY, lingering=1),
            process=process,
            node=f"{process}@h",
            own_s=9,
            ttl_s=9,
            queues=["one", "two"],
        )

    client.rpush("one", "a", "b")
    client.rpush("two", "c")
    assert supervise("one:1") == Heartbeat(owned=True, paused=None, waiting=3)
    registry.fleet.pause("w", "lunch")
    assert supervise("one:1").paused == "lunch"
    # Another process hears nothing and says nothing.
    assert supervise("two:2") == Heartbeat(owned=False, paused=None, waiting=0)
    assert not registry.fleet.acquire("w", "two:2", ttl_s=5)
    assert registry.fleet.node_of("w") == "one:1@h"
