"""How many tokens a reply of an OpenAI route had, as its worker reports them, and how fast they came. Pure.

A worker reports the tokens at the end: in the body of a reply, or in the last event of a stream, if its client has asked for that
(``stream_options: {"include_usage": true}``). So the end of the text is enough, and no event of a stream is parsed.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

SEARCHED = 65_536
"""Number of characters at the end of a text in which the report is searched. Workers write it behind the choices and embeddings."""

_REPORT_LENGTH = 4096
"""Number of characters of a report that are parsed; one with all details has some 300."""

_TRIES = 16
"""Number of places that may be a report, the last ones first. A text with many of them must not cost more time."""

_MOST = 10**9
"""Tokens of a reply that are believed."""

_REPORT = re.compile(r'(?<!\\)"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
"""A member of JSON. In what the model has written the quotes are escaped, so that such a text is no report."""

_JSON = json.JSONDecoder()


@dataclass(frozen=True)
class Usage:
    """Tokens of a reply: ``prompt_tokens`` were read (0 if they are not reported), ``completion_tokens`` were written."""

    prompt_tokens: int
    completion_tokens: int


def usage_of(text: str) -> Usage | None:
    """The last report of tokens in a text; None: it has none.

    Args:
        text: the body of a reply, or the end of a stream of server-sent events as its client receives them. Only the last
            :data:`SEARCHED` characters are searched. The text may begin anywhere, and need not be valid.
    """
    places = [found.end() for found in _REPORT.finditer(text, max(0, len(text) - SEARCHED))]
    for place in places[: -_TRIES - 1 : -1]:
        try:
            report, _ = _JSON.raw_decode(text[place : place + _REPORT_LENGTH])
        except (ValueError, RecursionError):
            continue
        if (usage := _read(report)) is not None:
            return usage
    return None


def _read(report: dict[str, Any]) -> Usage | None:
    """The counts of chat, completions and embeddings, or of responses and Anthropic's messages."""
    prompt = _count(report, "prompt_tokens", "input_tokens")
    completion = _count(report, "completion_tokens", "output_tokens")
    if prompt is None and completion is None:
        return None
    return Usage(prompt or 0, completion or 0)


def _count(report: dict[str, Any], *names: str) -> int | None:
    for name in names:
        value = report.get(name)
        if type(value) is int and 0 <= value <= _MOST:
            return value
    return None


def tokens_per_second(usage: Usage | None, ran_ms: float) -> float | None:
    """Output tokens for each second of a job; None: it wrote no tokens, or its duration is not known.

    Args:
        usage: from :func:`usage_of`.
        ran_ms: the job's execution time in ms, in which the prompt was read, too.
    """
    if usage is None or usage.completion_tokens == 0 or ran_ms <= 0:
        return None
    return usage.completion_tokens * 1000 / ran_ms
