"""Requests that wait in the real HAProxy: for the first worker, for a place, for one worker; and clients that leave."""

import contextlib
import random
import socket
import threading
import time
from dataclasses import replace

import pytest
import requests
from helpers import wait_until
from web_worker import KEY, WebWorker, front
from websockets.sync.client import connect

from ownpod.front.edge import SOCKET
from ownpod.rules.balancing import Balancing, FrontState, Route, Server
from ownpod.rules.credentials import digest_of

pytestmark = pytest.mark.slow


class Mortal:
    """A worker that answers its health checks only, until it dies."""

    def __init__(self):
        self.taken = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def server(self):
        return Server("w1", *self._listener.getsockname(), capacity=1)

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._connections.append(connection)
                # A check that HAProxy has given up ends its connection only.
                with contextlib.suppress(OSError):
                    if b"/ping" in connection.recv(4096):
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    else:
                        self.taken += 1

    def die(self):
        # Without the shutdown a thread that waits in `accept` keeps the socket open.
        for each in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def leaving(lb, path, *, method="GET", body=b"", headers=""):
    """A client that has sent a request, and is closed by the test."""
    connection = socket.create_connection(("127.0.0.1", lb.port), 60)
    head = f"{method} /lb/ep{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\n{headers}"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_requests_are_held_until_the_first_worker_and_counted(lb, worker):
    lb.apply()
    held = [lb.background("/echo", method="POST", data=b"x" * 200_000) for _ in range(20)]
    wait_until(lambda: lb.reading().requests == 20)
    assert lb.reading().waiting == 20
    assert not worker.seen
    lb.apply(worker.server())
    assert {each.answer().status_code for each in held} == {200}
    wait_until(lambda: lb.reading().requests == 0)
    assert lb.reading().total == 20


def test_no_worker_in_time_is_runpods_400(tmp_path):
    with front(tmp_path / "front") as lb:
        lb.apply(hold_s=1)
        answer = lb.get()
        assert answer.status_code == 400
        assert answer.json() == {
            "status": 400,
            "title": "Bad Request",
            "detail": "timed out waiting for worker",
        }
        assert answer.headers["Retry-After"]


def test_the_status_of_the_timeout_is_configured(tmp_path):
    with front(tmp_path / "front", timeout_status=503) as lb:
        lb.apply(hold_s=1)
        answer = lb.get()
        assert (answer.status_code, answer.json()["status"]) == (503, 503)


@pytest.mark.parametrize("status", [400, 503])
def test_no_place_in_time_is_the_same_answer(tmp_path, status):
    with (
        front(tmp_path / "front", timeout_status=status, holds=(1,)) as lb,
        WebWorker("w1").serving() as worker,
    ):
        lb.apply(worker.server(capacity=1), hold_s=1)
        busy = lb.background("/hold")
        wait_until(lambda: worker.running == 1)
        answer = lb.get()
        assert (answer.status_code, answer.json()["detail"]) == (
            status,
            "timed out waiting for worker",
        )
        assert answer.headers["Retry-After"]
        worker.let_go()
        assert busy.answer().ok


def test_a_worker_of_capacity_one_never_gets_two(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(capacity=1), two.server(capacity=1))
        for each in (one, two):
            assert lb.get(headers={"X-Runpod-Worker-Id": f"strict {each.name}"}).ok
            each.let_go()
        many = [
            lb.background(random.Random(number).choice(["/hold", "/echo"])) for number in range(60)
        ]
        assert {each.answer(60).status_code for each in many} == {200}
        assert one.most == two.most == 1
        assert one.seen
        assert two.seen


def test_two_requests_of_one_moment_do_not_share_a_place(lb, worker):
    lb.apply(worker.server(capacity=1))
    for _ in range(200):
        both = lb.background("/hold"), lb.background("/hold")
        wait_until(lambda: lb.reading().requests == 2 and worker.running)
        worker.let_go()
        assert {each.answer().status_code for each in both} == {200}
        worker.loop.call_soon_threadsafe(worker.release.clear)
        wait_until(lambda: not worker.release.is_set())
    assert worker.most == 1


def test_a_place_goes_to_a_request_that_waits(lb, worker):
    lb.apply(worker.server(capacity=1))
    first, second = lb.background("/hold"), lb.background("/hold")

    def one_waits():
        reading = lb.reading()
        return (reading.requests, reading.running, reading.servers["w1"].open) == (2, 1, 1)

    wait_until(one_waits)
    with WebWorker("w2").serving() as other:
        lb.apply(worker.server(capacity=1), other.server(capacity=1))
        wait_until(
            lambda: other.running == 1, what="the new worker gets the request from the queue"
        )
        other.let_go()
        worker.let_go()
        assert {first.answer().text, second.answer().text} == {"w1", "w2"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_client_that_leaves_frees_its_place_everywhere(lb, worker, method):
    lb.apply()
    body = b"x" * 1000
    held = leaving(lb, "/hold", method=method, body=body)
    wait_until(lambda: lb.reading().requests == 1)
    held.close()
    wait_until(lambda: lb.reading().requests == 0, what="a held request ends with its client")

    lb.apply(worker.server(capacity=1))
    running = leaving(lb, "/hold", method=method, body=body)
    wait_until(lambda: worker.running == 1)
    queued = [leaving(lb, "/hold", method=method, body=body) for _ in range(5)]
    strict = leaving(lb, "/hold", headers="X-Runpod-Worker-Id: strict w1\r\n")
    wait_until(lambda: lb.reading().requests == 7)
    for each in (*queued, strict):
        each.close()
    wait_until(lambda: lb.reading().requests == 1, what="queued requests end with their clients")
    running.close()
    wait_until(lambda: worker.aborted == 1, what="the worker is notified")
    wait_until(lambda: lb.reading().requests == 0)
    assert len(worker.seen) == 1
    assert lb.get().ok


def test_strict_resume_of_a_worker_that_cannot_come_back_is_answered_at_once(lb, worker):
    lb.apply()
    gone, comes = (
        lb.background("/echo", headers={"X-Runpod-Worker-Id": f"strict-resume {name}"})
        for name in ("w0", "w1")
    )
    wait_until(lambda: lb.reading().wishes == ("w0", "w1"))
    lb.apply(lost=["w0"])
    answer = gone.answer()
    assert (answer.status_code, answer.json()["reason"]) == (404, "affinity_worker_gone")
    wait_until(lambda: lb.reading().wishes == ("w1",))
    lb.apply(worker.server())
    assert comes.answer().ok


def test_strict_resume_waits_for_the_worker_and_is_a_wish(lb, worker):
    lb.apply()
    strict = lb.get(headers={"X-Runpod-Worker-Id": "strict w1"})
    assert strict.json()["reason"] == "affinity_worker_gone"
    with WebWorker("w2").serving() as other:
        lb.apply(other.server())
        waiting = lb.background("/echo", headers={"X-Runpod-Worker-Id": "strict-resume w1"})
        wait_until(lambda: lb.reading().wishes == ("w1",))
        assert not waiting.done
        lb.apply(other.server(), worker.server())
        assert waiting.answer().json()["worker"] == "w1"
        wait_until(lambda: lb.reading().wishes == ())


def test_a_strict_request_waits_for_its_own_worker_while_others_compete(lb):
    with WebWorker("w1").serving() as one, WebWorker("w2").serving() as two:
        lb.apply(one.server(capacity=1), two.server(capacity=1))
        busy = [lb.background("/hold") for _ in range(2)]
        wait_until(lambda: one.running == two.running == 1)
        others = [lb.background("/echo") for _ in range(3)]
        wait_until(lambda: lb.reading().waiting == 3)
        strict = lb.background("/echo", headers={"X-Runpod-Worker-Id": "strict w1"})
        wait_until(lambda: lb.reading().servers["w1"].waiting == 1)
        two.let_go()
        for each in others:
            assert each.answer().json()["worker"] == "w2"
        assert not strict.done
        one.let_go()
        assert strict.answer().json()["worker"] == "w1"
        assert all(each.answer().ok for each in busy)


def test_held_requests_of_a_removed_endpoint_are_answered_and_reach_no_other(tmp_path, worker):
    with front(tmp_path / "front", pool=1) as lb:
        lb.apply()
        held = lb.background("/echo")
        wait_until(lambda: lb.reading().requests == 1)
        route = Route("next", Balancing(), (worker.server(),))
        state = FrontState({"next": route}, keys={"*": {digest_of(KEY)}})
        lb.balancer.apply(state)
        assert held.answer().status_code == 404

        def there():
            lb.balancer.apply(state)
            return not lb.balancer.problems

        wait_until(there, what="the backend is given to the next endpoint once it is empty")
        head = {"Authorization": KEY}
        assert requests.get(lb.url("/echo", "next"), headers=head, timeout=60).ok
        assert worker.seen == ["GET /echo"]


def test_queued_requests_of_a_removed_endpoint_reach_no_other(tmp_path, worker):
    with (
        front(tmp_path / "front", pool=1, holds=(5,)) as lb,
        WebWorker("w2").serving() as other,
    ):
        lb.apply(worker.server(capacity=1), hold_s=5)
        busy = lb.background("/hold")
        wait_until(lambda: worker.running == 1)
        queued = lb.background("/mine")
        wait_until(lambda: lb.reading().waiting == 1)
        state = FrontState({"next": Route("next", Balancing(), (other.server(),))}, keys={})
        lb.balancer.apply(state)
        assert lb.balancer.problems
        worker.let_go()
        for each in (busy, queued):
            assert each.answer().status_code in {200, 400, 502, 503}

        def there():
            lb.balancer.apply(state)
            return not lb.balancer.problems

        wait_until(there)
        assert not other.seen


def test_a_held_request_notifies_the_edge(lb):
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(lb.directory / SOCKET))
        listener.listen()
        listener.settimeout(60)
        lb.apply()
        stack.callback(leaving(lb, "/x").close)
        listener.accept()[0].close()
        # It notifies at most 50 times a second.
        time.sleep(0.1)
        other = leaving(lb, "/x", headers="X-Runpod-Worker-Id: strict-resume w1\r\n")
        stack.callback(other.close)
        listener.accept()[0].close()


def test_changes_of_membership_under_load_break_nothing(lb):
    """200 requests, 20 streams and 10 WebSockets while workers come, drain and go."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(WebWorker(f"w{number}").serving()) for number in range(4)]
        lb.apply(*(each.server() for each in workers[:2]))
        head = {"Authorization": KEY}
        sockets = [
            stack.enter_context(
                connect(f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers=head)
            )
            for _ in range(10)
        ]
        streams = [lb.background("/events") for _ in range(20)]
        wait_until(lambda: sum(each.running for each in workers) == 30)
        problems = []

        def client(seed):
            chosen = random.Random(seed)
            for _ in range(25):
                try:
                    answer = lb.get(
                        chosen.choice(["/echo", "/status/200"]),
                        method=chosen.choice(["GET", "POST"]),
                    )
                    if answer.status_code != 200:
                        problems.append((answer.status_code, answer.text))
                except requests.RequestException as error:
                    problems.append(error)

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for turn in range(10):
            there = [
                each.server(draining=(number + turn) % 4 == 1)
                for number, each in enumerate(workers)
            ]
            lb.apply(*(server for number, server in enumerate(there) if (number + turn) % 4 != 2))
            count = lb.reading().total
            wait_until(
                lambda count=count: (
                    lb.reading().total > count + 5 or not any(t.is_alive() for t in threads)
                )
            )
        for thread in threads:
            thread.join(200)
        assert problems == []
        for number, each in enumerate(sockets):
            each.send(str(number))
            assert each.recv().endswith(f": {number}")
        for each in workers:
            each.let_go()
        assert all(b"data: last" in each.answer().content for each in streams)


def test_what_is_open_outlives_its_key(lb, worker):
    """As at RunPod, which checks a key at the upgrade only; see docs/howto/load-balanced.md."""
    state = lb.apply(worker.server())
    head = {"Authorization": KEY}
    with connect(f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers=head) as client:
        stream = lb.background("/events")
        wait_until(lambda: worker.running == 2)
        lb.balancer.apply(replace(state, keys={"*": {digest_of("another")}}))
        assert lb.get().status_code == 401
        client.send("on")
        assert client.recv() == "w1: on"
        worker.let_go()
        assert b"data: last" in stream.answer().content


def test_requests_that_wait_for_a_place_at_a_worker_that_is_removed_wait_for_the_next(lb, worker):
    lb.apply(worker.server(capacity=1), capacity=1)
    busy = lb.background("/hold")
    wait_until(lambda: worker.running == 1)
    queued = [lb.background("/echo", method="POST", data=b"x" * 200_000) for _ in range(3)]
    soft = lb.background("/echo", headers={"X-Runpod-Worker-Id": "w1"})
    wait_until(lambda: lb.reading().waiting == 4)
    lb.apply(capacity=1)
    late = lb.background("/echo")
    wait_until(lambda: lb.reading().waiting == 5, what="a later request is held, too")
    with WebWorker("w2").serving() as other:
        lb.apply(other.server(capacity=1), capacity=1)
        answers = [each.answer() for each in (*queued, soft, late)]
        assert [answer.headers["X-Runpod-Worker-Id"] for answer in answers] == ["w2"] * 5
        assert other.most == 1
    worker.let_go()
    assert busy.answer().ok
    assert len(worker.seen) == 1
    wait_until(lambda: lb.reading().requests == 0)
    assert ":keeper" not in lb.reading().servers


def test_requests_that_wait_for_a_place_at_a_worker_that_dies_wait_for_the_next(lb):
    """Also the one that HAProxy gave the dead worker's place to before it noticed."""
    worker = Mortal()
    lb.apply(worker.server, capacity=1)
    busy = lb.background("/busy")
    wait_until(lambda: worker.taken == 1)
    queued = [lb.background("/echo") for _ in range(3)]
    wait_until(lambda: lb.reading().waiting == 3)
    worker.die()
    assert busy.answer().status_code == 502
    wait_until(lambda: not lb.reading().servers["w1"].up, what="HAProxy finds the worker down")
    wait_until(lambda: lb.reading().waiting == 3, what="no request was lost with the worker")
    with WebWorker("w2").serving() as other:
        lb.apply(other.server(capacity=1), capacity=1)
        assert {each.answer().headers["X-Runpod-Worker-Id"] for each in queued} == {"w2"}


def test_requests_in_the_queue_wait_no_longer_than_those_that_are_held(tmp_path, worker):
    with front(tmp_path / "front", holds=(3,)) as lb:
        lb.apply(worker.server(capacity=1), hold_s=3, capacity=1)
        busy = lb.background("/hold")
        wait_until(lambda: worker.running == 1)
        queued = lb.background("/echo")
        wait_until(lambda: lb.reading().waiting == 1)
        lb.apply(hold_s=3, capacity=1)
        held = lb.background("/echo")
        for each in (queued, held):
            answer = each.answer()
            assert (answer.status_code, answer.json()["detail"]) == (
                400,
                "timed out waiting for worker",
            )
        worker.let_go()
        assert busy.answer().ok


def test_what_keeps_requests_in_the_queue_is_no_worker(lb, worker):
    lb.apply(worker.server(capacity=1), capacity=1)
    assert lb.get(headers={"X-Runpod-Worker-Id": ":keeper"}).ok
    answer = lb.get(headers={"X-Runpod-Worker-Id": "strict :keeper"})
    assert (answer.status_code, answer.json()["reason"]) == (404, "affinity_worker_gone")
    assert lb.reading().servers.keys() == {"w1"}


def test_requests_in_the_queue_of_an_endpoint_that_is_removed_are_answered_at_once(lb, worker):
    lb.apply(worker.server(capacity=1), capacity=1)
    busy = lb.background("/hold")
    wait_until(lambda: worker.running == 1)
    queued = lb.background("/echo")
    wait_until(lambda: lb.reading().waiting == 1)
    lb.balancer.apply(FrontState({}, keys={}))
    answer = queued.answer()
    assert (answer.status_code, answer.json()["detail"]) == (503, "no worker is ready")
    assert answer.headers["Retry-After"]
    worker.let_go()
    assert busy.answer().ok
