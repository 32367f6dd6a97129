"""What a Celery process is, and what its remote commands and tasks do then."""

import pytest
from celery.exceptions import Reject

from ownpod.broker import control, process
from ownpod.housekeeping import tasks as housekeeping_tasks
from ownpod.housekeeping.signals import Housekeeping
from ownpod.node import tasks as node_tasks


class Paused(process.WorkerNode):
    queue = "ownpod.ep"
    describe = cancel = resume = drain = lambda self, *_: {"worker": "w"}

    def __init__(self):
        self.calls = []

    def check_runs(self):
        self.calls.append("check_runs")

    def pause(self, reason):
        self.calls.append(reason)

    def stop_soon(self):
        self.calls.append("stop")
        return True


@pytest.fixture
def become():
    before = process._current
    yield process.become
    process.become(before)


def test_a_process_has_one_role(become):
    node = Paused()
    become(node)
    assert process.worker_node() is node
    become(Housekeeping(None, None))
    assert process.worker_node() is None
    assert process.current(Housekeeping) is not None


def test_remote_commands_reach_the_node_of_this_process(become):
    node = Paused()
    become(node)
    control.check_runs(None)
    control.shutdown(None)
    assert node.calls == ["check_runs", "stop"]
    assert control.describe(None) == {"worker": "w"}


def test_without_a_worker_remote_commands_say_so(become):
    become(None)
    control.check_runs(None)
    assert control.describe(None) == {"worker": None}
    assert control.pause(None) == control.resume(None) == {"error": "this node has no worker"}


@pytest.mark.slow
def test_a_task_that_comes_to_the_wrong_process_is_requeued(become):
    become(None)
    with pytest.raises(Reject):
        node_tasks.run_job("job-1")
    with pytest.raises(Reject):
        housekeeping_tasks.send_webhook("job-1")
