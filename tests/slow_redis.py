"""A proxy for Redis that drops answers of commands which Redis has executed, or stops in the middle of a command."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class SlowRedis:
    """A proxy on a free port of loopback.

    Attributes:
        lose: the number of next answers that are dropped, each with its connection.
        passed: bytes of requests that Redis was sent.
        most: the bytes of requests that Redis is sent, at most; None: all. ``stopped`` is set when a request has more.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.lose = 0
        self.passed = 0
        self.most: int | None = None
        self.stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    @contextlib.contextmanager
    def serving(self) -> Iterator["SlowRedis"]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for copy in (self._requests, self._answers):
                    threading.Thread(target=copy, args=(near, far), daemon=True).start()

    def _requests(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                passing = len(data) if self.most is None else self.most - self.passed
                far.sendall(data[:passing])
                self.passed += min(passing, len(data))
                if passing < len(data):
                    self.stopped.set()
                    # Until the client ends.
                    while near.recv(65536):
                        pass
                    break
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _answers(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while data := far.recv(65536):
                if self.lose:
                    self.lose -= 1
                    break
                near.sendall(data)
            near.shutdown(socket.SHUT_RDWR)
