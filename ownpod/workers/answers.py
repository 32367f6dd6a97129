"""What a worker's answers mean: pure, without HTTP."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ownpod.errors import AttemptLost
from ownpod.jobs import JobStatus, Outcome, execution_ms
from ownpod.payload import loads, output_of, split

STILL_RUNNING = {"IN_QUEUE", "IN_PROGRESS", "RUNNING"}
UNKNOWN_METHOD = {404, 405}
LINES = {
    "text/event-stream",
    "application/x-ndjson",
    "application/jsonl",
    "application/json-lines",
}
_NOT_FOUND = "Job ID not found"
"""The SDK's answer (200, FAILED) for a job that it does not have: it was restarted in between."""


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        try:
            value = loads(self.body)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else {}

    def outcome(self) -> tuple[dict[str, Any], str | None]:
        """The same without ``output``, and that as JSON text."""
        try:
            said, output = split(self.body, "output", loads)
        except (ValueError, RecursionError):
            return {}, None
        return (said, output) if isinstance(said, dict) else ({}, None)

    def __str__(self) -> str:
        text = self.body[:200].decode("utf-8", "replace").strip()
        return f"HTTP {self.status}" + (f": {text}" if text else "")


def chunks_in(line: bytes) -> Iterator[str]:
    """The chunks in a line of a stream: JSON, or an event's ``data:``. Others hold none."""
    text = line.decode("utf-8", "replace").strip()
    if text.startswith("data:"):
        text = text[5:].strip()
    elif text.startswith((":", "event:", "id:", "retry:")):
        return
    if not text or text == "[DONE]":
        return
    try:
        said = loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict) and isinstance(said.get("stream"), list):
        yield from (json.dumps(output_of(chunk)) for chunk in said["stream"])
    elif not (isinstance(said, dict) and "status" in said and "output" not in said):
        yield json.dumps(output_of(said))


def outcome_in(answer: Answer, run_id: str) -> Outcome | None:
    """The outcome in an answer to ``/status``, None while the job runs.

    Raises:
        AttemptLost: the worker does not know the run: it was restarted, or speaks of another.
    """
    if answer.status in UNKNOWN_METHOD:
        raise AttemptLost(f"the worker does not know the run any more: {answer}")
    if answer.status >= 300:
        return Outcome(JobStatus.FAILED, error=f"the worker's /status answered {answer}")
    said, output = answer.outcome()
    state, error = said.get("status"), said.get("error")
    if said.get("id", run_id) != run_id:
        raise AttemptLost(f"the worker answered about another run, {str(said['id'])[:80]!r}")
    if state in STILL_RUNNING:
        return None
    if state == "FAILED" and error == _NOT_FOUND:
        raise AttemptLost("the worker does not know the run any more: it was restarted")
    if error is not None and not isinstance(error, str):
        error = json.dumps(error)
    if state not in list(JobStatus):
        error = f"the worker answered /status with an unknown state: {answer}"
        state = JobStatus.FAILED
    elif state != JobStatus.COMPLETED and error is None:
        error = f"the worker ended the job as {state} without a reason"
    return Outcome(
        JobStatus(str(state)),
        output=None if output == "null" else output,
        error=error,
        execution_ms=execution_ms(said.get("executionTime")),
    )
