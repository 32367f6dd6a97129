"""The health checks of workers that are not ready, against small servers."""

import asyncio
import contextlib
import socket
import ssl
import threading
from dataclasses import replace

import pytest
import trustme
from helpers import Answer, FakeWorker, wait_until

from ownpod.front import prober as module
from ownpod.front.prober import Prober, ask
from ownpod.processes import free_port
from ownpod.rules import probing
from ownpod.rules.balancing import Server
from ownpod.rules.probing import Target


def target(port, *, path="/ping", host="127.0.0.1", **changes):
    return Target(Server("w", host, port, **changes), path)


def verdict(*args, **kwargs):
    return asyncio.run(ask(target(*args, **kwargs)))


@contextlib.contextmanager
def server(answer=b"", context=None):
    """A server that answers each connection with these bytes, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with contextlib.suppress(OSError), connection:
                        if context is not None:
                            connection = context.wrap_socket(connection, server_side=True)
                        connection.recv(65536)
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def context(authority):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(made)
    return made


def test_a_worker_is_ready_at_200_and_starts_at_204():
    with server(OK) as port:
        assert verdict(port).ready
    with server(b"HTTP/1.1 204 No Content\r\n\r\n") as port:
        assert verdict(port).starting


def test_nothing_on_the_port_is_a_refused_connection():
    port = free_port()
    found = verdict(port)
    assert not found.starting
    assert f"connection refused on 127.0.0.1:{port}: does it listen" in found.reason


def test_a_healthy_port_does_not_hide_that_the_other_one_refuses():
    closed = free_port()
    with server(OK) as port:
        assert f"refused on 127.0.0.1:{closed}" in verdict(closed, health_port=port).reason
        with server() as open_port:
            assert verdict(open_port, health_port=port).ready


def test_a_worker_that_does_not_answer_times_out(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no answer to GET /ping" in verdict(silent.getsockname()[1]).reason


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "without an answer"),
        (b"SSH-2.0-x\r\n", "not answer in HTTP"),
        (b"x" * 9999, "in HTTP"),
    ],
)
def test_what_is_no_http_is_named(answer, words):
    with server(answer) as port:
        assert words in verdict(port).reason


def test_a_name_without_an_address_is_named():
    assert "the name has no address here" in verdict(80, host="nowhere.invalid").reason


def test_a_certificate_is_verified_unless_it_need_not_be(authority, context, tmp_path):
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    with server(OK, context) as port:
        assert "caBundle" in verdict(port, tls=True).reason
        assert verdict(port, tls=True, ca_bundle=str(bundle)).ready
        assert verdict(port, tls=True, verifies=False).ready
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "http://" in verdict(port, tls=True).reason
    assert "caBundle" in verdict(1, tls=True, ca_bundle="/nowhere.pem").reason


@pytest.fixture
def prober():
    woken = threading.Event()
    made = Prober(woken.set)
    made.start()
    yield made
    made.stop()


def test_workers_are_asked_until_their_first_200_and_then_no_more(prober):
    worker = FakeWorker({"GET /ping": Answer(204)})
    with worker.serving():
        prober.watch({"w": target(worker.port), "silent": target(free_port())})
        wait_until(lambda: prober.verdicts["w"].starting and worker.seen)
        assert not prober.verdicts["w"].ready
        worker.routes["GET /ping"] = Answer(200)
        wait_until(lambda: prober.verdicts["w"].ready)
        asked = len(worker.seen)
        wait_until(lambda: "refused" in prober.verdicts["silent"].reason)
        prober.watch({"w": target(worker.port)})
        assert set(prober.verdicts) == {"w"}
        assert len(worker.seen) == asked


def test_a_managed_worker_that_just_started_starts_until_it_has_been_silent_for_long(
    prober, monkeypatch
):
    just_started = replace(target(free_port()), managed=True)
    prober.watch({"w": just_started})
    wait_until(lambda: prober.verdicts["w"].refused)
    assert (prober.verdicts["w"].starting, "does it" in prober.verdicts["w"].reason) == (
        True,
        False,
    )
    monkeypatch.setattr(probing, "PATIENCE_S", 0.0)
    wait_until(lambda: "does it listen on PORT" in prober.verdicts["w"].reason)
    assert not prober.verdicts["w"].starting


def test_a_worker_that_was_lost_is_asked_again(prober):
    worker = FakeWorker({"GET /ping": Answer(200)})
    with worker.serving():
        prober.watch({"w": target(worker.port)})
        wait_until(lambda: prober.verdicts["w"].ready)
        worker.routes["GET /ping"] = Answer(500)
        prober.lost({"w": "Layer7 wrong status"})
        assert prober.verdicts["w"].lost
        assert prober.verdicts["w"].reason == "Layer7 wrong status"
        wait_until(lambda: "500" in prober.verdicts["w"].reason)
        assert prober.verdicts["w"].lost
        worker.routes["GET /ping"] = Answer(200)
        wait_until(lambda: prober.verdicts["w"].ready)


def test_a_worker_with_another_address_is_asked_again(prober):
    worker = FakeWorker({"GET /ping": Answer(200)})
    with worker.serving():
        prober.watch({"w": target(worker.port)})
        wait_until(lambda: prober.verdicts["w"].ready)
        prober.watch({"w": target(free_port())})
        assert not prober.verdicts["w"].ready


def test_a_worker_that_haproxy_has_already_is_not_asked(prober):
    prober.watch({"w": target(free_port())}, ready=["w"])
    assert prober.verdicts["w"].ready
