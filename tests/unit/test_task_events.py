"""How the commands read a stream of events, and what of it people see."""

import pytest

from ownpod.tools.client import ApiError
from ownpod.tools.sessions import in_words
from ownpod.tools.task_events import TaskEvent, events_of

STREAM = (
    'retry: 2000\n\nid: 0-0.0c\nevent: connection\ndata: {"status": "queued"}\n\n: keep-alive\n\n'
    'id: 1-1.1\nevent: text_delta\ndata: {"delta":\ndata: "né\\n"}\n\nid: 1-end\nevent: task_finish\ndata:{"status": "completed"}\n\n'
).encode()
EVENTS = [
    TaskEvent("0-0.0c", "connection", {"status": "queued"}),
    TaskEvent("1-1.1", "text_delta", {"delta": "né\n"}),
    TaskEvent("1-end", "task_finish", {"status": "completed"}),
]


def test_events_are_the_same_however_the_stream_is_divided():
    for size in range(1, len(STREAM) + 1):
        pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
        assert list(events_of(pieces)) == EVENTS
    assert list(events_of([STREAM.replace(b"\n", b"\r\n")])) == EVENTS


def test_an_event_that_is_cut_off_is_dropped():
    for cut in range(len(STREAM)):
        found = list(events_of([STREAM[:cut]]))
        assert found == EVENTS[: len(found)]
    assert len(list(events_of([STREAM[:-1]]))) == 2


@pytest.mark.parametrize("data", ["no JSON", "[1]", "null"])
def test_data_that_is_no_object_is_an_error_in_one_line(data):
    with pytest.raises(ApiError, match="no JSON object"):
        list(events_of([f"data: {data}\n\n".encode()]))


@pytest.mark.parametrize(
    ("event", "data", "words"),
    [
        ("connection", {"status": "queued", "position": 2, "reason": "busy"}, "queued position 2 busy"),
        ("connection", {"status": "queued", "position": 2, "estimated_wait_seconds": 30, "reason": "busy"}, "queued position 2 for about 30 s, busy"),
        ("connection", {"status": "session_ready", "gpu_name": "RTX", "host": "h"}, "session_ready on RTX of h"),
        ("worker", {"status": "fetching", "progress": {"done": 1, "total": 4}}, "fetching 25 %"),
        ("worker", {"status": "working", "progress": "half"}, 'working "half"'),
        ("worker", {"status": "ready", "load_seconds": 3.0}, "ready loaded in 3.0 s"),
        ("logs", {"log": "\x1b[2Jred", "level": "error"}, "error ?[2Jred"),
        ("task_finish", {"status": "failed", "execution_ms": 1500, "error": "no"}, "failed after 1.50 s no"),
    ],
)  # fmt: skip
def test_events_are_one_line_for_people_without_control_characters(event, data, words):
    assert in_words(TaskEvent("1-0.1", event, data)) == f"{event}: {words}"
