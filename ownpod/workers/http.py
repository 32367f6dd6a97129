"""Requests to one worker over connections that are kept. The one module that knows HTTP's clients.

urllib3 connects, httptools reads the answers. A request with urllib3's own pool takes 240 us of a node,
with the standard library's client 130, so 40; there are two for each job.
"""

import contextlib
import socket
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httptools
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from ownpod.endpoints import WorkerSpec

FIRST, PIECE = 65_536, 1024 * 1024
"""Bytes read at once, at most: of an answer's beginning, and of a longer one's rest."""


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
    """Each header once, however its name is written: the last that is given."""
    said = {
        name.lower(): f"{name}: {value}\r\n" for some in headers for name, value in some.items()
    }
    return "".join(said.values())


class Connections:
    """Connections to a worker; any thread may send.

    Args:
        spec: the worker. Its headers have been checked.
        connect_s: longest time to connect.
    """

    def __init__(self, spec: WorkerSpec, *, connect_s: float) -> None:
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
        if self._tls:
            verify = spec.verify_tls or spec.ca_bundle is not None
            self._options |= {
                "cert_reqs": "CERT_REQUIRED" if verify else "CERT_NONE",
                "ca_certs": spec.ca_bundle,
            }
        self._idle: deque[HTTPConnection] = deque(maxlen=spec.capacity + 2)
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
        reply = Reply(connection, self._idle)
        try:
            # Who refuses a request before its end has answered it.
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
                connection = self._idle.pop()
                if connection.is_connected:
                    return connection
                connection.close()
        connection = (HTTPSConnection if self._tls else HTTPConnection)(**self._options)
        try:
            connection.connect()
        except (HTTPError, OSError, CertificateError) as error:
            connection.close()
            raise CannotConnect from error
        return connection


def _failure(error: Exception) -> WorkerHTTPError:
    """Of a request that was sent, or may have been."""
    return NoAnswerInTime() if isinstance(error, TimeoutError) else WorkerHTTPError()


def _close_all(connections: deque[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


class Reply:
    """An answer: its status and the kind of its body, which is read part by part."""

    def __init__(self, connection: HTTPConnection, idle: deque[HTTPConnection]) -> None:
        self._connection = connection
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._parts: deque[bytes] = deque()
        self._begun = self._ended = self._kept = False
        self._sized = False
        """Its length is told in some way; else it ends with the connection."""
        self.status = 0
        self.content_type = ""
        """As ``application/json``, without parameters."""

    def begin(self) -> None:
        """Waits for its beginning. Raises: NoAnswerInTime, WorkerHTTPError."""
        while not self._begun:
            self._receive()

    def read(self) -> bytes:
        """What comes next of the body; b"" at its end, when the connection is kept.

        Raises: NoAnswerInTime, WorkerHTTPError.
        """
        while not self._parts and not self._ended:
            self._receive()
        if self._parts:
            return self._parts.popleft()
        if self._kept and len(self._idle) < (self._idle.maxlen or 0):
            self._idle.append(self._connection)
        else:
            self._connection.close()
        return b""

    def close(self) -> None:
        """The rest is not wanted."""
        self._connection.close()

    def _receive(self) -> None:
        try:
            data = self._connection.sock.recv(PIECE if self._begun else FIRST)
            if data:
                self._parser.feed_data(data)
            elif self._begun and not self._sized:
                self._ended = True
            else:
                raise ConnectionError("the worker closed the connection before its answer's end")
        except (OSError, httptools.HttpParserError) as error:
            self._connection.close()
            raise _failure(error) from error

    # What the parser tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            text = value.decode("latin-1")
            self.content_type = text.partition(";")[0].strip().lower()
        elif name in {b"content-length", b"transfer-encoding"}:
            self._sized = True

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        # An interim answer comes before the real one.
        self._begun = self.status >= 200
        self._kept = self._parser.should_keep_alive()

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._ended = self._begun
