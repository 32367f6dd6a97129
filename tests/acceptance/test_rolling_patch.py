"""A PATCH of REST v2 that replaces the workers of an endpoint under load, on the real SDK."""

import shlex
import threading
from collections import Counter

import pytest
import requests
from helpers import overlaps, wait_until
from managing import ADMIN, ENV, START, managing, root_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Client(requests.Session):
    """Calls of one endpoint, as a client with an admin key makes them."""

    def __init__(self, root):
        super().__init__()
        self.root = root
        self.headers["Authorization"] = f"Bearer {ADMIN}"
        self.endpoint = ""

    def json(self, method, path, body=None, timeout=60):
        answer = self.request(method, f"{self.root}{path}", json=body, timeout=timeout)
        assert answer.ok, answer.text
        return answer.json()

    def workers(self):
        return self.json("GET", f"/v2/serverless/{self.endpoint}/workers")["workers"]

    def up(self):
        return [w for w in self.workers() if w["status"] in {"IDLE", "RUNNING"}]


def test_a_rolling_patch_under_load_loses_no_job_and_keeps_workers_min(tmp_path):
    with managing(tmp_path) as ownpod:
        client, runs, jobs = Client(root_of(ownpod)), tmp_path / "runs", {}
        client.endpoint = client.json(
            "POST",
            "/v2/serverless",
            {
                "name": "rolling",
                "type": "QUEUE",
                "image": "org/worker:1",
                "args": shlex.join(START),
                "env": ENV,
                "cpu": [{"id": "cpu3c", "vcpuCount": 2}],
                "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
                "workers": {"min": 1, "max": 2, "idleTimeout": 60},
            },
        )["id"]
        wait_until(client.up, 60, "a ready worker")
        least, over = [], threading.Event()

        def watch():
            own = Client(client.root)
            own.endpoint = client.endpoint
            while not over.wait(0.1):
                least.append(len(own.up()))

        def load():
            own = Client(client.root)
            # More than one worker runs in this time, but not so many that they run for minutes after a slow rollout.
            while not over.wait(0.3):
                body = {"input": {"text": f"job-{len(jobs)}", "seconds": 0.2, "runs": str(runs)}}
                jobs[f"job-{len(jobs)}"] = own.json("POST", f"/v2/{client.endpoint}/run", body)[
                    "id"
                ]

        threads = [threading.Thread(target=target) for target in (watch, load)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(jobs) > 5, 30)
            path = f"/v2/serverless/{client.endpoint}?wait=rollout"
            answer = client.patch(
                f"{client.root}{path}", json={"env": {**ENV, "MODEL": "two"}}, timeout=280
            )
            assert answer.headers["X-OwnPod-Rollout"] == "complete"
            assert {worker["version"] for worker in client.workers()} == {2}
            wait_until(lambda: len(jobs) > 30, 60)
        finally:
            over.set()
            for thread in threads:
                thread.join()

        def ended():
            found = [client.json("GET", f"/v2/{client.endpoint}/status/{j}") for j in jobs.values()]
            return found if {job["status"] for job in found} == {"COMPLETED"} else None

        done = wait_until(ended, 200, "all jobs COMPLETED")
    assert not any("retries" in job for job in done)
    begins = Counter(
        line.split()[2] for line in runs.read_text().splitlines() if line.startswith("+")
    )
    assert begins == dict.fromkeys(jobs, 1)
    assert overlaps(runs) == []
    assert min(least) >= 1
