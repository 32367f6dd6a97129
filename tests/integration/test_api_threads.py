"""How gunicorn's threads go through the requests of one connection."""

import contextlib
import socket
from types import SimpleNamespace

import pytest
from gunicorn.workers.gthread import ThreadWorker

from ownpod.api.worker import PromptWorker


@pytest.fixture
def connection():
    ours, theirs = socket.socketpair()
    with contextlib.closing(ours), contextlib.closing(theirs):
        yield SimpleNamespace(sock=ours), theirs


@pytest.mark.parametrize(
    ("sent", "alive", "handled"),
    [(b"", True, 1), (b"12", True, 3), (b"1.3", True, 3), (b"12", False, 1)],
    ids=["nothing-more", "two-more", "until-one-ends-it", "stopping"],
)
def test_requests_that_are_there_are_answered_by_the_same_thread(
    monkeypatch, connection, sent, alive, handled
):
    conn, client = connection
    calls = []

    def handle(_worker, connection):
        calls.append(connection.sock.recv(1) if calls else b"first")
        return calls[-1] != b"."

    monkeypatch.setattr(ThreadWorker, "handle", handle)
    worker = PromptWorker.__new__(PromptWorker)
    worker.alive = alive
    client.sendall(sent)
    assert worker.handle(conn) is (b"." not in sent)
    assert len(calls) == handled
