"""Endpoints that are paused by their hours and by their expiry, and the quota of workers, on a running OwnPod."""

import signal
import sys
from pathlib import Path

import pytest
import requests
import yaml
from helpers import wait_until

HANDLERS = Path(__file__).with_name("handlers.py")
CLOSED = {"hours": [{"from": "00:00", "to": "24:00", "workersMax": 0}]}
QUOTA = (
    "endpoints.local-ep.workersMax: Max workers across all endpoints must not exceed your workers quota (5). Reduce "
    "the max workers for other endpoints or lower the max worker count for this endpoint to at most 5."
)

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


@pytest.fixture
def write(tmp_path):
    file = tmp_path / "workers.yaml"

    def write(**changes):
        command = [sys.executable, str(HANDLERS)]
        template = {"command": command, "env": {"HANDLER": "sync"}}
        values = {"template": template, "workersMax": 1, "idleTimeout": 600, **changes}
        file.write_text(yaml.safe_dump({"endpoints": {"local-ep": values}}))
        return file

    return write


def test_a_paused_endpoint_keeps_its_jobs_and_runs_them_when_it_is_open_again(
    start_ownpod, write, tmp_path
):
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=write(),
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:1",
        OWNPOD_WORKER_QUOTA=5,
    )

    def refused():
        answer = requests.post(f"{ownpod.endpoint}/run", json={"input": {}}, timeout=60)
        return answer.json() if answer.status_code == 409 else None

    def change(**values):
        write(**values)
        ownpod.process.send(signal.SIGHUP)

    go = tmp_path / "go"
    runs = ownpod.submit(text="a", until=str(go))
    wait_until(lambda: ownpod.status(runs)["status"] == "IN_PROGRESS", 60)
    waits = ownpod.submit(text="b")
    change(expires="2026-01-02T03:04:05Z")
    body = wait_until(refused, 20, "the expiry")
    assert body["code"] == "ENDPOINT_PAUSED"
    assert "It expired at 2026-01-02T03:04:05Z" in body["detail"]
    # The running job ends, its worker leaves, and the waiting job stays. Until its node knows that the worker leaves, it may
    # take the waiting job, too.
    wait_until(lambda: "worker paused: the endpoint is paused" in ownpod.output, 60, "the drain")
    go.touch()
    assert ownpod.ended(runs)["status"] == "COMPLETED"
    wait_until(lambda: not ownpod.get("/health")["ownpod"]["managed"]["workers"], 60, "no worker")
    assert ownpod.status(waits)["status"] == "IN_QUEUE"
    expired = "it expired at 2026-01-02T03:04:05Z"
    wait_until(lambda: expired in ownpod.status(waits).get("waitingReason", ""))
    change(**CLOSED)
    wait_until(lambda: (found := refused()) and "`hours`" in found["detail"], 20, "the hours")
    # A file above the quota changes nothing.
    change(workersMax=6)
    wait_until(lambda: QUOTA in ownpod.output, 20, "the quota")
    assert refused()
    change(workersMax=5)
    assert ownpod.ended(waits, 60)["status"] == "COMPLETED"
    # The API's two processes read the file one after the other.
    wait_until(lambda: not ownpod.get("/health")["ownpod"]["paused"], 20, "the end of the pause")


def test_a_file_above_the_quota_stops_the_start_with_one_line(start_ownpod, write):
    with pytest.raises(AssertionError) as caught:
        start_ownpod(
            OWNPOD_WORKERS_FILE=write(workersMax=6), OWNPOD_WORKERS="", OWNPOD_WORKER_QUOTA=5
        )
    assert QUOTA in str(caught.value)
