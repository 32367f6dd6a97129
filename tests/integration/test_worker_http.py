"""Answers of hostile workers, byte by byte: only WorkerHTTPError comes out, in bounded time and memory."""

import contextlib
import itertools
import math
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from helpers import wait_until, worker_spec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ownpod.workers.http import (
    HEAD_BYTES,
    REUSE_S,
    Connections,
    NoAnswerInTime,
    Reply,
    WorkerHTTPError,
)

HEAD = b"HTTP/1.1 200 OK\r\n"
SIZED = HEAD + b"Content-Length: 2\r\n\r\nok"


class RawServer:
    """Answers each request with the bytes of :attr:`parts`, one by one, and then closes the connection, unless
    :attr:`keep` is set.
    """

    def __init__(self) -> None:
        self.parts: Iterable[bytes] = []
        self.keep = False
        self.connections = 0
        self.requests = 0
        self._stopped = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._stopped.is_set():
                request = b""
                while b"\r\n\r\n" not in request:
                    data = connection.recv(65_536)
                    if not data:
                        return
                    request += data
                self.requests += 1
                for part in self.parts:
                    connection.sendall(part)
                if not self.keep:
                    return

    def stop(self) -> None:
        self._stopped.set()
        self._socket.close()


@pytest.fixture
def server() -> Iterator[RawServer]:
    found = RawServer()
    yield found
    found.stop()


def connections(server, head_s=5.0):
    return Connections(worker_spec(server.url), connect_s=2, head_s=head_s)


def read(reply: Reply, most: int = 100_000_000) -> bytes:
    body = b""
    while len(body) < most and (part := reply.read()):
        body += part
    return body


def ask(server, read_s=20.0, head_s=5.0):
    used = connections(server, head_s)
    reply = used.send("GET", "/health", read_s)
    return reply, read(reply)


def quietly(check):
    """An example for each of 150 inputs that are always the same, of any form."""
    run = settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return run(check)


def split(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n",
        b"HTTP/1.1 999 Odd\r\n",
        b"HTTP/1.1 000 Zero\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Content-Type: application/json; charset=x\r\n",
        b"Content-Type: \xff\xfe\r\n",
        b"Folded: a\r\n b\r\n",
        b": no name\r\n",
        b"\r\n",
        b"\n",
        b"\0",
        b"5\r\nhello\r\n",
        b"5;ext=1\r\nhello\r\n",
        b"zz\r\n",
        b"fffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"0\r\nTrailer: x\r\n\r\n",
        b"hello",
        b"-5\r\n",
    ]
)
ANYTHING = st.one_of(
    st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=10).map(b"".join),
    st.binary(max_size=200),
)


@pytest.mark.slow
def test_whatever_bytes_come_in_whatever_parts_only_worker_http_error_comes_out(server):
    @quietly
    @given(data=ANYTHING, at=st.lists(st.integers(0, 10_000), max_size=4))
    def check(data, at):
        server.parts = split(data, at)
        with contextlib.suppress(WorkerHTTPError):
            reply, body = ask(server)
            assert reply.status >= 200
            assert len(body) <= len(data)

    check()


def test_an_answer_is_the_same_in_whatever_parts_it_comes(server):
    body = b"0123456789" * 3
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in split(body, [3, 9]))
    forms = [
        b"Content-Length: 30\r\n\r\n" + body,
        b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n",
        b"Connection: close\r\n\r\n" + body,
    ]
    interim = b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/html\r\n\r\n"

    @quietly
    @given(form=st.sampled_from(forms), at=st.lists(st.integers(0, 10_000), max_size=6))
    def check(form, at):
        server.parts = split(interim + HEAD + b"Content-Type: a/B\r\n" + form, at)
        reply, found = ask(server)
        assert (reply.status, reply.content_type, found) == (200, "a/b", body)

    check()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        HEAD + b"Content-Length: 5\r\n\r\nhel",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_an_answer_that_is_none_or_not_whole_is_an_error(server, data):
    server.parts = [data]
    with pytest.raises(WorkerHTTPError):
        ask(server)


def test_a_second_answer_to_one_request_is_dropped_with_the_connection(server):
    second = HEAD.replace(b"200", b"404") + b"Content-Type: x/y\r\nContent-Length: 3\r\n\r\nbad"
    server.keep = True
    for surplus in (second, b"garbage", b"\r\nHTTP/1.1 100 Continue\r\n\r\n"):
        server.parts = [SIZED + surplus]
        used = connections(server)
        for number in (1, 2):
            reply = used.send("GET", "/health", 20)
            assert (reply.status, reply.content_type, read(reply)) == (200, "", b"ok")
            assert server.requests == number
        assert server.connections == 2
        server.connections = server.requests = 0


def flood(part: bytes) -> Iterator[bytes]:
    """For as long as the connection is open, at most 400 MB."""
    many = part * (65_536 // len(part) + 1)
    for _ in range(6_000):
        yield many


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD, b"X-More: and more\r\n"),
        (HEAD + b"X-Long: ", b"x"),
        (HEAD, b"x"),
        (b"HTTP/1.1 200 ", b"O"),
        (b"", b"\r\n"),
        (CHUNKED + b"5;ext=", b"x"),
        (CHUNKED + b"0\r\n", b"X-Trailer: and more\r\n"),
        (CHUNKED + b"0\r\nX-Trailer: ", b"x"),
    ],
)
def test_heads_interim_answers_and_trailers_without_end_are_cut(server, start, part):
    server.parts = (piece for pieces in ([start], flood(part)) for piece in pieces)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(WorkerHTTPError):
            ask(server)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 20_000_000
    assert time.monotonic() - began < 60


def test_a_head_of_60_kib_is_read_and_one_of_200_kib_is_not(server):
    for size, taken in ((60, True), (200, False)):
        lines = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(size))
        server.parts = [HEAD + lines + b"Content-Length: 2\r\n\r\nok"]
        if taken:
            assert ask(server)[1] == b"ok"
        else:
            with pytest.raises(WorkerHTTPError) as caught:
                ask(server)
            assert f"{HEAD_BYTES // 1024} KiB" in str(caught.value.__cause__)


def drip(data: bytes, pause_s: float = 0.05) -> Iterator[bytes]:
    for number in range(len(data)):
        time.sleep(pause_s)
        yield data[number : number + 1]


@pytest.mark.parametrize("read_s", [20.0, None])
@pytest.mark.parametrize("data", [HEAD + b"X-Long: " + b"x" * 1000, b"\r\n" * 1000])
def test_a_head_that_comes_byte_by_byte_is_given_up(server, read_s, data):
    server.parts = drip(data)
    began = time.monotonic()
    with pytest.raises(WorkerHTTPError) as caught:
        ask(server, read_s, head_s=0.5)
    assert not isinstance(caught.value, NoAnswerInTime)
    assert "did not end within 0.5 s" in str(caught.value.__cause__)
    assert 0.5 <= time.monotonic() - began < 15


def test_a_head_that_stops_in_the_middle_of_a_held_request_is_given_up(server):
    held = threading.Event()

    def parts():
        yield HEAD
        held.wait(20)

    server.parts = parts()
    with pytest.raises(WorkerHTTPError):
        ask(server, None, head_s=0.5)
    held.set()


@pytest.mark.slow
def test_an_answer_may_begin_at_any_time_also_after_an_interim_one(server):
    def parts():
        time.sleep(0.6)
        yield b"HTTP/1.1 102 Processing\r\n\r\n"
        time.sleep(0.6)
        yield SIZED

    server.parts = parts()
    assert ask(server, None, head_s=0.3)[1] == b"ok"


@pytest.mark.parametrize("rest", [b"", b"5;" + b"x" * 1000, b"0\r\nX: " + b"x" * 1000])
def test_a_body_that_has_a_time_ends_with_it(server, rest):
    server.keep = True
    held = threading.Event()

    def parts():
        yield CHUNKED
        yield from drip(rest)
        held.wait(20)

    server.parts = parts()
    used = connections(server)
    reply = used.send("GET", "/health", None)
    began = time.monotonic()
    with pytest.raises(NoAnswerInTime):
        reply.read(time.monotonic() + 0.5)
    assert 0.5 <= time.monotonic() - began < 15
    held.set()


# Connections that are kept.


def test_a_connection_is_used_again_while_it_is_young(server, monkeypatch):
    monkeypatch.setattr("ownpod.workers.http.REUSE_S", 60)
    server.keep, server.parts = True, [SIZED]
    used = connections(server)
    for _ in range(3):
        assert read(used.send("POST", "/run", 20, body="{}")) == b"ok"
    assert (server.connections, server.requests) == (1, 3)


@pytest.mark.slow
def test_a_connection_that_was_idle_for_longer_is_not_used_again(server):
    server.keep, server.parts = True, [SIZED]
    used = connections(server)
    assert read(used.send("POST", "/run", 20, body="{}")) == b"ok"
    idle_since = time.monotonic()
    wait_until(lambda: time.monotonic() - idle_since > REUSE_S)
    assert read(used.send("POST", "/run", 20, body="{}")) == b"ok"
    assert server.connections == 2


class ClosesIdle(RawServer):
    """Closes a connection without an answer as soon as a request comes after 4 s of silence, as a server that closes
    idle connections does in the unlucky moment.
    """

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            idle_since = math.inf
            while connection.recv(65_536) and time.monotonic() - idle_since < 4:
                connection.sendall(SIZED)
                idle_since = time.monotonic()


@pytest.mark.slow
def test_no_request_is_lost_to_a_server_that_closes_idle_connections():
    server = ClosesIdle()
    used = connections(server)
    for idle_s in (0, 4.2, 0):
        since = time.monotonic()
        wait_until(lambda since=since, idle_s=idle_s: time.monotonic() - since >= idle_s)
        assert read(used.send("POST", "/run", 20, body="{}")) == b"ok"
    server.stop()
