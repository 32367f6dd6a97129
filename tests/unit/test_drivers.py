"""Which driver a worker gets, and what is known of a worker that is pushed to."""

from dataclasses import replace

import pytest
from helpers import load_settings, worker_spec

from ownpod.errors import ConfigurationError
from ownpod.rules.endpoints import WorkerKind, pull_worker
from ownpod.rules.runs import RunCheck
from ownpod.workers import DRIVERS, Exchange, driver_for
from ownpod.workers.pull import PullWorker
from ownpod.workers.push import PushWorker
from ownpod.workers.traits import WorkerTraits

PUSH = worker_spec("http://127.0.0.1:1")


def test_each_kind_of_worker_that_runs_jobs_has_a_driver():
    assert set(DRIVERS) == set(WorkerKind) - {WorkerKind.HTTP}


def test_a_worker_gets_the_driver_of_its_kind():
    settings = load_settings()
    assert isinstance(driver_for(PUSH, settings), PushWorker)
    exchange = Exchange(None, None)
    assert isinstance(driver_for(pull_worker("ep", "w", 1), settings, lambda: exchange), PullWorker)


def test_a_kind_without_a_driver_is_an_error_that_lists_those_with_one():
    with pytest.raises(
        ConfigurationError, match="worker-1: no driver of kind 'carrier-pigeon', only"
    ):
        driver_for(replace(PUSH, kind="carrier-pigeon"), load_settings())


def test_a_worker_that_pulls_is_driven_by_a_node_only():
    with pytest.raises(ConfigurationError, match="driven by a node only"):
        driver_for(pull_worker("ep", "w", 1), load_settings())


def test_a_worker_with_several_slots_answers_while_it_runs_a_job():
    assert WorkerTraits(capacity=2).check is RunCheck.TIMEOUT
    assert WorkerTraits(capacity=1).check is RunCheck.UNKNOWN


def test_a_worker_that_was_unreachable_may_be_another_one():
    traits = WorkerTraits(capacity=1, yields=True)
    traits.concurrent = False
    assert traits.check is RunCheck.HEALTH
    traits.forget()
    assert (traits.yields, traits.check) == (None, RunCheck.UNKNOWN)


def test_what_its_capacity_shows_is_not_forgotten():
    traits = WorkerTraits(capacity=2, yields=True)
    traits.forget()
    assert (traits.yields, traits.check) == (None, RunCheck.TIMEOUT)
