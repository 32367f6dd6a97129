"""Two supervisors with the same workers: each worker is run by one of them at a time."""

import signal
import sys

import psutil
import pytest
import requests
from helpers import Process, RedisServer, answers, wait_until

from ownpod.processes import free_port


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_second_takes_over_when_the_first_ends(start_worker, tmp_path, how):
    url, _ = start_worker("async")
    redis = RedisServer(tmp_path)
    port = free_port()
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS": url, "OWNPOD_LEASE_S": 3}
    command = (sys.executable, "-m", "ownpod")
    started = []

    def start(name, *arguments):
        process = Process(*command, *arguments, log=tmp_path / f"{name}.log", **environ)
        started.append(process)
        return process

    try:
        start("api", "api", "--port", port)
        endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
        wait_until(lambda: answers(f"{endpoint}/health"), 30)
        first = start("first", "dispatch")
        ready = lambda: requests.get(f"{endpoint}/health", timeout=60).json()["workers"]["ready"]  # noqa: E731
        wait_until(lambda: ready() == 1, 20)
        second = start("second", "dispatch")
        wait_until(lambda: "standing by" in second.output, 20)

        # Slots are one, however many supervisors: an async worker would run all at once.
        note = tmp_path / "note"
        body = {"input": {"seconds": 0.5, "note": str(note)}}
        jobs = [
            requests.post(f"{endpoint}/run", json=body, timeout=60).json()["id"] for _ in range(4)
        ]
        states = set()

        def ended():
            health = requests.get(f"{endpoint}/health", timeout=60).json()["jobs"]
            states.add(health["inProgress"])
            return health["completed"] == len(jobs)

        wait_until(ended, 20)
        assert states <= {0, 1}

        before = psutil.Process(first.pid).children()
        first.send(how)
        first.wait()
        wait_until(lambda: not any(child.is_running() for child in before), 20)
        body = {"input": {"text": "again"}}
        answer = requests.post(f"{endpoint}/runsync?wait=90000", json=body, timeout=100).json()
        assert answer["output"]["echo"] == "again"
    finally:
        for process in started:
            print(process.output)
            process.stop()
        redis.stop()
