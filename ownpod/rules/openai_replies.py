"""What a worker of OpenAI clients has answered, as a response. Pure.

Each of RunPod's workers answers, and reports errors, in its own way; the rules are made from their code: worker-vllm of three
generations, worker-sglang and worker-infinity-embedding.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.payload import elements

STATUSES = range(400, 600)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""The ``type`` of an error that has none, by its status."""

RETRY_S = 5
"""Seconds after which a client may repeat a request whose job no worker has begun."""

WORKER_LOST = "worker_lost"
"""The ``type`` of an error because a worker was lost: the last one that the job may have, or one that had answered in part."""

STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "NotFoundError": 404,
    "rate_limit_error": 429,
}
"""The status of an error without a code, by the words of OpenAI, of Anthropic and of vLLM."""

_OF_VLLM = re.compile(r"vLLM returned HTTP ([45]\d\d): (\{.*)", re.DOTALL)
_REPR = re.compile(r"\s*\{\s*'")
_LONGEST_REPR = 65_536
"""Characters of an error that are parsed as Python's repr of a dict."""


@dataclass(frozen=True)
class Reply:
    """A response.

    Attributes:
        status: its HTTP status.
        body: JSON text.
        should_retry: the header ``x-should-retry``; None: no header, so the client decides by the status.
        retry_after: the header ``Retry-After`` in whole seconds; None: no header.
    """

    status: int
    body: str
    should_retry: bool | None = None
    retry_after: int | None = None

    @property
    def is_error(self) -> bool:
        return self.status in STATUSES


def error_body(
    status: int, message: str, kind: str | None = None, code: int | str | None = None
) -> str:
    """The body of an error, JSON text in OpenAI's shape. ``kind`` None: the type that belongs to the status."""
    kind = kind or TYPES.get(status, "server_error")
    about = {"message": sendable(message), "type": sendable(kind), "param": None, "code": code}
    return json.dumps({"error": about})


def error(
    status: int, message: str, kind: str | None = None, code: int | str | None = None
) -> Reply:
    """A refusal that the same request would get again, see :func:`error_body`."""
    return Reply(status, error_body(status, message, kind, code), should_retry=False)


def unbegun(status: int, message: str, retry_after: int = RETRY_S) -> Reply:
    """A refusal before any worker has begun, which another try may not get."""
    return Reply(status, error_body(status, message), should_retry=True, retry_after=retry_after)


def reply_of(job: Job, chunks: Sequence[str] = ()) -> Reply:
    """The response to a request without a stream, from its job at the end.

    Args:
        job: the job.
        chunks: what its handler has yielded, JSON texts. They count where the job has no output.
    """
    if job.status is not JobStatus.COMPLETED:
        return failure_of(job)
    text = _whole(outputs_of(job, chunks))
    return error_in(text) or Reply(200, text)


def error_in(text: str) -> Reply | None:
    """The error in what a worker has answered, JSON text; None: it is none."""
    stripped = text.lstrip()
    if not stripped.startswith("{"):
        return None
    if '"error"' not in text and '"detail"' not in text:
        return None
    found = object_in(text)
    return None if found is None else _error_of(found, text)


def sendable(text: str) -> str:
    """A text that UTF-8 can encode: a worker's JSON may have half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def items_of(chunk: str) -> list[str]:
    """A chunk's items. worker-vllm without RAW_OPENAI_OUTPUT yields lists of events."""
    parts = elements(chunk)
    return [chunk.strip()] if parts is None else [part.strip() for part in parts]


def string_in(text: str) -> str | None:
    """The string that a JSON text is; None: it is something else."""
    if not text.startswith('"'):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


def object_in(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def outputs_of(job: Job, chunks: Sequence[str]) -> list[str]:
    """What the handler has returned or yielded, JSON texts."""
    output = (job.output or "").strip()
    if output in {"", "[]", "null"} and chunks:
        return [part for chunk in chunks for part in items_of(chunk)]
    if output in {"", "[]"}:
        return []
    return items_of(output)


def _joined(parts: Sequence[str]) -> str:
    return "".join(string_in(part) or "" for part in parts)


def _whole(parts: Sequence[str]) -> str:
    """The body of a response without a stream, JSON text: the first thing that was yielded, or the whole text of strings."""
    if not parts:
        return "{}"
    if any(string_in(part) is None for part in parts):
        return parts[0]
    joined = sendable(_joined(parts))
    try:
        json.loads(joined)
    except (ValueError, RecursionError):
        return json.dumps("\n".join(sendable(string_in(part) or "") for part in parts))
    return joined


def _status(code: object) -> int | None:
    """A code as an HTTP status; None: it is none."""
    if isinstance(code, str) and re.fullmatch("[45][0-9][0-9]", code):
        code = int(code)
    return code if type(code) is int and code in STATUSES else None


def _status_of(*errors: Mapping[str, Any]) -> int:
    for about in errors:
        if (status := _status(about.get("code"))) is not None:
            return status
    kind = errors[0].get("type")
    return STATUS_OF_TYPE.get(kind, 500) if isinstance(kind, str) else 500


def _error_of(found: dict[str, Any], text: str) -> Reply | None:
    """The error in an object that a worker has answered; None: it is none. ``text``: the object's JSON text."""
    about = found.get("error")
    if about and found.get("object") in (None, "error"):
        return _of_error(about, text, found)
    if found.get("object") == "error":
        return _of_flat(found)
    if found.keys() == {"detail"}:
        return _of_detail(found["detail"])
    return None


def _of_error(about: Any, text: str, around: Mapping[str, Any]) -> Reply:
    if not isinstance(about, dict):
        told = about if isinstance(about, str) else json.dumps(about)
        return _of_message(told, _status_of(around))
    message = about.get("message")
    if isinstance(message, str) and (inner := _of_vllm(message)) is not None:
        return inner
    status = _status_of(about, around)
    if isinstance(message, str) and "type" in about:
        return Reply(status, text.strip(), should_retry=False)
    shown = message if isinstance(message, str) else json.dumps(about)
    return error(status, shown, _word(about.get("type")), _code(about.get("code")))


def _of_flat(found: Mapping[str, Any]) -> Reply:
    message = found.get("message")
    shown = message if isinstance(message, str) else json.dumps(dict(found))
    if (inner := _of_vllm(shown)) is not None:
        return inner
    return error(_status_of(found), shown, _word(found.get("type")), _code(found.get("code")))


def _of_detail(detail: Any) -> Reply:
    """FastAPI's own errors, of which worker-sglang passes on the body only."""
    status = 400
    if detail == "Not Found":
        status = 404
    elif detail == "Method Not Allowed":
        status = 405
    elif isinstance(detail, list):
        status = 422
    return error(status, detail if isinstance(detail, str) else json.dumps(detail))


def _of_vllm(message: str) -> Reply | None:
    """The error of a vLLM server in the text by which worker-vllm reports it; None: the text is another one."""
    match = _OF_VLLM.search(message)
    if match is None:
        return None
    status = int(match[1])
    try:
        found, end = json.JSONDecoder().raw_decode(match[2])
    except (ValueError, RecursionError):
        return error(status, message)
    inner = _error_of(found, match[2][:end])
    if inner is None:
        return error(status, message)
    return Reply(status, inner.body, should_retry=False)


def _of_message(message: str, status: int) -> Reply:
    return _of_vllm(message) or error(status, message)


def failure_of(job: Job) -> Reply:
    """The response to a request whose job did not complete."""
    begun = job.attempt > 0
    if job.status is JobStatus.TIMED_OUT:
        if not begun:
            return unbegun(503, "no worker took the request in time")
        return error(504, job.error or "the worker did not answer in time")
    if job.status is JobStatus.CANCELLED:
        return error(503, "the request was cancelled", code="cancelled")
    if job.all_lost:
        return error(500, job.error or "the worker was lost", WORKER_LOST)
    return _of_failure(job.error or "the worker failed")


def _of_failure(message: str) -> Reply:
    """The error of a job that its worker has failed."""
    found = _dict_in(message)
    if found is None:
        # A generator's exception, as the SDK reports it: its traceback is for the worker's owner only.
        cause, traceback, _ = message.partition("\ntraceback: ")
        return _of_message(cause.strip().removeprefix("handler: ") if traceback else message, 500)
    if isinstance(told := found.get("error_message"), str):
        # An exception, as RunPod's SDK reports it. The traceback is for the worker's owner only.
        return _of_message(told or "the handler failed", 500)
    return _error_of(found, json.dumps(found)) or _of_error(found, json.dumps({"error": found}), {})


def _dict_in(text: str) -> dict[str, Any] | None:
    """The object of which an error's text is JSON, or Python's repr, as the SDK writes a yielded error. None: of none."""
    if text.lstrip().startswith("{") and (found := object_in(text)) is not None:
        return found
    if not _REPR.match(text) or len(text) > _LONGEST_REPR:
        return None
    try:
        value = ast.literal_eval(text.strip())
        json.dumps(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _code(value: object) -> int | str | None:
    return value if isinstance(value, str) or type(value) is int else None
