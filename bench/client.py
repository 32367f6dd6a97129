"""A cheap HTTP client for load, and percentiles.

It sends prepared requests over raw sockets with keep-alive. A library would distort the result: `requests` needs more
CPU for a call than OwnPod does, and urllib3 as much. One thread waits for the sockets of all clients.
"""

import contextlib
import json
import resource
import selectors
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

HOST = "127.0.0.1"
CHUNK = 1 << 18


class Answer(NamedTuple):
    """An answer, with its times on the monotonic clock, which all processes of a host share. ``status`` 0: no answer."""

    status: int
    body: bytes
    began: float
    ended: float

    @property
    def ms(self) -> float:
        return (self.ended - self.began) * 1000

    def json(self) -> Any:
        """The parsed body. Raises: ConnectionError, if the status is not 200."""
        if self.status != 200:
            raise ConnectionError(f"answered {self.status}: {self.body[:200]!r}")
        return json.loads(self.body)


def request(method: str, path: str, body: object = None) -> bytes:
    """The bytes of a request."""
    data = b"" if body is None else json.dumps(body).encode()
    kind = "Content-Type: application/json\r\n" if data else ""
    length = f"Content-Length: {len(data)}\r\n" if method == "POST" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{kind}{length}\r\n".encode() + data


class _Reader:
    """An answer that is being received."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._start = 0
        self._end: int | None = None

    def add(self, data: bytes) -> bool:
        """Whether the answer is complete."""
        self._data += data
        if self._end is None:
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return False
            self._start = head + 4
            self._end = self._start + _content_length(bytes(self._data[:head]))
        return len(self._data) >= self._end

    @property
    def status(self) -> int:
        return int(self._data[9:12])

    @property
    def body(self) -> bytes:
        return bytes(memoryview(self._data)[self._start :])


def _content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionError("an answer without Content-Length")
    return int(lower[at + 17 :].split(b"\r\n", 1)[0])


class Client:
    """One connection, one request at a time."""

    def __init__(self, port: int, timeout: float = 120) -> None:
        self.socket = socket.create_connection((HOST, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.begin()

    def begin(self) -> None:
        """Starts the time of the next request."""
        self.reader = _Reader()
        self.began = time.monotonic()

    def ask(self, made: bytes) -> Answer:
        """Sends a request and waits for the answer."""
        self.begin()
        self.socket.sendall(made)
        while True:
            data = self.socket.recv(CHUNK)
            if not data:
                raise ConnectionError("hung up")
            if self.reader.add(data):
                return self.answer()

    def answer(self) -> Answer:
        return Answer(self.reader.status, self.reader.body, self.began, time.monotonic())

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def connected(port: int, timeout: float = 120) -> Iterator[Client]:
    """A connection, which is closed at the end of the block."""
    client = Client(port, timeout)
    try:
        yield client
    finally:
        client.close()


def ask(port: int, made: bytes, timeout: float = 120) -> Answer:
    """Sends one request on a new connection."""
    with connected(port, timeout) as client:
        return client.ask(made)


def together(
    port: int, requests: Iterable[bytes], clients: int, seconds: float = 120
) -> list[Answer]:
    """Sends requests from ``clients`` clients at once. A client sends its next request when its answer is complete.

    Requests must be small. A request without an answer within ``seconds`` has the status 0.
    """
    todo, answers = iter(requests), []
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for _, made in zip(range(clients), todo, strict=False):
            client = Client(port)
            client.socket.setblocking(False)
            client.socket.send(made)
            selector.register(client.socket, selectors.EVENT_READ, client)
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                answer = _go_on(key.data)
                if answer is None:
                    continue
                answers.append(answer)
                made = next(todo, b"") if answer.status else b""
                if made:
                    key.data.begin()
                    key.data.socket.send(made)
                else:
                    selector.unregister(key.data.socket)
                    key.data.close()
        for key in list(selector.get_map().values()):
            answers.append(Answer(0, b"", key.data.began, time.monotonic()))
            key.data.close()
    return answers


def _go_on(client: Client) -> Answer | None:
    """The answer, if it is complete; an answer with status 0 if the server has closed the connection."""
    try:
        data = client.socket.recv(CHUNK)
    except OSError:
        data = b""
    if not data:
        return Answer(0, b"", client.began, time.monotonic())
    return client.answer() if client.reader.add(data) else None


def allow_many_files() -> None:
    """Raises this process's limit of open files to the user's maximum."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def percentile(values: list[float], percent: float) -> float:
    """A percentile, interpolated between the two nearest values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(name: str, values: list[float]) -> dict[str, float]:
    """The percentiles p50, p95 and p99, by name."""
    return {f"{name}_p{percent}": percentile(values, percent) for percent in (50, 95, 99)}
