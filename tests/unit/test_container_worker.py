"""The driver of one-off tasks, with runs that a test sets."""

import contextlib

import pytest

from ownpod.errors import AttemptLost, RedisUnavailable, WorkerAwaited, WorkerUnavailable
from ownpod.rules.endpoints import pull_worker
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome, Run, RunCheck
from ownpod.rules.task_ending import Ending, lost
from ownpod.rules.task_runs import TaskState
from ownpod.workers.container import ContainerWorker

W = "aaaaaaaaaaaaaa"
RUN = "job-1:1"
DONE = Ending(JobStatus.COMPLETED, "1", exit_code=0)


class Runs:
    """What Redis has of the worker; ``states`` are its next states, the last one stays."""

    def __init__(self, *states, begins=True):
        self.states = list(states)
        self.begins = begins
        self.calls = []

    def begin(self, worker_id, run):
        self.calls.append(("begin", worker_id, run))
        return self.begins

    def stop(self, worker_id, run, reason):
        self.calls.append(("stop", worker_id, run))
        return bool(reason)

    def state(self, worker_id):
        assert worker_id == W
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class Listener:
    def __init__(self):
        self.checks = []

    def set_check(self, check):
        self.checks.append(check)


def driver(runs):
    @contextlib.contextmanager
    def subscribe(_):
        yield lambda _timeout_s: None

    return ContainerWorker(pull_worker("ep", W, 1), runs, subscribe)


def state(phase="ready", *, run=RUN, ending=None, reason=""):
    return TaskState(phase, reason, run, ending)


def test_the_run_is_recorded_before_it_begins_and_waited_for():
    runs, listener = Runs(state(), state(), state(ending=DONE)), Listener()
    assert driver(runs).wait(RUN, listener) == Outcome(JobStatus.COMPLETED, output="1")
    assert (listener.checks, runs.calls) == ([RunCheck.POLL], [("begin", W, RUN)])


def test_an_adopted_run_begins_if_the_earlier_node_had_not_begun_it():
    runs, listener = Runs(state(ending=DONE)), Listener()
    driver(runs).wait(RUN, listener, adopted=True)
    assert (listener.checks, runs.calls) == ([], [("begin", W, RUN)])


@pytest.mark.parametrize(
    ("states", "begins", "error"),
    [
        ([state("stopped", reason="host h is silent")], True, AttemptLost),
        ([state(run="job-1:2")], True, AttemptLost),
        ([TaskState("")], True, AttemptLost),
        ([state(ending=lost("killed"))], True, AttemptLost),
        ([state("stopping", run="")], False, WorkerUnavailable),
    ],
)
def test_a_run_without_a_result_is_lost_or_was_not_begun(states, begins, error):
    with pytest.raises(error):
        driver(Runs(*states, begins=begins)).wait(RUN, Listener())


def test_a_worker_takes_its_job_once_its_image_is_there():
    driver(Runs(state("starting"))).probe()
    driver(Runs(state("ready"))).probe()
    with pytest.raises(WorkerAwaited, match="2 of 5 layers"):
        driver(Runs(state("preparing", reason="pulling: 2 of 5 layers"))).probe()
    with pytest.raises(WorkerUnavailable, match="it is stopped"):
        driver(Runs(state("stopped"))).probe()


def test_a_run_may_still_run_until_it_has_a_result():
    run = Run("job-1", 1, RUN, RunCheck.POLL, 1000)
    assert driver(Runs(state())).is_running(run, 1)
    assert not driver(Runs(state(ending=DONE))).is_running(run, 1)
    assert not driver(Runs(state(run="job-1:2"))).is_running(run, 1)
    assert not driver(Runs(state("stopped"))).is_running(run, 1)


def test_a_cancel_reaches_the_agent_unless_redis_is_away():
    runs = Runs(state())
    assert driver(runs).cancel(RUN)
    assert runs.calls == [("stop", W, RUN)]

    def away(*_):
        raise RedisUnavailable("away")

    runs.stop = away
    assert not driver(runs).cancel(RUN)
