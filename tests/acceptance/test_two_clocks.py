"""Two hosts whose clocks are a minute apart: jobs run once."""

import sys

import pytest
import requests
from helpers import ROOT, Process, RedisServer, answers, overlaps, wait_until

from ownpod.processes import free_port

SHIFTED = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {shift}
time.time_ns = lambda: _time_ns() + {shift} * 10**9
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shift", [-60, 60])
def test_jobs_of_a_host_whose_clock_is_a_minute_off_run_once(start_worker, tmp_path, shift):
    url, _ = start_worker("sync")
    redis, port, started = RedisServer(tmp_path), free_port(), []
    (tmp_path / "sitecustomize.py").write_text(SHIFTED.format(shift=shift))
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS": url, "OWNPOD_LEASE_S": 6}

    def start(name, *arguments, **more):
        process = Process(
            *(sys.executable, "-m", "ownpod", *arguments),
            log=tmp_path / f"{name}.log",
            **environ,
            **more,
        )
        started.append(process)
        return process

    try:
        start("api", "api", "--port", port)
        endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
        wait_until(lambda: answers(f"{endpoint}/health"), 40)
        # Its node has the worker; the sweep is the other host's by turns.
        start("wrong", "dispatch", PYTHONPATH=f"{tmp_path}:{ROOT}")
        health = lambda: requests.get(f"{endpoint}/health", timeout=60).json()  # noqa: E731
        wait_until(lambda: health()["workers"]["ready"] == 1, 30)
        right = start("right", "dispatch")
        wait_until(lambda: "standing by" in right.output, 30)
        runs = tmp_path / "runs"
        ids = []
        for name in ("a", "b"):
            # Longer than a lease, and than the time after which the sweep requeues.
            body = {"input": {"seconds": 13, "runs": str(runs), "text": name}}
            ids.append(requests.post(f"{endpoint}/run", json=body, timeout=60).json()["id"])
        wait_until(lambda: health()["jobs"]["completed"] == 2, 40)
        assert [line.split()[2] for line in runs.read_text().splitlines()] == ["a", "a", "b", "b"]
        assert overlaps(runs) == []
        for job_id in ids:
            status = requests.get(f"{endpoint}/status/{job_id}", timeout=60).json()
            assert status["delayTime"] < 50_000
            assert "retries" not in status
    finally:
        for process in started:
            process.kill()
        redis.stop()
