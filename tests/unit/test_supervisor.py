"""The supervisor's decisions."""

import os
import sys
from dataclasses import replace

import pytest
import redis
from helpers import load_settings, wait_until, worker_spec

from ownpod.registry import Registry
from ownpod.rules.endpoints import WorkerSource, pull_worker
from ownpod.store.fleet import Fleet
from ownpod.supervisor import STARTS, Child, Supervisor, _same, to_start


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
    assert _same(spec, replace(spec, draining=True, key_digest="another"))
    assert _same(pull_worker("ep", "w", 1), pull_worker("ep", "w", 7))
    assert not _same(pull_worker("ep", "w", 1), pull_worker("other", "w", 1))


@pytest.mark.parametrize(
    ("leaving", "code", "failures"), [(True, 1, 0), (False, 0, 0), (False, 1, 1)]
)
def test_only_an_end_that_was_not_asked_for_makes_the_next_pause_longer(leaving, code, failures):
    config = load_settings()
    supervisor = Supervisor(config, Registry({}, Fleet(redis.Redis()), config))
    child = Child("w", leaving=leaving)
    child.began(os.posix_spawn(sys.executable, ["python", "-c", f"raise SystemExit({code})"], {}))
    supervisor._children = [child]
    wait_until(lambda: supervisor._reap() or child.pid == 0)
    assert child.backoff.failures == failures
