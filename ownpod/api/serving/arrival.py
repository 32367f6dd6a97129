"""How much of a request has arrived, and the time limit for the rest. Pure: time is an argument.

A request gets a thread when its header and the first 64 KiB of its body have arrived. Until then it only occupies a
buffer, so that slow clients cannot occupy all threads.
"""

import hashlib
import re
import threading
from enum import Enum, auto

HEADER_BYTES = 65_536
"""Maximum bytes of a request line and its header together; a larger header is answered 431. gunicorn limits each
line only."""

BODY_BYTES = 65_536
"""Bytes of a body that must arrive before the request gets a thread, which reads the rest."""

LONG_BODY_BYTES = 4 * 1024 * 1024
"""Maximum bytes of a body that is awaited as a whole, while the process has memory for it; see :class:`Budget`."""

BUFFERED_BYTES = 128 * 1024 * 1024
"""Maximum bytes of such longer bodies in one process."""

HEADER_S = 10.0
"""Time limit in seconds for a header, from its first byte on."""

CREDIT_S = 30.0
BYTES_PER_S = 16_384
"""The time limit for bodies and responses: each starts with a credit of 30 s, each 16 KiB earn a second, and the
credit is never above 30 s. 20 MB at 100 KB/s pass, as does a pause of half a minute; a client that sends one byte a
second is ended after 30 s.
"""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)
_LAST_CHUNK = re.compile(rb"\r\n0+(?:;[^\r\n]*)?\r\n")
_EMPTY_LINE = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_RESULT = re.compile(rb"POST /v2/[^/\r\n]+/job-(?:done|stream)/")
_STREAMED = re.compile(rb"POST /v2/[^/\r\n ]+/job-stream/[^\r\n ]+ HTTP/1\.1\r\n")
_TRAILER_BYTES = 8_192


class Pace:
    """The instant by which a client must have sent or read more; see :data:`BYTES_PER_S`."""

    __slots__ = ("due_s",)

    def __init__(self, now_s: float) -> None:
        self.due_s = now_s + CREDIT_S

    def earn(self, count: int, now_s: float) -> None:
        """Adds credit for bytes that were transferred."""
        self.due_s = min(now_s + CREDIT_S, self.due_s + count / BYTES_PER_S)


class Budget:
    """A number of bytes that requests reserve and release. Threads share it."""

    def __init__(self, limit: int = BUFFERED_BYTES) -> None:
        self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Reserves bytes; False, and no change, if fewer are left."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def release(self, count: int) -> None:
        """Releases bytes that :meth:`take` has reserved."""
        with self._lock:
            self._left += count


class State(Enum):
    """How far a request has arrived."""

    MORE = auto()
    """It is incomplete."""
    READY = auto()
    """A thread can process it."""
    TOO_LARGE = auto()
    """Its header is larger than :data:`HEADER_BYTES`."""
    GONE = auto()
    """The client has closed the connection."""


class Arrival:
    """The bytes of one request. Its header is only searched here; gunicorn's parser decides what the request is."""

    __slots__ = (
        "_chunked",
        "_ended",
        "_header",
        "_wanted",
        "began_s",
        "buffer",
        "expects",
        "header_digest",
        "length",
        "pace",
        "token",
    )

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.began_s: float | None = None
        """When the first byte arrived, in seconds on the clock of :meth:`add`; None before."""
        self.pace: Pace | None = None
        """The time limit of the body; None until the header is complete."""
        self.length = 0
        """Bytes of the body according to the header; 0: no body, or a chunked one."""
        self.expects = False
        """Whether the client waits for ``100 Continue`` before it sends the body."""
        self.header_digest: bytes | None = None
        """A digest of the header without the body's length, of a chunk that a worker posts and whose whole body arrives before it is
        READY; None: of any other request. Whether the header is valid is not checked. See :mod:`ownpod.api.serving.lane`.
        """
        self.token: str | None = None
        """The token with which the chunk may have been added already; see :meth:`ownpod.store.chunks.Chunks.add`."""
        self._header = 0
        self._wanted = 0
        self._chunked = False
        self._ended = False

    def add(self, data: bytes, now_s: float) -> None:
        """Adds bytes that were received at ``now_s``, in seconds on any monotonic clock."""
        if self.began_s is None:
            self.began_s = now_s
        searched = len(self.buffer)
        self.buffer += data
        if self.pace is not None:
            self.pace.earn(len(data), now_s)
            self._find_last_chunk(searched)
            return
        # Three bytes back, because the empty line may be split between two packets.
        end = self.buffer.find(b"\r\n\r\n", max(0, searched - 3))
        if end < 0:
            # A header with a bare LF would never be complete here; the parser answers it 400 at once.
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
        # A request with both headers is ready, because the parser refuses it without the body.
        self._ended = self._chunked and length is not None
        self.await_body(BODY_BYTES)
        if self._chunked or self.length:
            line = header.find(b"\r\n")
            self.expects = header[:line].endswith(b"HTTP/1.1") and bool(_EXPECTS.search(header))
            self._find_last_chunk(end)
        plain = not (self._chunked or self.expects)
        if length and plain and 0 < self.length <= BODY_BYTES and _STREAMED.match(header):
            rest = header[: length.start(1)] + header[length.end(1) :]
            self.header_digest = hashlib.sha256(rest).digest()

    def await_body(self, count: int) -> None:
        """Makes the request ready once ``count`` bytes of its body have arrived, or the whole body."""
        self._wanted = self._header + (count if self._chunked else min(self.length, count))

    def _find_last_chunk(self, searched: int) -> None:
        """Finds the end of a chunked body. Each part between two empty lines is searched once only, because the main
        thread searches, and each part of a hostile body may look like a last chunk.
        """
        if not self._chunked or self._ended:
            return
        # The pattern begins with the end of a line. For the first chunk that is the end of the header, two bytes
        # before the body.
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
        """When more must have arrived, in seconds on the clock of :meth:`add`; None before the first byte."""
        if self.pace is not None:
            return self.pace.due_s
        return None if self.began_s is None else self.began_s + HEADER_S

    @property
    def is_result(self) -> bool:
        """Whether this is a worker's result, which must be answered 5xx instead of 4xx: RunPod's SDK drops a result
        after a 4xx, and posts it again after a 5xx.
        """
        return _RESULT.match(self.buffer) is not None

    @property
    def body(self) -> bytes:
        """The body of a request that has a :attr:`header_digest` and is READY."""
        return bytes(self.buffer[self._header : self._header + self.length])

    def drop(self) -> None:
        """Removes that request from the buffer."""
        del self.buffer[: self._header + self.length]

    def take(self, size: int) -> bytes:
        """Removes the next bytes from the buffer, for the parser."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data
