"""Data of typed events: log lines, a job's final output, its end. Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ownpod.rules.jobs import Job, JobStatus

OUTPUT_BYTES = 1024 * 1024
"""Characters of a final output up to which its event has it; of a longer one the event has the URL."""

FINISHES = {
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.TIMED_OUT: "timeout",
    JobStatus.CANCELLED: "cancelled",
}
"""The GPU service's word for how a job has ended."""


@dataclass(frozen=True)
class Ending:
    """What the record has about a job's end besides :class:`ownpod.rules.jobs.Job`.

    Attributes:
        code: a word for programs, for example ``session_ended`` or ``oom``.
        exit_code: of the container of a one-off task.
        all_lost: the last allowed attempt was lost.
    """

    code: str | None = None
    exit_code: int | None = None
    all_lost: bool = False


def iso(at_ms: int) -> str:
    """An instant, in ms since the epoch, as ISO 8601 with milliseconds and ``Z``."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"


_LEVELS = {
    "TRACE": "debug",
    "DEBUG": "debug",
    "INFO": "info",
    "WARN": "warning",
    "WARNING": "warning",
    "ERROR": "error",
    "CRITICAL": "error",
    "FATAL": "error",
}
_SDK_LINE = re.compile(rf"({'|'.join(_LEVELS)}) *\| ")
_PREFIX = re.compile(rf"({'|'.join(_LEVELS)}):")


def log_data(text: str, stream: str | None = None) -> dict[str, Any]:
    """Data of a ``logs`` event. A line as RunPod's SDK writes it has a level, any other one if it begins with, for example,
    ``ERROR:``. ``stream``: stdout or stderr; None: not known.
    """
    if match := _SDK_LINE.match(text):
        return {"log": text[match.end() :], "level": _LEVELS[match[1]], "stream": "sdk"}
    match = _PREFIX.match(text)
    data = {"log": text, "level": _LEVELS[match[1]] if match else "info"}
    return data if stream is None else data | {"stream": stream}


def is_debug(data: Mapping[str, Any]) -> bool:
    """Whether a log line is one of those that RunPod's SDK writes for its own developers: several for each chunk, with the output."""
    return data.get("stream") == "sdk" and data.get("level") == "debug"


def status_url(job: Job) -> str:
    """The path at which the job's state and output are."""
    return f"/v2/{job.endpoint}/status/{job.id}"


def final_output(job: Job) -> tuple[str, str] | None:
    """Name and data of the event with a job's output: a string, and a list of strings, is text. None: there is none."""
    if job.output is None:
        return None
    if len(job.output) > OUTPUT_BYTES:
        return "output", json.dumps({"output_url": status_url(job)})
    text = job.output.strip()
    if text.startswith('"'):
        return "text", f'{{"content": {text}}}'
    if text.startswith("["):
        try:
            parts = json.loads(text)
        except (ValueError, RecursionError):
            parts = []
        if parts and all(isinstance(part, str) for part in parts):
            return "text", json.dumps({"content": "".join(parts)})
    return "output", f'{{"output": {text}}}'


def finish_data(job: Job, ending: Ending, session_id: str | None) -> dict[str, Any]:
    """Data of ``task_finish``: times in whole seconds, ``execution_ms`` in ms."""
    finished_ms = job.finished_ms or job.created_ms
    begun_ms = finished_ms if job.started_ms is None else job.started_ms
    ran_ms = max(0, finished_ms - begun_ms)
    data: dict[str, Any] = {"status": FINISHES[job.status], "task_id": job.id}
    if session_id is not None:
        data["session_id"] = session_id
    data |= {
        "elapsed_seconds": ran_ms // 1000,
        "queue_seconds": max(0, begun_ms - job.created_ms) // 1000,
        "execution_ms": ran_ms if job.execution_ms is None else job.execution_ms,
        "attempts": job.attempt,
    }
    if ending.exit_code is not None:
        data["exit_code"] = ending.exit_code
    if job.error is not None:
        data["error"] = job.error
    if (code := end_code(job, ending)) is not None:
        data["code"] = code
    return data | {"status_url": status_url(job)}


def end_code(job: Job, ending: Ending) -> str | None:
    """The word for programs about the end of a job that was not COMPLETED or CANCELLED; None: there is none."""
    if ending.code:
        return ending.code
    if job.status is JobStatus.TIMED_OUT:
        return "ttl" if (job.error or "").startswith("ttl:") else "executionTimeout"
    if job.status is JobStatus.FAILED:
        return "worker_lost" if ending.all_lost else "handler"
    return None
