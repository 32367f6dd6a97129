"""Jobs that go from one OwnPod to another one, which is as RunPod to the first: real processes, the real SDK."""

import json
from types import SimpleNamespace

import pytest
import requests
import yaml
from helpers import OwnPod, answers, begun, node_processes, sdk_worker, wait_until

from ownpod.processes import free_port

pytestmark = pytest.mark.slow


def cloud(port, endpoint, **values):
    url = f"http://127.0.0.1:{port}/v2/{endpoint}"
    return {"cloud": url, "id": f"cloud-{endpoint}", "after": 0, "max": 2, **values}


def start(directory, port, endpoints):
    directory.mkdir()
    (directory / "workers.yaml").write_text(yaml.safe_dump({"endpoints": endpoints}))
    return OwnPod(directory, port=port)


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    """Two OwnPods. ``here`` sends its jobs to ``there``, which has the workers; ``loop`` goes in both directions."""
    directory = tmp_path_factory.mktemp("overflow")
    here_port, there_port = free_port(), free_port()
    ports = {kind: free_port() for kind in ("sync", "generator", "near")}
    workers = [
        sdk_worker(port, directory / f"{kind}.log", kind="sync" if kind == "near" else kind)
        for kind, port in ports.items()
    ]
    urls = {kind: f"http://127.0.0.1:{port}" for kind, port in ports.items()}
    for url in urls.values():
        wait_until(lambda url=url: answers(url), 60, "the workers")
    there = start(
        directory / "there",
        there_port,
        {
            "local-ep": {"workers": [{"url": urls["sync"], "id": "gpu-there"}]},
            "stream": {"workers": [{"url": urls["generator"]}]},
            "loop": {"workers": [cloud(here_port, "loop", id="back")]},
            "near": {},
        },
    )
    here = start(
        directory / "here",
        here_port,
        {
            "local-ep": {
                "workers": [
                    cloud(there_port, "local-ep", id="runpod", price=0.001, budget={"perDay": 90})
                ]
            },
            "stream": {"workers": [cloud(there_port, "stream")]},
            "loop": {"workers": [cloud(there_port, "loop")]},
            "near": {"workers": [{"url": urls["near"]}, cloud(there_port, "near", after=3)]},
        },
    )
    yield SimpleNamespace(here=here, there=there)
    for pod in (here, there):
        pod.stop()
        print(pod.output)
    for worker in workers:
        worker.kill()


def at(pod, endpoint, path, body=None):
    url = f"{pod.base}/{endpoint}{path}"
    found = (
        requests.get(url, timeout=70) if body is None else requests.post(url, json=body, timeout=70)
    )
    return found.json()


def jobs_of(pod, endpoint="local-ep"):
    return {job["id"]: job for job in at(pod, endpoint, "/requests")["requests"]}


def remote_of(pods, job, endpoint="local-ep"):
    """The job at the other side, as the first OwnPod knows it."""
    return wait_until(lambda: at(pods.here, endpoint, f"/requests/{job}").get("remote"), 30)


def test_a_job_runs_there_under_its_own_id(pods):
    job = pods.here.submit(text="far")
    done = pods.here.ended(job, 40)
    assert (done["id"], done["status"], done["output"]["echo"]) == (job, "COMPLETED", "far")
    assert done["workerId"] == "runpod"
    remote = remote_of(pods, job)
    assert (remote["endpoint"], remote["workerId"]) == ("local-ep", "gpu-there")
    far = pods.there.status(remote["id"])
    assert (far["status"], far["executionTime"]) == ("COMPLETED", done["executionTime"])
    assert at(pods.there, "local-ep", f"/requests/{remote['id']}")["hops"] == 1
    metrics = requests.get(f"{pods.here.base[:-3]}/metrics", timeout=30).text
    assert 'ownpod_overflow_spent{endpoint="local-ep",worker="runpod"}' in metrics


def test_chunks_come_from_there(pods):
    job = at(pods.here, "stream", "/run", {"input": {"count": 4, "seconds": 0.2}})["id"]
    ended = wait_until(
        lambda: (
            (found := at(pods.here, "stream", f"/status/{job}"))["status"] == "COMPLETED" and found
        ),
        40,
    )
    chunks = at(pods.here, "stream", f"/stream/{job}?from=0")["stream"]
    assert [chunk["output"]["number"] for chunk in chunks] == [0, 1, 2, 3]
    assert ended["output"] == [{"number": number} for number in range(4)]


def test_a_cancel_here_ends_the_job_there(pods, tmp_path):
    runs, until = tmp_path / "runs", tmp_path / "until"
    job = pods.here.submit(text="a", runs=str(runs), until=str(until))
    remote = remote_of(pods, job)["id"]
    wait_until(begun(runs), 30)
    assert pods.here.post(f"/cancel/{job}")["status"] == "CANCELLED"
    wait_until(lambda: pods.there.status(remote)["status"] == "CANCELLED", 30)
    until.touch()
    # The slot is free for the next job.
    assert pods.here.ended(pods.here.submit(text="next"), 40)["status"] == "COMPLETED"
    assert pods.here.status(job)["status"] == "CANCELLED"


def test_a_cancel_there_ends_the_job_here(pods, tmp_path):
    runs, until = tmp_path / "runs", tmp_path / "until"
    job = pods.here.submit(text="a", runs=str(runs), until=str(until))
    remote = remote_of(pods, job)["id"]
    wait_until(begun(runs), 30)
    pods.there.post(f"/cancel/{remote}")
    assert pods.here.ended(job, 40)["status"] == "CANCELLED"
    until.touch()


def test_a_killed_node_costs_no_second_run(pods, tmp_path):
    note, until = tmp_path / "note", tmp_path / "until"
    job = pods.here.submit(text="a", note=str(note), until=str(until))
    remote = remote_of(pods, job)["id"]
    wait_until(note.exists, 30)
    wait_until(lambda: "output" not in pods.here.status(job), 30, "the begin there")
    (node,) = node_processes(pods.here, "runpod")
    node.kill()
    wait_until(lambda: f"job {job}: attempt 1 adopted" in pods.here.output, 40)
    until.touch()
    done = pods.here.ended(job, 40)
    assert (done["status"], done["output"]["echo"], "retries" in done) == ("COMPLETED", "a", False)
    assert len(note.read_text().splitlines()) == 1
    assert remote_of(pods, job)["id"] == remote


def test_two_that_point_at_each_other_send_a_job_once(pods):
    job = at(pods.here, "loop", "/run", {"input": {}})["id"]
    remote = remote_of(pods, job, "loop")["id"]
    assert json.loads('{"remote": "IN_QUEUE"}') == wait_until(
        lambda: at(pods.here, "loop", f"/status/{job}").get("output"), 30
    )

    def reason():
        (worker,) = at(pods.there, "loop", "/health")["ownpod"]["workers"]
        return worker["state"] == "standby" and "not needed" in worker["reason"]

    wait_until(reason, 30, "a check of the node there")
    assert set(jobs_of(pods.here, "loop")) == {job}
    assert set(jobs_of(pods.there, "loop")) == {remote}
    assert at(pods.there, "loop", f"/status/{remote}")["status"] == "IN_QUEUE"
    at(pods.here, "loop", f"/cancel/{job}", {})
    wait_until(lambda: at(pods.there, "loop", f"/status/{remote}")["status"] == "CANCELLED", 30)


def test_a_job_that_must_stay_stays(pods):
    kept = pods.here.post("/run", {"input": {"text": "kept"}, "policy": {"overflow": False}})["id"]
    later = pods.here.submit(text="later")
    # The later one has gone, so the node has passed the earlier one by.
    assert pods.here.ended(later, 40)["status"] == "COMPLETED"
    assert pods.here.status(kept)["status"] == "IN_QUEUE"
    pods.here.post(f"/cancel/{kept}")


def test_a_worker_here_comes_first_and_only_what_waits_for_it_goes(pods, tmp_path):
    runs, until = tmp_path / "runs", tmp_path / "until"
    data = {"text": "a", "runs": str(runs), "until": str(until)}
    first = at(pods.here, "near", "/run", {"input": data})["id"]
    wait_until(begun(runs), 30)
    second = at(pods.here, "near", "/run", {"input": {}})["id"]
    remote = remote_of(pods, second, "near")["id"]
    assert set(jobs_of(pods.there, "near")) == {remote}
    assert at(pods.here, "near", f"/status/{second}")["workerId"] == "cloud-near"
    assert at(pods.here, "near", f"/status/{first}")["workerId"] != "cloud-near"
    until.touch()
    at(pods.here, "near", f"/cancel/{second}", {})
