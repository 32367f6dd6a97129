"""Jobs that name their worker, with two real workers of which each runs one job at a time."""

import requests
from helpers import wait_until

HEADER = "X-Runpod-Worker-Id"


def call(ownpod, path, pin, **job_input):
    return requests.post(
        f"{ownpod.endpoint}/{path}", json={"input": job_input}, headers={HEADER: pin}, timeout=70
    )


def submit(ownpod, pin, **job_input):
    answer = call(ownpod, "run", pin, **job_input)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def test_a_strict_job_runs_on_its_worker_only_and_fails_when_that_leaves(
    start_worker, start_ownpod, tmp_path
):
    (url, program), (other, _) = start_worker(), start_worker()
    ownpod = start_ownpod()
    for worker, name in ((url, "a"), (other, "b")):
        ownpod.post("/workers", {"url": worker, "id": name})
    wait_until(lambda: ownpod.get("/health")["workers"]["ready"] == 2, 40, "both workers")

    # Each of them runs all of its jobs, although the other one is free.
    for name in "abab":
        answer = call(ownpod, "runsync", f"strict {name}", text=name)
        assert answer.json()["status"] == "COMPLETED", answer.text
        assert (answer.headers[HEADER], answer.json()["workerId"]) == (name, name)

    end = tmp_path / "end"
    running = submit(ownpod, "strict a", text="long", until=str(end))
    wait_until(lambda: ownpod.status(running)["status"] == "IN_PROGRESS", 20)
    waiting = submit(ownpod, "strict a", text="second")
    # A soft one does not wait for the busy worker.
    soft = ownpod.ended(submit(ownpod, "a", text="soft"))
    assert (soft["status"], soft["workerId"]) == ("COMPLETED", "b")
    assert ownpod.status(waiting)["status"] == "IN_QUEUE"
    end.touch()
    done = ownpod.ended(waiting)
    assert (done["status"], done["workerId"]) == ("COMPLETED", "a")

    program.kill()
    wait_until(lambda: ownpod.get("/health")["workers"]["unhealthy"] == 1, 30, "a is down")
    left = submit(ownpod, "strict a", text="left")
    prefers = ownpod.ended(submit(ownpod, "a", text="prefers"))
    assert (prefers["status"], prefers["workerId"]) == ("COMPLETED", "b")
    assert ownpod.status(left)["status"] == "IN_QUEUE"
    removed = requests.delete(f"{ownpod.endpoint}/workers/a", timeout=60)
    assert removed.status_code == 200
    done = ownpod.ended(left, 40)
    assert (done["status"], "retries" in done) == ("FAILED", False)
    assert done["error"].startswith("affinity_worker_gone: worker 'a'")

    def refused():
        answer = call(ownpod, "run", "strict a", text="late")
        return answer.status_code == 404 and answer.json()["reason"] == "affinity_worker_gone"

    # The other process of the API knows it a moment later.
    wait_until(refused)
    assert call(ownpod, "runsync", "a", text="any").json()["workerId"] == "b"
