"""Load-balanced endpoints whose workers OwnPod starts: a request wakes one, what is open keeps it, a release replaces it."""

import json
import signal
import sys
import threading

import pytest
import requests
from helpers import HERE, OwnPod, wait_until
from websockets.sync.client import connect

PROGRAM = HERE / "acceptance" / "http_worker.py"
COMMAND = ["sh", "-c", f'exec "{sys.executable}" "{PROGRAM}" "$PORT"']


def balanced(**values):
    given = {"type": "LB", "idleTimeout": 1, "workersMax": 2, "scalerValue": 100}
    return {**given, "template": {"command": COMMAND}, **values}


class Pod:
    """An OwnPod that starts the workers of its load-balanced endpoints as processes."""

    def __init__(self, directory):
        self._file = directory / "workers.yaml"
        self.write(
            a=balanced(), b=balanced(), lost=balanced(healthPath="/status/404", holdTimeout=2)
        )
        self.ownpod = OwnPod(
            directory,
            OWNPOD_WORKERS_FILE=self._file,
            OWNPOD_FRONT="on",
            OWNPOD_ENGINE="process",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )

    def write(self, **endpoints):
        self._file.write_text(json.dumps({"endpoints": endpoints}))

    def get(self, path, endpoint="a", **headers):
        url = f"http://127.0.0.1:{self.ownpod.port}/lb/{endpoint}{path}"
        return requests.get(url, headers=headers, timeout=90)

    def socket(self, endpoint="a"):
        url = f"ws://127.0.0.1:{self.ownpod.port}/lb/{endpoint}/ws"
        return connect(url, open_timeout=90)

    def workers(self, endpoint="a", *phases):
        """Ids of the endpoint's workers that run or are to run."""
        health = requests.get(f"{self.ownpod.base}/{endpoint}/health", timeout=10).json()
        found = health["ownpod"]["managed"]["workers"]
        return [worker["id"] for worker in found if not phases or worker["phase"] in phases]

    def empty(self, endpoint="a"):
        wait_until(lambda: not self.workers(endpoint), 60, "the end of idle workers")


@pytest.fixture
def pod(tmp_path):
    found = Pod(tmp_path)
    yield found
    found.ownpod.stop()
    print(found.ownpod.output)


def test_a_request_starts_a_worker_and_brings_the_very_worker_back(pod):
    # While it is open, the worker is not idle.
    with pod.socket() as socket:
        worker_id = socket.response.headers["X-Runpod-Worker-Id"]
        assert pod.workers() == [worker_id]
        assert pod.get("/x").headers["X-Runpod-Worker-Id"] == worker_id
    pod.empty()

    def back():
        # The front may still have had the worker at the first try, which has ended a moment ago.
        found = pod.get("/x", **{"X-Runpod-Worker-Id": f"strict-resume {worker_id}"})
        return found.status_code == 200 and found.headers["X-Runpod-Worker-Id"] == worker_id

    wait_until(back, 60, "the same worker")
    pod.empty()

    def gone():
        found = pod.get("/x", **{"X-Runpod-Worker-Id": f"strict {worker_id}"})
        return found.status_code == 404 and found.json()["reason"] == "affinity_worker_gone"

    wait_until(gone, 60, "the answer that the worker has gone")
    other = pod.get("/x")
    assert other.headers["X-Runpod-Worker-Id"] != worker_id


def test_an_open_websocket_keeps_its_worker_while_an_idle_one_leaves(pod):
    with pod.socket("a") as socket:
        (kept,) = pod.workers("a")
        assert pod.get("/x", "b").status_code == 200
        pod.empty("b")
        socket.send("still here")
        assert socket.recv(timeout=30) == "still here"
        assert pod.workers("a", "ready") == [kept]
    pod.empty("a")


def test_a_release_replaces_the_worker_and_breaks_nothing_that_is_open(pod):
    stop, found = threading.Event(), []

    def load():
        while not stop.is_set():
            found.append(pod.get("/sleep/0.1"))

    threads = [threading.Thread(target=load) for _ in range(4)]
    with pod.socket() as socket:
        assert pod.get("/x").status_code == 200
        (old,) = pod.workers()
        for thread in threads:
            thread.start()
        pod.write(a=balanced(port=8123), b=balanced())
        pod.ownpod.process.send(signal.SIGHUP)
        wait_until(lambda: pod.workers("a", "draining") == [old], 60, "the drain")
        before = len(found)
        wait_until(lambda: len(found) > before + 20, 60, "requests at the new worker")
        socket.send("still here")
        assert socket.recv(timeout=30) == "still here"
    wait_until(lambda: old not in pod.workers(), 60, "the end of the old worker")
    stop.set()
    for thread in threads:
        thread.join()
    assert {response.status_code for response in found} == {200}
    assert len({response.headers["X-Runpod-Worker-Id"] for response in found}) == 2


def test_the_reason_why_a_worker_is_not_ready_is_in_health(pod):
    def reason():
        assert pod.get("/x", "lost").status_code == 400
        health = requests.get(f"{pod.ownpod.base}/lost/health", timeout=10).json()
        return "/status/404" in json.dumps(health["ownpod"]["managed"]["workers"])

    wait_until(reason, 60, "the reason")
