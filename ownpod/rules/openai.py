"""Between OpenAI's HTTP API and jobs: a request becomes a job's input, and what a worker answers becomes a response. Pure.

RunPod's gateway is not published. Inputs are what RunPod's workers take: the route behind ``/openai``, and the body. Streams are
what OpenAI's clients read. Responses without a stream are in :mod:`ownpod.rules.openai_replies`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.openai_replies import (
    Reply,
    error,
    error_in,
    failure_of,
    items_of,
    object_in,
    outputs_of,
    reply_of,
    sendable,
    string_in,
    unbegun,
)

__all__ = [
    "DONE",
    "MODELS_ROUTE",
    "Rendering",
    "Reply",
    "error",
    "error_in",
    "job_input",
    "reply_of",
    "route_of",
    "sends_queries",
    "unbegun",
    "wants_stream",
    "with_query",
]

DONE = "data: [DONE]\n\n"
WAITING = ": waiting\n"

MODELS_ROUTE = "/v1/models"

LONGEST_ROUTE = 2000
"""Characters of a route."""

VLLM_PROXY_SINCE = (2, 24)
"""The first version of worker-vllm that is a proxy of `vllm serve`."""

_VLLM_PROXY = re.compile(
    r"(?:[^\s@]*/)?worker-(?:v1-)?vllm:v?(\d{1,5})\.(\d{1,5})(?:[.-][\w.-]*)?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)
_SAFE = "/:@!$&'()*+,;=-._~"
_SAFE_IN_QUERY = f"{_SAFE}?%"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_DONE = re.compile(r"(?:^|\n)data: ?\[DONE\]\s*\Z")
_LINE_END = re.compile(r"\r\n|\r|\n")
_TAIL = 32
"""Characters of a stream's end that are remembered: ``data: [DONE]`` and line ends fit."""


def route_of(path: str) -> str:
    """A worker's route from the path behind ``/openai``, as the path of a URL. Empty parts are left out.

    Raises:
        ValueError: the path is empty, too long, or has control characters or a part of dots only.
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        raise ValueError("the path must have a route after /openai, as in /openai/v1/models")
    if _CONTROLS.search(path) or any(part in {".", ".."} for part in parts):
        raise ValueError("the route must have no control characters and no part . or ..")
    route = quote("/" + "/".join(parts), safe=_SAFE, errors="replace")
    if len(route) > LONGEST_ROUTE:
        raise ValueError(f"the route must have at most {LONGEST_ROUTE} characters")
    return route


def sends_queries(image: str | None) -> bool:
    """Whether a worker of this image takes a URL's query as a part of its route: worker-vllm from 2.24 on, which sends the route to
    `vllm serve`. Older ones compare the route with a list, so a query would make it unknown.
    """
    found = _VLLM_PROXY.fullmatch(image or "")
    return found is not None and (int(found[1]), int(found[2])) >= VLLM_PROXY_SINCE


def with_query(route: str, query: str) -> str:
    """A route with the query of its URL, as the client has written it. ``query`` "": there is none.

    Raises:
        ValueError: both together are too long.
    """
    if not query:
        return route
    whole = f"{route}?{quote(query, safe=_SAFE_IN_QUERY, errors='replace')}"
    if len(whole) > LONGEST_ROUTE:
        raise ValueError(f"the route and its query must have at most {LONGEST_ROUTE} characters")
    return whole


def job_input(route: str, body_text: str) -> str:
    """The input of a job, JSON text of one line. ``body_text``: the JSON text of the request's body; "": it has none."""
    body = body_text or "{}"
    if "\n" in body or "\r" in body:
        # Between tokens a line end is a space, and JSON has none inside of a string.
        body = body.replace("\n", " ").replace("\r", " ")
    return f'{{"openai_route": {json.dumps(route)}, "openai_input": {body}}}'


def wants_stream(body: Mapping[str, Any]) -> bool:
    """Whether a request asks for events. Only JSON's ``true`` does, because workers compare it so or pass it on."""
    return body.get("stream") is True


class Rendering:
    """The events of one stream, from what a handler yields.

    worker-vllm yields fragments of events, which may begin and end anywhere. They are written as they are. Everything else
    becomes whole events.
    """

    def __init__(self) -> None:
        self._tail = ""
        self.failed = False
        """An error has been written, so that the stream ends without [DONE]."""

    @property
    def has_begun(self) -> bool:
        """Whether anything but comments was written."""
        return bool(self._tail)

    @property
    def tail(self) -> str:
        """The last characters that were written."""
        return self._tail

    def first_error(self, chunk: str) -> Reply | None:
        """The error that a chunk is, if nothing was written before it: it becomes the status of the response."""
        if self.has_begun:
            return None
        for part in items_of(chunk):
            text = string_in(part)
            found = error_in(part if text is None else _data_of(text))
            if found is not None:
                return found
            if text != "":
                return None
        return None

    def text_of(self, chunk: str) -> str:
        """What is written for a chunk, JSON text; "": nothing."""
        return "".join(self._written(part) for part in items_of(chunk))

    def end_of(self, job: Job) -> str:
        """What is written at the end: the output of a job that yielded nothing, and [DONE] or the error."""
        if job.status is not JobStatus.COMPLETED:
            return self.error(failure_of(job).body)
        written = ""
        if not self.has_begun:
            written = "".join(map(self.text_of, outputs_of(job, ())))
        if self.failed or _DONE.search(self._tail):
            return written
        return written + self._separated(DONE)

    def error(self, body: str) -> str:
        """An event that ends the stream. ``body``: of a :class:`Reply`."""
        self.failed = True
        return self._separated(_event(body))

    def comment(self) -> str:
        """A comment, which clients ignore; "": it would divide a line."""
        if self._tail and not self._tail.endswith("\n"):
            return ""
        return WAITING if self._tail and not self._tail.endswith("\n\n") else f"{WAITING}\n"

    def _written(self, part: str) -> str:
        text = string_in(part)
        if text is None:
            if part == "null":
                return ""
            return self._data(part)
        text = sendable(text)
        at_boundary = not self._tail or self._tail.endswith("\n\n")
        if at_boundary and text.lstrip().startswith("{") and object_in(text) is not None:
            # worker-sglang yields the lines of a body, which may be JSON that is no event.
            return self._data(text.strip())
        self._note(text)
        return text

    def _data(self, part: str) -> str:
        found = error_in(part)
        if found is not None:
            return self.error(found.body)
        return self._separated(_event(part))

    def _separated(self, event: str) -> str:
        if self._tail and not self._tail.endswith("\n\n"):
            event = ("\n" if self._tail.endswith("\n") else "\n\n") + event
        self._note(event)
        return event

    def _note(self, text: str) -> None:
        self._tail = (self._tail + text)[-_TAIL:]


def _data_of(text: str) -> str:
    """The data of a text that is one event: worker-sglang makes an event of an error's body. Another text as it is."""
    lines = _LINE_END.split(text.strip())
    if not all(line.startswith("data:") for line in lines):
        return text
    return "\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines)


def _event(text: str) -> str:
    return "".join(f"data: {line}\n" for line in _LINE_END.split(text)) + "\n"
