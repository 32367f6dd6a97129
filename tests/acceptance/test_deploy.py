"""The files of deploy/: nginx and Caddy in front of a real OwnPod, and systemd's own checks of the units."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from helpers import ROOT, Process, answers, wait_until

from ownpod.processes import free_port

DEPLOY = ROOT / "deploy"


def nginx(tmp_path, port, upstream):
    site = (DEPLOY / "nginx.conf").read_text()
    site = site.replace("listen 80;", f"listen 127.0.0.1:{port};")
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    (tmp_path / "site.conf").write_text(site)
    config = tmp_path / "nginx.conf"
    config.write_text(
        # As root, nginx would change to a user that cannot write to this folder.
        f"{'user root; ' if os.geteuid() == 0 else ''}daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; "
        f"proxy_temp_path {tmp_path}/proxy; include {tmp_path}/site.conf; }}\n"
    )
    return ["nginx", "-p", tmp_path, "-c", config, "-e", "stderr"]


def caddy(tmp_path, port, upstream):
    site = (DEPLOY / "Caddyfile").read_text()
    site = site.replace("ownpod.example.com", f"http://127.0.0.1:{port}")
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    config = tmp_path / "Caddyfile"
    config.write_text(site.replace("{\n", "{\n\tadmin off\n\tauto_https off\n", 1))
    return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]


PROXIES = pytest.mark.parametrize("proxy", [nginx, caddy], ids=["nginx", "caddy"])


@contextlib.contextmanager
def started(proxy, tmp_path, upstream):
    """Starts a proxy of deploy/ in front of a port; returns its base URL."""
    port = free_port()
    command = proxy(tmp_path, port, upstream)
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}: apt-get install it to test deploy/")
    process = Process(*command, log=tmp_path / "proxy.log", HOME=tmp_path)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 20, "the proxy")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stop()
        print(process.output)


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(request, shared, tmp_path):
    """The shared OwnPod's base URL behind a proxy."""
    with started(request.param, tmp_path, shared.port) as url:
        yield f"{url}/v2/local-ep"


def test_a_proxy_lets_large_jobs_and_long_waits_through(proxied):
    text = "x" * 15_000_000
    job = {"input": {"text": text, "seconds": 3}}
    done = requests.post(f"{proxied}/runsync?wait=60000", json=job, timeout=70).json()
    assert (done["status"], done["output"]["echo"] == text) == ("COMPLETED", True)


def test_a_proxy_passes_events_on_as_they_come(proxied, tmp_path):
    end = tmp_path / "end"
    body = {"input": {"until": str(end)}}
    job = requests.post(f"{proxied}/run", json=body, timeout=60).json()["id"]
    events = {"Accept": "text/event-stream"}
    with requests.get(f"{proxied}/stream/{job}", headers=events, stream=True, timeout=60) as got:
        lines = got.iter_lines()
        # The job ends after the first one has come.
        first = next(lines)
        end.touch()
        rest = list(lines)
    assert b"COMPLETED" not in first
    assert b"COMPLETED" in b"".join(rest)


def test_a_result_of_30_mb_comes_through_a_proxy(proxied):
    """By the pull protocol, as a worker of RunPod's SDK posts it, with a handler's progress first."""
    worker = f"gpu-{time.time_ns()}"
    endpoint = proxied.replace("local-ep", "generator-ep")
    headers = {"Authorization": "Bearer any"}
    take = {"url": f"{endpoint}/job-take/{worker}", "params": {"job_in_progress": "0"}}
    taken, output = [], "x" * 30_000_000

    def pull():
        while not taken:
            got = requests.get(**take, headers=headers, timeout=40)
            if got.status_code == 200:
                taken.append(got.json()["id"])

    puller = threading.Thread(target=pull, daemon=True)
    puller.start()

    def known():
        workers = requests.get(f"{endpoint}/health", timeout=60).json()["ownpod"]["workers"]
        return any(found["id"] == worker and found["state"] == "ready" for found in workers)

    wait_until(known, 30, "the worker that pulls")
    # The endpoint's other worker has something to do meanwhile.
    jobs = [
        requests.post(f"{endpoint}/run", json={"input": {"count": 2, "seconds": 5}}, timeout=60)
        for _ in range(2)
    ]
    wait_until(lambda: taken, 30, "a job")
    body = json.dumps({"output": output})
    sent = requests.post(
        f"{endpoint}/job-done/{worker}/{taken[0]}", data=body, headers=headers, timeout=60
    )
    assert sent.status_code == 200, sent.text

    def result():
        for job in (job.json()["id"] for job in jobs):
            status = requests.get(f"{endpoint}/status/{job}", timeout=60).json()
            if status.get("workerId") == worker and status["status"] == "COMPLETED":
                return status
        return None

    assert wait_until(result, 30, "the result")["output"] == output
    # The limit for other requests is unchanged.
    too_large = requests.post(f"{endpoint}/run", data=body[:23_000_000], timeout=60)
    assert too_large.status_code == 413


class Echo(BaseHTTPRequestHandler):
    """Answers with the headers of the request, after reading its body."""

    protocol_version = "HTTP/1.1"
    began: list[float]

    def do_GET(self):
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.began.append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def upstream():
    """A server instead of OwnPod: its port, and the times at which bodies began to arrive."""
    began = []
    handler = type("Recording", (Echo,), {"began": began})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, began
        server.shutdown()
        thread.join()


@PROXIES
def test_a_client_cannot_choose_its_address_behind_a_proxy(proxy, upstream, tmp_path):
    with started(proxy, tmp_path, upstream[0]) as url:
        headers = {"X-Forwarded-For": "203.0.113.7"}
        seen = requests.get(url, headers=headers, timeout=60).json()
    forwarded = {name.lower(): value for name, value in seen.items()}["x-forwarded-for"]
    assert forwarded == "127.0.0.1"


def test_nginx_sends_a_slow_body_on_when_it_is_complete(upstream, tmp_path):
    upstream_port, began = upstream
    with started(nginx, tmp_path, upstream_port) as url:
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            head = b"POST /v2/local-ep/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n"
            client.sendall(head + b"{")
            # Another request meanwhile: what the first has sent would have arrived before it.
            assert requests.get(url, timeout=60).status_code == 200
            assert began == []
            client.sendall(b"}")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert len(began) == 1


def impatient_caddy(tmp_path, port, upstream):
    command = caddy(tmp_path, port, upstream)
    config = tmp_path / "Caddyfile"
    text = config.read_text()
    assert text.count("read_body 300s") == 1
    config.write_text(text.replace("read_body 300s", "read_body 2s"))
    return command


def test_caddy_ends_a_body_that_does_not_come_and_bounds_no_answer(shared, tmp_path):
    with started(impatient_caddy, tmp_path, shared.port) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 60) as client:
            head = b"POST /v2/local-ep/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n"
            client.sendall(head + b"{")
            answer = client.recv(100)
            assert b" 504 " in answer or b" 400 " in answer or not answer, answer
        job = {"input": {"text": "x", "seconds": 4}}
        waited = requests.post(f"{url}/v2/local-ep/runsync?wait=20000", json=job, timeout=60)
        assert waited.json()["status"] == "COMPLETED"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/ownpod", str(ROOT))
        (tmp_path / unit.name).write_text(text)
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / unit.name],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", ["ownpod-api.service", "ownpod-dispatch.service"])
def test_systemd_finds_little_that_the_units_leave_open(unit):
    # The threshold is in tenths; before these units were hardened it was 87.
    found = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=25"),
            DEPLOY / "systemd" / unit,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
