"""When a node stops."""

import math
import time

import pytest

from ownpod.node.node import StopRequest


@pytest.fixture
def stop():
    return StopRequest(30)


def test_a_drain_ends_within_the_grace(stop):
    assert not stop.asked
    assert stop.ask()
    assert 29 < stop.at - time.monotonic() <= 30


def test_a_request_to_finish_has_no_deadline(stop):
    assert stop.ask(finish=True)
    assert stop.at == math.inf


def test_a_request_to_finish_does_not_end_the_deadline_of_a_drain(stop):
    stop.ask()
    deadline = stop.at
    stop.ask(finish=True)
    assert stop.at == deadline


def test_a_drain_gives_a_node_that_finishes_a_deadline(stop):
    stop.ask(finish=True)
    assert stop.ask()
    assert stop.at < math.inf


def test_a_second_request_to_drain_is_noticed_and_moves_no_deadline(stop):
    stop.ask()
    deadline = stop.at
    assert not stop.ask()
    assert stop.at == deadline


def test_a_drain_after_one_that_was_asked_to_finish_is_the_second(stop):
    stop.ask()
    stop.ask(finish=True)
    assert not stop.ask()
