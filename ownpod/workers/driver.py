"""The interface to a worker that each driver implements, and the values that a driver gets as arguments."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ownpod.rules.offers import Contact, RunState
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.rules.task_runs import TaskState


class RunListener(Protocol):
    """Is notified by a driver while a run goes on, from any thread."""

    def chunks(self, texts: list[str]) -> None:
        """The chunks that the handler has yielded since the last call, JSON texts."""

    def set_check(self, check: RunCheck) -> None:
        """How a later process can check the run. Called before the worker may begin the run, and again when
        another way is found.
        """

    def remote(self, place: "Place") -> None:
        """Where the run of a cloud worker is now. Called whenever that changes."""


@dataclass(frozen=True)
class Place:
    """A run at the other side of a cloud worker.

    Attributes:
        url: the URL of the endpoint there.
        run_id: the job's id there.
        worker_id: the worker that runs it there; None: not known.
        begun: the run has begun there.
        ran_ms: ms that it has run there, if it is over.
        progress: JSON text, the handler's progress, or where the job waits; "": none.
    """

    url: str
    run_id: str
    worker_id: str | None = None
    begun: bool = False
    ran_ms: int = 0
    progress: str = ""


class Worker(Protocol):
    """A worker, whatever protocol it uses. All calls block; any thread may make them."""

    def start(self, attempt: Attempt) -> str:
        """Gives the job to the worker.

        Returns:
            The id under which the worker knows this run.

        Raises:
            WorkerUnavailable: the worker takes no job now, and has not started this one.
            JobRejected: the worker refused this job, and would refuse it again.
            AttemptLost: the worker may have started the job, but did not answer.
        """

    def wait(self, run_id: str, listener: RunListener, *, adopted: bool = False) -> Outcome:
        """Blocks until the worker is done with the run, however long that takes.

        Args:
            run_id: from :meth:`start`.
            listener: is notified meanwhile.
            adopted: an earlier process has begun the run, and the run can be polled.

        Raises:
            AttemptLost: no result will come.
            JobRejected: the result cannot be taken.
        """

    def is_running(self, run: Run, patience_s: float) -> bool:
        """Whether the worker may still execute a run of an earlier attempt, whose result is of no use. Changes nothing in the
        worker, but a cloud worker is asked to stop the run, which costs money.

        Blocks while a worker that executes the run does not answer, at most ``patience_s``.
        """

    def cancel(self, run_id: str) -> bool:
        """Asks the worker to stop the run. False: the worker cannot be asked."""

    def probe(self) -> None:
        """Checks that the worker takes jobs.

        Raises:
            WorkerSilent: the worker accepts connections and does not answer; it may be busy.
            WorkerUnavailable: with the reason.
        """

    def follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:
        """Starts to call ``left`` with the reason when the worker leaves, and ``asked`` when it may take jobs again.

        A driver that is not notified by its worker does nothing; then only probes detect both.
        """


class OfferQueue(Protocol):
    """Runs that a worker which polls can take, see :class:`ownpod.store.offers.Offers`. Calls may raise
    RedisUnavailable.
    """

    def offer(
        self, worker_id: str, run_id: str, *, job_id: str, attempt: int, body: str, time_s: float
    ) -> None: ...
    def withdraw(self, worker_id: str, run_id: str) -> bool: ...
    def settle(self, worker_id: str, run_id: str, *, keep_s: float = 0) -> None: ...
    def stop(self, worker_id: str, run_id: str) -> bool: ...
    def run(self, worker_id: str, run_id: str) -> RunState | None: ...
    def contact(self, worker_id: str) -> Contact: ...
    def await_worker(self, worker_id: str) -> None: ...


class TaskQueue(Protocol):
    """Runs of one-off tasks, see :class:`ownpod.store.tasks.TaskRuns`. Calls may raise RedisUnavailable."""

    def begin(self, worker_id: str, run: str) -> bool: ...
    def stop(self, worker_id: str, run: str, reason: str) -> bool: ...
    def state(self, worker_id: str) -> TaskState: ...


class Purse(Protocol):
    """The money of a cloud worker, and which jobs it must not get. Calls wait while Redis is away. A run is named by
    "<job id>:<attempt>".
    """

    def reserve(self, run: str, execution_timeout_ms: int) -> bool:
        """Reserves money for a run. False: the day's budget has no room for it."""

    def settle(self, run: str, ran_ms: int | None) -> None:
        """Replaces the reservation by the cost of a run; None: as much as was reserved, because its time is not known."""

    def keep(self, job_id: str) -> None:
        """The job goes to no cloud worker any more."""


Subscription = AbstractContextManager[Callable[[float], object]]
"""While open, yields a function that blocks until the next notice, at most so many seconds."""


@dataclass(frozen=True)
class Exchange:
    """The offers to a worker that polls, and their notices. An argument, because drivers know no Redis.

    Attributes:
        offers: the runs that the worker can take.
        subscribe: opens a subscription to the notices of a run or worker, by its id.
        tasks: the runs of one-off tasks; None: the worker runs none.
        purse: of a cloud worker; None: it is none.
    """

    offers: OfferQueue
    subscribe: Callable[[str], Subscription]
    tasks: TaskQueue | None = None
    purse: Purse | None = None
