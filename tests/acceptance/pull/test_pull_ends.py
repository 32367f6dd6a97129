"""Workers that pull, and what happens when they, or OwnPod, end."""

import signal
import sys
import time

import pytest
from helpers import (
    begun,
    node_processes,
    pull_worker,
    wait_until,
    worker_states,
)

from ownpod.rules.pulling import worker_environment
from ownpod.store import keys
from ownpod.store.client import connect


@pytest.mark.timeout(400)
def test_a_worker_that_refreshes_gets_no_job_until_it_is_back(ownpod, start_worker, python):
    worker = start_worker(ownpod, python=python)
    first = ownpod.post("/runsync", {"input": {"do": "refresh"}})["output"]
    following = ownpod.submit(text="next")
    wait_until(lambda: worker_states(ownpod).get("gpu-1") == "unhealthy", 20)
    # The SDK's own process goes on asking; RunPod would stop the pod.
    time.sleep(5)
    assert ownpod.status(following)["status"] == "IN_QUEUE"
    worker.kill()
    start_worker(ownpod)
    done = ownpod.ended(following)
    assert done["output"]["pid"] != first["pid"]
    assert "retries" not in done


def test_a_worker_that_ends_itself_after_each_job_is_given_the_next_when_it_is_back(
    ownpod, start_worker
):
    worker = start_worker(ownpod, REFRESH=1)
    assert ownpod.post("/runsync", {"input": {"text": "a"}})["status"] == "COMPLETED"
    following = ownpod.submit(text="b")
    # Nothing is held open for it, so it ends soon.
    worker.wait(20)
    start_worker(ownpod, REFRESH=1)
    done = ownpod.ended(following)
    assert (done["output"]["echo"], "retries" in done) == ("b", False)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("when", ["idle", "running"])
@pytest.mark.timeout(400)
def test_a_worker_that_ends_costs_no_job(
    start_ownpod, start_worker, tmp_path, signum, when, python
):
    ownpod = start_ownpod(OWNPOD_WORKER_GONE_S=10)
    worker = start_worker(ownpod, "async", python=python)
    with connect(ownpod.redis_url) as client:
        # A worker that has never pinged may have no pings at all, so its silence proves nothing: a job that is delivered to it
        # while it dies would wait for its executionTimeout. The SDK's first ping comes just before its first request or after.
        wait_until(lambda: client.hget(keys.pull("gpu-1"), "ping_ms"), 30, "a ping")
    runs, go = tmp_path / "runs", tmp_path / "go"
    jobs = []
    if when == "running":
        jobs.append(ownpod.submit(text="a", runs=str(runs), until=str(go)))
        wait_until(begun(runs))
    worker.send(signum)
    go.touch()
    jobs.append(ownpod.submit(text="b", runs=str(runs)))
    if signum == signal.SIGKILL:
        worker.wait()
    start_worker(ownpod, "async", name="gpu-2", python=python)
    if when == "running" and signum == signal.SIGKILL:
        # Under its old name: what the old process had is lost, and known to be.
        start_worker(ownpod, "async", python=python)
    assert [ownpod.ended(job, 60)["status"] for job in jobs] == ["COMPLETED"] * len(jobs)
    # With SIGTERM the current SDK finishes what it runs; 1.7.0 does not, and takes both jobs.
    again = when == "running" and signum == signal.SIGKILL
    if python == sys.executable:
        assert runs.read_text().count("+ ") == len(jobs) + again


@pytest.mark.timeout(400)
def test_a_result_counts_after_a_restart_of_ownpod(ownpod, start_worker, tmp_path, python):
    ownpod.environ["OWNPOD_SHUTDOWN_GRACE_S"] = 0
    ownpod.environ["OWNPOD_LEASE_S"] = 10
    ownpod.stop()
    ownpod.start()
    start_worker(ownpod, "async", python=python)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), until=str(go))
    wait_until(begun(runs))
    assert ownpod.stop() == 0
    ownpod.start()
    # Not earlier, because the SDK gives a result up after three tries.
    go.touch()
    done = ownpod.ended(job, 60)
    assert (done["status"], done["output"]["echo"]) == ("COMPLETED", "a")
    assert "retries" not in done
    assert runs.read_text().count("+") == 1


def test_a_worker_needs_one_of_its_keys_and_is_forgotten_when_it_is_gone(
    start_ownpod, start_worker, tmp_path
):
    ownpod = start_ownpod(OWNPOD_WORKER_KEYS="k,other", OWNPOD_WORKER_GONE_S=10)
    wrong = pull_worker(ownpod.port, tmp_path / "wrong.log", name="wrong", RUNPOD_AI_API_KEY="no")
    try:
        wait_until(lambda: "wrong gets no jobs: a worker needs one of" in ownpod.output, 30)
    finally:
        wrong.kill()
    worker = start_worker(ownpod)
    # Another API process may look within a second only.
    wait_until(lambda: worker_states(ownpod) == {"gpu-1": "ready"}, 5)
    worker.kill()
    wait_until(lambda: worker_states(ownpod) == {}, 60)


@pytest.mark.timeout(300)
def test_a_job_submitted_right_after_four_of_five_workers_were_killed_runs_at_once(
    start_ownpod, start_worker
):
    ownpod = start_ownpod(OWNPOD_LEASE_S=30)
    names = [f"gpu-{number}" for number in range(1, 6)]
    workers = {name: start_worker(ownpod, name=name) for name in names}
    for name in names[:4]:
        workers[name].send(signal.SIGKILL)
    began = time.monotonic()
    job = ownpod.submit(text="after")
    done = ownpod.ended(job)
    took_s = time.monotonic() - began
    assert (done["status"], done["workerId"]) == ("COMPLETED", "gpu-5")
    # It does not wait for the end of a lease.
    assert took_s < 25, took_s
    # Another API process may look within a second only.
    expected = dict.fromkeys(names[:4], "unhealthy") | {"gpu-5": "ready"}
    wait_until(lambda: worker_states(ownpod) == expected, 5, "the states of the five workers")

    def reasons():
        found = ownpod.get("/health")["ownpod"]["workers"]
        return {worker["reason"] for worker in found if worker["id"] != "gpu-5"}

    left = "the worker closed its request for a job, and has not sent another"
    # One that was given the job and did not begin it has that reason for a moment.
    wait_until(lambda: reasons() == {left}, what=left)


@pytest.mark.timeout(300)
def test_a_worker_that_comes_to_another_endpoint_under_its_old_id_is_taken_there(
    start_ownpod, start_worker, tmp_path
):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {local-ep: {}, other: {}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file)
    start_worker(ownpod).kill()
    environ = worker_environment(f"{ownpod.base}/other", "gpu-1", key="k")
    moved = pull_worker(ownpod.port, tmp_path / "moved.log", RUNPOD_PING_INTERVAL=1000, **environ)
    try:
        ownpod.endpoint = f"{ownpod.base}/other"
        assert ownpod.ended(ownpod.submit(text="there"), 30)["workerId"] == "gpu-1"
        ownpod.endpoint = f"{ownpod.base}/local-ep"
        # Another API process may look within a second only.
        wait_until(lambda: worker_states(ownpod) == {})
    finally:
        moved.kill()


@pytest.mark.timeout(300)
def test_after_a_restart_a_worker_is_ready_when_it_has_asked_and_not_before(ownpod, start_worker):
    worker = start_worker(ownpod)
    # Its node alone begins anew: the request that the API holds is known to it at once.
    (node,) = node_processes(ownpod, "gpu-1")
    node.kill()
    wait_until(lambda: ownpod.output.count("worker ready") == 2, 15)
    assert ownpod.stop() == 0
    worker.kill()
    ownpod.start()
    wait_until(lambda: worker_states(ownpod).get("gpu-1") == "unhealthy", 20)
    # No node has announced it as ready since the one that was killed.
    assert ownpod.output.count("worker ready") == 2
    start_worker(ownpod)
    assert ownpod.post("/runsync", {"input": {"text": "x"}})["status"] == "COMPLETED"
