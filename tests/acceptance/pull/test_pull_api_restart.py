"""An API that restarts while a worker's sync handler runs, which blocks the SDK."""

import contextlib
import signal

import psutil
import pytest
import requests
from helpers import begun, wait_until


def api_of(ownpod):
    """The API's first process; None while there is none."""
    for process in psutil.Process(ownpod.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "ownpod-api" in " ".join(process.cmdline()):
                return process
    return None


def serves(ownpod):
    with contextlib.suppress(requests.RequestException):
        return "jobs" in ownpod.get("/health")
    return False


@pytest.mark.timeout(400)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_an_api_that_restarts_during_a_sync_handler_costs_no_attempt(
    ownpod, start_worker, tmp_path, python, signum
):
    start_worker(ownpod, "sync", python=python)
    # The connection of its result is kept, too.
    assert ownpod.post("/runsync", {"input": {"text": "first"}})["status"] == "COMPLETED"
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), until=str(go))
    wait_until(begun(runs))
    old = api_of(ownpod)
    old.send_signal(signum)
    wait_until(lambda: (new := api_of(ownpod)) and new.pid != old.pid, 60, "another API")
    wait_until(lambda: serves(ownpod), 30, "the API")
    go.touch()
    done = ownpod.ended(job, 100)
    assert (done["status"], "retries" in done) == ("COMPLETED", False)
    assert runs.read_text().count("+") == 1
