"""The other side of a cloud worker: why it takes no jobs now, and the way of a run there to its end."""

import logging
import threading
import time
from dataclasses import dataclass

from ownpod.errors import AttemptLost, JobRejected, WorkerStandsBy, WorkerUnavailable
from ownpod.rules.backoff import backoff_s, poll_pause_s
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome, execution_ms
from ownpod.workers.answers import STILL_RUNNING, Answer, Yielded, outcome_in
from ownpod.workers.driver import Place, RunListener
from ownpod.workers.http import WorkerHTTPError
from ownpod.workers.local_api import LocalApi, quoted
from ownpod.workers.polling import reason_of

log = logging.getLogger(__name__)

FIRST_POLL_S, LONGEST_POLL_S = 0.25, 5.0
"""Shortest and longest pause in seconds between polls of a run."""

DENIED_S = 600.0
"""Seconds for which the other side is not asked again after it has refused the key, or the payment."""

FIRST_HOLD_S, LONGEST_HOLD_S = 1.0, 60.0
"""Shortest and longest pause in seconds after other failures; pauses double in between."""

LONGEST_RETRY_AFTER_S = 3600
"""The largest ``Retry-After``, in seconds, that is kept."""

UNREACHED_S = 1500.0
"""Seconds without an answer about a run after which it is lost: its result is kept there for 30 minutes."""

UNKNOWN_POLLS = 3
"""Answers in a row that the run is not known there, after which it is lost."""

DRAIN_S = 300.0
"""Longest time in seconds for the chunks that are left when a run has ended: a side that repeats them never ends."""

LONGEST_ID = 255
"""Number of characters of an id of a run or worker there."""

WAITS = '{"remote": "IN_QUEUE"}'
"""A job's progress while it waits at the other side."""


def is_name(text: str) -> bool:
    """Whether a text from the other side may be an id: Redis, logs and clients get it."""
    return 0 < len(text) <= LONGEST_ID and text.isprintable()


class Hold:
    """Why the other side takes no jobs now, and until when. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._reason = ""
        self._is_limit = False

    def error(self) -> WorkerUnavailable | None:
        """The error for a job that comes now; None: the other side may take it."""
        with self._lock:
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                return None
            again = "" if left_s == float("inf") else f"; asked again in {left_s:.0f} s"
            kind = WorkerStandsBy if self._is_limit else WorkerUnavailable
            return kind(f"{self._reason}{again}")

    def forever(self, reason: str) -> None:
        """No job goes there while this process lives."""
        self._set(float("inf"), reason)

    def release(self) -> None:
        """The other side took a job."""
        with self._lock:
            self._failures, self._until = 0, 0.0

    def failed(self, reason: str) -> WorkerUnavailable:
        """The other side was not reached, or answered with an error: it is not asked for a while, which grows."""
        with self._lock:
            self._failures += 1
            pause_s = backoff_s(self._failures, FIRST_HOLD_S, LONGEST_HOLD_S)
        return self._set(pause_s, reason)

    def answered(self, route: str, answer: Answer) -> WorkerUnavailable:
        """The other side takes no jobs, after the status of an answer."""
        if answer.status == 429:
            return self._set(
                min(max(answer.retry_after_s or FIRST_HOLD_S, 0.0), LONGEST_RETRY_AFTER_S),
                f"the other side limits requests: {route} answered 429",
                is_limit=True,
            )
        if answer.status in {401, 402, 403}:
            problem = {401: "its key", 402: "the payment", 403: "its key"}[answer.status]
            reason = f"the other side refused {problem}: {route} answered {answer.status}"
            return self._set(DENIED_S, reason)
        return self.failed(f"{route} at the other side answered {answer}")

    def _set(self, pause_s: float, reason: str, *, is_limit: bool = False) -> WorkerUnavailable:
        with self._lock:
            self._until = time.monotonic() + pause_s
            self._reason, self._is_limit = reason, is_limit
        return (WorkerStandsBy if is_limit else WorkerUnavailable)(reason)


@dataclass(frozen=True)
class Ended:
    """How a run has ended there. ``outcome`` None: it was removed from the queue there and never began. ``ran_ms`` None: not known."""

    outcome: Outcome | None
    ran_ms: int | None


class Follower:
    """Follows runs to their ends; any thread may call it.

    Args:
        api: the requests.
        url: the URL of the endpoint there.
        timeout_s: longest time in seconds for an answer.
    """

    def __init__(self, api: LocalApi, url: str, timeout_s: float) -> None:
        self.api = api
        self.url = url
        self.timeout_s = timeout_s
        self.cancels = set[str]()
        """Ids there of runs that were asked to stop."""

    def cancelled(self, remote_id: str) -> None:
        """The run was asked to stop; that is repeated until it has."""
        self.cancels.add(remote_id)

    def cancel(self, remote_id: str, timeout_s: float) -> bool:
        """Asks the other side once to stop a run. False: it did not agree, or not within ``timeout_s``."""
        try:
            answer = self.api.answer("POST", f"/cancel/{quoted(remote_id)}", timeout_s)
        except (WorkerHTTPError, JobRejected) as error:
            log.info("cancel of %s at %s failed: %s", remote_id, self.url, reason_of(error))
            return False
        return answer.status < 300

    def ended(self, remote_id: str) -> Ended | None:
        """How a run has ended; None: it has not. Raises: AttemptLost, WorkerHTTPError, JobRejected."""
        answer = self.status(remote_id)
        if answer is None or answer.json().get("status") in STILL_RUNNING:
            return None
        self.cancels.discard(remote_id)
        return _Walk(self, remote_id, None).ended(answer)

    def follow(self, remote_id: str, listener: RunListener) -> Ended:
        """Blocks until the run has ended. Raises: AttemptLost, JobRejected."""
        try:
            return _Walk(self, remote_id, listener).to_end()
        finally:
            self.cancels.discard(remote_id)

    def status(self, remote_id: str) -> Answer | None:
        """The answer to ``/status``; None: it has nothing about the run. Raises: AttemptLost, if the run is not known there."""
        answer = self.api.answer("GET", f"/status/{quoted(remote_id)}", self.timeout_s)
        if answer.status == 404:
            raise AttemptLost(f"the other side does not know the run any more: {answer}")
        return None if answer.status >= 300 else answer


class _Walk:
    """One run on its way to its end."""

    def __init__(self, follower: Follower, remote_id: str, listener: RunListener | None) -> None:
        self._side = follower
        self._id = remote_id
        self._listener = listener
        self._streams = listener is not None
        self._chunks: list[str] = []
        self._place: Place | None = None
        self._began: float | None = None
        self._silent_since: float | None = None
        self._unknown = 0

    def to_end(self) -> Ended:
        polled_from = time.monotonic()
        while True:
            answer = self._polled()
            if answer is not None:
                state = answer.json().get("status")
                self._note(answer, state)
                if state not in STILL_RUNNING:
                    until = time.monotonic() + DRAIN_S
                    while self._drained() and time.monotonic() < until:
                        pass
                    return self.ended(answer)
                if state != "IN_QUEUE" and self._drained():
                    # Polls are fast again, because more chunks will probably come soon.
                    polled_from = time.monotonic()
            if self._id in self._side.cancels:
                self._side.cancel(self._id, self._side.timeout_s)
            time.sleep(poll_pause_s(time.monotonic() - polled_from, FIRST_POLL_S, LONGEST_POLL_S))

    def ended(self, answer: Answer) -> Ended:
        """The end of the run in an answer to ``/status``. Raises: AttemptLost, JobRejected."""
        outcome = outcome_in(answer, self._id)
        if outcome is None:
            raise AttemptLost(f"the other side answered without a state: {answer}")
        ran_ms = outcome.execution_ms
        body = answer.json()
        never = ran_ms in {None, 0} and self._began is None
        if never and outcome.status is JobStatus.TIMED_OUT and not body.get("workerId"):
            # Its ttl there has passed in the queue there: as a timed-out attempt it would end the job, which can still run here.
            return Ended(None, 0)
        if ran_ms is None and self._began is not None:
            ran_ms = int((time.monotonic() - self._began) * 1000)
        elif ran_ms is None and outcome.status is JobStatus.CANCELLED and not body.get("workerId"):
            ran_ms = 0
        if outcome.status is JobStatus.COMPLETED and outcome.output in {None, "[]"}:
            # Without `return_aggregate_stream`, RunPod keeps the chunks of a generator only.
            text = f"[{', '.join(self._chunks)}]" if self._chunks else outcome.output
            outcome = Outcome(outcome.status, output=text, execution_ms=outcome.execution_ms)
        return Ended(outcome, ran_ms)

    def _polled(self) -> Answer | None:
        """An answer about the run; None: there is none now. Raises: AttemptLost, if there will be none."""
        now = time.monotonic()
        try:
            answer = self._side.status(self._id)
        except AttemptLost:
            self._unknown += 1
            if self._unknown >= UNKNOWN_POLLS:
                raise
            return None
        except WorkerHTTPError as error:
            log.info("poll of %s at %s failed: %s", self._id, self._side.url, reason_of(error))
            answer = None
        self._unknown = 0
        if answer is not None:
            self._silent_since = None
            return answer
        self._silent_since = now if self._silent_since is None else self._silent_since
        if now - self._silent_since >= UNREACHED_S:
            raise AttemptLost(
                f"the other side has not answered about the run for {UNREACHED_S:g} s"
            )
        return None

    def _note(self, answer: Answer, state: object) -> None:
        """Reports where the run is, if that has changed."""
        if self._listener is None:
            return
        body, output = answer.outcome()
        begun, worker_id = state != "IN_QUEUE", body.get("workerId")
        ran_ms = execution_ms(body.get("executionTime")) or 0
        progress = ""
        if state in STILL_RUNNING:
            progress = (output or "") if begun else WAITS
        place = Place(
            url=self._side.url,
            run_id=self._id,
            worker_id=worker_id if isinstance(worker_id, str) and is_name(worker_id) else None,
            begun=begun and (state in STILL_RUNNING or ran_ms > 0),
            ran_ms=0 if state in STILL_RUNNING else ran_ms,
            progress="" if progress == "null" else progress,
        )
        if place.begun and self._began is None:
            self._began = time.monotonic() - place.ran_ms / 1000
        if place != self._place:
            self._place = place
            self._listener.remote(place)

    def _drained(self) -> bool:
        """Takes the chunks that the run has yielded. This node alone reads them, because reading removes them.

        Returns:
            Whether there were any.
        """
        if not self._streams or self._listener is None:
            return False
        try:
            path = f"/stream/{quoted(self._id)}?wait=1000"
            answer = self._side.api.answer("GET", path, self._side.timeout_s)
        except WorkerHTTPError as error:
            log.info("stream of %s at %s: %s", self._id, self._side.url, reason_of(error))
            return False
        body = answer.json()
        if answer.status in {400, 404, 405, 501}:
            self._streams = False
            return False
        if answer.status >= 300 or not isinstance(body.get("stream"), list):
            return False
        part = Yielded()
        part.add({"stream": body["stream"], "status": body.get("status")})
        if part.chunks:
            self._chunks += part.chunks
            self._listener.chunks(part.chunks)
        return bool(part.chunks)
