"""Workers in production mode, on the real SDK: they ask OwnPod for jobs."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
import yaml
from helpers import (
    ROOT,
    Process,
    RedisServer,
    answers,
    begun,
    overlaps,
    run_command,
    wait_until,
)

from ownpod.processes import free_port
from ownpod.rules.pulling import worker_environment
from ownpod.store import keys
from ownpod.store.client import connect
from ownpod.store.offers import Offers


def capacity(ownpod):
    return [worker["capacity"] for worker in ownpod.get("/health")["ownpod"]["workers"]]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_jobs_go_through_a_worker_that_pulls(ownpod, start_worker, kind, python):
    start_worker(ownpod, kind, python=python)
    done = ownpod.post("/runsync", {"input": {"text": "x"}})
    assert (done["status"], done["workerId"], done["output"]["echo"]) == ("COMPLETED", "gpu-1", "x")
    ends = {
        "raise": ("FAILED", "boom"),
        "error": ("FAILED", "it says no"),
        "empty": ("COMPLETED", None),
        "list": ("COMPLETED", None),
    }
    jobs = {what: ownpod.submit(do=what) for what in ends}
    for what, (status, error) in ends.items():
        found = ownpod.ended(jobs[what])
        assert found["status"] == status
        assert (error or "") in found.get("error", "")
    assert ownpod.status(jobs["empty"])["output"] == {}
    assert ownpod.status(jobs["list"])["output"] == [1, "two", None]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("aggregate", [False, True])
def test_chunks_come_while_the_handler_runs(ownpod, start_worker, aggregate, python, tmp_path):
    environ = {"AGGREGATE": 1} if aggregate else {}
    start_worker(ownpod, "generator", python=python, **environ)
    go, came = tmp_path / "go", []
    job = ownpod.submit(count=3, seconds=0.5, until=str(go))
    url, events = f"{ownpod.endpoint}/stream/{job}", {"Accept": "text/event-stream"}
    with requests.get(url, headers=events, stream=True, timeout=100) as got:
        for line in got.iter_lines():
            if b'{"output"' in line:
                came.append(line)
            if len(came) == 3:
                # The handler runs until then.
                go.touch()
    chunks = [f'data: {{"output": {{"number": {number}}}}}'.encode() for number in range(3)]
    assert came[:3] == chunks
    assert ownpod.status(job)["output"] == [{"number": number} for number in range(3)]


def test_a_node_that_starts_takes_no_more_than_the_worker_asks_for(ownpod, start_worker):
    jobs = [ownpod.submit(text=f"j{n}") for n in range(5)]
    start_worker(ownpod)
    assert {ownpod.ended(job)["status"] for job in jobs} == {"COMPLETED"}
    starts = sorted(ownpod.get(f"/requests/{job}")["started_ms"] for job in jobs)
    assert starts[-1] - starts[0] > 2000


@pytest.mark.timeout(400)
def test_progress_is_the_output_until_the_end(ownpod, start_worker, python, tmp_path):
    start_worker(ownpod, "async", python=python)
    go = tmp_path / "go"
    job = ownpod.submit(do="progress", until=str(go), text="x")
    wait_until(lambda: ownpod.status(job).get("output") == {"percent": 50}, 10)
    assert ownpod.status(job)["status"] == "IN_PROGRESS"
    go.touch()
    assert ownpod.ended(job)["output"]["echo"] == "x"


@pytest.mark.parametrize("how", ["cancel", "executionTimeout", "ttl"])
def test_an_async_handler_is_stopped(ownpod, start_worker, tmp_path, how):
    start_worker(ownpod, "async")
    runs = tmp_path / "runs"
    policy = {"cancel": {}, "executionTimeout": {"executionTimeout": 5000}, "ttl": {"ttl": 10000}}
    body = {"input": {"text": "a", "runs": str(runs), "seconds": 300}, "policy": policy[how]}
    job = ownpod.post("/run", body)["id"]
    wait_until(begun(runs))
    if how == "cancel":
        assert ownpod.post(f"/cancel/{job}")["status"] == "CANCELLED"
    assert ownpod.ended(job)["status"] == ("CANCELLED" if how == "cancel" else "TIMED_OUT")
    # The slot is free long before the handler would have ended.
    assert ownpod.post("/runsync?wait=90000", {"input": {"text": "next"}})["status"] == "COMPLETED"
    assert "-" not in runs.read_text()


def test_a_sync_handler_keeps_its_slot_until_it_ends(ownpod, start_worker, tmp_path):
    start_worker(ownpod)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), seconds=4, until=str(go))
    wait_until(begun(runs))
    assert ownpod.post(f"/cancel/{job}")["status"] == "CANCELLED"
    following = ownpod.submit(text="b", runs=str(runs))
    go.touch()
    assert ownpod.ended(following, 30)["status"] == "COMPLETED"
    assert overlaps(runs) == []


@pytest.mark.timeout(400)
def test_the_old_sdk_asks_for_more_while_an_async_handler_runs(
    ownpod, start_worker, tmp_path, python_with_the_old_sdk
):
    start_worker(ownpod, "async", python=python_with_the_old_sdk)
    runs, go = tmp_path / "runs", tmp_path / "go"
    jobs = [ownpod.submit(text=f"j{n}", runs=str(runs), until=str(go)) for n in range(3)]
    wait_until(lambda: runs.exists() and runs.read_text().count("+") == 3, 20)
    assert "-" not in runs.read_text()
    go.touch()
    assert {ownpod.ended(job, 30)["status"] for job in jobs} == {"COMPLETED"}


def test_capacity_follows_what_the_worker_asks_for(ownpod, start_worker, tmp_path):
    start_worker(ownpod, "async", CONCURRENCY=4)
    wait_until(lambda: capacity(ownpod) == [4], 15)
    runs, go = tmp_path / "runs", tmp_path / "go"
    jobs = [ownpod.submit(text=f"j{n}", runs=str(runs), seconds=2, until=str(go)) for n in range(8)]
    wait_until(lambda: runs.exists() and runs.read_text().count("+") == 4, 10)
    go.touch()
    for number, job in enumerate(jobs):
        assert ownpod.ended(job, 30)["output"]["echo"] == f"j{number}"
    running, most = 0, 0
    for line in runs.read_text().splitlines():
        running += 1 if line.startswith("+") else -1
        most = max(most, running)
    assert most == 4


def test_a_worker_that_pulls_shows_up_like_any_other(start_ownpod, start_worker, tmp_path):
    flower = free_port()
    ownpod = start_ownpod(options=("--flower", "--flower-port", flower))
    start_worker(ownpod)

    def nodes():
        url = f"http://127.0.0.1:{flower}/api/workers?refresh=1"
        return {name.partition("@")[0] for name in requests.get(url, timeout=20).json()}

    wait_until(lambda: "gpu-1" in nodes(), 30)
    command = (sys.executable, "-m", "ownpod", "workers", "list")
    listed = run_command(*command, cwd=tmp_path, **ownpod.environ)
    assert "pull:gpu-1" in listed.stdout, listed.stderr


def test_two_hundred_idle_workers_wait_at_one_api_process(tmp_path):
    redis, port = RedisServer(tmp_path), free_port()
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {ep: {maxWorkers: 200}}")
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS_FILE": file, "WEB_CONCURRENCY": 1}
    command = (sys.executable, "-m", "ownpod", "api", "--port", port)
    api = Process(*command, log=tmp_path / "api.log", **environ)
    base = f"http://127.0.0.1:{port}/v2/ep"
    try:
        wait_until(lambda: answers(f"{base}/health"), 30)
        with ThreadPoolExecutor(400) as pool, connect(redis.url) as client:
            held = [
                pool.submit(requests.get, f"{base}/{what}/w{n}?gpu=0&job_in_progress=0", timeout=60)
                for n in range(200)
                for what in ("job-take", "job-stop")
            ]
            wait_until(lambda: client.zcard(keys.HEARD) == 200, 20)
            wait_until(
                lambda: len(requests.get(f"{base}/workers", timeout=60).json()["workers"]) == 200
            )
            pulls = Offers(client, gone_s=60)
            body = '{"id": "r", "input": {}}'
            pulls.offer("w77", "r", job_id="j", attempt=1, body=body, time_s=60)
            taken, url = held[154].result(60), f"{base}/job-take/w77?gpu=0&job_in_progress=0"
            # Its first request has ended, if all of this took as long as one is held.
            while taken.status_code == 204:
                taken = requests.get(url, timeout=60)
            assert taken.json() == {"id": "r", "input": {}}
            assert {h.result(60).status_code for h in held} <= {200, 204}
    finally:
        api.stop()
        redis.stop()


def test_the_streaming_example_yields_words(ownpod, start_worker):
    start_worker(ownpod, handler=ROOT / "examples" / "worker-stream" / "handler.py")
    job = ownpod.submit(text="a b c", seconds=0.1)
    assert ownpod.ended(job)["output"] == ["a", "b", "c"]


def test_the_nvidia_smi_example_shows_its_machine(ownpod, start_worker, tmp_path):
    start_worker(ownpod, handler=ROOT / "examples" / "worker-nvidia-smi" / "handler.py")
    gpu = ownpod.post("/runsync", {"input": {}})["output"]
    assert gpu["gpu"] is (shutil.which("nvidia-smi") is not None)
    assert gpu["gpu"] or "no GPU here" in gpu["text"]
    (tmp_path / "weights").mkdir()
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    to = tmp_path / "weights" / "model"
    job = ownpod.submit(do="download", url=source.as_uri(), to=str(to))
    assert ownpod.ended(job)["output"] == {"path": str(to), "bytes": 3_000_000}
    job = ownpod.submit(do="list", path=str(to.parent))
    assert ownpod.ended(job)["output"] == {"files": [{"path": str(to), "bytes": 3_000_000}]}
    assert ownpod.ended(ownpod.submit(do="list", path="/nothing"))["status"] == "FAILED"


@pytest.mark.parametrize("form", ["shell", "docker", "compose"])
def test_worker_env_prints_what_makes_a_container_a_worker(form):
    command = (
        "worker-env",
        "my-ep",
        "--id",
        "gpu-9",
        "--url",
        "http://10.0.0.5:8000",
        "--form",
        form,
    )
    done = run_command(sys.executable, "-m", "ownpod", *command, OWNPOD_WORKER_KEYS="k1,k2")
    assert done.returncode == 0, done.stderr
    if form == "shell":
        script = f"{done.stdout}\nenv -0"
        lines = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60
        ).stdout.split("\0")
        found = dict(line.split("=", 1) for line in lines if line.startswith("RUNPOD_"))
    elif form == "docker":
        words = done.stdout.split()
        assert set(words[::2]) == {"-e"}
        found = dict(word.split("=", 1) for word in words[1::2])
    else:
        found = yaml.safe_load(done.stdout)["environment"]
        found = {name: value.replace("$$", "$") for name, value in found.items()}
    assert found == worker_environment("http://10.0.0.5:8000/v2/my-ep", "gpu-9", key="k1")


def test_worker_env_names_the_problem():
    for options, said in (
        (["a b"], "ENDPOINT"),
        (["ep", "--id", "x/y"], "--id"),
        (["ep", "--key", "z"], "--key"),
    ):
        done = run_command(
            sys.executable, "-m", "ownpod", "worker-env", *options, OWNPOD_WORKER_KEYS="k"
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert said in done.stderr
