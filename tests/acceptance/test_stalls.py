"""A Redis that stalls for seconds, again and again, while jobs go through."""

import contextlib
import random
import signal
import threading
import time

import psutil
import pytest
import requests
from helpers import overlaps, wait_until

STALLS_S = (1.0, 6.0, 12.0)
"""Shorter than the time for an answer; longer; and longer than a lease."""


def redis_process(ownpod):
    for process in psutil.Process(ownpod.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "redis.sock" in " ".join(process.cmdline()):
                return process
    raise AssertionError("no Redis")


@pytest.mark.timeout(300)
def test_each_job_accepted_while_redis_stalls_is_completed_once(
    start_worker, start_ownpod, tmp_path
):
    urls = [start_worker("sync")[0] for _ in range(2)]
    ownpod = start_ownpod(OWNPOD_WORKERS=",".join(urls), OWNPOD_LEASE_S=6)
    redis, runs = redis_process(ownpod), tmp_path / "runs"
    runs.touch()
    accepted, errors, stop = [], [], threading.Event()

    def submit(client):
        number = 0
        while not stop.is_set():
            body = {"input": {"seconds": 0.4, "runs": str(runs), "text": f"{client}.{number}"}}
            answer = requests.post(f"{ownpod.endpoint}/run", json=body, timeout=60)
            if answer.status_code == 200:
                accepted.append(answer.json()["id"])
            else:
                errors.append(answer.text)
            number += 1
            time.sleep(0.5)

    flows = [threading.Thread(target=submit, args=(client,), daemon=True) for client in range(2)]
    for flow in flows:
        flow.start()
    chance = random.Random(5)
    try:
        for stall_s in STALLS_S:
            done = runs.read_text().count("-")
            wait_until(lambda done=done: runs.read_text().count("-") >= done + 3, 40)
            time.sleep(chance.random())
            redis.send_signal(signal.SIGSTOP)
            time.sleep(stall_s)
            redis.send_signal(signal.SIGCONT)
        stop.set()
        for flow in flows:
            flow.join(70)
    finally:
        redis.send_signal(signal.SIGCONT)
    # Nothing was accepted without an answer, as each answer came within 25 s.
    assert errors == []
    for job_id in accepted:
        assert ownpod.ended(job_id, 60)["status"] == "COMPLETED"
    begun = [line.split()[2] for line in runs.read_text().splitlines() if line.startswith("+")]
    assert len(begun) == len(set(begun)) == len(accepted) > 12
    assert overlaps(runs) == []
    health = ownpod.get("/health")["jobs"]
    assert (health["completed"], health["retried"]) == (len(accepted), 0)
