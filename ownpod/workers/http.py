"""Requests to one worker over connections that are kept. The one module that knows HTTP's clients.

urllib3 connects, httptools reads the answers. A request with urllib3's own pool takes 240 us of a node,
with the standard library's client 130, so 40; there are two for each job.
"""

import contextlib
import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httptools
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from ownpod.rules.endpoints import WorkerSpec

FIRST, PIECE = 65_536, 1024 * 1024
"""Bytes read at once, at most: of an answer's beginning, and of a longer one's rest."""

REUSE_S = 1.5
"""Longest age in seconds of an idle connection that is used again. Servers close idle connections (gunicorn
after 2 s, uvicorn and Node after 5 s), and a request that is sent in the same moment would be lost."""

HEAD_BYTES = 65_536
"""Largest head of an answer in bytes, together with the interim answers (1xx) before it."""

HEAD_S = 30.0
"""Longest time in seconds from the first byte of an answer's head to its end."""


class WorkerHTTPError(Exception):
    """No answer, or not all of it. Its cause is the client's own error."""


class CannotConnect(WorkerHTTPError):
    """Nothing was sent."""


class NoAnswerInTime(WorkerHTTPError):
    """The worker has the request and did not answer in time."""


def _keepalive() -> list[tuple[int, int, int]]:
    """A worker's host that vanished is noticed in about a minute; a held connection is silent."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


def _lines(*headers: Mapping[str, str]) -> str:
    """Header lines. Of headers whose names differ in case only, the last one is sent."""
    by_name = {
        name.lower(): f"{name}: {value}\r\n" for some in headers for name, value in some.items()
    }
    return "".join(by_name.values())


class Connections:
    """Connections to a worker; any thread may send.

    Args:
        spec: the worker. Its headers have been checked.
        connect_s: longest time in seconds to connect.
        head_s: longest time in seconds for the head of an answer, once that has begun.
    """

    def __init__(self, spec: WorkerSpec, *, connect_s: float, head_s: float = HEAD_S) -> None:
        self._head_s = head_s
        parts = urlsplit(spec.url)
        self._path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
        own = {"Host": parts.netloc.rpartition("@")[2], "User-Agent": "ownpod"}
        self._headers = (own, spec.headers, {"Content-Type": "application/json"})
        self._lines = _lines(*self._headers)
        self._options: dict[str, Any] = {
            "host": parts.hostname or "",
            "port": parts.port,
            "timeout": connect_s,
            "socket_options": HTTPConnection.default_socket_options + _keepalive(),
        }
        self._tls = parts.scheme == "https"
        self._ca_bundle = spec.ca_bundle if self._tls else None
        if self._tls:
            verify = spec.verify_tls or spec.ca_bundle is not None
            self._options |= {
                "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE",
                "ca_certs": spec.ca_bundle,
            }
        self._idle: _Idle = deque(maxlen=spec.capacity + 2)
        weakref.finalize(self, _close_all, self._idle)

    def send(
        self,
        method: str,
        path: str,
        read_s: float | None,
        *,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> "Reply":
        """Sends a request and waits for the beginning of its answer, at most ``read_s``.

        Raises:
            CannotConnect: nothing was sent.
            NoAnswerInTime, WorkerHTTPError: the worker may have the request.
        """
        content = b"" if body is None else body.encode()
        length = "" if method == "GET" else f"Content-Length: {len(content)}\r\n"
        lines = _lines(*self._headers, headers) if headers else self._lines
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{lines}{length}\r\n".encode()
        connection = self._connected()
        connection.sock.settimeout(read_s)
        reply = Reply(connection, self._idle, read_s=read_s, head_s=self._head_s)
        try:
            # A server may answer and close before it has read the whole body; its answer is in the buffer then.
            with contextlib.suppress(BrokenPipeError):
                if len(content) < PIECE:
                    connection.sock.sendall(head + content)
                else:
                    connection.sock.sendall(head)
                    connection.sock.sendall(content)
        except OSError as error:
            connection.close()
            raise _failure(error) from error
        reply.begin()
        return reply

    def _connected(self) -> HTTPConnection:
        while self._idle:
            with contextlib.suppress(IndexError):
                connection, since = self._idle.pop()
                if time.monotonic() - since < REUSE_S and connection.is_connected:
                    return connection
                connection.close()
        if self._ca_bundle is not None and not os.access(self._ca_bundle, os.R_OK):
            problem = f"its CA bundle {self._ca_bundle} cannot be read on this host"
            raise CannotConnect from FileNotFoundError(problem)
        connection = (HTTPSConnection if self._tls else HTTPConnection)(**self._options)
        try:
            connection.connect()
        except (HTTPError, OSError, CertificateError) as error:
            connection.close()
            raise CannotConnect from error
        return connection


_Idle = deque[tuple[HTTPConnection, float]]
"""Connections that can be used again, each with the monotonic time of its last answer's end."""


def _failure(error: Exception) -> WorkerHTTPError:
    """The error of a request that was sent, or may have been."""
    return NoAnswerInTime() if isinstance(error, TimeoutError) else WorkerHTTPError()


def _close_all(idle: _Idle) -> None:
    for connection, _ in idle:
        connection.close()


class Reply:
    """An answer: its status and the kind of its body, which is read part by part.

    Whatever the other side sends, only WorkerHTTPError comes out, and the memory used beside the body's parts is
    bounded by :data:`HEAD_BYTES` and one read.

    Args:
        connection: has sent the request.
        idle: takes the connection when the answer has been read to its end.
        read_s: longest silence in seconds; None: any.
        head_s: longest time in seconds for the head, once that has begun.
    """

    def __init__(
        self, connection: HTTPConnection, idle: _Idle, *, read_s: float | None, head_s: float
    ) -> None:
        self._connection = connection
        self._idle = idle
        self._read_s = read_s
        self._head_s = head_s
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._begun = self._ended = self._kept = False
        self._sized = False
        """The head gives the length of the body, by whichever header; without one, the body ends with the connection."""
        self._until: float | None = None
        """When a head that has begun must have ended, on the monotonic clock."""
        self._unbounded = 0
        """Bytes received since the last part of the body: the head, trailers, chunk extensions."""
        self.status = 0
        self.content_type = ""
        """As ``application/json``, without parameters."""
        self.retry_after = ""

    def begin(self) -> None:
        """Waits for its beginning. Raises: NoAnswerInTime, WorkerHTTPError."""
        while not self._begun:
            self._receive(self._until)

    def read(self, until: float | None = None) -> bytes:
        """The next part of the body; b"" at its end, and then the connection is kept.

        Args:
            until: when the part must have come, on the monotonic clock; None: at any time.

        Raises: NoAnswerInTime, WorkerHTTPError.
        """
        while not self._parts and not self._ended:
            self._receive(until)
        if self._parts:
            return self._parts.popleft()
        if self._kept and len(self._idle) < (self._idle.maxlen or 0):
            self._idle.append((self._connection, time.monotonic()))
        else:
            self._connection.close()
        return b""

    def close(self) -> None:
        """Closes the connection without reading the rest of the answer."""
        self._connection.close()

    def _receive(self, until: float | None) -> None:
        try:
            self._limit_time(until)
            data = self._connection.sock.recv(PIECE if self._begun else FIRST)
            if data:
                self._feed(data)
            elif self._begun and not self._sized:
                self._ended, self._kept = True, False
            else:
                raise ConnectionError("the worker closed the connection before its answer's end")
        except (OSError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._connection.close()
            if isinstance(error, TimeoutError) and time.monotonic() >= (
                self._until or float("inf")
            ):
                problem = f"the head of the worker's answer did not end within {self._head_s:g} s"
                raise WorkerHTTPError from TimeoutError(problem)
            raise _failure(error) from error

    def _limit_time(self, until: float | None) -> None:
        """Raises: TimeoutError, if the time is over."""
        left_s = self._read_s
        if until is not None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the time for the answer is over")
            if self._read_s is not None:
                left_s = min(left_s, self._read_s)
        self._connection.sock.settimeout(left_s)

    def _feed(self, data: bytes) -> None:
        self._unbounded += len(data)
        if not self._begun and self._until is None:
            self._until = time.monotonic() + self._head_s
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._ended:
                raise
            # Bytes after the end of the answer: the answer is complete, but the connection cannot be used again.
            self._kept = False
        if self._unbounded > HEAD_BYTES and not self._ended:
            raise ConnectionError("the worker's answer has headers of more than 64 KiB")

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._ended:
            # A second answer, which belongs to no request.
            self._kept = False
            return
        self._until = time.monotonic() + self._head_s
        self._sized = False
        self.content_type = ""

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._begun:
            # A trailer.
            return
        name = name.lower()
        if name == b"content-type":
            text = value.decode("latin-1")
            self.content_type = text.partition(";")[0].strip().lower()
        elif name == b"retry-after":
            self.retry_after = value.decode("latin-1").strip()
        elif name in {b"content-length", b"transfer-encoding"}:
            self._sized = True

    def on_headers_complete(self) -> None:
        if self._begun:
            return
        self.status = self._parser.get_status_code()
        # An interim answer comes before the real one, after any time.
        self._until = None
        self._begun = self.status >= 200
        self._kept = self._parser.should_keep_alive()
        if self._begun:
            self._unbounded = 0

    def on_body(self, part: bytes) -> None:
        if not self._ended:
            self._parts.append(part)
            self._unbounded = 0

    def on_message_complete(self) -> None:
        self._ended = self._begun
