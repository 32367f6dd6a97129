"""Output of a worker as REST v2's stream of events. Pure."""

import datetime as dt
import json
import re
from dataclasses import dataclass

from ownpod.errors import BadRequest
from ownpod.management.shown import time_of
from ownpod.management.v2.schemas import Unprocessable
from ownpod.rules.managed import ManagedWorker

DEFAULT_TAIL, MOST_TAIL = 100, 5000
"""RunPod's number of lines before the end with which a stream begins, and its limit."""

_AFTER = re.compile(r"[^/]{1,64}/([0-9]{1,15}-[0-9]{1,15})")


@dataclass(frozen=True)
class Wanted:
    """Which lines a client wants.

    Attributes:
        source: ``container`` or ``system``; None: both.
        tail: lines before the end with which the stream begins.
        since_ms: the stream begins with the lines from this time on, in ms since the epoch; 0: see ``tail``.
        after: the stream begins after this line; None: see the others. RunPod's order of precedence.
    """

    source: str | None = None
    tail: int = DEFAULT_TAIL
    since_ms: int = 0
    after: str | None = None


def tail_of(text: str | None) -> int:
    """The number in ``?tail=``. Raises: Unprocessable."""
    if text is None:
        return DEFAULT_TAIL
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > MOST_TAIL:
        raise Unprocessable([f"tail: must be a whole number from 0 to {MOST_TAIL}"])
    return int(text)


def since_of(text: str | None) -> int:
    """The time in ``?since=``, in ms since the epoch; 0 without one. Raises: Unprocessable."""
    if not text:
        return 0
    try:
        return time_of(text) or 0
    except BadRequest:
        raise Unprocessable(["since: must be a time such as 2026-12-31T00:00:00Z"]) from None


def after_of(last_event_id: str | None) -> str | None:
    """The line of a ``Last-Event-ID``; None: there is none, or it is of another server."""
    found = _AFTER.fullmatch(last_event_id or "")
    return found[1] if found else None


def event(line_id: str, at_ms: int, source: str, text: str) -> str:
    """A line as an event, whose id is RunPod's shape: a time, a slash, and where the line is."""
    moment = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}000000Z"
    data = json.dumps({"ts": stamp, "source": source, "line": text})
    return f"id: {stamp}/{line_id}\ndata: {data}\n\n"


def system_lines(worker: ManagedWorker) -> list[tuple[int, str]]:
    """What happened to the worker, as lines with their times in ms since the epoch."""
    # Only a worker that polls has no URL.
    ready = "it has asked for a job" if worker.url is None else "it answers its health check"
    steps = (
        (worker.created_ms, "wanted"),
        (worker.placed_ms, f"placed on host {worker.host}"),
        (worker.started_ms, "container started"),
        (worker.ready_ms, f"ready: {ready}"),
        (worker.stopped_ms, f"stopped: {worker.reason}"),
    )
    return [(at_ms, text) for at_ms, text in steps if at_ms is not None]


__all__ = ["Wanted", "after_of", "event", "since_of", "system_lines", "tail_of"]
