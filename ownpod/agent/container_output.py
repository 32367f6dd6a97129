"""The output of a container, read through the Docker engine without loss and without repetition.

Each message of the engine has a time and is of one of two streams. Within a stream the times do not go back, so the
time of a stream's last message, with the number of messages at this time, is a place in its output. The end of the
engine's answer shows nothing: the container is inspected, and read again from that place on while it runs.
"""

import calendar
import logging
import re
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ownpod.agent.container_states import runs
from ownpod.agent.docker_api import DockerApi, NotThere, Stream
from ownpod.agent.engine import EngineError, Output

logger = logging.getLogger(__name__)

PART_BYTES, PIECE_BYTES = 1_000_000, 65_536
"""Number of bytes from which on a part of an output is returned, and of a part of a one-off task's whole output, which goes to Redis."""

STDERR = 2
"""The engine's number of the stream of standard error."""

WAITING = 64
"""Number of parts that wait for the reader."""

MOST_MESSAGES, MOST_BYTES = 20_000, 4_000_000
"""Messages and bytes of an output that are read within a second. Of a container that writes more, only the last
:data:`TAIL` messages are read in the next second, because each message costs time."""

TAIL = 1000

PAUSE_S = 0.2
"""Seconds until the next read of an output whose end came although the container runs."""

BACK_NS = 10 * 10**9
"""How far the engine is asked for messages before the last known one, because the two streams are written independently."""

_TIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_POSITION = re.compile(r"(\d{1,20})#(\d{1,9})")
_HEAD = struct.Struct(">BxxxL")


@dataclass
class Position:
    """A place in an output: by stream the time in ns since the epoch of its last message, and the number of messages at it."""

    last: dict[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> "Position":
        """The position in a text; one that cannot be read is the beginning."""
        found = [_POSITION.fullmatch(part) for part in text.split(",")]
        return cls({n: (int(f[1]), int(f[2])) for n, f in enumerate(found, 1) if f})

    def __str__(self) -> str:
        parts = (self.last.get(stream, (0, 0)) for stream in (1, 2))
        return ",".join(f"{time_ns}#{count}" for time_ns, count in parts)

    @property
    def since_s(self) -> str | None:
        """The time from which on the engine is asked for messages, in s; None: from the beginning."""
        latest = max((time_ns for time_ns, _ in self.last.values()), default=0) - BACK_NS
        return f"{latest // 10**9}.{latest % 10**9:09}" if latest > 0 else None


def times_ns(cache: dict[bytes, int], message: bytes) -> tuple[int, bytes] | None:
    """The time in front of a message, in ns since the epoch, and the message; None: it has none. ``cache``: by second."""
    found = _TIME.match(message)
    if found is None:
        return None
    *date, fraction, zone = found.groups()
    second = b"".join((*date, zone))
    if second not in cache:
        cache.clear()
        shift_s = 0
        if zone != b"Z":
            shift_s = (int(zone[1:3]) * 60 + int(zone[4:])) * (-60 if zone[:1] == b"-" else 60)
        cache[second] = calendar.timegm(tuple(map(int, date))) - shift_s
    return cache[second] * 10**9 + int((fraction or b"0").ljust(9, b"0")), message[found.end() :]


class Messages:
    """Takes the messages after a position out of the engine's answers."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self.count = 0
        """Number of messages of this answer."""
        self.overlaps = False
        """A message of this answer was known, so that none is missing between the two answers."""
        self._rest = b""
        self._cache: dict[bytes, int] = {}
        self._seen: dict[int, int] = {}

    def begin(self) -> None:
        """Another answer begins."""
        self._rest, self._seen, self.count, self.overlaps = b"", {}, 0, False
        self._known = dict(self.position.last)

    def feed(self, data: bytes) -> bytes:
        """What is new in a part of an answer."""
        return b"".join(text for _, text in self.each(data))

    def each(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """The new messages in a part of an answer, each with the number of its stream. The position is behind it then."""
        data, at = self._rest + data, 0
        self._rest = b""
        while len(data) - at >= _HEAD.size:
            stream, size = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + size
            if end > len(data):
                break
            text = self._message(stream, data[at + _HEAD.size : end])
            at = end
            self.count += 1
            if text:
                yield stream, text
        self._rest = data[at:]

    def _message(self, stream: int, message: bytes) -> bytes:
        found = times_ns(self._cache, message)
        if found is None:
            return message
        time_ns, text = found
        known_ns, known_count = self._known.get(stream, (0, 0))
        if time_ns < known_ns:
            return b""
        if time_ns == known_ns and self._seen.get(stream, 0) < known_count:
            self._seen[stream] = self._seen.get(stream, 0) + 1
            self.overlaps = True
            return b""
        last_ns, count = self.position.last.get(stream, (0, 0))
        self.position.last[stream] = (time_ns, count + 1 if last_ns == time_ns else 1)
        return text


class ContainerSource:
    """The output of one container. Implements :class:`ownpod.agent.engine.Source`.

    Args:
        api: the engine.
        inspect: the container; None: there is none any more.
        position: where to begin.
        whole: see :meth:`ownpod.agent.engine.Engine.follow`.
    """

    def __init__(
        self,
        api: DockerApi,
        inspect: Callable[[], Mapping[str, Any] | None],
        position: str,
        *,
        whole: bool = False,
    ) -> None:
        self._api = api
        self._whole = whole
        self._most_bytes = PIECE_BYTES if whole else PART_BYTES
        self._inspect = inspect
        self._messages = Messages(Position.read(position))
        self._position = position
        self._changed = threading.Condition()
        self._parts: deque[Output] = deque()
        self._failed: EngineError | None = None
        self._done = self._woken = self._closed = False
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name="container-output", daemon=True)
        self._thread.start()

    def read(self, timeout_s: float) -> Output | None:
        with self._changed:
            self._changed.wait_for(self._has_news, timeout_s)
            self._woken = False
            data, size, skipped, is_error = list[bytes](), 0, 0, False
            # All parts that have come, because most have one line.
            while self._parts and size < self._most_bytes:
                part = self._parts[0]
                if data and (part.skipped or part.is_error is not is_error):
                    break
                self._parts.popleft()
                is_error = part.is_error
                data.append(part.data)
                size += len(part.data)
                skipped = skipped or part.skipped
                self._position = part.position
            self._changed.notify_all()
            if not data and self._failed is not None:
                raise self._failed
            if not data and self._done:
                return None
        return Output(b"".join(data), self._position, skipped, is_error)

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            stream = self._stream
        if stream is not None:
            stream.close()

    def _has_news(self) -> bool:
        return bool(self._parts or self._failed or self._done or self._woken)

    def _run(self) -> None:
        try:
            self._read_all()
        except NotThere:
            self._end(None)
        except EngineError as error:
            self._end(error)
        except Exception as error:
            logger.exception("the output of a container is not read any more")
            self._end(EngineError(f"its output cannot be read: {type(error).__name__}"))
        else:
            self._end(None)

    def _end(self, error: EngineError | None) -> None:
        with self._changed:
            self._failed, self._done = error, True
            self._changed.notify_all()

    def _read_all(self) -> None:
        """Reads until the container has ended. Raises: EngineError."""
        tail = None
        while not self._closed:
            # Before its output is read, because it may write between the two.
            found = self._inspect()
            if found is None:
                return
            going = runs(found["State"])
            too_much = self._read_answer(found["Id"], follow=going, tail=tail)
            if not going and not too_much:
                return
            tail = TAIL if too_much else None
            with self._changed:
                self._changed.wait_for(lambda: self._closed, 1.0 if too_much else PAUSE_S)

    def _read_answer(self, container_id: str, *, follow: bool, tail: int | None) -> bool:
        """Reads one answer of the engine. Returns whether it was left because the container writes too much."""
        messages = self._messages
        messages.begin()
        stream = self._api.logs(
            container_id, follow=follow, since_s=messages.position.since_s, tail=tail
        )
        with self._changed:
            self._stream = stream
            if self._closed:
                stream.close()
        began, size, before, gap = time.monotonic(), 0, 0, tail is not None
        try:
            for data in stream.parts():
                if self._whole:
                    self._put_each(data)
                    new = b""
                else:
                    new = messages.feed(data)
                if new:
                    self._put(
                        Output(
                            new, str(messages.position), -1 if gap and not messages.overlaps else 0
                        )
                    )
                    gap = False
                size += len(new)
                if time.monotonic() - began >= 1.0:
                    began, size, before = time.monotonic(), 0, messages.count
                elif not self._whole and (
                    size > MOST_BYTES or messages.count - before > MOST_MESSAGES
                ):
                    return True
                if self._closed:
                    break
        finally:
            stream.close()
        return False

    def _put_each(self, data: bytes) -> None:
        """Puts what is new in a part of an answer, with a position of its own behind each change of the stream."""
        texts, of, position = list[bytes](), 0, ""
        for stream, text in self._messages.each(data):
            if texts and stream != of:
                self._put(Output(b"".join(texts), position, is_error=of == STDERR))
                texts = []
            texts.append(text)
            of, position = stream, str(self._messages.position)
        if texts:
            self._put(Output(b"".join(texts), position, is_error=of == STDERR))

    def _put(self, part: Output) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._parts) < WAITING or self._closed)
            self._parts.append(part)
            self._changed.notify_all()
