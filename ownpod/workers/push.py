"""RunPod's local worker API (``--rp_serve_api``) over HTTP: the node pushes jobs to the worker.

The SDK runs a job only when ``/status`` is POSTed, holds that request, and answers when the handler has ended.
A second request runs the job twice or loses its result. docs/architecture.md describes what real workers do.
"""

import json
import logging
import time
from collections.abc import Callable

from ownpod.errors import AttemptLost, JobRejected, WorkerSilent, WorkerUnavailable
from ownpod.rules.endpoints import WorkerSpec
from ownpod.rules.runs import Attempt, Outcome, Run, RunCheck
from ownpod.settings import Settings
from ownpod.workers.answers import NOT_REACHED, WorkerNotReached, outcome_in
from ownpod.workers.driver import RunListener
from ownpod.workers.http import CannotConnect, NoAnswerInTime, WorkerHTTPError
from ownpod.workers.local_api import LocalApi, quoted
from ownpod.workers.polling import Poller, reason_of
from ownpod.workers.stream import LEARN_AFTER_S, NO_STREAM, Streams
from ownpod.workers.traits import WorkerTraits

log = logging.getLogger(__name__)

LONGEST_ID = 255
"""Number of characters of a run's id; the worker chooses it."""

_JOB_REFUSED = {400, 413, 422}
_NOT_NOW = {301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 421, 429, 502, 503, 504}


class PushWorker:
    """A worker that serves RunPod's local API. Implements :class:`ownpod.workers.Worker`."""

    def __init__(self, spec: WorkerSpec, settings: Settings) -> None:
        self._url = spec.url
        self._settings = settings
        self._traits = WorkerTraits(spec.capacity)
        self._api = LocalApi(spec, settings, self._traits)
        self._poller = Poller(self._api, url=spec.url, timeout_s=settings.worker_status_timeout_s)
        self._streams = Streams(
            self._api,
            self._traits,
            self._poller,
            url=spec.url,
            largest_mb=settings.max_output_mb,
        )

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
            self._traits.forget()
            raise WorkerUnavailable(f"cannot connect: {reason_of(error)}") from error
        except WorkerHTTPError as error:
            raise AttemptLost(f"the worker did not answer /run: {reason_of(error)}") from error
        if answer.status in _JOB_REFUSED:
            raise JobRejected(f"the worker refused the job: {answer}")
        if answer.status in _NOT_NOW:
            raise WorkerUnavailable(f"/run answered {answer}")
        run_id = answer.json().get("id")
        usable = isinstance(run_id, str) and 0 < len(run_id) <= LONGEST_ID
        if answer.status >= 300 or not usable:
            raise AttemptLost(f"the worker's answer to /run has no usable job id: {answer}")
        return str(run_id)

    def wait(self, run_id: str, listener: RunListener, *, adopted: bool = False) -> Outcome:
        try:
            if adopted:
                return self._poller.poll(run_id, listener, held=False)
            if self._traits.yields is not False:
                outcome = self._streams.follow(run_id, listener)
                if outcome is not None:
                    return outcome
            refuses = self._traits.refuses_streams
            listener.set_check(RunCheck.STREAM if refuses else self._traits.check)
            return self._poller.poll(run_id, listener, held=True)
        except WorkerHTTPError as error:
            self._traits.forget()
            raise AttemptLost(f"the worker died or was cut off: {reason_of(error)}") from error
        except AttemptLost:
            self._traits.forget()
            raise

    def is_running(self, run: Run, patience_s: float) -> bool:
        try:
            match run.check:
                case RunCheck.POLL:
                    timeout_s = self._settings.worker_status_timeout_s
                    return outcome_in(self._api.status(run.id, timeout_s), run.id) is None
                case RunCheck.STREAM:
                    answer = self._api.answer("POST", f"/stream/{quoted(run.id)}", patience_s)
                    known = answer.json().get("error") == NO_STREAM
                    return known or answer.status in NOT_REACHED
                case RunCheck.HEALTH | RunCheck.TIMEOUT | RunCheck.UNKNOWN:
                    asked = time.monotonic()
                    answer = self._api.answer("GET", "/health", patience_s)
                    blocked = time.monotonic() - asked > LEARN_AFTER_S
                    done = run.check is RunCheck.HEALTH or blocked
                    return not done or answer.status in NOT_REACHED
        except (CannotConnect, AttemptLost) as error:
            # The worker is away or does not know the run; a proxy before the worker cannot know.
            return isinstance(error, WorkerNotReached)
        except (WorkerHTTPError, JobRejected):
            return True

    def cancel(self, run_id: str) -> bool:
        try:
            timeout_s = self._settings.worker_cancel_timeout_s
            answer = self._api.answer("POST", f"/cancel/{quoted(run_id)}", timeout_s)
        except WorkerHTTPError as error:
            log.info("cancel of %s at %s failed: %s", run_id, self._url, reason_of(error))
            return False
        return answer.status < 300

    def probe(self) -> None:
        # Any answer but a server error shows that the worker is up, because the SDK has no /health and answers 404.
        try:
            answer = self._api.answer("GET", "/health", self._settings.worker_connect_timeout_s)
        except NoAnswerInTime as error:
            raise WorkerSilent(f"does not answer: {reason_of(error)}") from error
        except WorkerHTTPError as error:
            raise WorkerUnavailable(f"does not answer: {reason_of(error)}") from error
        if answer.status >= 500:
            raise WorkerUnavailable(f"/health answered {answer}")

    def follow(self, left: Callable[[str], None], asked: Callable[[], None]) -> None:
        """Does nothing, because a worker that is pushed to sends no notices."""
