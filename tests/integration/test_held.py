"""Connections of held requests: a close by the client is detected at once, also under TLS."""

import socket
import ssl
import threading

import pytest
import trustme

from ownpod.api.workers.held import HeldConnections, is_closed


@pytest.fixture(params=["plain", "tls"])
def pair(request):
    """The server's and the client's socket of a connection."""
    server, client = socket.socketpair()
    if request.param == "tls":
        authority = trustme.CA()
        here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(here)
        there = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(there)
        made = []
        thread = threading.Thread(
            target=lambda: made.append(there.wrap_socket(client, server_hostname="localhost"))
        )
        thread.start()
        server = here.wrap_socket(server, server_side=True)
        thread.join(5)
        client = made[0]
    yield server, client
    server.close()
    client.close()


@pytest.mark.parametrize("unread", [b"", b"the next request"])
def test_a_close_is_noticed_at_once_whatever_is_unread(pair, unread):
    server, client = pair
    closed = threading.Event()
    with HeldConnections().watch(server, closed.set) as connection:
        if unread:
            client.sendall(unread)
        assert not connection.closed
        assert not closed.wait(0.05)
        client.close()
        assert closed.wait(2)
        assert connection.closed


def test_a_connection_that_is_not_watched_any_more_calls_nothing(pair):
    server, client = pair
    closed, held = threading.Event(), HeldConnections()
    with held.watch(server, closed.set):
        pass
    with held.watch(server, lambda: None) as connection:
        assert not connection.closed
    client.close()
    assert is_closed(server.fileno())
    assert not closed.is_set()


def test_an_error_of_one_request_does_not_end_the_watch(pair):
    server, client = pair
    held, closed = HeldConnections(), threading.Event()
    other, peer = socket.socketpair()

    def fail():
        raise ValueError("x")

    with held.watch(server, fail), held.watch(other, closed.set):
        client.close()
        peer.close()
        assert closed.wait(2)
    other.close()
    with held.watch(None, fail) as connection:
        assert not connection.closed
