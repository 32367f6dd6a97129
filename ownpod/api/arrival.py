"""How much of a request has arrived, and how long the rest may take. Pure: time comes in as an argument.

A request gets a thread when its header and the first 64 KiB of its body have arrived. Until then it costs
a buffer only, so slow clients keep no thread from others.
"""

import re
import threading
from enum import Enum, auto

HEADER_BYTES = 65_536
"""Bytes of a request line and its header together; more are answered 431. gunicorn bounds each line."""

BODY_BYTES = 65_536
"""Bytes of a body that are awaited at least before the request gets a thread, which reads the rest."""

LONG_BODY_BYTES = 4 * 1024 * 1024
"""The same, while the process has memory for it, see :class:`Budget`."""

BUFFERED_BYTES = 128 * 1024 * 1024
"""Bytes of such longer bodies in one process."""

HEADER_S = 10.0
"""Seconds for a header, from its first byte on."""

CREDIT_S = 30.0
BYTES_PER_S = 16_384
"""The rule for bodies and answers: each starts with a credit of 30 s, every 16 KiB earn a second, and the
credit is never above 30 s. So 20 MB at 100 KB/s pass, and so does a pause of half a minute; a byte a second
ends after 30 s.
"""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
_LAST_CHUNK = re.compile(rb"\r\n0+(?:;[^\r\n]*)?\r\n")
_EMPTY_LINE = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_RESULT = re.compile(rb"POST /v2/[^/\r\n]+/job-(?:done|stream)/")
_TRAILER_BYTES = 8_192


class Pace:
    """When a client must have sent, or read, more; see :data:`BYTES_PER_S`."""

    __slots__ = ("due_s",)

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + CREDIT_S

    def earn(self, count: int, now_s: float) -> None:
        """Adds credit for bytes that were transferred."""
        self.due_s = min(now_s + CREDIT_S, self.due_s + count / BYTES_PER_S)


class Budget:
    """Bytes that may be used at the same time. Threads share it."""

    def __init__(self, most: int = BUFFERED_BYTES) -> None:
        self._left = most
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Takes bytes from the budget; False if fewer are left."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self._left += count


class State(Enum):
    """How far a request has arrived."""

    MORE = auto()
    """More bytes of it must come."""
    READY = auto()
    """A thread can answer it."""
    TOO_LARGE = auto()
    """Its header is larger than :data:`HEADER_BYTES`."""
    GONE = auto()
    """The client has closed the connection."""


class Arrival:
    """One request's bytes. What the header states is a hint only: gunicorn's parser decides."""

    __slots__ = (
        "_chunked",
        "_ended",
        "_header",
        "_wanted",
        "began_s",
        "buffer",
        "expects",
        "length",
        "pace",
    )

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.began_s: float | None = None
        """When the first byte came, on the clock of :meth:`add`."""
        self.pace: Pace | None = None
        """The time limit of the body; None until the header is complete."""
        self.length = 0
        """Bytes of the body according to the header; 0: no body, or chunks."""
        self.expects = False
        """The client waits for ``100 Continue`` before it sends the body."""
        self._header = 0
        self._wanted = 0
        self._chunked = False
        self._ended = False

    def add(self, data: bytes, now_s: float) -> None:
        """Takes bytes that were received at ``now_s``, in seconds of any monotonic clock."""
        if self.began_s is None:
            self.began_s = now_s
        looked = len(self.buffer)
        self.buffer += data
        if self.pace is not None:
            self.pace.earn(len(data), now_s)
            self._look_for_last_chunk(looked)
            return
        end = self.buffer.find(b"\r\n\r\n", max(0, looked - 3))
        if end < 0:
            # The parser refuses such a header at once.
            self._ended = _BARE_LF.search(self.buffer, looked) is not None
        else:
            self._read_header(end + 4, now_s)

    def _read_header(self, end: int, now_s: float) -> None:
        self.pace = Pace(now_s)
        self._header = end
        header = bytes(self.buffer[:end])
        self._chunked = _CHUNKED.search(header) is not None
        length = _LENGTH.search(header)
        self.length = int(length[1]) if length else 0
        # A request with both is ready, because the parser refuses it at once.
        self._ended = self._chunked and length is not None
        self.await_body(BODY_BYTES)
        if self._chunked or self.length:
            line = header.find(b"\r\n")
            self.expects = header[:line].endswith(b"HTTP/1.1") and bool(_EXPECTS.search(header))
            # The pattern begins with a line's end: the header's, where the last chunk is the first.
            self._look_for_last_chunk(end)

    def await_body(self, most: int) -> None:
        """The request is ready when so many bytes of its body have come, or all."""
        self._wanted = self._header + (most if self._chunked else min(self.length, most))

    def _look_for_last_chunk(self, looked: int) -> None:
        """Reads each part between two empty lines once: the poller's thread does this, and a body may
        look like last chunks throughout.
        """
        if not self._chunked or self._ended:
            return
        end = self.buffer.find(_EMPTY_LINE, max(self._header - 2, looked - 3))
        while end >= 0 and not self._ended:
            start = max(self._header - 2, end - _TRAILER_BYTES)
            before = self.buffer.rfind(_EMPTY_LINE, start, end + 3)
            start = max(start, before + 2)
            self._ended = _LAST_CHUNK.search(self.buffer, start, end + 2) is not None
            end = self.buffer.find(_EMPTY_LINE, end + 1)

    @property
    def state(self) -> State:
        if self._ended or (self.pace is not None and len(self.buffer) >= self._wanted):
            return State.READY
        if self.pace is None and len(self.buffer) > HEADER_BYTES:
            return State.TOO_LARGE
        return State.MORE

    @property
    def due_s(self) -> float | None:
        """When more must have come, on the clock of :meth:`add`; None while nothing has come."""
        if self.pace is not None:
            return self.pace.due_s
        return None if self.began_s is None else self.began_s + HEADER_S

    @property
    def is_result(self) -> bool:
        """Whether this is a worker's result: RunPod's SDK drops one that is answered 4xx, and posts it
        again after a 5xx.
        """
        return _RESULT.match(self.buffer) is not None

    def take(self, size: int) -> bytes:
        """The next bytes of the buffer, for the parser."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data
