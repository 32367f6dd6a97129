"""A POST to a URL that a client chose: with one deadline for all of it, and a check of the address.

``requests`` is not used, because it takes proxies and ``.netrc`` from the environment, resolves the name a second
time after a check of the address, and restarts its timeouts with each byte that a receiver sends.
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
"""Seconds for a TCP connection to one address, so that a host with several addresses gets more than one try."""

UNREACHABLE = "unreachable"
TIMEOUT = "timeout"
REFUSED = "address not allowed"
"""Reasons of a POST without an answer. Clients read them in ``/requests``. They do not distinguish a closed port from
a filtered port or from a server without HTTP, because a client could otherwise scan the network; the log does."""

LOGGED = 300
"""Characters of an error in the log, at most. A limit, because the receiver chooses some of them."""

_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""Characters of a URL that are sent unquoted."""

Resolve = Callable[[str, int], list[Any]]


class Unanswered(Exception):
    """A POST got no answer. ``reason`` is for clients, the message for the log."""

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


class _TLSSocket(ssl.SSLSocket):
    """Refuses a connection that has ended before TLS began.

    ``ssl`` first asks for the peer. Without one it would send in plain, or raise and leave the socket open until the
    garbage collector closes it with a ResourceWarning.
    """

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError:
            self.close()
            raise ConnectionResetError("the connection ended before TLS began") from None


class Outbound:
    """Sends POSTs. Thread-safe.

    Args:
        allowed: whether a connection to an IP address is permitted.
        deadline_s: seconds for a whole POST: name, connection, TLS, sending, and the answer's status and headers.
        resolve: returns the addresses of a host, as ``getaddrinfo`` does.
        context: TLS settings for https URLs; None: :func:`tls_context`.
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
        # Made for the first https URL, because a context takes 2 MB and most nodes send no webhook.
        context = tls_context() if self._given_context is None else self._given_context
        context.sslsocket_class = _TLSSocket
        return context

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """POSTs the body; returns the HTTP status. Follows no redirect, and does not read the answer's body.

        Raises:
            Unanswered: there was no answer within the deadline, or the address is not permitted.
        """
        deadline = time.monotonic() + self._deadline_s
        try:
            return self._post(url, body, headers, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The shutdown at the deadline causes any of these errors, so the clock decides which reason it is.
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            raise Unanswered(TIMEOUT if late else UNREACHABLE, repr(error)[:LOGGED]) from None

    def _post(self, url: str, body: bytes, headers: Mapping[str, str], deadline: float) -> int:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        # Only formats the request. Its own connect() would resolve the name again, after the check.
        connection = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(
            host, port, timeout=self._deadline_s
        )
        plain = self._connect(host, port, deadline)
        with plain, _shut_down_at(plain, deadline), contextlib.closing(connection):
            plain.settimeout(_remaining_s(deadline))
            connection.sock = (
                self._context.wrap_socket(plain, server_hostname=host) if secure else plain
            )
            headers = {**headers, "Connection": "close"}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A receiver may answer and close before reading the whole body; its answer is still in the buffer.
                connection.request("POST", quote(target, safe=_SAFE), body, headers)
            with connection.getresponse() as response:
                # Raises if the deadline has passed, because http.client takes headers that are cut off for complete.
                _remaining_s(deadline)
                return response.status

    def _connect(self, host: str, port: int, deadline: float) -> socket.socket:
        """Connects to an address that was checked, so that the name cannot resolve to another one in between."""
        entries = self._addresses(host, port, deadline)
        permitted = [entry for entry in entries if self._allowed(entry[4][0])]
        if not permitted:
            addresses = ", ".join(entry[4][0] for entry in entries)
            raise Unanswered(REFUSED, f"{host} is {addresses}, which is not permitted")
        failure: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in permitted:
            plain = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(min(CONNECT_S, _remaining_s(deadline)))
                plain.connect(address)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                plain.close()
                failure = error
            else:
                return plain
        raise failure

    def _addresses(self, host: str, port: int, deadline: float) -> list[Any]:
        """Resolves the name in a thread, because ``getaddrinfo`` has no timeout."""
        answer = queue.SimpleQueue[list[Any] | Exception]()

        def run() -> None:
            try:
                answer.put(self._resolve(host, port))
            except (OSError, ValueError) as error:
                answer.put(error)

        threading.Thread(target=run, name="resolve", daemon=True).start()
        try:
            entries = answer.get(timeout=_remaining_s(deadline))
        except queue.Empty:
            raise TimeoutError(f"the name service did not answer for {host}") from None
        if isinstance(entries, Exception):
            raise entries
        return entries


def _remaining_s(deadline: float) -> float:
    """Seconds until the deadline. Raises: TimeoutError, if it has passed."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("the deadline has passed")
    return remaining_s


@contextlib.contextmanager
def _shut_down_at(connected: socket.socket, deadline: float) -> Iterator[None]:
    """Shuts the connection down at the deadline, because a socket's own timeout restarts with each byte.

    Uses a duplicate of the socket, because TLS detaches the descriptor of the original.
    """
    with connected.dup() as duplicate:

        def shut_down() -> None:
            with contextlib.suppress(OSError):
                duplicate.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(_remaining_s(deadline), shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            # Waits for a shutdown that is running now: after this block its descriptor may belong to another connection.
            timer.join()
