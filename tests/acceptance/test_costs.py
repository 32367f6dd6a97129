"""What a job costs, counted and not timed: it must not grow unnoticed."""

import contextlib
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import wait_until

from ownpod.store.client import connect

JOBS = 40


@pytest.fixture
def ownpod(start_worker, start_ownpod):
    ownpod = start_ownpod(start_worker()[0], OWNPOD_LEASE_S=6, WEB_CONCURRENCY=1)
    # What is found out once: whether the handler yields.
    ownpod.post("/runsync", {"input": {"text": "first"}})
    return ownpod


def drain(ownpod):
    (worker,) = ownpod.get("/health")["ownpod"]["workers"]
    ownpod.post(f"/workers/{worker['id']}/drain")
    wait_until(lambda: ownpod.get("/health")["workers"]["throttled"] == 1)


def used(client):
    return {name[8:]: said["calls"] for name, said in client.info("commandstats").items()}


def test_a_job_costs_four_scripts_one_fetch_and_one_notice_to_the_waiting_request(ownpod):
    with connect(ownpod.redis_url) as client:
        before, began = used(client), time.monotonic()
        for _ in range(JOBS):
            ownpod.post("/runsync", {"input": {"text": "x"}})
        after, took_s = used(client), time.monotonic() - began
        # Sweep, gate and the like, whatever goes on.
        besides = 10 + 10 * took_s
        calls = {name: count - before.get(name, 0) for name, count in after.items()}
        # create, claim, note, finish
        assert calls["evalsha"] <= 4 * JOBS + besides
        assert calls["brpop"] <= 2 * JOBS + besides
        assert calls["publish"] <= JOBS + besides
        assert calls.get("multi", 0) <= besides
        # In scripts, too.
        assert sum(calls.values()) <= 50 * JOBS + 10 * besides
        # A node acknowledges a job's message after the end of the job.
        wait_until(lambda: not client.exists("unacked", "unacked_index"))


def test_a_waiting_job_takes_less_than_2_kb_of_redis_beside_its_payload(ownpod):
    drain(ownpod)
    with connect(ownpod.redis_url) as client:

        def memory():
            return client.info("memory")["used_memory"]

        def submit(count):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: ownpod.post("/run", {"input": {}}), range(count)))

        submit(100)
        before = memory()
        submit(1000)
        assert (memory() - before) / 1000 < 2048


def test_many_clients_wait_at_once_and_others_are_answered(ownpod):
    clients = 700
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    drain(ownpod)
    body = b'{"input": {}}'
    request = (
        f"POST /v2/local-ep/runsync?wait=200000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", ownpod.port), 200))
            for _ in range(clients)
        ]
        for one in sockets:
            one.sendall(request)
        wait_until(lambda: ownpod.get("/health")["jobs"]["inQueue"] == clients, 120)
        assert ownpod.post("/purge-queue")["removed"] == clients
        answers = [stack.enter_context(one.makefile("rb")).read() for one in sockets]
    assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * clients
    assert all(b'"status": "CANCELLED"' in answer for answer in answers)
