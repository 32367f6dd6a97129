"""gunicorn's thread worker, extended for clients that send many requests on one connection, and for slow clients.

The main thread reads the requests, and gives each a thread once it has arrived, see :mod:`ownpod.api.serving.arrival`; most chunks
of workers go to one thread, see :mod:`ownpod.api.serving.lane`.
gunicorn 27 gives each connection a thread at its first byte, and reads headers and bodies there without a time limit.
"""

import contextlib
import errno
import json
import selectors
import ssl
import time
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn import sock as gunicorn_sock
from gunicorn.http import errors, get_parser
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker
from urllib3.util import wait_for_read
from werkzeug.exceptions import HTTPException

from ownpod.api.serving.arrival import State
from ownpod.api.serving.channel import Channel, Shares
from ownpod.api.serving.lane import Finished, Lane

PROMPT_S = 0.002
"""Seconds a thread waits for the next request on a kept-alive connection before returning it to the poller."""

LINGER_S = 2.0
"""Seconds for which a closed connection is still read. Otherwise the client, or a proxy that is sending a large body,
may lose the response (RFC 9112, 9.6)."""

LINGER_BYTES = 262_144
"""Maximum bytes of such a connection that are read at once, so that other connections are not delayed."""

CHECK_INTERVAL_S = 0.5
"""Seconds between two checks for requests that arrive too slowly."""

HONEST_S = 1.0
"""Age in seconds from which an incomplete request may be dropped in favour of a new connection."""

TLS_CONTEXT_S = 60.0
"""Maximum age in seconds of the loaded certificate, so that a renewed one is used without a restart."""

TAKEN = object()
"""What :meth:`PromptWorker.handle` returns for a connection that the lane has taken."""

STATUSES = {
    errors.LimitRequestLine: 414,
    errors.LimitRequestHeaders: 431,
    errors.ExpectationFailed: 417,
    errors.UnsupportedTransferCoding: 501,
    errors.ForbiddenProxyRequest: 403,
}
"""HTTP statuses of requests that gunicorn's parser refuses; all others are 400."""


def refusal(status: int, message: str) -> bytes:
    """The bytes of an error response that closes the connection."""
    body = json.dumps({"error": message}).encode()
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Connection(TConn):  # type: ignore[misc]
    """A connection whose socket is a :class:`Channel`."""

    def __init__(self, cfg: Any, channel: Channel, client: Any, server: Any) -> None:
        super().__init__(cfg, channel, client, server)
        self.parser = get_parser(cfg, channel, client)
        self.initialized = self.data_ready = True
        self.polled = 0
        """The event for which the poller waits; 0: none."""
        self.closes_s: float | None = None
        """When a lingering connection is closed; until then its bytes are read and dropped. None: not lingering."""

    def next_request(self) -> None:
        self.sock.next_request(self.parser.unreader.take_buffered())

    @property
    def idle(self) -> bool:
        """Whether no byte of a request has arrived."""
        return self.closes_s is None and self.sock.due_s is None

    @property
    def due_s(self) -> float:
        due = self.closes_s if self.closes_s is not None else self.sock.due_s
        return self.timeout if due is None else due


class PromptWorker(ThreadWorker):  # type: ignore[misc]
    """A thread worker whose threads get requests that have arrived.

    A next request that arrives at once is processed by the same thread, because gunicorn passes each connection
    between its main thread and another one for each request, which costs 0.1 ms of latency and of CPU.
    All methods run in the main thread, except :meth:`handle` with the methods that it calls, and :meth:`leave_lane`.
    """

    lane: Lane | None = None
    """The short way of workers' chunks; None: they go the long way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shares = Shares(self.cfg.threads // 2)
        self._idle: dict[Connection, None] = {}
        """Connections without a request, in the order in which they time out."""
        self._slow: dict[Connection, None] = {}
        """Connections with an incomplete request, and lingering ones, in the order in which they started."""
        self._checked_s = 0.0
        self._tls: tuple[float, ssl.SSLContext] | None = None

    def accept(self, listener: Any) -> None:
        """Accepts a connection. At the limit, an idle or slow connection is dropped first."""
        try:
            client_sock, client = listener.accept()
        except OSError as error:
            # After other errors the client has left, or another process has accepted the connection.
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._evict()
            return
        if self.nr_conns >= self.worker_connections - 1:
            self._evict()
        self.nr_conns += 1
        name = str(client[0]) if isinstance(client, tuple) else "a local client"
        try:
            if self.cfg.is_ssl:
                client_sock = self._tls_context().wrap_socket(
                    client_sock, server_side=True, do_handshake_on_connect=False
                )
            channel = Channel(client_sock, name, self._shares)
            conn = Connection(self.cfg, channel, client, listener.getsockname())
        except OSError as error:
            self.log.debug("a connection ended at its start: %s", error)
            client_sock.close()
            self.nr_conns -= 1
            return
        conn.set_timeout()
        self._advance(conn)

    def _tls_context(self) -> ssl.SSLContext:
        now = time.monotonic()
        if self._tls is None or now - self._tls[0] > TLS_CONTEXT_S:
            self._tls = (now, gunicorn_sock.ssl_context(self.cfg))
        return self._tls[1]

    def _advance(self, conn: Connection, _: Any = None) -> None:
        """Reads the available bytes. A request that has arrived gets a thread; the other connections are polled."""
        if conn.closes_s is not None:
            if conn.sock.discard(LINGER_BYTES):
                self._drop(conn)
            return
        state = conn.sock.receive()
        if state is State.READY:
            self._unpoll(conn)
            if not self._lane_takes(conn):
                self.enqueue_req(conn)
        elif state is State.GONE:
            self._drop(conn)
        elif state is State.TOO_LARGE:
            self._refuse(conn, 431, "the request's header is too large")
        else:
            self._poll(conn)

    def _lane_takes(self, conn: Connection) -> bool:
        # A process that ends closes its connections, as the long way does.
        return self.lane is not None and self.alive and self.lane.takes(conn)

    def leave_lane(self, finished: Finished) -> None:
        """Keeps, closes or processes the connections that :attr:`lane` returns. Any thread may call this."""
        self.method_queue.defer(self._after_lane, finished)

    def _after_lane(self, finished: Finished) -> None:
        for conn in finished.kept:
            self._go_on(conn)
        for conn in finished.broken:
            self._drop(conn)
        for conn in finished.long_way:
            self.enqueue_req(conn)

    def _go_on(self, conn: Connection) -> None:
        """Awaits the next request of a connection."""
        conn.set_timeout()
        if not self.alive:
            conn.timeout = min(conn.timeout, time.monotonic() + STOP_KEEPALIVE_LINGER)
        self._advance(conn)

    def _poll(self, conn: Connection) -> None:
        events = conn.sock.waits_for
        mine, other = (self._idle, self._slow) if conn.idle else (self._slow, self._idle)
        if conn not in mine:
            other.pop(conn, None)
            mine[conn] = None
        if conn.polled == events:
            return
        # The constants of `select.poll` and `selectors` differ for writing.
        wanted = selectors.EVENT_READ if events == 1 else selectors.EVENT_WRITE
        register = self.poller.modify if conn.polled else self.poller.register
        register(conn.sock.fileno(), wanted, partial(self._advance, conn))
        conn.polled = events

    def _unpoll(self, conn: Connection) -> None:
        self._idle.pop(conn, None)
        self._slow.pop(conn, None)
        if conn.polled:
            conn.polled = 0
            with contextlib.suppress(OSError, KeyError, ValueError):
                self.poller.unregister(conn.sock.fileno())

    def _drop(self, conn: Connection) -> None:
        self._unpoll(conn)
        self.nr_conns -= 1
        conn.close()

    def _refuse(self, conn: Connection, status: int, message: str) -> None:
        conn.sock.send_now(refusal(status, message))
        self._linger(conn)

    def _linger(self, conn: Connection) -> None:
        """Closes a connection without waiting for its client. gunicorn's own method would block the main thread."""
        with contextlib.suppress(OSError):
            conn.sock.shutdown(1)
            conn.closes_s = time.monotonic() + LINGER_S
            if not conn.sock.discard(LINGER_BYTES):
                self._poll(conn)
                return
        self._drop(conn)

    def _evict(self) -> None:
        now = time.monotonic()
        slow = next(iter(self._slow), None)
        idle = next(iter(self._idle), None)
        if slow is not None and (idle is None or now - slow.sock.began_s > HONEST_S):
            self._drop(slow)
        elif idle is not None:
            self._drop(idle)

    def finish_request(self, conn: Connection, fs: Any) -> None:
        """Polls or closes a connection that a thread has finished with."""
        result = None if fs.cancelled() or fs.exception() is not None else fs.result()
        if result is TAKEN:
            return
        if result:
            self._go_on(conn)
        else:
            self._linger(conn)

    def murder_keepalived(self, force: bool = False) -> None:  # noqa: FBT001, FBT002
        now = time.monotonic()
        for conn in list(self._idle) if force else self._ended_idle(now):
            self._drop(conn)

    def _ended_idle(self, now: float) -> list[Connection]:
        ended = []
        for conn in self._idle:
            if conn.timeout > now:
                break
            ended.append(conn)
        return ended

    def murder_pending(self) -> None:
        """Ends requests that arrive too slowly."""
        now = time.monotonic()
        if now - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = now
        late = [conn for conn in self._slow if conn.due_s <= now]
        slow = [conn for conn in late if conn.closes_s is None]
        for conn in late:
            if conn.closes_s is not None:
                self._drop(conn)
        for conn in slow:
            part = "body" if conn.sock.arrival.pace else "header"
            status = 503 if conn.sock.arrival.is_result else 408
            self._refuse(conn, status, f"the request's {part} arrived too slowly")
        if slow:
            clients = sorted({str(conn.client[0]) for conn in slow if conn.client})
            self.log.info(
                "%d requests arrived too slowly and were ended; from %s%s",
                len(slow),
                ", ".join(clients[:3]) or "a local client",
                " and others" if len(clients) > 3 else "",
            )

    def _cap_keepalive(self, deadline: float) -> None:
        for conn in self._idle:
            conn.timeout = min(conn.timeout, deadline)

    def handle(self, conn: Connection) -> bool | object:
        """Processes requests of one connection, in a thread. Returns whether the connection stays open; :data:`TAKEN`: the lane has it."""
        while super().handle(conn) is True:
            conn.next_request()
            if not self.alive:
                return True
            if conn.idle and not wait_for_read(conn.sock, PROMPT_S):
                return True
            if conn.sock.receive() is not State.READY:
                return True
            if self._lane_takes(conn):
                return TAKEN
        return False

    def handle_request(self, req: Any, conn: Connection) -> Any:
        if conn.sock.continued:
            # Otherwise gunicorn would send a second "100 Continue".
            req._expected_100_continue = False  # noqa: SLF001
        conn.sock.close_after_response = req.force_close
        return super().handle_request(req, conn)

    def handle_error(self, _req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that gunicorn cannot parse, as JSON instead of gunicorn's HTML."""
        status, message = 500, "OwnPod failed to answer this; its log has the reason"
        if isinstance(exc, errors.ParseException) and not isinstance(
            exc, errors.ConfigurationProblem | errors.InvalidResponseHeader
        ):
            status = next((code for kind, code in STATUSES.items() if isinstance(exc, kind)), 400)
            message = f"{HTTPStatus(status).phrase}: {exc}"
            self.log.info("a request of %s cannot be parsed: %s", addr[0] if addr else "?", exc)
        elif isinstance(exc, HTTPException):
            status, message = exc.code or 400, str(exc.description)
        elif isinstance(exc, ssl.SSLError):
            self.log.debug("TLS with %s failed: %s", addr, exc)
            return
        else:
            self.log.error("a request was not answered", exc_info=exc)
        with contextlib.suppress(OSError):
            client.sendall(refusal(status, message))
