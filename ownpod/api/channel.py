"""A client's connection: reads and writes with time limits.

The socket never blocks. Before a request has a thread, the gunicorn worker's poller calls :meth:`Channel.receive`.
Afterwards gunicorn's parser and response call :meth:`Channel.recv` and :meth:`Channel.sendall`, which wait.
"""

import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from werkzeug.exceptions import RequestTimeout, ServiceUnavailable

from ownpod.api.arrival import BODY_BYTES, HEADER_S, LONG_BODY_BYTES, Arrival, Budget, Pace, State

log = logging.getLogger(__name__)

PIECE = 16_384
"""Bytes of one read before a request has a thread."""

TLS_PIECE = 65_536
"""Bytes of one write through TLS. A larger write would report its progress too late for :class:`Pace`."""

RETRY_AFTER_S = 5
"""Seconds in ``Retry-After`` of a request that found no thread for a slow client."""

LOG_S = 1.0
"""Seconds between two log lines about slow clients."""

_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Shares:
    """The share of a process's threads and memory that slow clients may use at the same time.

    Args:
        threads: limit of threads that wait for slow senders, and of those that wait for slow readers. A request
            above the limit is refused, because other clients must always find a thread.
    """

    def __init__(self, threads: int) -> None:
        self.reading = threading.Semaphore(threads)
        self.sending = threading.Semaphore(threads)
        self.buffers = Budget()
        self._logged: dict[str, tuple[float, int]] = {}

    def log(self, reason: str, client: str) -> None:
        """Logs at most one line a second for each reason, with the number of events since the last line."""
        now = time.monotonic()
        logged_s, count = self._logged.get(reason, (-LOG_S, 0))
        if now - logged_s < LOG_S:
            self._logged[reason] = (logged_s, count + 1)
            return
        self._logged[reason] = (now, 0)
        more = f" ({count} more before)" if count else ""
        log.info("%s: connection of %s is closed%s", reason, client, more)


class Channel:
    """One client's socket. Only one thread uses the socket at a time: the poller's, or the request's."""

    def __init__(self, sock: socket.socket, client: str, shares: Shares) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._client = client
        self._shares = shares
        self._accepted_s = time.monotonic()
        self._limit_s: float | None = None
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._handshake = self._tls
        self.waits_for = select.POLLIN
        """The event that the last call needs to continue: POLLIN or POLLOUT."""
        self.arrival = Arrival()
        self._buffered = 0
        self.continued = False
        """Whether ``100 Continue`` was sent already."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._release_buffer()
        self._sock.close()

    @property
    def began_s(self) -> float:
        """Time of the request's first byte, or of the connection if there is no request yet."""
        return self.arrival.began_s or self._accepted_s

    @property
    def due_s(self) -> float | None:
        """Deadline for the next bytes, by ``time.monotonic()``; None for an idle connection."""
        return self._accepted_s + HEADER_S if self._handshake else self.arrival.due_s

    def receive(self) -> State:
        """Reads the bytes that have arrived, without waiting."""
        arrival = self.arrival
        try:
            if self._handshake and not self._shake_hands():
                return State.MORE
            while (state := arrival.state) is State.MORE:
                if (data := self._read(PIECE)) is None:
                    break
                if not data:
                    return State.GONE
                arrival.add(data, time.monotonic())
                self._reserve_buffer()
            if state is State.MORE and arrival.expects and not self.continued:
                self.continued = True
                self._sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        except OSError:
            return State.GONE
        return arrival.state

    def next_request(self, read_ahead: bytes) -> None:
        """Begins the next request; ``read_ahead`` are bytes of the next request that the parser has read."""
        self._release_buffer()
        pipelined = read_ahead + bytes(self.arrival.buffer)
        self.arrival, self.continued, self._limit_s = Arrival(), False, None
        if pipelined:
            self.arrival.add(pipelined, time.monotonic())

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Same as a socket's ``recv``, within the request's time limit. With ``MSG_PEEK`` this does not wait.

        Raises:
            RequestTimeout: the body arrives too slowly.
            ServiceUnavailable: too many threads wait for slow clients already.
            TimeoutError: the time limit of :meth:`settimeout` has passed.
            OSError: the connection broke. BlockingIOError: there are no bytes to peek at.
        """
        if flags & socket.MSG_PEEK:
            return self._peek(size)
        if self.arrival.buffer:
            return self.arrival.take(size)
        data = self._read(size)
        if data is None:
            with self._slot_for_reading():
                while data is None:
                    self._await_body()
                    data = self._read(size)
        if self.arrival.pace is not None:
            self.arrival.pace.earn(len(data), time.monotonic())
        return data

    def sendall(self, data: bytes) -> None:
        """Same as a socket's ``sendall``, with the time limit of :class:`Pace`.

        Raises:
            BrokenPipeError: the client reads too slowly.
            OSError: the connection broke.
        """
        sent = self._send(data)
        if sent < len(data):
            self._send_rest(memoryview(data), sent)

    def send(self, data: bytes) -> int:
        self.sendall(data)
        return len(data)

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001
        """Does nothing, because gunicorn must not make the socket block."""

    def settimeout(self, seconds: float | None) -> None:
        """Sets a time limit in s for all following calls of :meth:`recv` together, besides the request's limit."""
        self._limit_s = None if seconds is None else time.monotonic() + seconds

    def gettimeout(self) -> float | None:
        return None

    def discard(self, limit: int) -> bool:
        """Reads and drops at most ``limit`` bytes, without waiting.

        Returns:
            Whether the client has closed the connection.
        """
        try:
            while limit > 0:
                if (data := self._read(PIECE)) is None:
                    return False
                if not data:
                    return True
                limit -= len(data)
        except OSError:
            return True
        return False

    def send_now(self, data: bytes) -> None:
        """Sends as many bytes as possible without waiting, before the connection is closed."""
        with suppress(OSError):
            self._sock.send(data)

    def _reserve_buffer(self) -> None:
        """Delays the thread until a long body has arrived, if the process has memory for the body."""
        length = self.arrival.length
        if self._buffered or not BODY_BYTES < length <= LONG_BODY_BYTES:
            return
        if self._shares.buffers.take(length):
            self._buffered = length
            self.arrival.await_body(length)

    def _release_buffer(self) -> None:
        if self._buffered:
            self._shares.buffers.release(self._buffered)
            self._buffered = 0

    def _shake_hands(self) -> bool:
        try:
            self._sock.do_handshake()  # type: ignore[attr-defined]
        except _NOT_NOW as error:
            self._set_event(error)
            return False
        self._handshake = False
        return True

    def _set_event(self, error: BaseException) -> None:
        # TLS may have to write before it can read, so the event does not follow from the call.
        writes = isinstance(error, ssl.SSLWantWriteError)
        self.waits_for = select.POLLOUT if writes else select.POLLIN

    def _read(self, size: int) -> bytes | None:
        """Reads without waiting; None if there are no bytes."""
        try:
            return self._sock.recv(size)
        except _NOT_NOW as error:
            self._set_event(error)
            return None

    def _send(self, data: bytes | memoryview) -> int:
        """Sends without waiting. Returns the number of bytes that were sent."""
        try:
            return self._sock.send(data[:TLS_PIECE] if self._tls else data)
        except ssl.SSLWantReadError:
            self.waits_for = select.POLLIN
        except (BlockingIOError, ssl.SSLWantWriteError):
            self.waits_for = select.POLLOUT
        return 0

    def _peek(self, size: int) -> bytes:
        if not self.arrival.buffer:
            data = self._read(PIECE)
            if data is None:
                raise BlockingIOError
            self.arrival.buffer += data
        return bytes(self.arrival.buffer[:size])

    @contextmanager
    def _slot_for_reading(self) -> Iterator[None]:
        if not self._shares.reading.acquire(blocking=False):
            self._shares.log("too many clients send slowly", self._client)
            raise ServiceUnavailable("too many slow clients; try again", retry_after=RETRY_AFTER_S)
        try:
            yield
        finally:
            self._shares.reading.release()

    def _await_body(self) -> None:
        now = time.monotonic()
        due_s = self.due_s or now
        until = due_s if self._limit_s is None else min(due_s, self._limit_s)
        if until > now and self._wait(until - now):
            return
        if self._limit_s is not None:
            raise TimeoutError
        self._shares.log("a body arrives too slowly", self._client)
        raise RequestTimeout("the body arrived too slowly")

    def _send_rest(self, data: memoryview, sent: int) -> None:
        pace = Pace(time.monotonic())
        slot = False
        try:
            while sent < len(data):
                if taken := self._send(data[sent:]):
                    sent += taken
                    pace.earn(taken, time.monotonic())
                    continue
                if not slot and not (slot := self._shares.sending.acquire(blocking=False)):
                    raise self._closed("too many clients read slowly")
                left_s = pace.due_s - time.monotonic()
                if left_s <= 0 or not self._wait(left_s):
                    raise self._closed("a client reads its response too slowly")
        finally:
            if slot:
                self._shares.sending.release()

    def _closed(self, reason: str) -> BrokenPipeError:
        self._shares.log(reason, self._client)
        # gunicorn handles this error as a client that has disconnected, without a traceback in the log.
        return BrokenPipeError(errno.EPIPE, reason)

    def _wait(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._sock.fileno(), self.waits_for)
        return bool(poller.poll(seconds * 1000))
