"""The meaning of a worker's answers. Pure: no HTTP, no clock."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ownpod.errors import AttemptLost
from ownpod.rules.jobs import JobStatus
from ownpod.rules.payload import loads, output_of, split
from ownpod.rules.runs import Outcome, execution_ms

STILL_RUNNING = {"IN_QUEUE", "IN_PROGRESS", "RUNNING"}
UNKNOWN_METHOD = {404, 405}
NOT_REACHED = {429, 502, 503, 504}
"""Statuses of a proxy before the worker, or of an overloaded worker; such an answer is not about a run."""
LINES = {
    "text/event-stream",
    "application/x-ndjson",
    "application/jsonl",
    "application/json-lines",
}
_NOT_FOUND = "Job ID not found"
"""The SDK's answer (200, FAILED) for a job that it does not know, because the worker was restarted."""

POLL_FAILURES = 3
"""Polls in a row without any answer after which a run counts as lost."""

POLL_FAILURES_S = 60.0
"""Seconds of failed polls in a row after which a run counts as lost. A proxy that reloads refuses for less."""


class WorkerNotReached(AttemptLost):
    """A proxy answered instead of the worker. Only a run that is polled can be polled again."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    retry_after: str = ""
    """The header ``Retry-After``; "": there is none."""

    @property
    def retry_after_s(self) -> int | None:
        """Seconds of ``Retry-After``; None: the answer has none, or a date."""
        text = self.retry_after
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

    def json(self) -> dict[str, Any]:
        try:
            value = loads(self.body)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else {}

    def outcome(self) -> tuple[dict[str, Any], str | None]:
        """The body without ``output``, and the output as JSON text."""
        try:
            body, output = split(self.body, "output", loads)
        except (ValueError, RecursionError):
            return {}, None
        return (body, output) if isinstance(body, dict) else ({}, None)

    def __str__(self) -> str:
        text = self.body[:200].decode("utf-8", "replace").strip()
        return f"HTTP {self.status}" + (f": {text}" if text else "")


@dataclass
class Yielded:
    """A part of a stream: chunks as JSON texts, the error of a handler that failed, the job's state."""

    chunks: list[str] = field(default_factory=list)
    error: str | None = None
    status: Any = None

    def add(self, body: Any) -> None:
        """Adds an answer of ``/stream``, or a line of one."""
        if not isinstance(body, dict) or "output" in body or not body.keys() & {"stream", "status"}:
            self._add_item(body)
            return
        items = body.get("stream")
        for item in items if isinstance(items, list) else []:
            self._add_item(item)
        self.status = body.get("status")
        if body.get("error") and self.status not in {JobStatus.COMPLETED.value, *STILL_RUNNING}:
            self.error = _text(body["error"])

    def _add_item(self, item: Any) -> None:
        # The SDK makes {"error": ...} of a generator's exception.
        if isinstance(item, dict) and item.keys() == {"error"}:
            self.error = _text(item["error"])
        else:
            self.chunks.append(json.dumps(output_of(item)))


def yielded_in(lines: Iterable[bytes]) -> Yielded:
    """The content of a stream's lines: JSON, or an event's ``data:``. Other lines have none."""
    part = Yielded()
    for line in lines:
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("data:"):
            text = text[5:].strip()
        elif text.startswith((":", "event:", "id:", "retry:")):
            continue
        if text and text != "[DONE]":
            try:
                item = loads(text)
            except (ValueError, RecursionError):
                item = text
            part.add(item)
    return part


def _text(error: Any) -> str:
    """A handler's reason as text; workers may send any JSON."""
    return error if isinstance(error, str) else json.dumps(error)


class PollFailures:
    """Counts the polls of a run that failed in a row.

    Args:
        longest_s: see :data:`POLL_FAILURES_S`.
    """

    def __init__(self, longest_s: float = POLL_FAILURES_S) -> None:
        self._longest_s = longest_s
        self.answered()

    def answered(self) -> None:
        """The worker answered a poll."""
        self._unanswered = 0
        self._since: float | None = None

    def refused(self, now: float) -> bool:
        """A proxy answered at ``now``, in seconds. True: the run is lost."""
        self._unanswered = 0
        return self._too_long(now)

    def cut(self, now: float) -> bool:
        """The connection was refused or cut at ``now``, in seconds. True: the run is lost."""
        self._unanswered += 1
        return self._too_long(now) or self._unanswered >= POLL_FAILURES

    def _too_long(self, now: float) -> bool:
        self._since = now if self._since is None else self._since
        return now - self._since >= self._longest_s


def outcome_in(
    answer: Answer, run_id: str, *, route: str = "/status", reason: str | None = None
) -> Outcome | None:
    """The outcome in an answer to ``/status``, None while the job runs.

    Args:
        answer: the answer.
        run_id: the run that the request was about.
        route: the path of the request; an error names it.
        reason: why the handler failed, as the run's stream had it, for an answer that has no reason.

    Raises:
        WorkerNotReached: a proxy answered, or the worker is overloaded.
        AttemptLost: the worker does not know the run: the worker was restarted, or the answer is about another run.
    """
    _check(answer, route)
    if answer.status >= 300:
        return Outcome(JobStatus.FAILED, error=f"the worker's {route} answered {answer}")
    body, output = answer.outcome()
    state, error = body.get("status"), body.get("error")
    if body.get("id", run_id) != run_id:
        raise AttemptLost(f"the worker answered about another run, {str(body['id'])[:80]!r}")
    if state in STILL_RUNNING:
        return None
    if state == "FAILED" and error == _NOT_FOUND:
        raise AttemptLost("the worker does not know the run any more: it was restarted")
    if error is not None:
        error = _text(error)
    if state not in list(JobStatus):
        error = f"the worker answered /status with an unknown state: {answer}"
        state = JobStatus.FAILED
    elif state != JobStatus.COMPLETED and error is None:
        error = reason or f"the worker ended the job as {state} without a reason"
    return Outcome(
        JobStatus(str(state)),
        output=None if output == "null" else output,
        error=error,
        execution_ms=execution_ms(body.get("executionTime")),
    )


def _check(answer: Answer, route: str) -> None:
    """Raises: AttemptLost, if the answer is not about a run."""
    if answer.status in UNKNOWN_METHOD:
        raise AttemptLost(f"the worker does not know the run any more: {answer}")
    if answer.status in NOT_REACHED:
        raise WorkerNotReached(f"{route} was answered {answer}, by a proxy before the worker")
