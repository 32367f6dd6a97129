"""One-off tasks: the worker's agent starts a fresh container for the job, and the node waits for its result.

The node and the agent meet in Redis only (:mod:`ownpod.store.tasks`). The container keeps its output and its exit code until
its result is stored, so a run survives its node and its agent: the next node waits for the same run.
"""

import logging
import threading
from collections.abc import Callable

from ownpod.errors import AttemptLost, RedisUnavailable, WorkerAwaited, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.rules.task_ending import STOPPED
from ownpod.rules.task_runs import TaskRun, TaskState
from ownpod.store.retry import patient
from ownpod.workers.driver import RunListener, Subscription, TaskQueue

log = logging.getLogger(__name__)

WORKER = "@worker"
"""The id of the worker itself among the notices of its runs. No run's id begins with ``@``."""

CHECK_INTERVAL_S = 5.0
"""Seconds between checks of a run without notices."""

FOLLOW_S = 60.0
"""Seconds between two probes of a worker whose image is being pulled, in case a notice is lost."""


class ContainerWorker:
    """A worker that runs one-off tasks. Implements :class:`ownpod.workers.Worker`.

    Args:
        spec: the worker.
        tasks: its runs.
        subscribe: opens a subscription to the notices of a run, by its id.
    """

    def __init__(
        self, spec: WorkerSpec, tasks: TaskQueue, subscribe: Callable[[str], Subscription]
    ) -> None:
        self._id = spec.id
        self._tasks = patient(tasks)
        self._tasks_now = tasks
        """The runs without waiting for Redis: a call raises RedisUnavailable at once."""
        self._subscribe = subscribe

    def start(self, attempt: Attempt) -> str:
        # The run begins in `wait`, after it was recorded for a later node.
        self.probe()
        return TaskRun(attempt.job_id, attempt.number).id

    def wait(self, run_id: str, listener: RunListener, *, adopted: bool = False) -> Outcome:
        with self._subscribe(run_id) as next_notice:
            if not adopted:
                listener.set_check(RunCheck.POLL)
            # Also for one that is adopted: the earlier node may have ended before it began the run.
            begun = self._tasks.begin(self._id, run_id)
            while True:
                state = self._tasks.state(self._id)
                if state.run == run_id and state.ending is not None:
                    return state.ending.outcome()
                self._check(state, run_id, begun=begun)
                next_notice(CHECK_INTERVAL_S)

    def is_running(self, run: Run, patience_s: float) -> bool:  # noqa: ARG002 - the protocol has it
        state = self._tasks.state(self._id)
        return state.lives and state.run == run.id and state.ending is None

    def cancel(self, run_id: str) -> bool:
        try:
            return self._tasks_now.stop(self._id, run_id, STOPPED)
        except RedisUnavailable as error:
            # The agent notices by the job's record, too.
            log.info("stop of %s not sent: %s", run_id, error)
            return False

    def probe(self) -> None:
        try:
            state = self._tasks_now.state(self._id)
        except RedisUnavailable as error:
            raise WorkerUnavailable(str(error)) from error
        if state.phase in {"wanted", "preparing"}:
            raise WorkerAwaited(state.reason or f"its host is {state.phase}")
        if not state.lives:
            raise WorkerUnavailable(state.reason or "it is stopped")

    def follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:  # noqa: ARG002 - the protocol has it
        threading.Thread(target=self._follow, args=(asked,), name="follow", daemon=True).start()

    def _follow(self, asked: Callable[[], None]) -> None:
        with self._subscribe(WORKER) as next_notice:
            while True:
                next_notice(FOLLOW_S)
                asked()

    def _check(self, state: TaskState, run_id: str, *, begun: bool) -> None:
        """Raises: AttemptLost, WorkerUnavailable, if no result will come."""
        if state.lives and state.run == run_id:
            return
        why = state.reason or "its worker is stopped"
        if not begun:
            raise WorkerUnavailable(why)
        raise AttemptLost(f"the task's container is gone: {why}")
