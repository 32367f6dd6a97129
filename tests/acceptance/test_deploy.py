"""What is in deploy/: nginx and Caddy before a real OwnPod, systemd's own check of its units."""

import shutil
import subprocess
import time

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
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; "
        f"proxy_temp_path {tmp_path}/proxy; include {tmp_path}/site.conf; }}\n"
    )
    return ["nginx", "-p", tmp_path, "-c", config, "-e", "stderr"]


def caddy(tmp_path, port, upstream):
    site = (DEPLOY / "Caddyfile").read_text()
    site = site.replace("ownpod.example.com", f"http://127.0.0.1:{port}")
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}")
    config = tmp_path / "Caddyfile"
    config.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + site)
    return ["caddy", "run", "--config", config, "--adapter", "caddyfile"]


@pytest.fixture(params=[nginx, caddy], ids=["nginx", "caddy"])
def proxied(request, shared, tmp_path):
    """The shared OwnPod's base URL behind a proxy."""
    if shutil.which(request.param.__name__) is None:
        pytest.skip(f"no {request.param.__name__}: apt-get install it to test deploy/")
    port = free_port()
    command = request.param(tmp_path, port, shared.port)
    proxy = Process(*command, log=tmp_path / "proxy.log", HOME=tmp_path)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 20, "the proxy")
        yield f"http://127.0.0.1:{port}/v2/local-ep"
    finally:
        proxy.stop()
        print(proxy.output)


def test_a_proxy_lets_large_jobs_and_long_waits_through(proxied):
    text = "x" * 15_000_000
    job = {"input": {"text": text, "seconds": 3}}
    done = requests.post(f"{proxied}/runsync?wait=60000", json=job, timeout=70).json()
    assert (done["status"], done["output"]["echo"] == text) == ("COMPLETED", True)


def test_a_proxy_passes_events_on_as_they_come(proxied):
    job = requests.post(f"{proxied}/run", json={"input": {"seconds": 3}}, timeout=9).json()["id"]
    began = time.monotonic()
    events = {"Accept": "text/event-stream"}
    with requests.get(f"{proxied}/stream/{job}", headers=events, stream=True, timeout=30) as got:
        lines = [(time.monotonic() - began, line) for line in got.iter_lines()]
    assert b"COMPLETED" in b"".join(line for _, line in lines)
    assert lines[0][0] < 2 < lines[-1][0]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/ownpod", str(ROOT))
        (tmp_path / unit.name).write_text(text)
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", tmp_path / unit.name],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (checked.returncode, checked.stderr) == (0, "")
