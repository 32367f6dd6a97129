"""The output of managed workers for real: the SDK's lines with their jobs, an agent that is killed, the commands."""

import json
import sys
from collections import Counter

import psutil
import pytest
import requests
import yaml
from helpers import begun, run_command, wait_until
from test_managed import agent_of, phases

from ownpod.store.client import connect
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

pytestmark = pytest.mark.timeout(300)

HANDLER = """
import asyncio
import os
from pathlib import Path

import runpod


async def handler(job):
    data = job["input"]
    log = runpod.RunPodLogger()
    for number in range(data.get("lines", 0)):
        log.info(f"line {number}", job["id"])
        if number % 50 == 0:
            await asyncio.sleep(0.05)
    for number in range(data.get("plain", 0)):
        print("plain", number, flush=True)
        if "runs" in data and number == 20:
            with Path(data["runs"]).open("a") as runs:
                runs.write(f"+ {os.getpid()} {data['text']}\\n")
        await asyncio.sleep(data.get("seconds", 0))
    if data.get("do") == "exit":
        print("the weights are broken <b>here</b>", flush=True)
        os._exit(3)
    return "done"


runpod.serverless.start({"handler": handler})
"""


@pytest.fixture
def managed(start_ownpod, tmp_path):
    """Starts an OwnPod with one endpoint whose worker logs as much as its jobs want."""

    def start():
        handler = tmp_path / "logging_handler.py"
        handler.write_text(HANDLER)
        template = {"command": [sys.executable, str(handler)]}
        endpoint = {"template": template, "workersMin": 1, "workersMax": 1}
        file = tmp_path / "workers.yaml"
        file.write_text(yaml.safe_dump({"endpoints": {"local-ep": endpoint}}))
        return start_ownpod(
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:1",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )

    return start


def command(ownpod, *arguments):
    return run_command(
        *(sys.executable, "-m", "ownpod", *arguments),
        REDIS_URL=ownpod.redis_url,
        OWNPOD_WORKERS="",
    )


def test_lines_of_the_sdk_have_their_jobs_and_plain_lines_the_job_that_runs(managed):
    ownpod = managed()
    jobs = [ownpod.submit(lines=60, plain=40) for _ in range(5)]
    done = [ownpod.ended(job, 90) for job in jobs]
    (worker,) = {status["workerId"] for status in done}
    expected = {f"INFO   | line {n}" for n in range(60)} | {f"plain {n}" for n in range(40)}
    with connect(ownpod.redis_url) as client:
        outputs = Outputs(client)
        last = "INFO   | Finished."
        wait_until(
            lambda: sum(line.text == last for line in outputs.last(worker)) == len(jobs),
            *(10, "the last line"),
        )
        found = outputs.last(worker)
    for job in jobs:
        texts = [line.text for line in found if line.run == job]
        found_here = Counter(text for text in texts if text in expected)
        assert found_here == Counter(expected), job
    of_none = [line.text for line in found if line.run is None]
    assert not any("plain" in text or "line " in text for text in of_none)
    printed = command(ownpod, "logs", "--job", jobs[2]).stdout.splitlines()
    assert expected <= set(printed)
    answer = requests.get(
        f"http://127.0.0.1:{ownpod.port}/workers/{worker}/logs?job={jobs[3]}", timeout=9
    ).json()
    assert expected <= {line["text"] for line in answer["lines"]}


def test_a_killed_agent_costs_and_repeats_no_line(managed, tmp_path):
    ownpod = managed()
    runs = tmp_path / "runs"
    job = ownpod.submit(text="a", plain=300, seconds=0.01, runs=str(runs))
    wait_until(begun(runs, "a"), 60)
    old = agent_of(ownpod)
    old.kill()
    wait_until(lambda: (new := agent_of(ownpod)) and new.pid != old.pid, 30, "another agent")
    worker = ownpod.ended(job, 60)["workerId"]
    with connect(ownpod.redis_url) as client:
        outputs = Outputs(client)

        def plain():
            texts = [line.text for line in outputs.of_job(worker, job)]
            return [text for text in texts if text.startswith("plain")]

        wait_until(lambda: "plain 299" in plain(), 30, "the last line")
        assert plain() == [f"plain {n}" for n in range(300)]


def test_a_worker_that_ended_badly_is_explained_after_it_is_gone(managed):
    ownpod = managed()
    wait_until(lambda: phases(ownpod) == {"ready": 1}, 60, "a worker")
    ownpod.submit(do="exit", plain=2)

    def ended():
        (found, *_) = ownpod.get("/workers")["managed"]["ended"] or [None]
        return found

    found = wait_until(ended, 60, "its end")
    assert (found["exitCode"], found["endedIn"], found["outOfMemory"]) == (3, "ready", False)
    assert found["log"][-1] == "the weights are broken <b>here</b>"
    assert found["createdAt"] <= found["startedAt"] <= found["readyAt"] <= found["stoppedAt"]
    shown = command(ownpod, "workers", "show", found["id"])
    assert shown.returncode == 0, shown.stderr
    assert "exit code   3" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "  the weights are broken <b>here</b>"
    (line,) = command(ownpod, "logs", found["id"], "-n", "1", "--json").stdout.splitlines()
    assert json.loads(line)["text"] == "the weights are broken <b>here</b>"
    with connect(ownpod.redis_url) as client:
        assert Managed(client).get(found["id"]).log.count("plain") == 2
    assert psutil.pid_exists(agent_of(ownpod).pid)
