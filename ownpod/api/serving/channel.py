"""A client's connection, with time limits for reading and writing.

The socket never blocks. Before a request has a thread, the worker's poller calls :meth:`Channel.receive`. Afterwards
gunicorn's parser and response call :meth:`Channel.recv` and :meth:`Channel.sendall`, which wait within the limits.
"""

import errno
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from werkzeug.exceptions import RequestTimeout, ServiceUnavailable

from ownpod.api.serving.arrival import (
    BODY_BYTES,
    HEADER_S,
    LONG_BODY_BYTES,
    Arrival,
    Budget,
    Pace,
    State,
)

log = logging.getLogger(__name__)

PIECE = 16_384
"""Bytes of one read before a request has a thread."""

TLS_PIECE = 65_536
"""Maximum bytes of one write through TLS. OpenSSL reports progress only after the whole write, so that a larger one
could exceed the time limit of a slow client that does read."""

RETRY_AFTER_S = 5
"""Seconds in ``Retry-After`` of requests that are refused because too many clients are slow."""

LOG_S = 1.0
"""Minimum seconds between two log lines about slow clients with the same reason."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Shares:
    """The shares of a process that slow clients may occupy together: threads and buffers.

    Args:
        threads: maximum number of threads that wait for slow clients while reading, and the same number while
            sending. A request that needs one more is refused, so that other requests always get a thread.
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
    """One client's socket. One thread at a time uses it: the poller's, that of its request, or the lane's."""

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
        """The event for which the next read or write must wait: POLLIN or POLLOUT. TLS may need the opposite one."""
        self.arrival = Arrival()
        self._buffered = 0
        self.continued = False
        """Whether ``100 Continue`` was sent already."""
        self.close_after_response: Callable[[], None] = lambda: None
        """Has gunicorn close the connection after the current response, with the header for it, which gunicorn drops from views."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._release_buffer()
        self._sock.close()

    @property
    def began_s(self) -> float:
        """When the first byte of the request arrived, or, without a request, when the client connected."""
        return self.arrival.began_s or self._accepted_s

    @property
    def due_s(self) -> float | None:
        """When more must have arrived, by ``time.monotonic()``; None: no limit."""
        return self._accepted_s + HEADER_S if self._handshake else self.arrival.due_s

    def receive(self) -> State:
        """Reads the available bytes of a request, without waiting."""
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
        """Starts the next request after a response; ``read_ahead`` are its bytes that the parser has read already."""
        self._release_buffer()
        unread = read_ahead + bytes(self.arrival.buffer)
        self.arrival, self.continued, self._limit_s = Arrival(), False, None
        if unread:
            self.arrival.add(unread, time.monotonic())

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As ``socket.recv``, but waits until the request's time limit only. With MSG_PEEK it does not wait.

        Raises:
            RequestTimeout: the body arrives too slowly.
            ServiceUnavailable: the maximum number of threads waits for slow clients.
            TimeoutError: the limit of :meth:`settimeout` has passed.
            OSError: the connection broke; BlockingIOError: no byte is available with MSG_PEEK.
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
        """As ``socket.sendall``, but ends the connection of a client that reads too slowly; see :class:`Pace`.

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
        """Does nothing: gunicorn calls it, and a blocking socket would ignore the time limits."""

    def settimeout(self, seconds: float | None) -> None:
        """Sets a limit in seconds for all further calls of :meth:`recv` together, beside the request's own limit."""
        self._limit_s = None if seconds is None else time.monotonic() + seconds

    def gettimeout(self) -> float | None:
        return None

    def discard(self, limit: int) -> bool:
        """Reads and drops the available bytes, at most ``limit``. Returns whether the client has closed."""
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

    def send_now(self, data: bytes) -> bool:
        """Sends as much as possible without waiting. Returns whether that was all; otherwise the connection must be closed."""
        with suppress(OSError):
            return self._sock.send(data) == len(data)
        return False

    def _reserve_buffer(self) -> None:
        """Lets a long body arrive as a whole before it gets a thread, if the process has memory for it."""
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
        except _WOULD_BLOCK as error:
            self._set_event(error)
            return False
        self._handshake = False
        return True

    def _set_event(self, error: BaseException) -> None:
        writes = isinstance(error, ssl.SSLWantWriteError)
        self.waits_for = select.POLLOUT if writes else select.POLLIN

    def _read(self, size: int) -> bytes | None:
        """Reads without waiting; None: no byte is available."""
        try:
            return self._sock.recv(size)
        except _WOULD_BLOCK as error:
            self._set_event(error)
            return None

    def _send(self, data: bytes | memoryview) -> int:
        """Sends without waiting; returns the number of bytes that were sent."""
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
                    raise self._broken_pipe("too many clients read slowly")
                left_s = pace.due_s - time.monotonic()
                if left_s <= 0 or not self._wait(left_s):
                    raise self._broken_pipe("a response is read too slowly")
        finally:
            if slot:
                self._shares.sending.release()

    def _broken_pipe(self, reason: str) -> BrokenPipeError:
        self._shares.log(reason, self._client)
        # gunicorn treats EPIPE as a client that has closed the connection, and logs no traceback.
        return BrokenPipeError(errno.EPIPE, reason)

    def _wait(self, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._sock.fileno(), self.waits_for)
        return bool(poller.poll(seconds * 1000))
