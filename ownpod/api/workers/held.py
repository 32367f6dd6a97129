"""Detects when the client of a held request closes its connection, with one thread for each process.

Without this detection a job could be delivered to a closed connection, and the worker of a request that is held for
20 s would count until then as one that takes jobs.
"""

import contextlib
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

CHECK_S = 1.0
"""Seconds between checks for a closed connection where the system has no ``epoll`` (macOS)."""

_CLOSED = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Connection:
    """The connection of a held request.

    Args:
        peer: its socket, plain or TLS; None: unknown, so that :attr:`closed` is always False.
        check_s: seconds between two checks of :attr:`closed`; infinite where a close is notified.
    """

    def __init__(self, peer: socket.socket | None, check_s: float) -> None:
        self._fd = -1 if peer is None else peer.fileno()
        self._known = peer is not None
        self.check_s = check_s

    @property
    def closed(self) -> bool:
        """Whether the client has closed the connection or its sending side, so that a response would be lost."""
        return self._known and is_closed(self._fd)


def is_closed(fd: int) -> bool:
    """Whether the peer of a connection has closed it. No byte is read, because it would be missing in the TLS stream or
    in the next request.
    """
    if fd < 0:
        return True
    if hasattr(select, "POLLRDHUP"):
        poll = select.poll()
        poll.register(fd, _CLOSED)
        return bool(poll.poll(0))
    with socket.socket(fileno=os.dup(fd)) as peer:
        try:
            return peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


class HeldConnections:
    """Monitors the connections of held requests. The thread starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll: select.epoll | None = None

    @contextlib.contextmanager
    def watch(
        self, peer: socket.socket | None, on_close: Callable[[], None]
    ) -> Iterator[Connection]:
        """Calls ``on_close`` once when the client closes the connection. It is called in the monitoring thread, so it
        must not block.
        """
        if peer is None or peer.fileno() < 0 or not hasattr(select, "epoll"):
            yield Connection(peer, CHECK_S)
            return
        fd, epoll = peer.fileno(), self._started()
        with self._lock:
            self._watched[fd] = on_close
            epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
        try:
            yield Connection(peer, float("inf"))
        finally:
            with self._lock:
                self._watched.pop(fd, None)
                with contextlib.suppress(OSError, ValueError):
                    epoll.unregister(fd)

    def _started(self) -> select.epoll:
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
                threading.Thread(
                    target=self._run, args=(self._epoll,), name="held", daemon=True
                ).start()
            return self._epoll

    def _run(self, epoll: select.epoll) -> None:
        while True:
            for fd, _events in epoll.poll():
                with self._lock:
                    on_close = self._watched.pop(fd, None)
                if on_close is not None:
                    try:
                        on_close()
                    except Exception:
                        log.exception("the close of a held request was not handled")
