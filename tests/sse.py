"""A strict parser of event streams, after the HTML standard: what is not exactly allowed fails the test."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

FIELD = re.compile(r"(id|event|data|retry): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Sent:
    """An event as it was sent. ``data``: its JSON, parsed."""

    id: str
    event: str
    data: Any


class Parser:
    """Reads a stream in pieces of any size.

    Attributes:
        retry_ms: what the stream asked for; None: nothing.
        comments: its comments, without the colon.
        last_id: the id of the last event, which a client resumes with.
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.comments: list[str] = []
        self.last_id = ""
        self._rest = ""
        self._begun = False
        self._tail = b""

    def feed(self, piece: bytes) -> list[Sent]:
        """The events that this piece completes."""
        data = self._tail + piece
        # A character may be divided.
        for cut in range(4):
            try:
                text = data[: len(data) - cut].decode()
            except UnicodeDecodeError:
                continue
            self._tail = data[len(data) - cut :]
            break
        else:
            raise AssertionError(f"no UTF-8: {data[-20:]!r}")
        self._rest += text
        assert "\r" not in self._rest, "OwnPod's lines end in \\n"
        *blocks, self._rest = self._rest.split("\n\n")
        return [sent for block in blocks if (sent := self._block(block)) is not None]

    def close(self) -> None:
        """The end of the stream. Fails if it is within an event."""
        assert not self._rest, f"cut off: {self._rest!r}"
        assert not self._tail

    def _block(self, block: str) -> Sent | None:
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            if line.startswith(":"):
                self.comments.append(line[1:].strip())
                continue
            match = FIELD.fullmatch(line)
            assert match, f"no field: {line!r}"
            fields.setdefault(match[1], []).append(match[2])
        if not self._begun:
            assert fields.keys() == {"retry"}, f"the first bytes are not retry: {block!r}"
            self._begun = True
        if "retry" in fields:
            (text,) = fields.pop("retry")
            assert text.isdecimal()
            self.retry_ms = int(text)
        if not fields:
            return None
        assert fields.keys() == {"id", "event", "data"}, f"an event needs all fields: {block!r}"
        (event_id,), (event,) = fields["id"], fields["event"]
        assert event_id
        assert "\0" not in event_id
        self.last_id = event_id
        return Sent(event_id, event, json.loads("\n".join(fields["data"])))


def parsed(pieces: Iterable[bytes], *, ended: bool = True) -> Iterator[Sent]:
    """The events of a stream. ``ended``: it must not break off within an event."""
    parser = Parser()
    for piece in pieces:
        yield from parser.feed(piece)
    if ended:
        parser.close()


def stream_of(body: bytes) -> list[Sent]:
    """The events of a whole stream, whose last one must be ``task_finish``."""
    events = list(parsed([body]))
    finished = [sent for sent in events if sent.event == "task_finish"]
    assert len(finished) == 1, f"{len(finished)} times task_finish"
    assert events[-1] is finished[0], "task_finish is not the last event"
    assert events[0].event == "connection" or events[0].data.get("status") == "restarted"
    return events
