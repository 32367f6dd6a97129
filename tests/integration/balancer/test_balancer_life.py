"""HAProxy's process: start, adoption, death, end; what it passes to the API; hostile requests; fronts before fronts."""

import contextlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import requests
import trustme
from helpers import wait_until
from web_worker import KEY, WebWorker, front
from websockets.sync.client import connect

from ownpod.errors import StartError
from ownpod.front.balancer import Balancer
from ownpod.front.binary import find_haproxy
from ownpod.front.layout import ALIVE_PATH, Layout
from ownpod.processes import free_port
from ownpod.rules.balancing import Balancing, FrontState, Route, Server
from ownpod.rules.credentials import digest_of

pytestmark = pytest.mark.slow

PROGRAM = find_haproxy().path
AUTH = f"Authorization: {KEY}\r\n"


def test_files_are_for_this_user_only_and_the_environment_is_empty(lb, monkeypatch):
    lb.apply()
    lb.balancer.stop()
    monkeypatch.setenv("OWNPOD_API_KEYS", "secret")
    lb.balancer.ensure()
    assert stat.S_IMODE(lb.directory.stat().st_mode) == 0o700
    for path in lb.directory.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.is_dir(), path
    assert b"secret" not in Path(f"/proc/{lb.balancer.pid}/environ").read_bytes()
    assert os.getpgid(lb.balancer.pid) == lb.balancer.pid


def test_a_long_directory_is_fine(tmp_path):
    with front(tmp_path / ("long" * 30) / "front") as lb:
        lb.apply()
        assert lb.reading().requests == 0


def test_a_killed_haproxy_is_back_with_its_state_and_held_requests_of_then_pass(lb, worker):
    lb.apply(worker.server(capacity=2))
    backend = dict(lb.balancer.backends)
    assert lb.balancer.ensure() is False
    for _ in range(3):
        old = lb.balancer.pid
        os.kill(old, signal.SIGKILL)
        assert lb.balancer.wait(10) is True
        assert lb.balancer.read() == {}
        wait_until(lb.balancer.ensure, what="at once for the first time, then after a pause")
        assert lb.balancer.pid != old
        assert lb.get().ok
        assert requests.get(lb.url("/echo"), timeout=60).status_code == 401
    assert lb.balancer.backends == backend
    lb.apply()
    os.kill(lb.balancer.pid, signal.SIGKILL)
    lb.balancer.wait(10)
    wait_until(lb.balancer.ensure)
    held = lb.background("/echo")
    wait_until(lambda: lb.reading().requests == 1)
    lb.apply(worker.server())
    assert held.answer().ok


def test_the_next_edge_adopts_haproxy_with_requests_and_readings(lb, worker):
    state = lb.apply(worker.server())
    held = lb.background("/hold")
    wait_until(lambda: lb.reading().running == 1)
    after = Balancer(lb.layout, lb.directory, PROGRAM)
    assert after.start() is True
    assert after.pid == lb.balancer.pid
    assert after.read()["ep"].running == 1
    after.apply(state)
    assert after.backends == lb.balancer.backends
    worker.let_go()
    assert held.answer().ok
    assert after.wait(0) is False
    os.kill(after.pid, signal.SIGKILL)
    assert after.wait(10) is True
    assert after.ensure() is True
    lb.balancer.stop()
    assert lb.get().ok
    after.stop()


def test_a_haproxy_with_another_configuration_is_replaced(lb):
    lb.apply()
    other = Balancer(Layout(lb.layout.binds, lb.layout.api, domain="other"), lb.directory, PROGRAM)
    assert other.start() is False
    assert lb.balancer.wait(10) is True
    other.stop()


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        layout = Layout((("127.0.0.1", port),), ("127.0.0.1", 1))
        with pytest.raises(StartError, match=str(port)) as raised:
            Balancer(layout, tmp_path / "front", PROGRAM).start()
        assert "\n" not in str(raised.value)


def test_drain_lets_open_requests_end(lb, worker):
    lb.apply(worker.server())
    held = lb.background("/hold")
    wait_until(lambda: worker.running == 1)
    assert lb.balancer.drain(0.2) is False
    with pytest.raises(requests.ConnectionError):
        lb.get()
    worker.let_go()
    assert held.answer().ok
    assert lb.balancer.drain(60) is True


def test_requests_to_the_api_wait_while_it_is_away(lb):
    api = WebWorker("api", port=lb.api_port)
    answers = []

    def post():
        answers.append(
            requests.post(
                f"http://127.0.0.1:{lb.port}/upload", data=b"x" * 200_000, timeout=100
            ).text
        )

    threads = [threading.Thread(target=post) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: lb.balancer.pid and len(answers) == 0)
    with api.serving():
        for thread in threads:
            thread.join(100)
        assert answers == ["200000"] * 5
        shown = requests.get(
            f"http://127.0.0.1:{lb.port}/v2/x?y",
            headers={"Authorization": "k", "X-Forwarded-For": "6.6.6.6"},
            timeout=60,
        ).json()
        headers = dict(shown["headers"])
        assert (shown["path"], shown["query"]) == ("/v2/x", "y")
        assert headers["x-forwarded-for"] == "127.0.0.1"
        assert headers["authorization"] == "k"
        assert "x-forwarded-prefix" not in headers


@pytest.mark.parametrize(
    "request_",
    [
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: +5\r\n\r\nhello",
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: chunked, identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST {path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length : 5\r\n\r\nhello",
        "GET {path} HTTP/1.1\r\nHost: x\r\nHost: y\r\n{auth}\r\n",
        "GET {path} HTTP/1.1\r\nHost: x\r\n{auth}A: b\r\n c\x00d\r\n\r\n",
        "GET {path} HTTP/1.1\r\nHost: x\r\n{auth}bad name: b\r\n\r\n",
        "GET http://other{path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n",
        "GET {path} HTTP/1.1\r\nHost: x\r\n{auth}Big: {big}\r\n\r\n",
        "GET {path}{big} HTTP/1.1\r\nHost: x\r\n{auth}\r\n",
        "G@T {path} HTTP/1.1\r\nHost: x\r\n{auth}\r\n",
        "\x16\x03\x01\x02\r\n\r\n",
    ],
)
@pytest.mark.parametrize("path", ["/lb/ep/echo", "/v2/x"])
def test_a_request_that_two_parsers_could_read_differently_is_refused(lb, worker, request_, path):
    lb.apply(worker.server())
    text = request_.format(path=path, auth=AUTH, big="x" * 100_000)
    answer = lb.raw(text.encode("latin-1"))
    assert answer.split()[1] in {b"400", b"413", b"414", b"422", b"431"}, answer[:200]
    assert not worker.seen


def test_length_and_chunks_together_reach_the_worker_as_chunks_only(lb, worker):
    """RFC 9112: the length is dropped, so a worker cannot read the rest as a second request."""
    lb.apply(worker.server())
    smuggled = "GET /status/418 HTTP/1.1\r\nHost: x\r\n\r\n"
    body = f"0\r\n\r\n{smuggled}"
    answer = lb.raw(
        f"POST /lb/ep/echo HTTP/1.1\r\nHost: x\r\n{AUTH}Connection: close\r\nContent-Length: {len(body)}\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{body}".encode()
    )
    assert answer.count(b"HTTP/1.1 ") == 1
    assert all("418" not in seen for seen in worker.seen)


def test_pipelined_requests_are_answered_in_order_and_each_needs_the_key(lb, worker):
    lb.apply(worker.server())
    one = f"GET /lb/ep/status/201 HTTP/1.1\r\nHost: x\r\n{AUTH}\r\n"
    two = "GET /lb/ep/status/202 HTTP/1.1\r\nHost: x\r\n\r\n"
    three = f"GET /lb/ep/status/203 HTTP/1.1\r\nHost: x\r\n{AUTH}Connection: close\r\n\r\n"
    answer = lb.raw((one + two + three).encode())
    codes = [part.split()[0] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [b"201", b"401", b"203"]


def test_64_kib_of_headers_pass_to_the_api(lb):
    with WebWorker("api", port=lb.api_port).serving():
        lines = "".join(f"H{number}: {'x' * 6000}\r\n" for number in range(10))
        answer = lb.raw(
            f"GET /status/200 HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 200")


def test_metrics_of_haproxy_are_on_their_own_listener(tmp_path, worker):
    port = free_port()
    with front(tmp_path / "front", metrics=("127.0.0.1", port)) as lb:
        lb.apply(worker.server())
        assert lb.get().ok
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
        assert 'server="w1"' in text
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=60).status_code == 404
        assert (
            requests.get(f"http://127.0.0.1:{lb.port}{ALIVE_PATH}", timeout=60).status_code == 200
        )


def test_https_with_the_users_certificate(tmp_path, worker):
    authority = trustme.CA()
    certificate = authority.issue_cert("*.lb.example", "127.0.0.1")
    pem = tmp_path / "it's a $HOME cert.pem"
    pem.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(roots)
    port = free_port()
    with front(tmp_path / "front", certificate=str(pem), tls_port=port, domain="lb.example") as lb:
        lb.apply(worker.server())
        headers = {"Authorization": KEY, "Host": "ep.lb.example"}
        shown = requests.get(
            f"https://127.0.0.1:{port}/echo", headers=headers, verify=str(roots), timeout=60
        ).json()
        assert ["x-forwarded-proto", "https"] in shown["headers"]
        context = ssl.create_default_context(cafile=str(roots))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", port)) as raw,
            context.wrap_socket(raw, server_hostname="ep.lb.example") as tls,
        ):
            assert tls.selected_alpn_protocol() == "h2"


def test_a_worker_with_https_is_verified(lb, tmp_path, worker):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    pem, roots = tmp_path / "worker.pem", tmp_path / "roots.pem"
    pem.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    authority.cert_pem.write_to_path(roots)
    with front(tmp_path / "tls", certificate=str(pem), tls_port=(port := free_port())) as tls:
        tls.apply(worker.server())
        for verified in ({"ca_bundle": str(roots)}, {"verifies": False}):
            server = Server("w1", "localhost", port, tls=True, **verified)

            def answered(server=server):
                lb.apply(server, passes_authorization=True)
                return lb.get("/lb/ep/echo").status_code == 200

            wait_until(answered, what=f"{verified}: verified")
            assert lb.balancer.problems == {}
        unknown = Server("w1", "localhost", port, tls=True)

        def refused():
            lb.apply(unknown)
            return not lb.reading().servers["w1"].up

        wait_until(refused, what="the CAs of this host do not have the worker's")
        assert lb.reading().servers["w1"].problem
        lb.apply(Server("w1", "localhost", port, tls=True, ca_bundle=str(tmp_path / "none")))
        assert "cannot be read" in lb.balancer.problems["ep/w1"]


def test_a_front_passes_to_the_home_front(lb, tmp_path, worker):
    with front(tmp_path / "home") as home, WebWorker("w2").serving() as other:
        keys = {"*": {digest_of(KEY)}}
        workers = (worker.server(capacity=1), other.server(capacity=1))
        passed = Server("front-home", "127.0.0.1", home.port, is_front=True)

        def state(*servers, **changes):
            limits = Balancing(capacity=1, **changes)
            return FrontState(
                {"ep": Route("ep", limits, servers)}, keys=keys, secret="between-fronts"
            )

        home.balancer.apply(state(*workers))
        lb.balancer.apply(state(passed))
        for want in ("strict w2", "w1", "strict w1"):
            answer = lb.get("/echo?a=b", headers={"X-Runpod-Worker-Id": want})
            assert (
                answer.headers["X-Runpod-Worker-Id"] == answer.json()["worker"] == want.split()[-1]
            )
            headers = dict(answer.json()["headers"])
            assert headers["x-forwarded-for"] == "127.0.0.1"
            assert headers["x-forwarded-prefix"] == "/lb/ep"
            assert not {"x-ownpod-front", "x-ownpod-endpoint", "authorization"} & set(headers)
            assert answer.json()["path"] == "/echo"
        assert lb.get(headers={"X-Runpod-Worker-Id": "strict gone"}).status_code == 404
        home.balancer.apply(state(*workers, limit_s=1))
        lb.balancer.apply(state(passed, limit_s=1))
        assert lb.get("/hold").status_code == 524
        with connect(
            f"ws://127.0.0.1:{lb.port}/lb/ep/ws", additional_headers={"Authorization": KEY}
        ) as ws:
            ws.send("x")
            assert ws.recv().endswith(": x")
            wait_until(lambda: home.reading().running == 1)
            wait_until(lambda: lb.reading().requests == 0)
        assert requests.get(lb.url("/echo"), timeout=60).status_code == 401
        for secret, status in (("guess", 401), ("between-fronts", 200)):
            headers = {"X-Ownpod-Front": secret, "X-Ownpod-Endpoint": "ep"}
            url = f"http://127.0.0.1:{home.port}/lb/ep/echo"
            assert requests.get(url, headers=headers, timeout=60).status_code == status
        # Two fronts that both take the other one for the home do not pass a request around.
        home.balancer.apply(state(Server("front-lb", "127.0.0.1", lb.port, is_front=True)))
        circle = lb.get()
        assert circle.status_code == 503
        assert circle.headers["Retry-After"]


def test_five_hundred_websockets_at_once(lb, worker):
    lb.apply(worker.server())
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(
                connect(
                    f"ws://127.0.0.1:{lb.port}/lb/ep/ws",
                    additional_headers={"Authorization": KEY},
                    open_timeout=100,
                )
            )
            for _ in range(500)
        ]
        wait_until(lambda: lb.reading().running == 500)
        sockets[250].send("x")
        assert sockets[250].recv() == "w1: x"


def test_a_program_that_is_no_haproxy_is_named(tmp_path):
    fake = tmp_path / "haproxy"
    fake.write_text("#!/bin/sh\necho HAProxy version 2.6.12-1 2023\n")
    fake.chmod(0o755)
    found = find_haproxy(str(fake))
    assert found.path != str(fake)
    assert subprocess.run([PROGRAM, "-v"], capture_output=True, check=True, timeout=60).stdout
