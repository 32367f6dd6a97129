"""Clients that send a byte a second, or read nothing, against one real API process."""

import contextlib
import json
import re
import selectors
import socket
import threading
import time

import psutil
import pytest
import requests
from helpers import job_store, new_job, one_api, wait_until

from ownpod.api.serving.arrival import CREDIT_S, HEADER_S
from ownpod.rules.runs import Outcome

HEADER = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: "
SMALL = b"POST /v2/ep/run HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
LARGE = b"POST /v2/ep/run HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 65_600
EACH = {HEADER: 1000, SMALL: 800, LARGE: 200}


@pytest.fixture
def api(client, redis_server, tmp_path):
    """The port and process of one API process."""
    with one_api(tmp_path, redis_server.url) as found:
        yield found


class Dripping:
    """Connections that send their beginning at once, then a byte a second; counts how they end."""

    def __init__(self, port, beginnings):
        self.open = selectors.DefaultSelector()
        self.said = []
        for beginning, count in beginnings.items():
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", port))
                sock.sendall(beginning)
                sock.setblocking(False)
                self.open.register(sock, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._stopped = False
        self._thread.start()

    def __len__(self):
        return len(self.open.get_map())

    def _run(self):
        due = time.monotonic()
        while not self._stopped and len(self):
            for key, _ in self.open.select(0.05):
                self._end(key.fileobj)
            if time.monotonic() >= due:
                due += 1
                for key in list(self.open.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"x")

    def _end(self, sock):
        with contextlib.suppress(OSError):
            self.said.append(sock.recv(1000))
        self.open.unregister(sock)
        sock.close()

    def stop(self):
        self._stopped = True
        self._thread.join()
        for key in list(self.open.get_map().values()):
            key.fileobj.close()
        self.open.close()


def timed(call):
    began = time.monotonic()
    answer = call()
    assert answer.ok
    return time.monotonic() - began


def worker_threads(process):
    return psutil.Process(process.pid).children()[0].num_threads()


def test_2000_clients_that_send_a_byte_a_second_keep_others_from_nothing_and_are_ended(api):
    port, process = api
    base = f"http://127.0.0.1:{port}"
    began = time.monotonic()
    slow = Dripping(port, EACH)
    try:
        took = {"run": [], "status": [], "health": []}
        while len(slow) and time.monotonic() - began < CREDIT_S + 20:
            ran = requests.post(f"{base}/v2/ep/run", json={"input": {}}, timeout=10)
            job_id = ran.json()["id"]
            took["run"].append(ran.elapsed.total_seconds())
            path = f"{base}/v2/ep/status/{job_id}"
            took["status"].append(timed(lambda path=path: requests.get(path, timeout=10)))
            took["health"].append(timed(lambda: requests.get(f"{base}/health", timeout=10)))
            if time.monotonic() - began < HEADER_S / 2:
                # Those of long bodies have one, and those that are not slow.
                assert worker_threads(process) < EACH[LARGE] + 100
            time.sleep(0.1)
        assert len(slow) == 0
        assert len(took["run"]) > 20
        for times in took.values():
            # One that meets the machine at its worst moment is no pattern.
            assert sorted(times)[-2] < 1.5
    finally:
        slow.stop()
    told = [said for said in slow.said if b"408" in said.partition(b"\r\n")[0]]
    assert len(told) > 0.9 * sum(EACH.values())
    # Of some the body comes a moment later.
    bodies = [body for said in told if (body := said.partition(b"\r\n\r\n")[2])]
    assert len(bodies) > len(told) / 2
    assert all("too slowly" in json.loads(body)["error"] for body in bodies)
    assert re.search(
        r"\d+ requests arrived too slowly and were ended; from 127.0.0.1", process.output
    )


def test_a_new_connection_takes_the_place_of_an_idle_one_where_there_are_too_many(api):
    port, _ = api
    with contextlib.ExitStack() as stack:
        for _ in range(4200):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            stack.enter_context(contextlib.closing(sock))
        assert timed(lambda: requests.get(f"http://127.0.0.1:{port}/health", timeout=10)) < 2


def test_clients_that_do_not_close_keep_no_one_waiting(api):
    port, _ = api
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            stack.enter_context(contextlib.closing(sock))
            sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        # gunicorn's own main thread would wait 2 s for each.
        assert timed(lambda: requests.get(f"http://127.0.0.1:{port}/health", timeout=20)) < 2


def test_an_answer_that_is_not_read_holds_its_thread_for_half_a_minute_at_most(api, client):
    port, process = api
    store = job_store(client)
    store.jobs.create(new_job("large"))
    attempt = store.jobs.claim("large", worker_id="w", claim="c", lease_s=60)
    store.jobs.finish(attempt, Outcome("COMPLETED", output=json.dumps("x" * 20_000_000)))
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET /v2/ep/status/large HTTP/1.1\r\nHost: x\r\n\r\n")
        given_up = "a response is read too slowly: connection of 127.0.0.1 is closed"
        wait_until(lambda: given_up in process.output, CREDIT_S + 10, given_up)
