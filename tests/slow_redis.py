"""A proxy for Redis that drops answers of commands which Redis has executed."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class SlowRedis:
    """A proxy on a free port of loopback. ``lose``: the number of next answers that are dropped, each with its
    connection.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.lose = 0
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

    @staticmethod
    def _requests(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                far.sendall(data)
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
