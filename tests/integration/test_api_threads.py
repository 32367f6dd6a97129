"""Threads of gunicorn: the requests of one connection, and the time limits for its client."""

import contextlib
import errno
import itertools
import socket
import ssl
import threading
from types import SimpleNamespace

import pytest
import trustme
from gunicorn.config import Config
from helpers import wait_until
from werkzeug.exceptions import RequestTimeout, ServiceUnavailable

from ownpod.api.serving.arrival import CREDIT_S, Pace, State
from ownpod.api.serving.channel import Channel, Shares
from ownpod.api.serving.worker import Connection, PromptWorker, refusal

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def connect():
    """Makes pairs of a channel and its client's socket."""
    with contextlib.ExitStack() as stack:

        def make(threads=8):
            ours, theirs = socket.socketpair()
            stack.enter_context(contextlib.closing(ours))
            stack.enter_context(contextlib.closing(theirs))
            theirs.settimeout(10)
            return Channel(ours, "10.0.0.9", Shares(threads)), theirs

        yield make


@pytest.fixture
def worker():
    """A gunicorn worker that answers each request with its number; a test sets ``alive`` to False to stop it."""
    log = SimpleNamespace(**{name: lambda *_, **__: None for name in ("debug", "info", "access")})
    found = PromptWorker(0, 0, [], SimpleNamespace(wsgi=None), 30, Config(), log)
    numbers = itertools.count(1)

    def answer(environ, start_response):
        environ["wsgi.input"].read()
        body = str(next(numbers)).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    found.wsgi = answer
    yield found
    found.tmp.close()


def connection(worker, channel):
    return Connection(worker.cfg, channel, ("10.0.0.9", 1), ("127.0.0.1", 80))


@pytest.mark.parametrize(
    ("sent", "alive", "answered", "kept"),
    [
        (GET, True, 1, True),
        (GET * 3, True, 3, True),
        (GET + LAST + GET, True, 2, False),
        (GET * 2, False, 1, False),
        (GET + GET[:10], True, 1, True),
    ],
    ids=["nothing-more", "two-more", "until-one-ends-it", "stopping", "half-a-request"],
)
def test_requests_that_are_there_are_answered_by_the_same_thread(
    worker, connect, sent, alive, answered, kept
):
    channel, client = connect()
    conn = connection(worker, channel)
    worker.alive = alive
    client.sendall(sent)
    assert channel.receive() is State.READY
    assert worker.handle(conn) is kept
    answers = client.recv(65536)
    assert answers.count(b"HTTP/1.1 200 OK") == answered
    if kept:
        client.sendall(GET[10:] if sent.endswith(GET[:10]) else GET)
        assert channel.receive() is State.READY
        assert worker.handle(conn) is True
        assert client.recv(65536).endswith(str(answered + 1).encode())


def test_a_request_in_pieces_takes_no_thread_before_it_has_arrived(connect):
    channel, client = connect()
    for byte in GET[:-1]:
        client.sendall(bytes([byte]))
        assert channel.receive() is State.MORE
    client.sendall(GET[-1:])
    assert channel.receive() is State.READY


def test_a_client_that_waits_for_100_continue_gets_it_once(worker, connect):
    channel, client = connect()
    conn = connection(worker, channel)
    client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert channel.receive() is State.MORE
    assert channel.receive() is State.MORE
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.sendall(b"hello")
    assert channel.receive() is State.READY
    worker.handle(conn)
    assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_long_body_is_awaited_without_a_thread_while_there_is_memory(connect):
    channel, client = connect()
    sender = threading.Thread(target=client.sendall, args=(POST + b"x" * 99_999,))
    sender.start()
    wait_until(lambda: channel.receive() and len(channel.arrival.buffer) == len(POST) + 99_999)
    sender.join()
    assert channel.receive() is State.MORE
    client.sendall(b"x")
    assert channel.receive() is State.READY


def slow_body(channel, client):
    client.sendall(POST)
    assert channel.receive() is State.MORE
    channel.recv(len(POST))
    # Moves the time limit back by 30 s, as if the header had arrived 30 s ago.
    channel.arrival.pace = Pace(channel.began_s - CREDIT_S)


def test_a_body_that_comes_too_slowly_is_408_and_a_drain_ends_by_its_own_limit(connect):
    channel, client = connect()
    slow_body(channel, client)
    with pytest.raises(RequestTimeout):
        channel.recv(10)
    channel.settimeout(0.01)
    with pytest.raises(TimeoutError):
        channel.recv(10)


def test_more_threads_than_there_are_for_slow_clients_do_not_wait_for_them(connect):
    channel, client = connect(threads=0)
    slow_body(channel, client)
    with pytest.raises(ServiceUnavailable):
        channel.recv(10)
    client.sendall(b"what has come is read")
    assert channel.recv(100) == b"what has come is read"


def test_an_answer_that_is_not_read_is_given_up(connect, caplog):
    caplog.set_level("INFO")
    channel, _ = connect(threads=0)
    with pytest.raises(BrokenPipeError) as raised:
        channel.sendall(b"x" * 10_000_000)
    assert raised.value.errno == errno.EPIPE
    assert caplog.messages == ["too many clients read slowly: connection of 10.0.0.9 is closed"]


def test_an_answer_that_is_read_slowly_arrives_whole(connect):
    channel, client = connect()
    data = bytes(range(256)) * 20_000
    sender = threading.Thread(target=channel.sendall, args=(data,))
    sender.start()
    got = bytearray()
    while len(got) < len(data):
        got += client.recv(50_000)
    sender.join()
    assert got == data


def test_a_peek_shows_whether_the_client_has_left_and_loses_nothing(connect):
    channel, client = connect()
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    with pytest.raises(BlockingIOError):
        channel.recv(1, flags)
    client.sendall(GET)
    assert channel.recv(1, flags) == b"G"
    assert channel.recv(100) == GET
    client.close()
    assert channel.recv(1, flags) == b""


def test_what_gunicorn_cannot_read_is_answered_as_json(worker, connect):
    channel, client = connect()
    client.sendall(b"GET / HTTP/1.1\nHost: x\r\n\r\n")
    assert channel.receive() is State.READY
    assert worker.handle(connection(worker, channel)) is False
    head, _, body = client.recv(1000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n")
    assert b'{"error": "Bad Request: ' in body
    assert refusal(408, "x").endswith(b'\r\nContent-Length: 14\r\n\r\n{"error": "x"}')


def test_through_tls_a_request_is_received_and_a_long_answer_sent_without_a_blocking_call():
    authority = trustme.CA()
    server, trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("ownpod.example").configure_cert(server)
    authority.configure_trust(trusted)
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    wrapped = server.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
    channel = Channel(wrapped, "10.0.0.9", Shares(8))
    assert channel.receive() is State.MORE
    assert channel.due_s is not None
    data, got = b"x" * 5_000_000, bytearray()

    def call():
        with trusted.wrap_socket(theirs, server_hostname="ownpod.example") as client:
            client.sendall(GET)
            while len(got) < len(data):
                got.extend(client.recv(100_000))

    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: channel.receive() is State.READY)
    assert channel.recv(100) == GET
    channel.sendall(data)
    caller.join()
    assert got == data
    channel.close()
