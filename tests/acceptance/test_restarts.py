"""Nodes that end while a real worker runs a job: no overlap there, and no second run where a result
can still come.
"""

import json
import time

import pytest
from helpers import begun, node_processes, overlaps, wait_until

from ownpod.processes import free_port
from ownpod.rules.runs import RunCheck
from ownpod.store.client import connect
from ownpod.workers.push import LEARN_AFTER_S


def kill_node(ownpod, worker_id):
    (node,) = node_processes(ownpod, worker_id)
    node.kill()


def worker_id(url):
    return url.removeprefix("http://").replace(".", "-").replace(":", "-")


def look_at_run(ownpod, url):
    """How a later node could ask about the worker's only run."""
    with connect(ownpod.redis_url) as client:
        (run,) = client.hgetall(f"ownpod:runs:{worker_id(url)}").values()
    return json.loads(run)["look"]


@pytest.mark.parametrize("kind", ["sync", "async", "generator"])
def test_the_next_attempt_begins_when_the_worker_is_done_with_the_last(
    start_worker, start_ownpod, tmp_path, kind
):
    url, _ = start_worker(kind)
    ownpod = start_ownpod(url, OWNPOD_WORKER_CONNECT_TIMEOUT_S=1)
    runs, killed = tmp_path / "runs", tmp_path / "killed"
    job = ownpod.submit(text="a", runs=str(runs), seconds=3, count=2, until=str(killed))
    wait_until(begun(runs, "a"))
    if kind == "generator":
        wait_until(lambda: look_at_run(ownpod, url) == RunCheck.HEALTH)
    kill_node(ownpod, worker_id(url))
    killed.touch()
    done = ownpod.ended(job, 40)
    assert (done["status"], done["retries"]) == ("COMPLETED", 1)
    assert runs.read_text().count("+") == 2
    assert overlaps(runs) == []


@pytest.mark.parametrize("learned", [False, True])
def test_an_async_generator_gets_its_whole_time_before_the_next_attempt(
    start_worker, start_ownpod, tmp_path, learned
):
    url, _ = start_worker("async-generator")
    ownpod = start_ownpod(url, OWNPOD_WORKER_CONNECT_TIMEOUT_S=1)
    runs, killed = tmp_path / "runs", tmp_path / "killed"
    job_input = {"text": "a", "runs": str(runs), "seconds": 2, "count": 3, "until": str(killed)}
    policy = {"executionTimeout": 12000}
    job = ownpod.post("/run", {"input": job_input, "policy": policy})["id"]
    wait_until(begun(runs, "a"))
    if learned:
        time.sleep(LEARN_AFTER_S * 1.5)
    kill_node(ownpod, worker_id(url))
    killed.touch()
    done = ownpod.ended(job, 40)
    assert (done["status"], done["retries"]) == ("COMPLETED", 1)
    assert runs.read_text().count("+") == 2
    assert overlaps(runs) == []


def test_another_worker_does_not_wait_for_it(start_worker, start_ownpod, tmp_path):
    urls = [start_worker("async")[0] for _ in range(2)]
    ownpod = start_ownpod(*urls)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), seconds=8, until=str(go))
    wait_until(begun(runs, "a"))
    first = ownpod.status(job)["workerId"]
    kill_node(ownpod, first)
    wait_until(lambda: ownpod.status(job).get("workerId") not in {None, first}, 6)
    # The first one has no slot until its run has ended, however idle it looks.
    quick = [ownpod.submit(text=f"q{n}", runs=str(runs)) for n in range(3)]
    go.touch()
    assert ownpod.ended(job, 30)["workerId"] != first
    assert {ownpod.ended(q, 20)["status"] for q in quick} == {"COMPLETED"}
    assert overlaps(runs) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("how", ["node", "everything"])
def test_with_a_callback_the_job_runs_once_whatever_ends(
    start_worker, start_ownpod, tmp_path, kind, how
):
    url, _ = start_worker(kind)
    port = free_port()
    ownpod = start_ownpod(
        url,
        port=port,
        OWNPOD_CALLBACK_URL=f"http://127.0.0.1:{port}",
        OWNPOD_SHUTDOWN_GRACE_S=0,
        OWNPOD_LEASE_S=10,
        OWNPOD_API_KEYS="",
    )
    runs, served = tmp_path / "runs", tmp_path / "served"
    job = ownpod.submit(text="a", runs=str(runs), until=str(served))
    wait_until(begun(runs, "a"))
    if how == "node":
        kill_node(ownpod, worker_id(url))
    else:
        assert ownpod.stop() == 0
        ownpod.start()
    # The run ends while the next node waits for its result; how long a start takes does not matter.
    wait_until(lambda: "attempt 1 adopted" in ownpod.output, 30)
    served.touch()
    done = ownpod.ended(job, 40)
    assert (done["status"], done["output"]["echo"]) == ("COMPLETED", "a")
    assert "retries" not in done
    assert runs.read_text().count("+") == 1
    assert ownpod.ended(ownpod.submit(text="next"))["status"] == "COMPLETED"
