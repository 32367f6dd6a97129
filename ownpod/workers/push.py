"""RunPod's local worker API (``--rp_serve_api``) over HTTP: OwnPod pushes jobs to the worker.

The one module that knows the HTTP client. What real workers do stands in docs/architecture.md; the
surprising part is the hold: the SDK runs a job only when ``/status`` is POSTed, and answers when
the handler has ended. Asking twice runs it twice or throws its result away.
"""

import json
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from ownpod.errors import AttemptLost, JobRejected, WorkerUnavailable
from ownpod.jobs import Attempt, JobStatus, Outcome
from ownpod.registry import WorkerSpec
from ownpod.settings import Settings

log = logging.getLogger(__name__)

FIRST_POLL_S = 0.005
LONGEST_POLL_S = 1.0
POLL_SHARE = 0.1
"""A poll's pause as a share of the time a job has run: so polling adds at most a tenth to it."""

POLL_FAILURES = 3
"""Polls in a row that may fail before a run counts as lost."""

_STILL_RUNNING = {"IN_QUEUE", "IN_PROGRESS", "RUNNING"}
_JOB_REFUSED = {400, 413, 422}
_NOT_NOW = {301, 302, 303, 307, 308, 401, 403, 404, 405, 407, 421, 429, 502, 503, 504}
_UNKNOWN_METHOD = {404, 405}
_NOT_FOUND = "Job ID not found"
"""The SDK's answer (200, FAILED) for a job that it does not have: it was restarted in between."""


def _keepalive() -> list[tuple[int, int, int]]:
    """A worker's host that vanished is noticed in about a minute; a held connection is silent."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else {}

    def __str__(self) -> str:
        text = self.body[:200].decode("utf-8", "replace").strip()
        return f"HTTP {self.status}" + (f": {text}" if text else "")


class PushWorker:
    """A worker that serves RunPod's local API. Implements :class:`ownpod.workers.Worker`."""

    def __init__(self, spec: WorkerSpec, settings: Settings) -> None:
        self._url = spec.url
        self._settings = settings
        self._methods = ["POST", "GET"]
        verify = spec.verify_tls or spec.ca_bundle is not None
        if not verify:
            urllib3.disable_warnings(InsecureRequestWarning)
        tls: dict[str, Any] = {}
        if spec.url.startswith("https:"):
            tls = {
                "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE",
                "ca_certs": spec.ca_bundle,
            }
        self._path = urlsplit(spec.url).path
        self._headers = {**spec.headers, "Content-Type": "application/json"}
        self._http = urllib3.connection_from_url(
            spec.url,
            maxsize=spec.capacity + 2,
            socket_options=HTTPConnection.default_socket_options + _keepalive(),
            **tls,
        )

    def start(self, attempt: Attempt) -> str:
        body = f'{{"input": {attempt.input}'
        if attempt.s3_config is not None:
            body += f', "s3Config": {attempt.s3_config}'
        try:
            timeout_s = self._settings.worker_run_read_timeout_s
            answer = self._request("POST", "/run", timeout_s, body=f"{body}}}")
        except (NewConnectionError, ConnectTimeoutError, SSLError) as error:
            raise WorkerUnavailable(f"cannot connect: {_reason(error)}") from error
        except HTTPError as error:
            raise AttemptLost(f"the worker did not answer /run: {_reason(error)}") from error
        if answer.status in _JOB_REFUSED:
            raise JobRejected(f"the worker refused the job: {answer}")
        if answer.status in _NOT_NOW:
            raise WorkerUnavailable(f"/run answered {answer}")
        run_id = answer.json().get("id")
        if answer.status >= 300 or not isinstance(run_id, str) or not run_id:
            raise AttemptLost(f"the worker's answer to /run has no job id: {answer}")
        return run_id

    def wait(self, run_id: str) -> Outcome:
        # The first request has no time-out: until a worker has answered while a job runs, it may
        # be one that holds. After that it is polled.
        began, timeout_s, failures = time.monotonic(), None, 0
        while True:
            try:
                answer = self._status(run_id, timeout_s)
                failures = 0
            except HTTPError as error:
                failures += not isinstance(error, ReadTimeoutError)
                if timeout_s is None or failures >= POLL_FAILURES:
                    reason = _reason(error)
                    raise AttemptLost(f"the worker died or was cut off: {reason}") from error
                log.info("poll of %s at %s failed: %s", run_id, self._url, _reason(error))
            else:
                outcome = _read(answer)
                if outcome is not None:
                    return outcome
                timeout_s = self._settings.worker_status_timeout_s
            elapsed = time.monotonic() - began
            time.sleep(min(max(FIRST_POLL_S, elapsed * POLL_SHARE), LONGEST_POLL_S))

    def cancel(self, run_id: str) -> bool:
        try:
            timeout_s = self._settings.worker_cancel_timeout_s
            answer = self._request("POST", f"/cancel/{run_id}", timeout_s)
        except HTTPError as error:
            log.info("cancel of %s at %s failed: %s", run_id, self._url, _reason(error))
            return False
        return answer.status < 300

    def probe(self) -> None:
        # Any answer but a server error will do: the SDK has no /health and says 404.
        try:
            answer = self._request("GET", "/health", self._settings.worker_connect_timeout_s)
        except HTTPError as error:
            raise WorkerUnavailable(f"does not answer: {_reason(error)}") from error
        if answer.status >= 500:
            raise WorkerUnavailable(f"/health answered {answer}")

    def _status(self, run_id: str, timeout_s: float | None) -> _Answer:
        """One status request, in the way this worker takes it; remembers which that is."""
        answer = self._request(self._methods[0], f"/status/{run_id}", timeout_s)
        if answer.status in _UNKNOWN_METHOD:
            other = self._request(self._methods[1], f"/status/{run_id}", timeout_s)
            if other.status not in _UNKNOWN_METHOD:
                self._methods = self._methods[::-1]
                return other
        return answer

    def _request(
        self, method: str, path: str, read_s: float | None, *, body: str | None = None
    ) -> _Answer:
        response = self._http.urlopen(
            method,
            f"{self._path}{path}",
            body=None if body is None else body.encode(),
            headers=self._headers,
            timeout=urllib3.Timeout(connect=self._settings.worker_connect_timeout_s, read=read_s),
            retries=False,
            redirect=False,
        )
        return _Answer(response.status, response.data)


def _read(answer: _Answer) -> Outcome | None:
    """The outcome in an answer to ``/status``, None while the job runs.

    Raises:
        AttemptLost: the worker does not know the run: it was restarted.
    """
    if answer.status in _UNKNOWN_METHOD:
        raise AttemptLost(f"the worker does not know the run any more: {answer}")
    if answer.status >= 300:
        return Outcome(JobStatus.FAILED, error=f"the worker's /status answered {answer}")
    said = answer.json()
    state, error = said.get("status"), said.get("error")
    if state in _STILL_RUNNING:
        return None
    if state == "FAILED" and error == _NOT_FOUND:
        raise AttemptLost("the worker does not know the run any more: it was restarted")
    execution_ms = said.get("executionTime")
    if isinstance(execution_ms, bool) or not isinstance(execution_ms, int | float):
        execution_ms = None
    if error is not None and not isinstance(error, str):
        error = json.dumps(error)
    if state not in list(JobStatus):
        error = f"the worker answered /status with an unknown state: {answer}"
        state = JobStatus.FAILED
    elif state != JobStatus.COMPLETED and error is None:
        error = f"the worker ended the job as {state} without a reason"
    output = said.get("output")
    return Outcome(
        JobStatus(str(state)),
        output=None if output is None else json.dumps(output),
        error=error,
        execution_ms=None if execution_ms is None else max(0, int(execution_ms)),
    )


def _reason(error: Exception) -> str:
    """The innermost cause of the HTTP client's nested errors, without object addresses."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return str(cause) or type(cause).__name__
