"""Progress of an incoming request, and its time limits. Pure: the time is an argument.

A request gets a thread when its header and the first 64 KiB of its body have arrived. Until then the request
costs a buffer only, so slow clients take no threads from other clients.
"""

import re
import threading
from enum import Enum, auto

HEADER_BYTES = 65_536
"""Largest size in bytes of a request line and its header together; a larger one gets 431. gunicorn limits each line."""

BODY_BYTES = 65_536
"""Bytes of a body that must arrive before the request gets a thread. The thread reads the rest."""

LONG_BODY_BYTES = 4 * 1024 * 1024
"""Size in bytes of the longest body that is buffered whole, while :class:`Budget` has room for the body."""

BUFFERED_BYTES = 128 * 1024 * 1024
"""Bytes of memory that one process uses for bodies longer than :data:`BODY_BYTES`."""

HEADER_S = 10.0
"""Time limit in seconds for a header, from its first byte on."""

CREDIT_S = 30.0
BYTES_PER_S = 16_384
"""Slowest allowed rate of a body or a response, in bytes a second, averaged over :data:`CREDIT_S` seconds.

Each transfer starts with a credit of 30 s. Every 16 KiB add a second, up to 30 s in total. So 20 MB at 100 KB/s
pass, a pause of half a minute passes, and a transfer of one byte a second ends after 30 s.
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
    """Deadline by which a client must send or read more, see :data:`BYTES_PER_S`; in s of any monotonic clock."""

    __slots__ = ("due_s",)

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + CREDIT_S

    def earn(self, count: int, now_s: float) -> None:
        """Adds credit for bytes that were transferred."""
        self.due_s = min(now_s + CREDIT_S, self.due_s + count / BYTES_PER_S)


class Budget:
    """Memory in bytes that all connections of a process share. Thread-safe."""

    def __init__(self, limit: int = BUFFERED_BYTES) -> None:
        self._available = limit
        # The poller's thread takes bytes, and the threads of requests release them.
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Takes bytes from the budget; False if fewer are left."""
        with self._lock:
            if count > self._available:
                return False
            self._available -= count
            return True

    def release(self, count: int) -> None:
        """Returns bytes that :meth:`take` has taken."""
        with self._lock:
            self._available += count


class State(Enum):
    """Progress of a request."""

    MORE = auto()
    """Bytes are missing."""
    READY = auto()
    """A thread can answer the request."""
    TOO_LARGE = auto()
    """The header is larger than :data:`HEADER_BYTES`."""
    GONE = auto()
    """The client has closed the connection."""


class Arrival:
    """The bytes of one request. The header's values are hints here, because gunicorn's parser decides on them later."""

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
        """Time of the first byte, on the clock of :meth:`add`."""
        self.pace: Pace | None = None
        """The time limit of the body; None until the header is complete."""
        self.length = 0
        """Bytes of the body according to the header; 0 for no body, or for a chunked one."""
        self.expects = False
        """The client waits for ``100 Continue`` before it sends the body."""
        self._header = 0
        self._wanted = 0
        self._chunked = False
        self._ended = False

    def add(self, data: bytes, now_s: float) -> None:
        """Adds bytes that were received at ``now_s``, in seconds of any monotonic clock."""
        if self.began_s is None:
            self.began_s = now_s
        searched = len(self.buffer)
        self.buffer += data
        if self.pace is not None:
            self.pace.earn(len(data), now_s)
            self._find_last_chunk(searched)
            return
        # The empty line may be split over two reads, so the search begins 3 bytes before the new ones.
        end = self.buffer.find(_EMPTY_LINE, max(0, searched - 3))
        if end < 0:
            # gunicorn's parser refuses a header with a bare LF, so waiting for the rest is useless.
            self._ended = _BARE_LF.search(self.buffer, searched) is not None
        else:
            self._read_header(end + 4, now_s)

    def _read_header(self, end: int, now_s: float) -> None:
        self.pace = Pace(now_s)
        self._header = end
        header = bytes(self.buffer[:end])
        self._chunked = _CHUNKED.search(header) is not None
        length = _LENGTH.search(header)
        self.length = int(length[1]) if length else 0
        # A request with both headers is ready, because gunicorn's parser refuses the request at once.
        self._ended = self._chunked and length is not None
        self.await_body(BODY_BYTES)
        if self._chunked or self.length:
            line = header.find(b"\r\n")
            self.expects = header[:line].endswith(b"HTTP/1.1") and bool(_EXPECTS.search(header))
            # If the last chunk is the first one, the CRLF before the chunk belongs to the header.
            self._find_last_chunk(end)

    def await_body(self, count: int) -> None:
        """Makes the request ready after ``count`` bytes of its body, or after the whole body if that is shorter."""
        self._wanted = self._header + (count if self._chunked else min(self.length, count))

    def _find_last_chunk(self, searched: int) -> None:
        """Searches each part between two empty lines once. The poller's thread does this for all connections, and
        a hostile body can resemble last chunks throughout, so a repeated search would block the process.
        """
        if not self._chunked or self._ended:
            return
        end = self.buffer.find(_EMPTY_LINE, max(self._header - 2, searched - 3))
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
        """Deadline for the next bytes, on the clock of :meth:`add`; None before the first byte."""
        if self.pace is not None:
            return self.pace.due_s
        return None if self.began_s is None else self.began_s + HEADER_S

    @property
    def is_result(self) -> bool:
        """Whether this is a worker's result. RunPod's SDK drops a result after a 4xx, and posts the result again
        after a 5xx.
        """
        return _RESULT.match(self.buffer) is not None

    def take(self, size: int) -> bytes:
        """Removes at most ``size`` bytes from the buffer, for the parser."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data
