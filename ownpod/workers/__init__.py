"""The drivers: one interface to a worker, and an implementation for each kind of worker.

Imports the rules and the settings, and no Redis: what a driver needs from there comes in as an argument.
A node uses one driver for its worker.
"""

from typing import Protocol

from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck


class Watch(Protocol):
    """Told by a worker about a run while it goes on; from any thread."""

    def chunks(self, texts: list[str]) -> None:
        """What the handler has yielded since, JSON texts."""

    def look(self, look: RunCheck) -> None:
        """How another process could ask about the run; said before the worker may begin it, and again
        when it turns out to be better or worse.
        """


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

    def wait(self, run_id: str, watch: Watch, *, resumed: bool = False) -> Outcome:
        """Blocks until the worker is done with the run, however long that takes.

        Args:
            run_id: from :meth:`start`.
            watch: is told what happens meanwhile.
            resumed: another process has begun it, and it can be polled.

        Raises:
            AttemptLost: no answer will come.
            JobRejected: the answer cannot be taken.
        """

    def is_at(self, run: Run, patience_s: float) -> bool:
        """Whether the worker may still be at a run that nobody waits for; changes nothing there.

        Blocks while a worker that runs it answers nothing, at most so long.
        """

    def cancel(self, run_id: str) -> bool:
        """Asks the worker to stop the run. False if it cannot be asked."""

    def probe(self) -> None:
        """Looks whether the worker takes jobs.

        Raises:
            WorkerSilent: it is there, but says nothing; it may be busy.
            WorkerUnavailable: with the reason.
        """
