"""Managed workers for real: `ownpod up` with an agent and the engine `process`, on the real SDK."""

import contextlib
import json
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from helpers import Process, agent_of, begun, overlaps, wait_until

from ownpod.rules.managed import Phase
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = pytest.mark.timeout(300)

HANDLERS = Path(__file__).with_name("handlers.py")
FAST = {"idleTimeout": 2, "scalerType": "REQUEST_COUNT", "scalerValue": 1}


def template(kind="sync", **changes):
    env = {"HANDLER": kind, "PYTHONUNBUFFERED": "1"}
    return {"command": [sys.executable, str(HANDLERS)], "env": env, **changes}


@pytest.fixture
def managed(start_ownpod, tmp_path):
    """Starts an OwnPod with one endpoint, ``local-ep``, that has a template."""

    def start(*, environ=None, **endpoint):
        write(tmp_path, endpoint)
        return start_ownpod(
            OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:2",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            **(environ or {}),
        )

    return start


def write(directory, endpoint):
    values = {"template": template(), "workersMax": 2, **FAST, **endpoint}
    content = {"endpoints": {"local-ep": values}}
    (directory / "workers.yaml").write_text(yaml.safe_dump(content))


def health(ownpod):
    return ownpod.get("/health")


def phases(ownpod):
    """Phases of the managed workers that are not stopped."""
    return Counter(worker["phase"] for worker in health(ownpod)["ownpod"]["managed"]["workers"])


def processes(ownpod):
    """The workers' first processes that run, by worker id."""
    found = {}
    # The oldest of each: numbers of processes begin again at 32,768, so that a child may have a lower one.
    running = psutil.process_iter(["environ", "cmdline", "create_time"])
    for process in sorted(running, key=lambda process: process.info["create_time"]):
        environ = process.info["environ"] or {}
        line = " ".join(process.info["cmdline"] or [])
        ours = environ.get("RUNPOD_WEBHOOK_GET_JOB", "").startswith(f"{ownpod.base}/")
        # One that has just ended is not there.
        with contextlib.suppress(psutil.NoSuchProcess):
            if ours and str(HANDLERS) in line and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(environ["RUNPOD_POD_ID"], process.pid)
    return found


def held(ownpod):
    with connect(ownpod.redis_url) as client:
        return [hold for holds in Agents(client).all_holds().values() for hold in holds]


def test_an_endpoint_scales_from_zero_to_two_and_back(managed, tmp_path):
    ownpod = managed(gpu={"count": 1})
    assert phases(ownpod) == {}
    runs, go = tmp_path / "runs", tmp_path / "go"
    jobs = [
        ownpod.submit(text=f"job-{n}", until=str(go), seconds=1, runs=str(runs)) for n in range(4)
    ]
    most = 0

    def counted(state, number):
        nonlocal most
        most = max(most, len(held(ownpod)))
        return sum(ownpod.status(job)["status"] == state for job in jobs) == number

    wait_until(lambda: counted("IN_PROGRESS", 2), 90, "two jobs that run")
    go.touch()
    wait_until(lambda: counted("COMPLETED", 4), 90, "four jobs")
    assert most == 2
    assert len({ownpod.status(job)["workerId"] for job in jobs}) == 2
    wait_until(lambda: not phases(ownpod), 40, "no worker")
    wait_until(lambda: not processes(ownpod), 10, "no process")
    wait_until(lambda: held(ownpod) == [], what="no device that is held")
    wait_until(lambda: set(health(ownpod)["workers"].values()) == {0})
    # Each worker has a fresh directory, and nothing of it is left.
    left = lambda: [p for p in (tmp_path / "var" / "agent").glob("*/*") if p.is_dir()]  # noqa: E731
    wait_until(lambda: left() == [], what="no directory")


def test_a_killed_agent_costs_no_job_and_the_next_one_adopts_the_worker(managed, tmp_path):
    ownpod = managed(workersMax=1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), until=str(go))
    wait_until(begun(runs, "a"), 60)
    before = processes(ownpod)
    old = agent_of(ownpod)
    old.kill()
    wait_until(lambda: (new := agent_of(ownpod)) and new.pid != old.pid, 30, "another agent")
    wait_until(lambda: ownpod.output.count("agent of host") == 2, 30, "the agent is ready")
    assert processes(ownpod) == before
    go.touch()
    done = ownpod.ended(job)
    assert (done["status"], "retries" in done) == ("COMPLETED", False)
    wait_until(lambda: not processes(ownpod), 60, "the idle worker is stopped")
    wait_until(lambda: not phases(ownpod), 10)


def test_the_first_template_that_a_running_ownpod_gets_starts_the_agent(start_ownpod, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {local-ep: {}}")
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file, OWNPOD_WORKERS="", OWNPOD_ENGINE="process", OWNPOD_DEVICES="cpu:2"
    )
    job = ownpod.submit(text="a")
    assert agent_of(ownpod) is None
    write(tmp_path, {"workersMax": 1})
    ownpod.process.send(signal.SIGHUP)
    assert ownpod.ended(job, 90)["status"] == "COMPLETED"
    # It ends after the nodes, and ends its workers, as one that was there from the start.
    assert ownpod.stop() == 0
    assert processes(ownpod) == {}


def test_a_worker_that_is_killed_during_a_job_is_replaced_and_the_job_runs_again(managed, tmp_path):
    ownpod = managed(workersMax=1)
    runs, go = tmp_path / "runs", tmp_path / "go"
    job = ownpod.submit(text="a", runs=str(runs), until=str(go))
    wait_until(begun(runs, "a"), 60)
    ((first, pid),) = processes(ownpod).items()
    running = int(runs.read_text().split()[1])
    psutil.Process(pid).send_signal(signal.SIGKILL)
    # That was the shell that leads the worker, and the others of its group end a moment later.
    wait_until(lambda: not psutil.pid_exists(running), 30, "the handler has ended")
    go.touch()
    done = ownpod.ended(job, 90)
    assert (done["status"], done["retries"]) == ("COMPLETED", 1)
    assert done["workerId"] != first
    assert overlaps(runs) == []


@pytest.mark.slow
def test_a_worker_whose_handler_goes_on_after_its_jobs_time_is_replaced(managed):
    ownpod = managed(workersMax=1, executionTimeout=5_000)
    stuck = ownpod.submit(text="a", seconds=3600)
    wait_until(lambda: processes(ownpod), 60, "a worker")
    (before,) = processes(ownpod)
    assert ownpod.ended(stuck, 60)["status"] == "TIMED_OUT"
    job = ownpod.submit(text="b")
    done = ownpod.ended(job, 90)
    assert (done["status"], done["output"]["echo"]) == ("COMPLETED", "b")
    assert done["workerId"] != before
    assert before not in processes(ownpod)


@pytest.mark.slow
def test_an_agents_options_choose_its_name_engine_devices_and_labels(managed, tmp_path):
    ownpod = managed()
    options = (
        "--name",
        "second",
        "--engine",
        "process",
        "--devices",
        "cpu:3",
        "--labels",
        "pool=low",
    )
    agent = Process(
        *(sys.executable, "-m", "ownpod", "agent", *options),
        log=tmp_path / "agent.log",
        REDIS_URL=ownpod.redis_url,
        OWNPOD_DATA_DIR=tmp_path / "second",
    )
    try:

        def found():
            hosts = requests.get(f"http://127.0.0.1:{ownpod.port}/agents", timeout=30).json()
            return next((host for host in hosts["agents"] if host["host"] == "second"), None)

        host = wait_until(found, 30, "the second host")
        assert (host["engine"], len(host["devices"])) == ("process", 3)
        assert all("low" in device["pools"] for device in host["devices"])
    finally:
        agent.stop()


def test_a_worker_that_does_not_start_is_explained_and_its_jobs_wait(managed, tmp_path):
    broken = {"command": [sys.executable, "-c", "print('no weights at /models'); exit(3)"]}
    ownpod = managed(template=broken, workersMax=1)
    job = ownpod.submit(text="a")

    def unhealthy():
        failures = health(ownpod)["ownpod"]["managed"]["failures"]
        return failures and failures["count"] >= 5 and failures

    failures = wait_until(unhealthy, 90, "five failed starts")
    assert (failures["exitCode"], failures["log"]) == (3, ["no weights at /models"])
    assert health(ownpod)["workers"]["unhealthy"] == 1
    status = ownpod.status(job)
    assert status["status"] == "IN_QUEUE"
    assert "exit code 3" in status["waitingReason"]
    # A changed template is another release, which starts at once.
    write(tmp_path, {"workersMax": 1})
    ownpod.process.send(signal.SIGHUP)
    assert ownpod.ended(job, 60)["status"] == "COMPLETED"


@pytest.mark.parametrize("on_stop", ["stop", "keep"])
def test_the_end_of_up_ends_the_workers_unless_they_are_kept(managed, tmp_path, on_stop):
    ownpod = managed(workersMin=1, workersMax=1, environ={"OWNPOD_WORKERS_ON_STOP": on_stop})
    wait_until(lambda: phases(ownpod) == {Phase.READY: 1}, 60, "one ready worker")
    before = processes(ownpod)
    assert len(before) == 1
    assert ownpod.stop() == 0
    try:
        assert processes(ownpod) == (before if on_stop == "keep" else {})
        ownpod.start()
        wait_until(lambda: phases(ownpod) == {Phase.READY: 1}, 60, "one ready worker")
        assert (processes(ownpod) == before) is (on_stop == "keep")
        assert ownpod.ended(ownpod.submit(text="a"), 40)["status"] == "COMPLETED"
    finally:
        if on_stop == "keep":
            ownpod.stop()
            for process in psutil.process_iter(["environ"]):
                if (process.info["environ"] or {}).get("RUNPOD_POD_ID") in before:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


def test_jobs_are_pushed_to_a_worker_that_serves_runpods_local_api(managed, tmp_path):
    ownpod = managed(template=template(protocol="push"), workersMax=1)
    go = tmp_path / "go"
    jobs = [ownpod.submit(text=f"job-{n}", until=str(go)) for n in range(3)]
    wait_until(lambda: ownpod.status(jobs[0])["status"] == "IN_PROGRESS", 60, "the first job")
    with connect(ownpod.redis_url) as client:
        (worker,) = Managed(client).list("local-ep")
        assert worker.url.startswith("http://127.0.0.1:")
    go.touch()
    assert {ownpod.ended(job, 60)["status"] for job in jobs} == {"COMPLETED"}
    wait_until(lambda: not phases(ownpod), 60, "no worker")


def test_a_paused_endpoint_refuses_jobs_at_once(managed):
    ownpod = managed(workersMax=0)
    answer = requests.post(f"{ownpod.endpoint}/run", json={"input": {}}, timeout=9)
    assert answer.status_code == 409
    assert answer.json()["code"] == "ENDPOINT_PAUSED"
    assert health(ownpod)["jobs"]["inQueue"] == 0


def test_another_program_cannot_use_a_managed_workers_id(managed):
    ownpod = managed(workersMin=1, workersMax=1)
    wait_until(lambda: phases(ownpod) == {Phase.READY: 1}, 60, "one ready worker")
    (worker_id,) = processes(ownpod)
    for headers in ({}, {"Authorization": "wrong"}):
        url = f"{ownpod.endpoint}/job-take/{worker_id}?gpu=0"
        answer = requests.get(url, headers=headers, timeout=30)
        assert answer.status_code in {401, 403, 429}, json.dumps(answer.text)
    assert ownpod.ended(ownpod.submit(text="a"), 30)["status"] == "COMPLETED"
