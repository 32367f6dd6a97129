"""What runs jobs: the interface that the rest knows, and its implementations."""

from collections.abc import Callable
from typing import Protocol

from ownpod.jobs import Attempt, Outcome


class Worker(Protocol):
    """A worker, whatever protocol it speaks. All calls block; any thread may make them."""

    def start(self, attempt: Attempt) -> str:
        """Gives the job to the worker.

        Returns:
            The id under which the worker knows this run.

        Raises:
            WorkerUnavailable: it takes no job now; nothing of this one was started.
            JobRejected: it refused this job for what it is.
            AttemptLost: it may have started the job, but no answer came.
        """

    def wait(self, run_id: str, emit: Callable[[list[str]], object]) -> Outcome:
        """Blocks until the worker is done with the run, however long that takes.

        Args:
            run_id: from :meth:`start`.
            emit: called with what the handler yields, JSON texts, as the worker tells it.


        Raises:
            AttemptLost: no answer will come.
            JobRejected: the answer cannot be taken.
        """

    def cancel(self, run_id: str) -> bool:
        """Asks the worker to stop the run. False if it cannot be asked."""

    def probe(self) -> None:
        """Looks whether the worker takes jobs; only while it has none.

        Raises:
            WorkerUnavailable: with the reason.
        """
