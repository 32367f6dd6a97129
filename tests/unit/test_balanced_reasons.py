"""Why workers of a load-balanced endpoint get no requests, and their states in the management APIs."""

from types import MappingProxyType

import pytest

from ownpod.management.why import why
from ownpod.management.workers import WorkerWord, workers_of
from ownpod.rules.catalog import Container, EndpointRow, EndpointType
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.managed import ManagedWorker, Phase
from ownpod.rules.managed_states import ManagedView

ROW = EndpointRow("web", "web", Container(), type=EndpointType.LOAD_BALANCER)


def worker(worker_id, phase=Phase.READY, **values):
    return ManagedWorker(worker_id, "web", "r1", phase, 0, **values)


def reasons(view, **statuses):
    found = why(view, paused="", queued=2, rollout="", statuses=statuses)
    assert found["queued"] == 2
    return [(r["code"], r["worker"], r["detail"]) for r in found["reasons"]]


def test_a_ready_worker_whose_health_check_fails_is_a_reason_and_others_are_none():
    view = ManagedView((worker("a"), worker("b")))
    bad = WorkerStatus(WorkerState.UNHEALTHY, "connection refused at port 80")
    found = reasons(view, a=bad, b=WorkerStatus(WorkerState.READY, lingering=3), by_url=bad)
    assert found == [
        ("UNHEALTHY", "a", "connection refused at port 80"),
        ("UNHEALTHY", "by_url", "connection refused at port 80"),
    ]


def test_a_starting_worker_is_one_reason():
    # The agent copies what the health check found into the record.
    starting = worker("a", Phase.STARTING, reason="/ping answers 404")
    view = ManagedView((starting, worker("b", Phase.DRAINING)))
    waiting = WorkerStatus(WorkerState.INITIALIZING, "/ping answers 404")
    paused = WorkerStatus(WorkerState.PAUSED, "drained")
    assert reasons(view, a=waiting, b=paused) == [
        ("STARTING", "a", "/ping answers 404"),
        ("DRAINING", "b", ""),
    ]


def test_without_a_front_that_is_the_reason_and_not_each_worker():
    statuses = {"a": WorkerStatus(WorkerState.UNHEALTHY, "no front runs")}
    found = why(
        ManagedView(), paused="", queued=0, rollout="", front="no front runs", statuses=statuses
    )
    assert found["reasons"] == [{"code": "NO_FRONT", "message": "no front runs"}]


@pytest.mark.parametrize(
    ("phase", "busy", "unhealthy", "word"),
    [
        (Phase.READY, 0, {}, WorkerWord.IDLE),
        (Phase.READY, 1, {}, WorkerWord.RUNNING),
        (Phase.READY, 1, {"a": "refused"}, WorkerWord.UNHEALTHY),
        (Phase.STARTING, 0, {"a": "refused"}, WorkerWord.INITIALIZING),
    ],
)
def test_a_worker_is_idle_running_or_unhealthy(phase, busy, unhealthy, word):
    (found,) = workers_of(
        ROW, "r1", [worker("a", phase)], {"a": busy}, (), unhealthy=MappingProxyType(unhealthy)
    )
    assert found.word is word
    assert found.reason == (unhealthy["a"] if word is WorkerWord.UNHEALTHY else "")
