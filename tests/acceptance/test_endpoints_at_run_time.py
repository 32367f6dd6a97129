"""Endpoints that come and go while OwnPod runs: no process is restarted for them."""

import sys
from pathlib import Path

import pytest
import requests
from helpers import load_settings, node_processes, run_command, wait_until

from ownpod.configuration import load_endpoints
from ownpod.registry import Registry
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet

SEEN_S = 2.0
"""A process reads the entries again after 1 s."""


@pytest.fixture
def ownpod(start_ownpod, tmp_path):
    """An OwnPod without workers and keys, and with an endpoint of its file that must not change."""
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {base: {}}")
    return start_ownpod(OWNPOD_WORKERS_FILE=file)


@pytest.fixture
def registry(ownpod, tmp_path):
    settings = load_settings(
        REDIS_URL=ownpod.redis_url, OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml"
    )
    with connect(ownpod.redis_url) as client:
        yield Registry(load_endpoints(settings), Fleet(client), settings)


def get(ownpod, path, key=None):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return requests.get(f"{ownpod.base}/{path}", headers=headers, timeout=70)


def run(ownpod, key=None, **job_input):
    """A job of the endpoint `new`, to its end."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = f"{ownpod.base}/new/runsync?wait=90000"
    return requests.post(url, json={"input": job_input}, headers=headers, timeout=100).json()


def echoes(ownpod, key=None):
    """Waits for a job that completes: a process of the API that has not answered until now may know the endpoint a moment later."""
    wait_until(lambda: run(ownpod, key, text="hello").get("output", {}).get("echo") == "hello")


def codes(ownpod, path, key=None):
    """The answers of both API processes, most likely."""
    return {get(ownpod, path, key).status_code for _ in range(8)}


def test_an_endpoint_comes_runs_jobs_changes_and_goes(ownpod, registry, start_worker):
    url, _ = start_worker()
    registry.put_endpoint("new", {})
    registry.add("new", {"url": url, "id": "x"})
    wait_until(lambda: codes(ownpod, "new/health") == {200}, SEEN_S)
    echoes(ownpod)

    registry.put_endpoint("new", {"executionTimeout": 5000})
    # The node stays: its worker has not changed.
    (node,) = node_processes(ownpod, "x")
    wait_until(lambda: registry.endpoint("new").execution_timeout_ms == 5000, SEEN_S)
    job = wait_until(lambda: timed_out(ownpod), 30)
    assert job["error"].startswith("executionTimeout")
    assert node.is_running()

    registry.remove_endpoint("new")
    wait_until(lambda: codes(ownpod, "new/health") == {404}, SEEN_S)
    wait_until(lambda: not node_processes(ownpod, "x"), 15, "the end of its node")
    assert codes(ownpod, "base/health") == {200}


def timed_out(ownpod):
    job = run(ownpod, seconds=8)
    return job if job.get("status") == "TIMED_OUT" else None


def test_its_keys_count_at_once_where_there_were_none(ownpod, registry, start_worker):
    url, _ = start_worker()
    assert codes(ownpod, "base/health") == {200}
    registry.put_endpoint("new", {"apiKeys": ["k"]})
    registry.add("new", {"url": url, "id": "x"})
    wait_until(lambda: codes(ownpod, "new/health") == {401}, SEEN_S)
    wait_until(lambda: codes(ownpod, "base/health") == {401})
    wait_until(lambda: codes(ownpod, "base/health", "k") == {403})
    echoes(ownpod, "k")
    registry.remove_endpoint("new")
    wait_until(lambda: codes(ownpod, "base/health") == {200}, SEEN_S)


def test_celerys_purge_empties_its_queue(ownpod, registry, tmp_path):
    registry.put_endpoint("new", {})
    wait_until(lambda: codes(ownpod, "new/health") == {200}, SEEN_S)

    def submitted():
        return requests.post(f"{ownpod.base}/new/run", json={"input": {}}, timeout=70).json()

    job = wait_until(lambda: submitted().get("id"))
    done = run_command(
        *(Path(sys.executable).parent / "celery", "-A", "ownpod", "purge", "-f"),
        REDIS_URL=ownpod.redis_url,
        OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
    )
    assert "Purged 1 message" in done.stdout, done.stdout + done.stderr
    assert get(ownpod, f"new/status/{job}").json()["status"] == "CANCELLED"
