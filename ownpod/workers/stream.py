"""The end of a run by ``/stream``, and the chunks on the way."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

from ownpod.errors import AttemptLost
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome, RunCheck
from ownpod.workers.answers import (
    LINES,
    NOT_REACHED,
    STILL_RUNNING,
    PollFailures,
    WorkerNotReached,
    Yielded,
    outcome_in,
    yielded_in,
)
from ownpod.workers.driver import RunListener
from ownpod.workers.http import Reply, WorkerHTTPError
from ownpod.workers.local_api import LocalApi, quoted
from ownpod.workers.polling import FAILED_POLL_PAUSE_S, Poller, pause, reason_of
from ownpod.workers.traits import WorkerTraits

log = logging.getLogger(__name__)

LEARN_AFTER_S = 1.0
"""Seconds for which a generator runs before the worker is asked whether it answers meanwhile."""

ANSWER_S = 1.0
"""Seconds within which the worker must answer then. A worker that does not is blocked by its job."""

NO_STREAM = "Stream not supported, handler must be a generator."
"""The SDK's answer (200, FAILED) to ``/stream`` for a handler that does not yield; it ran nothing."""

_NO_SUCH_ROUTE = {400, 401, 403, 404, 405, 501}


class Streams:
    """Follows the streams of one worker; any thread may call it.

    Args:
        api: the requests to the worker.
        traits: what is known of the worker.
        poller: polls for what a stream does not have.
        url: the worker's URL, for the log.
        largest_mb: largest stream in MiB.
    """

    def __init__(
        self, api: LocalApi, traits: WorkerTraits, poller: Poller, *, url: str, largest_mb: int
    ) -> None:
        self._api = api
        self._traits = traits
        self._poller = poller
        self._url = url
        self._largest_mb = largest_mb

    def follow(self, run_id: str, listener: RunListener) -> Outcome | None:
        """The end of a run whose handler yields; None: ask ``/status`` for it.

        The SDK's ``/stream`` runs a generator to its end, and answers any other handler with an error that runs
        nothing. So it is asked once and without a time-out, like the SDK's ``/status``. Other servers stream
        events or JSON lines, or answer at once with the chunks so far.
        """
        listener.set_check(self._traits.check)
        with self._learning(listener):
            return self._follow(run_id, listener)

    @contextlib.contextmanager
    def _learning(self, listener: RunListener) -> Iterator[None]:
        """Finds out once, while a generator runs, whether the worker answers meanwhile."""
        if self._traits.concurrent is not None:
            yield
            return
        ended = threading.Event()

        def learn() -> None:
            try:
                answer = self._api.answer("GET", "/health", ANSWER_S)
            except WorkerHTTPError:
                answered = False
            else:
                if answer.status in NOT_REACHED:
                    return
                answered = True
            if not ended.is_set():
                self._traits.concurrent = answered
                listener.set_check(self._traits.check)

        timer = threading.Timer(LEARN_AFTER_S, learn)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            ended.set()
            timer.cancel()

    def _follow(self, run_id: str, listener: RunListener) -> Outcome | None:
        began, polled, failures = time.monotonic(), False, PollFailures()
        while True:
            try:
                part = self._part(run_id, listener)
            except (WorkerHTTPError, WorkerNotReached) as error:
                if not polled or self._poller.is_lost(run_id, failures, error):
                    raise
                pause(began, FAILED_POLL_PAUSE_S)
                continue
            if not isinstance(part, Yielded):
                return part
            failures.answered()
            if part.chunks:
                listener.chunks(part.chunks)
            if part.status not in STILL_RUNNING:
                if part.error is not None:
                    return Outcome(JobStatus.FAILED, error=part.error)
                if part.status != JobStatus.COMPLETED or polled:
                    return None
                return self._end_of_generator(run_id, part.chunks, listener)
            if not polled:
                listener.set_check(RunCheck.POLL)
            polled = True
            pause(began)

    def _part(self, run_id: str, listener: RunListener) -> Yielded | Outcome | None:
        """The answer to one request to ``/stream``; None: ask ``/status`` for the run's end."""
        response = self._open(run_id)
        if response is None:
            self._traits.yields = self._traits.refuses_streams = False
            return None
        if response.status < 300 and response.content_type in LINES:
            return self._relayed(run_id, response, listener)
        answer = self._api.whole(response)
        body = answer.json()
        if body.get("error") == NO_STREAM:
            self._traits.yields, self._traits.refuses_streams = False, True
            return None
        if answer.status >= 300 or not isinstance(body.get("stream"), list):
            return outcome_in(answer, run_id, route="/stream")
        self._traits.yields = True
        part = Yielded()
        part.add(body)
        return part

    def _end_of_generator(self, run_id: str, outputs: list[str], listener: RunListener) -> Outcome:
        """A generator's chunks are its output. Without any, another server's ``/status`` may have an output."""
        if not outputs:
            try:
                return self._poller.poll(run_id, listener, held=True)
            except (AttemptLost, WorkerHTTPError):
                log.debug("run %s at %s yielded nothing", run_id, self._url)
        return Outcome(JobStatus.COMPLETED, output=f"[{', '.join(outputs)}]")

    def _open(self, run_id: str) -> Reply | None:
        for method in self._traits.methods:
            response = self._api.send(method, f"/stream/{quoted(run_id)}", None)
            if response.status not in _NO_SUCH_ROUTE:
                return response
            self._api.whole(response)
        return None

    def _relayed(self, run_id: str, response: Reply, listener: RunListener) -> Outcome | None:
        """The end of a run that the worker streams, as far as the stream has it; None: ask ``/status``."""
        self._traits.yields = True
        listener.set_check(RunCheck.POLL)
        error = self._relay(run_id, response, listener)
        return None if error is None else self._confirmed(run_id, listener, error)

    def _confirmed(self, run_id: str, listener: RunListener, reason: str) -> Outcome:
        """The end of a run whose stream had an error: from ``/status``, or else FAILED with that error."""
        try:
            return self._poller.poll(run_id, listener, held=True, reason=reason)
        except (AttemptLost, WorkerHTTPError) as error:
            log.debug("run %s at %s failed, and then: %s", run_id, self._url, reason_of(error))
            return Outcome(JobStatus.FAILED, error=reason)

    def _relay(self, run_id: str, response: Reply, listener: RunListener) -> str | None:
        """Relays events or JSON lines as they come. Returns the handler's error, if one comes."""
        rest, left = b"", self._largest_mb * 1024 * 1024
        error: str | None = None

        def emit(part: Yielded) -> None:
            nonlocal error
            error = part.error or error
            if part.chunks:
                listener.chunks(part.chunks)

        try:
            while left > 0 and (data := response.read()):
                left -= len(data)
                *lines, rest = (rest + data).split(b"\n")
                emit(yielded_in(lines))
            emit(yielded_in([rest]))
            if left <= 0:
                log.warning("stream of %s at %s cut: see OWNPOD_MAX_OUTPUT_MB", run_id, self._url)
                response.close()
        except WorkerHTTPError as problem:
            log.info("stream of %s at %s broke: %s", run_id, self._url, reason_of(problem))
            response.close()
        return error
