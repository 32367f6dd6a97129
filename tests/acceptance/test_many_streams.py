"""500 open event streams in one API process, and clients that do not read theirs."""

import contextlib
import json
import selectors
import socket
import time

import psutil
import pytest
import requests
from helpers import job_store, new_job, one_api, wait_until

from ownpod.api.serving.arrival import CREDIT_S
from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

STREAMS, JOBS = 500, 50
MOST_MB = 150
"""More memory of the API for all streams: each has a thread."""


@pytest.fixture
def api(client, redis_server, tmp_path):
    """The port and process of one API process."""
    with one_api(tmp_path, redis_server.url) as found:
        yield found


def opened(port, job_id, *, small=False):
    """A connection with a request for the typed events of a job."""
    sock = socket.socket()
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect(("127.0.0.1", port))
    sock.sendall(f"GET /v2/ep/stream/{job_id}?events=typed HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


def read(socks, wanted, seconds):
    """Reads until each of the connections has had this text; returns what each has had."""
    had = dict.fromkeys(socks, b"")
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            assert time.monotonic() < until, f"{len(selector.get_map())} without {wanted}"
            for key, _ in selector.select(1):
                part = key.fileobj.recv(1 << 16)
                had[key.fileobj] += part
                if not part or wanted in had[key.fileobj]:
                    assert wanted in had[key.fileobj], had[key.fileobj][-300:]
                    selector.unregister(key.fileobj)
    return had


def memory_mb(process):
    return psutil.Process(process.pid).children()[0].memory_full_info().pss / 1e6


def test_500_streams_of_one_process_all_get_every_event_and_keep_no_one_else_waiting(api, client):
    port, process = api
    store, jobs = job_store(client), [f"job-{n}" for n in range(JOBS)]
    for job_id in jobs:
        store.jobs.create(new_job(job_id))
    before_mb = memory_mb(process)
    with contextlib.ExitStack() as stack:
        socks = {}
        for n in range(STREAMS):
            sock = stack.enter_context(contextlib.closing(opened(port, jobs[n % JOBS])))
            socks[sock] = jobs[n % JOBS]
        begun = read(socks, b"event: connection", 30)
        assert all(b"X-Task-Id: " in text for text in begun.values())
        assert memory_mb(process) - before_mb < MOST_MB
        url = f"http://127.0.0.1:{port}"
        for path in ("/health", "/v2/ep/health", "/v2/ep/status/job-0"):
            assert requests.get(f"{url}{path}", timeout=10).ok
        assert requests.post(f"{url}/v2/ep/run", json={"input": {}}, timeout=10).ok
        for job_id in jobs:
            attempt = store.jobs.claim(job_id, worker_id="w", claim=job_id, lease_s=60)
            store.chunks.add(job_id, attempt.number, [json.dumps(job_id), '" more"'])
            store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='"x"'))
        had = read(socks, b"event: task_finish", 60)
        for sock, text in had.items():
            assert text.count(b"event: text_delta") == 2
            assert json.dumps({"delta": socks[sock]}).encode() in text
            assert b"0\r\n\r\n" in (text[-5:] or b"") or sock.recv(100).endswith(b"0\r\n\r\n")
    # Nothing of them is left: neither a thread, nor what waits for a job.
    worker = psutil.Process(process.pid).children()[0]
    wait_until(
        lambda: (
            not [
                c
                for c in worker.net_connections()
                if c.status == "ESTABLISHED" and c.laddr.port == port
            ]
        ),
        30,
        "the end of all connections",
    )
    assert requests.get(f"{url}/v2/ep/status/job-1", timeout=10).json()["status"] == "COMPLETED"


def test_a_stream_that_is_not_read_is_given_up_and_others_go_on(api, client):
    port, process = api
    store = job_store(client)
    store.jobs.create(new_job("large"))
    attempt = store.jobs.claim("large", worker_id="w", claim="c", lease_s=60)
    piece = json.dumps("x" * 500_000)
    for _ in range(10):
        store.chunks.add("large", attempt.number, [piece])
    with contextlib.ExitStack() as stack:
        lazy = [
            stack.enter_context(contextlib.closing(opened(port, "large", small=True)))
            for _ in range(5)
        ]
        before = psutil.Process(process.pid).children()[0].memory_info().rss
        reader = stack.enter_context(contextlib.closing(opened(port, "large")))
        store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output='"x"'))
        text = read([reader], b"event: task_finish", 30)[reader]
        assert text.count(b"event: text_delta") == 10
        given_up = "a response is read too slowly: connection of 127.0.0.1 is closed"
        wait_until(lambda: process.output.count(given_up) >= 1, CREDIT_S + 20, given_up)
        # Each stream has a part of the chunks at a time, and not all of them.
        after = psutil.Process(process.pid).children()[0].memory_info().rss
        assert after - before < 100_000_000
    assert len(lazy) == 5
