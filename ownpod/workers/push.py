"""RunPod's local worker API (``--rp_serve_api``) over HTTP: OwnPod pushes jobs to the worker.

What real workers do stands in docs/architecture.md; the surprising part is the hold: the SDK runs a job only when ``/status`` is POSTed, and answers when
the handler has ended. Asking twice runs it twice or throws its result away.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator

from ownpod.errors import AttemptLost, JobRejected, WorkerSilent, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.settings import Settings
from ownpod.workers import Watch
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
from ownpod.workers.http import CannotConnect, NoAnswerInTime, Reply, WorkerHTTPError
from ownpod.workers.local_api import LocalApi, quoted

log = logging.getLogger(__name__)

FIRST_POLL_S = 0.005
LONGEST_POLL_S = 1.0
POLL_SHARE = 0.1
"""A poll's pause as a share of the time a job has run: so polling adds at most a tenth to it."""

FAILED_POLL_PAUSE_S = 1.0
"""Shortest pause in seconds after a poll that failed."""

LEARN_AFTER_S = 1.0
"""So long a generator runs before the worker is asked whether it answers meanwhile, and so long it
may take to: one that does not answer within this time is blocked by its job."""

LONGEST_ID = 255

_JOB_REFUSED = {400, 413, 422}
_NOT_NOW = {301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 421, 429, 502, 503, 504}
_NO_SUCH_ROUTE = {400, 401, 403, 404, 405, 501}
_NO_STREAM = "Stream not supported, handler must be a generator."
"""The SDK's answer (200, FAILED) to ``/stream`` for a handler that does not yield; it ran nothing."""


class PushWorker:
    """A worker that serves RunPod's local API. Implements :class:`ownpod.workers.Worker`."""

    def __init__(self, spec: WorkerSpec, settings: Settings) -> None:
        self._url = spec.url
        self._capacity = spec.capacity
        self._settings = settings
        self._streams: bool | None = None
        """Whether the handler yields, as its /stream last showed; None: to be found out."""
        self._says_so = False
        """Its /stream said that it does not, which runs nothing."""
        self._concurrent: bool | None = True if spec.capacity > 1 else None
        """Whether the worker answers while it runs a job; None: to be found out."""
        self._api = LocalApi(spec, settings)

    def start(self, attempt: Attempt) -> str:
        body = ['{"input": ', attempt.input]
        if attempt.s3_config is not None:
            body += [', "s3Config": ', attempt.s3_config]
        if self._settings.callback_url is not None:
            path = f"/callback/{attempt.endpoint}/{attempt.job_id}/{attempt.callback_token}"
            body += [', "webhook": ', json.dumps(self._settings.callback_url + path)]
        body.append("}")
        timeout_s = self._settings.worker_run_read_timeout_s
        try:
            headers = {"X-Request-ID": attempt.request_id} if attempt.request_id else None
            reply = self._api.send("POST", "/run", timeout_s, body="".join(body), headers=headers)
            answer = self._api.whole(reply, timeout_s)
        except CannotConnect as error:
            self._forget()
            raise WorkerUnavailable(f"cannot connect: {_reason(error)}") from error
        except WorkerHTTPError as error:
            raise AttemptLost(f"the worker did not answer /run: {_reason(error)}") from error
        if answer.status in _JOB_REFUSED:
            raise JobRejected(f"the worker refused the job: {answer}")
        if answer.status in _NOT_NOW:
            raise WorkerUnavailable(f"/run answered {answer}")
        run_id = answer.json().get("id")
        usable = isinstance(run_id, str) and 0 < len(run_id) <= LONGEST_ID
        if answer.status >= 300 or not usable:
            raise AttemptLost(f"the worker's answer to /run has no usable job id: {answer}")
        return str(run_id)

    def wait(self, run_id: str, watch: Watch, *, resumed: bool = False) -> Outcome:
        try:
            if resumed:
                return self._poll(run_id, watch, self._settings.worker_status_timeout_s)
            return self._streamed(run_id, watch) or self._asked(run_id, watch)
        except WorkerHTTPError as error:
            self._forget()
            raise AttemptLost(f"the worker died or was cut off: {_reason(error)}") from error
        except AttemptLost:
            self._forget()
            raise

    def _streamed(self, run_id: str, watch: Watch) -> Outcome | None:
        """The end of a run by way of its stream, if the handler may yield."""
        if self._streams is False:
            return None
        watch.look(self._unasked)
        with self._learning(watch):
            return self._follow(run_id, watch)

    def _asked(self, run_id: str, watch: Watch) -> Outcome:
        watch.look(RunCheck.STREAM if self._says_so else self._unasked)
        return self._poll(run_id, watch, None)

    def _confirmed(self, run_id: str, watch: Watch, reason: str) -> Outcome:
        """The end of a run whose stream had the handler's error: from ``/status``, else FAILED with that reason."""
        try:
            return self._poll(run_id, watch, None, reason)
        except (AttemptLost, WorkerHTTPError) as error:
            log.debug("run %s at %s failed, and then: %s", run_id, self._url, _reason(error))
            return Outcome(JobStatus.FAILED, error=reason)

    def is_at(self, run: Run, patience_s: float) -> bool:
        try:
            match run.check:
                case RunCheck.POLL:
                    timeout_s = self._settings.worker_status_timeout_s
                    return outcome_in(self._api.status(run.id, timeout_s), run.id) is None
                case RunCheck.STREAM:
                    answer = self._api.answer("POST", f"/stream/{quoted(run.id)}", patience_s)
                    listed = answer.json().get("error") == _NO_STREAM
                    return listed or answer.status in NOT_REACHED
                case RunCheck.HEALTH | RunCheck.TIMEOUT | RunCheck.UNKNOWN:
                    asked = time.monotonic()
                    answer = self._api.answer("GET", "/health", patience_s)
                    blocked = time.monotonic() - asked > LEARN_AFTER_S
                    done = run.check is RunCheck.HEALTH or blocked
                    return not done or answer.status in NOT_REACHED
        except (CannotConnect, AttemptLost) as error:
            # The worker is away or does not know the run; a proxy before it knows nothing about it.
            return isinstance(error, WorkerNotReached)
        except (WorkerHTTPError, JobRejected):
            return True

    @property
    def _unasked(self) -> RunCheck:
        """For a run that it would begin again if it were asked about it."""
        return {None: RunCheck.UNKNOWN, True: RunCheck.TIMEOUT, False: RunCheck.HEALTH}[
            self._concurrent
        ]

    def _forget(self) -> None:
        """Whoever answers next may be another container."""
        self._streams = None
        if self._capacity == 1:
            self._concurrent = None

    @contextlib.contextmanager
    def _learning(self, watch: Watch) -> Iterator[None]:
        """Finds out, while a generator runs, whether the worker answers meanwhile; once."""
        if self._concurrent is not None:
            yield
            return
        ended = threading.Event()

        def learn() -> None:
            try:
                answer = self._api.answer("GET", "/health", LEARN_AFTER_S)
            except WorkerHTTPError:
                answered = False
            else:
                if answer.status in NOT_REACHED:
                    return
                answered = True
            if not ended.is_set():
                self._concurrent = answered
                watch.look(self._unasked)

        timer = threading.Timer(LEARN_AFTER_S, learn)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            ended.set()
            timer.cancel()

    def _follow(self, run_id: str, watch: Watch) -> Outcome | None:
        """The end of a run whose handler yields; None: ask ``/status`` for it.

        The SDK's ``/stream`` runs a generator to its end, and on any other handler does nothing but
        say so. It is asked without a time-out and once, like the SDK's ``/status``; other servers
        stream events or JSON lines, or answer at once with what there is.
        """
        began, polled, failures = time.monotonic(), False, PollFailures()
        while True:
            try:
                found = self._part_of_stream(run_id, watch)
            except (WorkerHTTPError, WorkerNotReached) as error:
                if not polled or self._is_lost(run_id, failures, error):
                    raise
                _pause(began, FAILED_POLL_PAUSE_S)
                continue
            if not isinstance(found, Yielded):
                return found
            failures.answered()
            if found.chunks:
                watch.chunks(found.chunks)
            if found.status not in STILL_RUNNING:
                if found.error is not None:
                    return Outcome(JobStatus.FAILED, error=found.error)
                if found.status != JobStatus.COMPLETED or polled:
                    return None
                return self._end_of_generator(run_id, found.chunks, watch)
            if not polled:
                watch.look(RunCheck.POLL)
            polled = True
            _pause(began)

    def _part_of_stream(self, run_id: str, watch: Watch) -> Yielded | Outcome | None:
        """What one request to ``/stream`` brings; None: ask ``/status`` for the run's end."""
        response = self._open_stream(run_id)
        if response is None:
            self._streams = self._says_so = False
            return None
        if response.status < 300 and response.content_type in LINES:
            return self._relayed(run_id, response, watch)
        answer = self._api.whole(response)
        said = answer.json()
        if said.get("error") == _NO_STREAM:
            self._streams, self._says_so = False, True
            return None
        if answer.status >= 300 or not isinstance(said.get("stream"), list):
            return outcome_in(answer, run_id, route="/stream")
        self._streams = True
        found = Yielded()
        found.add(said)
        return found

    def _end_of_generator(self, run_id: str, outputs: list[str], watch: Watch) -> Outcome:
        """What it yielded is its output. Without any ``/status`` may have one; the SDK's has not."""
        if not outputs:
            try:
                return self._poll(run_id, watch, None)
            except (AttemptLost, WorkerHTTPError):
                log.debug("run %s at %s yielded nothing", run_id, self._url)
        return Outcome(JobStatus.COMPLETED, output=f"[{', '.join(outputs)}]")

    def _open_stream(self, run_id: str) -> Reply | None:
        for method in self._api.methods:
            response = self._api.send(method, f"/stream/{quoted(run_id)}", None)
            if response.status not in _NO_SUCH_ROUTE:
                return response
            self._api.whole(response)
        return None

    def _relayed(self, run_id: str, response: Reply, watch: Watch) -> Outcome | None:
        """The end of a run that the worker streams, as far as the stream has it; None: ask ``/status``."""
        self._streams = True
        watch.look(RunCheck.POLL)
        error = self._relay(run_id, response, watch)
        return None if error is None else self._confirmed(run_id, watch, error)

    def _relay(self, run_id: str, response: Reply, watch: Watch) -> str | None:
        """Events or JSON lines, each emitted as it comes. Returns the handler's reason, if one comes."""
        rest, left = b"", self._settings.max_output_mb * 1024 * 1024
        error: str | None = None

        def emit(found: Yielded) -> None:
            nonlocal error
            error = found.error or error
            if found.chunks:
                watch.chunks(found.chunks)

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
            log.info("stream of %s at %s broke: %s", run_id, self._url, _reason(problem))
            response.close()
        return error

    def _poll(
        self, run_id: str, watch: Watch, timeout_s: float | None, reason: str | None = None
    ) -> Outcome:
        # The first request has no time-out: until a worker has answered while a job runs, it may
        # be one that holds. After that it is polled.
        began, failures = time.monotonic(), PollFailures()
        while True:
            try:
                answer = self._api.status(run_id, timeout_s)
                outcome = outcome_in(answer, run_id, reason=reason)
            except (WorkerHTTPError, WorkerNotReached) as error:
                # A held request runs the job: a second one would run it again.
                if timeout_s is None or self._is_lost(run_id, failures, error):
                    raise
                _pause(began, FAILED_POLL_PAUSE_S)
            else:
                failures.answered()
                if outcome is not None:
                    return outcome
                if timeout_s is None:
                    watch.look(RunCheck.POLL)
                timeout_s = self._settings.worker_status_timeout_s
                _pause(began)

    def _is_lost(self, run_id: str, failures: PollFailures, error: Exception) -> bool:
        """Whether a poll that failed was one too many. Silence alone ends with the job's own time."""
        log.info("poll of %s at %s failed: %s", run_id, self._url, _reason(error))
        if isinstance(error, NoAnswerInTime):
            return False
        now = time.monotonic()
        return failures.refused(now) if isinstance(error, WorkerNotReached) else failures.cut(now)

    def cancel(self, run_id: str) -> bool:
        try:
            timeout_s = self._settings.worker_cancel_timeout_s
            answer = self._api.answer("POST", f"/cancel/{quoted(run_id)}", timeout_s)
        except WorkerHTTPError as error:
            log.info("cancel of %s at %s failed: %s", run_id, self._url, _reason(error))
            return False
        return answer.status < 300

    def probe(self) -> None:
        # Any answer but a server error will do: the SDK has no /health and says 404.
        try:
            answer = self._api.answer("GET", "/health", self._settings.worker_connect_timeout_s)
        except NoAnswerInTime as error:
            raise WorkerSilent(f"does not answer: {_reason(error)}") from error
        except WorkerHTTPError as error:
            raise WorkerUnavailable(f"does not answer: {_reason(error)}") from error
        if answer.status >= 500:
            raise WorkerUnavailable(f"/health answered {answer}")


def _pause(began: float, least_s: float = FIRST_POLL_S) -> None:
    """Between polls, growing with the time since ``began``."""
    elapsed = time.monotonic() - began
    time.sleep(min(max(least_s, elapsed * POLL_SHARE), LONGEST_POLL_S))


def _reason(error: Exception) -> str:
    """The innermost cause of the HTTP client's nested errors, without object addresses."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__
