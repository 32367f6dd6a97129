"""One POST to a URL that a client chose: a total deadline, a checked address, nothing of the environment.

Not ``requests``: it takes proxies and ``.netrc`` from the environment, resolves the name after any check
of its address, and its timeouts start again with each byte that a receiver sends.
"""

import contextlib
import functools
import http.client
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import certifi

log = logging.getLogger(__name__)

CONNECT_S = 5.0
"""s for a TCP connection to one address."""

UNREACHABLE = "unreachable"
TIMEOUT = "timeout"
REFUSED = "address not allowed"
"""The reasons of a POST without an answer. A client reads them in ``/requests``, so they do not tell a
closed port from a filtered one, or from one that does not answer HTTP; the log does."""

LOGGED = 300
"""Characters of an error in the log; a receiver chooses some of them."""

_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""Characters of a URL that are sent as they are."""

Resolve = Callable[[str, int], list[Any]]


class Unanswered(Exception):
    """There was no answer. ``reason`` is for clients, the message for the log."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def resolve(host: str, port: int) -> list[Any]:
    """The addresses of a host, as ``getaddrinfo`` lists them."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def tls_context() -> ssl.SSLContext:
    """Trusts the system's certificate authorities and certifi's."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class Outbound:
    """Sends POSTs; may be used by several threads.

    Args:
        allowed: whether an IP address may be connected to.
        deadline_s: s for a whole POST: name, connection, TLS, sending, and the answer's status and headers.
        resolve: finds a host's addresses.
        context: TLS settings for https URLs.
    """

    def __init__(
        self,
        *,
        allowed: Callable[[str], bool],
        deadline_s: float,
        resolve: Resolve = resolve,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._deadline_s = deadline_s
        self._resolve = resolve
        self._given_context = context

    @functools.cached_property
    def _context(self) -> ssl.SSLContext:
        # Not before the first https URL: most nodes send no webhook, and it takes 2 MB.
        return tls_context() if self._given_context is None else self._given_context

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """POSTs the body; answers the HTTP status. Redirects are not followed, the answer's body is not read.

        Raises:
            Unanswered: there was no answer within the deadline, or the address is not allowed.
        """
        deadline = time.monotonic() + self._deadline_s
        try:
            return self._post(url, body, headers, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # A connection that the deadline has shut down fails in any of these ways.
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            raise Unanswered(TIMEOUT if late else UNREACHABLE, repr(error)[:LOGGED]) from None

    def _post(self, url: str, body: bytes, headers: Mapping[str, str], deadline: float) -> int:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        # This object only formats the request: its socket is connected here.
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(
            host, port, timeout=self._deadline_s
        )
        plain = self._connect(host, port, deadline)
        with plain, _shut_down_at(plain, deadline), contextlib.closing(connection):
            plain.settimeout(_left_s(deadline))
            connection.sock = (
                self._context.wrap_socket(plain, server_hostname=host) if secure else plain
            )
            headers = {**headers, "Connection": "close"}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A receiver may answer and close before it has read the body.
                connection.request("POST", quote(target, safe=_SAFE), body, headers)
            with connection.getresponse() as response:
                # Headers that the deadline has cut off look complete to http.client.
                _left_s(deadline)
                return response.status

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        """Connects to the address that was checked, so that a name cannot change in between."""
        found = self._addresses(host, port, deadline)
        permitted = [entry for entry in found if self._allowed(entry[4][0])]
        if not permitted:
            addresses = ", ".join(entry[4][0] for entry in found)
            raise Unanswered(REFUSED, f"{host} is {addresses}, which is not allowed")
        problem: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in permitted:
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(min(CONNECT_S, _left_s(deadline)))
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                plain.close()
                problem = error
            else:
                return plain
        raise problem

    def _addresses(self, host: str, port: int, deadline: float) -> list[Any]:
        """In a thread, because ``getaddrinfo`` has no timeout."""
        answer = queue.SimpleQueue[list[Any] | Exception]()

        def look() -> None:
            try:
                answer.put(self._resolve(host, port))
            except (OSError, ValueError) as error:
                answer.put(error)

        threading.Thread(target=look, name="resolve", daemon=True).start()
        try:
            found = answer.get(timeout=_left_s(deadline))
        except queue.Empty:
            raise TimeoutError(f"no answer of the name service for {host}") from None
        if isinstance(found, Exception):
            raise found
        return found


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


@contextlib.contextmanager
def _shut_down_at(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Shuts the connection down at the deadline, because a socket's own timeout begins again with each byte.

    On a duplicate, because TLS takes the socket's descriptor over.
    """
    with connected.dup() as same:

        def shut_down() -> None:
            with contextlib.suppress(OSError):
                same.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(_left_s(deadline), shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            # A shutdown in this moment must not meet a descriptor of another connection.
            timer.join()
