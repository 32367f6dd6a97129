"""Requests to one worker over connections that are kept. The one module that knows the HTTP client.

urllib3 connects; request and answer are the standard library's, which takes less than half of the time
of urllib3's pool: two requests for each job.
"""

import contextlib
import http.client
import socket
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_match_hostname import CertificateError

from ownpod.endpoints import WorkerSpec


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


class Connections:
    """Connections to a worker; any thread may send.

    Args:
        spec: the worker.
        connect_s: longest time to connect.
    """

    def __init__(self, spec: WorkerSpec, *, connect_s: float) -> None:
        parts = urlsplit(spec.url)
        self._path = parts.path
        self._headers = {
            "User-Agent": "ownpod",
            **spec.headers,
            "Content-Type": "application/json",
        }
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
        connection = self._connected()
        try:
            connection.sock.settimeout(read_s)
            with contextlib.suppress(BrokenPipeError):
                # Who refuses a request before its end has answered it.
                http.client.HTTPConnection.request(
                    connection,
                    method,
                    f"{self._path}{path}",
                    None if body is None else body.encode(),
                    {**self._headers, **headers} if headers else self._headers,
                )
            return Reply(self._idle, connection, http.client.HTTPConnection.getresponse(connection))
        except TimeoutError as error:
            connection.close()
            raise NoAnswerInTime from error
        except (OSError, http.client.HTTPException, HTTPError) as error:
            connection.close()
            raise WorkerHTTPError from error

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


def _close_all(connections: deque[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()


class Reply:
    """The beginning of an answer: its status and headers; the body is read part by part."""

    def __init__(
        self,
        idle: deque[HTTPConnection],
        connection: HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        self._idle = idle
        self._connection = connection
        self._response = response
        self.status = response.status

    @property
    def content_type(self) -> str:
        """As ``application/json``, without parameters."""
        return (self._response.getheader("Content-Type") or "").partition(";")[0].strip().lower()

    def read(self, most: int) -> bytes:
        """What there is of the body, at most so many bytes; b"" at its end, when the connection is kept.

        Raises: NoAnswerInTime, WorkerHTTPError.
        """
        try:
            part = self._response.read1(most)
            if not part and self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
        except TimeoutError as error:
            raise NoAnswerInTime from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise WorkerHTTPError from error
        if not part:
            self._keep()
        return part

    def close(self) -> None:
        """The rest is not wanted."""
        self._response.close()
        self._connection.close()

    def _keep(self) -> None:
        self._response.close()
        if self._connection.sock is not None:
            if len(self._idle) == self._idle.maxlen:
                self._connection.close()
            else:
                self._idle.append(self._connection)
