"""Effects of Celery, kombu and Redis on real nodes. Each test fails without one of OwnPod's workarounds."""

import shutil
import sys
import time
from types import SimpleNamespace

import pytest
import requests
from helpers import Process, RedisServer, answers, wait_until

from ownpod.processes import free_port
from ownpod.store.client import connect


@pytest.fixture
def lease_s():
    return 15


@pytest.fixture
def cluster(start_worker, tmp_path, lease_s):
    """A Redis, an API and a supervisor as separate processes, with one async worker of capacity 2."""
    url, _ = start_worker("async")
    file = tmp_path / "workers.yaml"
    file.write_text(f"endpoints: {{ep: {{workers: [{{url: '{url}', capacity: 2}}]}}}}")
    redis = RedisServer(tmp_path)
    port = free_port()
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS_FILE": file, "OWNPOD_LEASE_S": lease_s}
    command = (sys.executable, "-m", "ownpod")
    dispatch = Process(*command, "dispatch", log=tmp_path / "dispatch.log", **environ)
    api = Process(*command, "api", "--port", port, log=tmp_path / "api.log", **environ)
    endpoint = f"http://127.0.0.1:{port}/v2/ep"
    note = tmp_path / "note"

    def post(path, **job_input):
        body = {"input": job_input}
        return requests.post(f"{endpoint}{path}", json=body, timeout=100).json()

    def begin(seconds):
        """Starts a job that runs while another slot is free; returns its id."""
        job = post("/run", seconds=seconds, note=str(note))["id"]
        wait_until(note.exists, 30)
        return job

    def ended(job):
        """Asserts that the job is COMPLETED after one run, that the next job completes, and that no node has ended."""
        url = f"{endpoint}/status/{job}"
        wait_until(lambda: requests.get(url, timeout=60).json().get("status") == "COMPLETED", 40)
        assert len(note.read_text().split()) == 1
        assert post("/runsync?wait=90000", text="next")["output"]["echo"] == "next"
        assert "starting it again" not in dispatch.output, dispatch.output
        assert "Unrecoverable" not in dispatch.output

    try:
        wait_until(lambda: answers(f"{endpoint}/health"), 30)
        yield SimpleNamespace(redis=redis, endpoint=endpoint, begin=begin, ended=ended, post=post)
    finally:
        print(dispatch.output)
        api.stop()
        dispatch.stop()
        redis.stop()


def test_a_redis_restart_does_not_end_a_node_with_a_running_job_and_a_free_slot(cluster):
    job = cluster.begin(6)
    cluster.redis.stop()
    began = time.monotonic()
    answer = requests.get(f"{cluster.endpoint}/status/{job}", timeout=60)
    assert answer.status_code == 503
    # It does not wait for Redis to come back.
    assert time.monotonic() - began < 30
    time.sleep(2)
    cluster.redis.start()
    cluster.ended(job)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("lease_s", "away_s", "job_s"),
    [
        pytest.param(3, 6, 8, id="shorter-than-the-job"),
        pytest.param(15, 30, 20, id="half-a-minute"),
    ],
)
def test_a_redis_that_is_away_for_longer_than_the_lease_costs_no_attempt(cluster, away_s, job_s):
    job = cluster.begin(job_s)
    cluster.redis.stop()
    time.sleep(away_s)
    cluster.redis.start()
    cluster.ended(job)


def test_a_broken_connection_does_not_start_a_running_job_again(cluster):
    job = cluster.begin(4)
    with connect(cluster.redis.url) as client:
        for _ in range(3):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(0.5)
    cluster.ended(job)


def test_a_redis_that_cannot_save_refuses_jobs_and_keeps_those_it_has(cluster):
    job = cluster.begin(2)
    with connect(cluster.redis.url) as client:
        (folder,) = client.config_get("dir").values()
        shutil.rmtree(folder, ignore_errors=True)
        client.config_set("save", "3600 1000000")
        try:
            client.bgsave()
            wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
            refused = requests.post(f"{cluster.endpoint}/run", json={"input": {}}, timeout=60)
            assert refused.status_code == 503
            assert "refuses to write" in refused.json()["error"]
            assert "MISCONF" in refused.json()["error"]
            assert requests.get(f"{cluster.endpoint}/status/{job}", timeout=60).status_code == 200
            # Beyond the job's end: its result cannot be written now.
            time.sleep(4)
        finally:
            client.config_set("stop-writes-on-bgsave-error", "no")
            client.config_set("save", "")
    cluster.ended(job)


def test_a_redis_that_refuses_writes_ends_no_node_and_loses_no_result(cluster):
    job = cluster.begin(2)
    with connect(cluster.redis.url) as client:
        client.config_set("maxmemory", 1)
        refused = requests.post(f"{cluster.endpoint}/run", json={"input": {}}, timeout=60)
        assert refused.status_code == 503
        assert "refuses to write" in refused.json()["error"]
        # Beyond the job's end: its result cannot be written now.
        time.sleep(4)
        client.config_set("maxmemory", 0)
    cluster.ended(job)
