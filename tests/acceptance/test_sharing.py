"""Two endpoints on one device for real: `ownpod up`, the engine `process`, workers of the real SDK."""

import itertools
import random
import time

import pytest
import requests
import yaml
from helpers import agent_of, wait_until
from sharing import endpoint, swaps

from ownpod.rules.managed import Phase
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def shared(start_ownpod, tmp_path):
    """Starts an OwnPod with the endpoints a and b, and one device."""

    def start(hold_s=30, **endpoints):
        content = {"endpoints": {"a": endpoint(), "b": endpoint()} | endpoints}
        (tmp_path / "workers.yaml").write_text(yaml.safe_dump(content))
        return start_ownpod(
            OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:1",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            OWNPOD_DEVICE_HOLD_S=hold_s,
        )

    return start


def order(runs):
    """The jobs in the order in which they began."""
    lines = runs.read_text().splitlines() if runs.exists() else []
    return [line.split()[2] for line in lines if line.startswith("+")]


def submit(ownpod, name, runs, **job):
    """A job of the endpoint that the name begins with."""
    body = {"input": {"text": name, "runs": str(runs), **job}}
    return requests.post(f"{ownpod.base}/{name[0]}/run", json=body, timeout=70).json()["id"]


def status(ownpod, job, name):
    return requests.get(f"{ownpod.base}/{name[0]}/status/{job}", timeout=70).json()


def ended(ownpod, job, name):
    done = lambda: status(ownpod, job, name)["status"] == "COMPLETED"  # noqa: E731
    wait_until(done, 90, f"job {name}")


def test_jobs_a_b_a_a_run_as_a_a_a_b_and_a_comes_back(shared, tmp_path):
    ownpod = shared()
    runs, go = tmp_path / "runs", tmp_path / "go"
    jobs = {name: submit(ownpod, name, runs, until=str(go)) for name in ("a1", "b1", "a2", "a3")}
    wait_until(lambda: order(runs) == ["a1"], 60, "the first job")
    go.touch()
    for name, job in jobs.items():
        ended(ownpod, job, name)
    assert order(runs) == ["a1", "a2", "a3", "b1"]
    ended(ownpod, submit(ownpod, "a4", runs), "a4")
    assert order(runs)[-1] == "a4"
    assert [line.partition(" ")[0] for line in swaps(ownpod)] == [
        'ownpod_worker_swaps_total{endpoint="a",for="b"}',
        'ownpod_worker_swaps_total{endpoint="b",for="a"}',
    ]
    with connect(ownpod.redis_url) as client:
        managed = Managed(client)
        # Neither is wanted or drained without a job.
        assert [(w.endpoint, w.phase) for w in managed.list()] == [("a", Phase.READY)]
        reasons = {w.endpoint: w.reason for w in managed.recent()}
    assert reasons.keys() == {"a", "b"}
    assert all("its device goes to" in reason for reason in reasons.values())


def test_an_endpoint_with_endless_work_gives_way_within_its_bound(shared, tmp_path):
    ownpod = shared(hold_s=1)
    runs = tmp_path / "runs"
    backlog = {f"a{n}": submit(ownpod, f"a{n}", runs, seconds=0.4) for n in range(300)}
    wait_until(lambda: order(runs), 60, "the first job of a")
    job = submit(ownpod, "b1", runs)

    def explained():
        reason = status(ownpod, job, "b1").get("waitingReason", "")
        return "may be swapped in" in reason or "is being freed" in reason

    wait_until(explained, 30, "the reason of the wait")
    ended(ownpod, job, "b1")
    began = order(runs)
    # Some jobs of a ran before b's, and most had to wait: a is not starved either.
    assert 0 < began.index("b1") < len(backlog)
    before = len(began)
    wait_until(lambda: len(order(runs)) > before, 60, "a has its device again")
    assert status(ownpod, backlog["a0"], "a0")["status"] == "COMPLETED"
    # Each job began once: a worker that gives way ends its running job.
    assert len(set(order(runs))) == len(order(runs))


def test_three_endpoints_share_a_device_while_its_agent_is_killed_and_no_job_is_lost(
    shared, tmp_path
):
    chance = random.Random(17)
    slow = endpoint(env={"LOAD_S": "1"})
    ownpod = shared(hold_s=2, b=slow, c=endpoint(residency=1))
    runs = tmp_path / "runs"
    names = [f"{chance.choice('abc')}{n}" for n in range(45)]
    jobs = {
        name: submit(ownpod, name, runs, seconds=chance.choice([0, 0.05, 0.3])) for name in names
    }
    kills, next_kill = 0, time.monotonic() + 3
    open_jobs = dict(jobs)

    def done():
        nonlocal kills, next_kill
        if kills < 6 and time.monotonic() > next_kill and (agent := agent_of(ownpod)):
            agent.kill()
            kills, next_kill = kills + 1, time.monotonic() + chance.uniform(2, 6)
        for name, job in list(open_jobs.items()):
            found = status(ownpod, job, name)
            if found["status"] == "COMPLETED":
                assert "retries" not in found
                del open_jobs[name]
            else:
                break
        return not open_jobs

    wait_until(done, 250, "all jobs")
    assert kills > 0
    began = order(runs)
    assert sorted(began) == sorted(names)
    # The device changes hands only by a swap, and each swap serves more than the job that asked for it.
    changes = sum(one[0] != other[0] for one, other in itertools.pairwise(began))
    counted = sum(float(line.rpartition(" ")[2]) for line in swaps(ownpod))
    assert 2 <= changes <= counted < len(names) / 2
