"""The supervisor's decisions."""

from dataclasses import replace

from helpers import worker_spec

from ownpod.rules.endpoints import WorkerSource, pull_worker
from ownpod.supervisor import STARTS, Child, _same, to_start


def test_a_thousand_workers_that_come_at_once_are_started_a_few_at_a_time():
    children = [Child("runs", pid=1), Child("pauses", start_at=5.0)]
    children += [Child(f"w{number}") for number in range(1000)]
    first = to_start(children, now=1.0)
    assert [child.name for child in first] == [f"w{number}" for number in range(STARTS)]
    for child in first:
        child.pid = 2
    assert to_start(children, now=1.0)[0].name == f"w{STARTS}"
    assert to_start(children[:2], now=5.0) == [children[1]]


def test_a_node_stays_when_its_worker_only_comes_from_elsewhere():
    spec = worker_spec("http://127.0.0.1:1")
    assert _same(spec, replace(spec, source=WorkerSource.ADDED))
    assert not _same(spec, replace(spec, capacity=7))
    assert _same(pull_worker("ep", "w", 1), pull_worker("ep", "w", 7))
    assert not _same(pull_worker("ep", "w", 1), pull_worker("other", "w", 1))
