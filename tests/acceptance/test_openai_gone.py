"""Clients of a real API process that go, keep their connection, or lose the process."""

import contextlib
import json
import signal
import socket
import time

import psutil
import pytest
from answering import Answering
from helpers import job_store, one_api, wait_until

from ownpod.housekeeping.unattended import GONE_S, Unattended
from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.attended import Attended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVENT = 'data: {"a": 1}\n\n'
DONE = "data: [DONE]\n\n"
CHAT = '{"object": "chat.completion", "choices": []}'


@pytest.fixture
def api(client, redis_server, tmp_path):
    """The port and process of one API process."""
    with one_api(tmp_path, redis_server.url) as found:
        yield found


@pytest.fixture
def store(client):
    return job_store(client)


def request(*, stream, path="/v2/ep/openai/v1/chat/completions"):
    body = json.dumps({"stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextlib.contextmanager
def connected(port):
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        yield sock


def read_until(sock, wanted):
    had = b""
    while wanted.encode() not in had:
        part = sock.recv(65_536)
        assert part, had
        had += part
    return had.decode()


def claims(worker):
    worker.claim()


def yields(worker):
    worker.claim()
    worker.chunk(EVENT)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_connection_cancels_its_job_at_once(api, store, stream):
    with connected(api[0]) as sock:
        with Answering(store, yields if stream else claims) as worker:
            sock.sendall(request(stream=stream))
        if stream:
            assert "x-runpod-worker-id: w1" in read_until(sock, EVENT).lower()
        else:
            name = keys.job(worker.job_id)
            wait_until(lambda: store.client.hget(name, "watched"))
    # Nothing is written to the connection, so that only its close is noticed.
    wait_until(lambda: worker.job().status is JobStatus.CANCELLED)
    wait_until(lambda: store.client.zscore(keys.ATTENDED, worker.job_id) is None)


def test_a_connection_is_used_again_after_a_stream_and_after_an_answer(api, store):
    with connected(api[0]) as sock:
        for _ in range(2):
            with Answering(store, yields) as worker:
                sock.sendall(request(stream=True))
            text = read_until(sock, EVENT)
            assert "transfer-encoding: chunked" in text.lower()
            worker.finish([])
            # The last chunk of the transfer coding comes after the last event.
            assert DONE in read_until(sock, "\r\n0\r\n\r\n")

            def answers(worker):
                worker.claim()
                worker.finish(f"[{CHAT}]")

            with Answering(store, answers):
                sock.sendall(request(stream=False))
                assert read_until(sock, CHAT).startswith("HTTP/1.1 200 OK")


def test_the_jobs_of_a_killed_process_are_cancelled_by_the_sweep(api, store):
    port, process = api
    with connected(port) as sock:
        with Answering(store, yields) as worker:
            sock.sendall(request(stream=True))
        read_until(sock, EVENT)
        psutil.Process(process.pid).children()[0].kill()
    assert worker.job().status is JobStatus.IN_PROGRESS
    attended = Attended(store.client)
    # As if its lease were over.
    store.client.zadd(keys.ATTENDED, {worker.job_id: 1}, xx=True)
    assert attended.overdue() == [worker.job_id]
    now = [time.monotonic()]
    sweep = Unattended(store, attended, clock=lambda: now[0])
    sweep.once()
    now[0] += GONE_S
    sweep.once()
    assert worker.job().status is JobStatus.CANCELLED


def test_a_process_that_is_to_end_tells_its_clients_to_come_again(api, store):
    port, process = api
    with connected(port) as sock:
        with Answering(store, claims) as worker:
            sock.sendall(request(stream=False))
        name = keys.job(worker.job_id)
        wait_until(lambda: store.client.hget(name, "watched"))
        process.send(signal.SIGTERM)
        text = read_until(sock, "\r\n\r\n")
    assert text.startswith("HTTP/1.1 503")
    assert "x-should-retry: true" in text.lower()
    wait_until(lambda: worker.job().status is JobStatus.CANCELLED)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/ep/openai/v1/../../../../health", 400),
        ("/v2/ep/openai/v1/%2e%2e/x", 400),
        ("/v2/ep/openai/v1/a%00b", 400),
        ("/v2/ep/openai/%0d%0ax: y", 400),
        ("/v2/ep/openai/" + "a" * 4000, 400),
        ("/v2/ep/openai/" + "a" * 9000, 414),
        ("/v2/ep/openai/\xff", 400),
    ],
)
def test_odd_paths_make_no_job(api, store, path, status):
    with connected(api[0]) as sock:
        sock.sendall(request(stream=False, path=path).replace(b"\xc3\xbf", b"\x01"))
        text = read_until(sock, "\r\n\r\n")
    assert int(text.split()[1]) == status, text
    assert store.listing.recent("ep", status=None, before=None, limit=1)[0] == []
