"""One-off tasks for real: `ownpod up`, the engine `process`, and a program that only prints; over HTTP, and under SIGKILL."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from helpers import agent_of, node_processes, wait_until

from ownpod.rules.managed import Phase
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("oneoff.py")


class Client:
    """A client of one-off tasks."""

    def __init__(self, ownpod):
        self.ownpod = ownpod
        self.api = ownpod.base.removesuffix("/v2") + "/api/tasks"
        self.client = connect(ownpod.redis_url)
        self.managed = Managed(self.client)

    def submit(self, *, preset="run", timeout_s=200, **metadata):
        body = {
            "task_type": "oneoff",
            "model_id": "tool",
            "task_preset": preset,
            "task_difficulty": "low",
            "metadata": metadata,
            "timeout_seconds": timeout_s,
        }
        headers = {"Prefer": "respond-async"}
        answer = requests.post(f"{self.api}/submit", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["task_id"]

    def task(self, task_id):
        return requests.get(f"{self.api}/{task_id}", timeout=60).json()

    def ended(self, task_id, seconds=90):
        def last():
            task = self.task(task_id)
            return task if task["status"] in {"completed", "failed"} else None

        return wait_until(last, seconds, f"the end of {task_id}")

    def events(self, task_id):
        """All events of a task that has ended, as (name, data)."""
        answer = requests.get(f"{self.api}/{task_id}/events", timeout=120)
        found = []
        for block in answer.text.split("\n\n"):
            lines = [line.partition(": ")[::2] for line in block.splitlines()]
            names = [value for key, value in lines if key == "event"]
            data = "\n".join(value for key, value in lines if key == "data")
            found += [(names[0], json.loads(data))] if names else []
        return found

    def run(self, **options):
        """The events of a task, once it has ended."""
        task_id = self.submit(**options)
        self.ended(task_id)
        return self.events(task_id)

    def worker(self, task_id):
        workers = [*self.managed.list(), *self.managed.recent()]
        return next(worker for worker in workers if worker.job == task_id)

    def wait_begun(self, task_id):
        """The process of a task that has printed something."""

        def chunks():
            return self.client.llen(f"ownpod:chunks:{task_id}")

        wait_until(chunks, 60, "the task's first line")
        (process,) = self.processes(task_id)
        return process

    def processes(self, task_id):
        found = []
        for process in psutil.process_iter(["environ", "cmdline"]):
            environ = process.info["environ"] or {}
            if environ.get("TASK_ID") == task_id and str(PROGRAM) in " ".join(
                process.info["cmdline"][:2]
            ):
                found.append(process)
        return found

    @property
    def held(self):
        return [hold for holds in Agents(self.client).all_holds().values() for hold in holds]

    def wait_free(self):
        wait_until(lambda: not self.held and not self.managed.list(), 40, "no worker, no device")


def of(events, *names):
    return [data for name, data in events if name in names]


def text_of(events):
    return "".join(data["delta"] for data in of(events, "text_delta"))


def logs_of(events):
    return [data["log"] for data in of(events, "logs")]


@pytest.fixture
def start(start_ownpod, tmp_path):
    def make(**environ):
        preset = {
            "command": [sys.executable, str(PROGRAM)],
            "protocol": "stdout",
            "session": False,
        }
        models = {"tool": {"presets": {"run": preset, "events": {**preset, "output": "events"}}}}
        (tmp_path / "workers.yaml").write_text(yaml.safe_dump({"models": models}))
        ownpod = start_ownpod(
            OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES="cpu:2",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            **environ,
        )
        return Client(ownpod)

    return make


def test_a_task_ends_with_its_text_or_its_exit_code_and_leaves_nothing(start):
    client = start()
    hello = client.submit(do="print", text="hello")
    failing = client.submit(do="exit", code=7)
    client.ended(hello)
    events = client.events(hello)
    assert text_of(events) == "hello\n"
    assert of(events, "text") == [{"content": "hello\n"}]
    finish = events[-1][1]
    assert (events[-1][0], finish["status"], finish["exit_code"]) == ("task_finish", "completed", 0)
    shown = [(event, data.get("status")) for event, data in events]
    # Its worker may have begun to start before the job was created.
    assert [found for found in shown if found != ("worker", "initializing")] == [
        ("connection", "allocated"),
        ("worker", "created"),
        ("worker", "working"),
        ("text_delta", None),
        ("worker", "stopped"),
        ("text", None),
        ("task_finish", "completed"),
    ]
    client.ended(failing)
    events = client.events(failing)
    finish = events[-1][1]
    assert (finish["status"], finish["exit_code"], finish["code"]) == ("failed", 7, "handler")
    assert finish["error"] == "exit code 7\nreason"
    assert logs_of(events) == ["reason"]
    client.wait_free()
    assert not client.processes(hello)
    assert client.ended(client.submit(do="print", text="again"))["status"] == "completed"


def test_lines_of_every_kind_arrive_as_they_were_written(start):
    client = start()
    events = client.run(do="structured")
    assert [data["delta"] for data in of(events, "text_delta")] == ["Hel", "lo"]
    assert [(data["log"], data["level"]) for data in of(events, "logs")] == [
        ("noise", "info"),
        ("warm", "warning"),
    ]
    assert of(events, "output") == [{"output": {"n": 1}}]
    assert {"step": 1} in [data.get("progress") for data in of(events, "worker")]
    wide = client.run(do="wide", size=65_536)
    assert (text_of(wide), logs_of(wide)) == ("w" * 65_536 + "\n", ["v" * 65_536])
    logs = logs_of(client.run(do="bar"))
    assert (logs[-1], len(logs) < 60) == ("done", True)
    events = client.run(do="rubbish", size=1 << 20)
    assert events[-1][1]["status"] == "completed"
    assert len(text_of(events)) > 500_000
    plain = client.run(do="print", text="noise", preset="events")
    assert (text_of(plain), logs_of(plain)) == ("", ["noise"])
    assert of(plain, "output") == [{"output": {"exitCode": 0}}]


def test_a_flood_of_text_ends_the_task_and_not_the_memory(start):
    client = start()
    task = client.submit(do="flood", megabytes=300)
    failed = client.ended(task, 150)
    assert "more than 64 MiB" in (failed["error_message"] or ""), failed
    client.wait_free()


def test_a_silent_task_ends_by_its_timeout_and_a_cancelled_one_at_once(start):
    client = start()
    silent = client.submit(do="sleep", timeout_s=10)
    cancelled = client.submit(do="sleep")
    # First the one whose time is short.
    silent_process = client.wait_begun(silent)
    process = client.wait_begun(cancelled)
    requests.delete(f"{client.api}/{cancelled}", timeout=60)
    wait_until(lambda: not process.is_running(), 30, "the end of the cancelled process")
    assert client.events(cancelled)[-1][1]["status"] == "cancelled"
    client.ended(silent)
    assert client.events(silent)[-1][1]["status"] == "timeout"
    wait_until(lambda: not silent_process.is_running(), 30, "the end of the silent process")
    client.wait_free()


def test_a_killed_node_costs_a_task_nothing(start, tmp_path):
    client = start()
    task = client.submit(do="wait_for", path=str(tmp_path / "go"))
    process = client.wait_begun(task)
    worker = client.worker(task)
    (node,) = node_processes(client.ownpod, worker.id)
    node.kill()
    wait_until(
        lambda: [n.pid for n in node_processes(client.ownpod, worker.id)] not in ([], [node.pid]),
        40,
        "the next node",
    )
    assert process.is_running()
    (tmp_path / "go").touch()
    client.ended(task)
    events = client.events(task)
    assert (events[-1][1]["status"], text_of(events), events[-1][1]["attempts"]) == (
        "completed",
        "begun\nend\n",
        1,
    )
    client.wait_free()


def test_agents_that_are_killed_cost_no_line_and_repeat_none(start):
    client = start()
    task = client.submit(do="count", to=600)
    client.wait_begun(task)
    for _ in range(3):
        old = wait_until(lambda: agent_of(client.ownpod), 30, "an agent")
        old.kill()
        wait_until(
            lambda pid=old.pid: (a := agent_of(client.ownpod)) and a.pid != pid,
            30,
            "the next agent",
        )
    client.ended(task)
    events = client.events(task)
    assert events[-1][1]["status"] == "completed"
    assert text_of(events) == "".join(f"{n}\n" for n in range(600))
    assert logs_of(events) == [f"e {n}" for n in range(600)]


def test_a_task_that_another_program_kills_is_a_lost_attempt_and_the_next_one_runs(start):
    client = start()
    task = client.submit(do="sleep")
    os.kill(client.wait_begun(task).pid, signal.SIGKILL)
    assert client.ended(task)["status"] == "failed"
    assert client.events(task)[-1][1]["code"] == "lost"
    client.wait_free()
    assert client.worker(task).phase is Phase.STOPPED
    assert client.ended(client.submit(do="print", text="next"))["status"] == "completed"
