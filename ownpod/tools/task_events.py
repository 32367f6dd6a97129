"""A task's events for the commands: the stream is read by the HTML standard, and continued where the connection broke."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ownpod.rules.backoff import backoff_s
from ownpod.tools.client import ApiError, ApiRefused, Client

GIVE_UP_S = 120.0
"""Seconds without an event over broken connections, after which a command ends. The task goes on."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Seconds between two connections."""

FINISH = "task_finish"
"""The event that ends a task. A stream that ends without it has broken off."""


@dataclass(frozen=True)
class TaskEvent:
    """An event as the API sent it."""

    id: str
    event: str
    data: dict[str, Any]


def events_of(pieces: Iterable[bytes]) -> Iterator[TaskEvent]:
    """The events in the bytes of a stream, each as soon as it is complete. One that is cut off at the end is dropped.

    Raises:
        ApiError: an event's data is not a JSON object.
    """
    rest, last_id, event, data = b"", "", "", list[str]()
    for piece in pieces:
        # The standard also allows \r alone, which OwnPod never sends.
        *lines, rest = (rest + piece).split(b"\n")
        for raw in lines:
            line = raw.decode("utf-8", "replace").removesuffix("\r")
            if not line:
                if data:
                    yield TaskEvent(last_id, event or "message", _object("\n".join(data)))
                event, data = "", []
                continue
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "id" and "\0" not in value:
                last_id = value
            elif name == "event":
                event = value
            elif name == "data":
                data.append(value)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ApiError(f"an event whose data is no JSON object: {text[:100]!r}")
    return found


def follow(
    client: Client,
    task_id: str,
    *,
    give_up_s: float = GIVE_UP_S,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[TaskEvent]:
    """Yields a task's events up to ``task_finish``, none twice, also over broken connections and restarts of the API.

    Raises:
        ApiRefused: the API refuses to show the task.
        ApiError: no event came for ``give_up_s`` over broken connections.
    """
    last_id, since, breaks = "", time.monotonic(), 0
    while True:
        problem = "the connection broke off"
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        try:
            path = f"/api/tasks/{task_id}/events"
            with client.opened("GET", path, headers=headers, stream=True) as response:
                for found in events_of(response.iter_content(None)):
                    last_id, since, breaks = found.id, time.monotonic(), 0
                    yield found
                    if found.event == FINISH:
                        return
        except ApiRefused as refused:
            if refused.status != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            problem = str(refused)
        except ApiError as error:
            problem = str(error)
        if time.monotonic() - since > give_up_s:
            raise ApiError(f"no event of task {task_id} for {give_up_s:g} s: {problem}")
        breaks += 1
        pause(backoff_s(breaks, FIRST_PAUSE_S, LONGEST_PAUSE_S))
