"""The end of a run by ``/status``, and what a failed poll means."""

import logging
import time

from ownpod.rules.backoff import poll_pause_s
from ownpod.rules.runs import Outcome, RunCheck
from ownpod.workers.answers import PollFailures, WorkerNotReached, outcome_in
from ownpod.workers.driver import RunListener
from ownpod.workers.http import NoAnswerInTime, WorkerHTTPError
from ownpod.workers.local_api import LocalApi

log = logging.getLogger(__name__)

FIRST_POLL_S, LONGEST_POLL_S = 0.005, 1.0
"""Shortest and longest pause in seconds between polls of a run."""

FAILED_POLL_PAUSE_S = 1.0
"""Shortest pause in seconds after a poll that failed."""


class Poller:
    """Polls the runs of one worker; any thread may call it.

    Args:
        api: the requests to the worker.
        url: the worker's URL, for the log.
        timeout_s: longest time in seconds for the answer to a poll.
    """

    def __init__(self, api: LocalApi, *, url: str, timeout_s: float) -> None:
        self._api = api
        self._url = url
        self._timeout_s = timeout_s

    def poll(
        self, run_id: str, listener: RunListener, *, held: bool, reason: str | None = None
    ) -> Outcome:
        """Blocks until the run has ended.

        Args:
            run_id: the run.
            listener: is notified when the worker turns out to be one that can be polled.
            held: the first request has no time-out, because the worker may run the job in that request.
            reason: why the handler failed, for an answer without a reason.
        """
        began, failures = time.monotonic(), PollFailures()
        while True:
            try:
                answer = self._api.status(run_id, None if held else self._timeout_s)
                outcome = outcome_in(answer, run_id, reason=reason)
            except (WorkerHTTPError, WorkerNotReached) as error:
                # A held request runs the job: a second one would run it again.
                if held or self.is_lost(run_id, failures, error):
                    raise
                pause(began, FAILED_POLL_PAUSE_S)
            else:
                failures.answered()
                if outcome is not None:
                    return outcome
                if held:
                    listener.set_check(RunCheck.POLL)
                held = False
                pause(began)

    def is_lost(self, run_id: str, failures: PollFailures, error: Exception) -> bool:
        """Whether a run counts as lost after a failed poll. A worker that only does not answer has until the job's own timeout."""
        log.info("poll of %s at %s failed: %s", run_id, self._url, reason_of(error))
        if isinstance(error, NoAnswerInTime):
            return False
        now = time.monotonic()
        return failures.refused(now) if isinstance(error, WorkerNotReached) else failures.cut(now)


def pause(began: float, least_s: float = FIRST_POLL_S) -> None:
    """Sleeps between polls, longer with the time since ``began``."""
    time.sleep(poll_pause_s(time.monotonic() - began, least_s, LONGEST_POLL_S))


def reason_of(error: Exception) -> str:
    """The innermost cause of the HTTP client's nested errors, without object addresses."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__
