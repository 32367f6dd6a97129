"""Sessions and one-off tasks while everything is killed, by chance with a fixed seed.

Clients make sessions, give them tasks, and end them; another one submits one-off tasks. Each session is idle or old soon, so that
something is killed in every phase of one. A session's task is run at most once, and never on another worker.
"""

import contextlib
import random
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest
import requests
import sse
import yaml
from chaos import SECONDS, SEED, ending
from helpers import wait_until
from test_managed_chaos import KINDS, Killer, Processes, Watcher, wait_until_gone

from ownpod.rules.jobs import JobStatus
from ownpod.store import keys
from ownpod.store.client import connect

KILLS_S = max(30.0, SECONDS)
"""Seconds in which processes are killed."""
ENDED_S, GONE_S = 120.0, 120.0
"""Seconds in which all tasks end after the last kill, and in which no worker is left then."""
DEVICES = 4
SESSION_CLIENTS = 3
OPEN_TASKS = 3
"""Number of tasks of a client that have not ended, with which it submits no further one."""

SESSION = """
import os, pathlib, time, runpod
def handler(job):
    data = job["input"]
    with pathlib.Path(data["runs"]).open("a") as runs:
        runs.write(f"{data['text']} {os.environ['RUNPOD_POD_ID']}\\n")
    time.sleep(data["seconds"])
    if data.get("fail"):
        raise ValueError("as it was told")
    return data["text"]
runpod.serverless.start({"handler": handler})
"""
ONE_OFF = """
import os, pathlib, sys, time
with pathlib.Path(os.environ["METADATA_RUNS"]).open("a") as runs:
    runs.write(os.environ["METADATA_TEXT"] + " -\\n")
for number in range(3):
    print(os.environ["METADATA_TEXT"], number, flush=True)
    time.sleep(float(os.environ["METADATA_SECONDS"]))
sys.exit(int(os.environ["METADATA_CODE"]))
"""

SESSION_ENDS = {"session_ended", "crashed", "host_lost", "start_failed", "start_timeout"}
"""Codes of a task whose session has ended before it was run."""
REFUSALS = {"session_ended", "session_not_found", "queue_full"}


class TaskClient(threading.Thread):
    """Submits tasks, each under a key of its own until there is an answer.

    Attributes:
        accepted: by task id, what was submitted; ``session`` has the session that the client has named.
        refused: numbers of refusals by code.
    """

    def __init__(self, root: str, runs: Path, chance: random.Random, name: str) -> None:
        super().__init__(daemon=True, name=name)
        self.accepted: dict[str, dict] = {}
        self.refused: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._root, self._runs, self._chance = root, runs, chance
        self._ended = threading.Event()
        self._number = 0
        self._open: set[str] = set()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self.turn()
        except BaseException as error:
            self.failure = error
            raise

    def turn(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self._ended.set()
        self.join(60)

    def pause(self, least: float, most: float) -> None:
        self._ended.wait(self._chance.uniform(least, most))

    def call(self, method: str, path: str, body: object = None) -> requests.Response:
        """The answer, however often the API is killed before it."""
        headers = {"Accept": "application/json", "Idempotency-Key": str(uuid.uuid4())}
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(requests.RequestException):
                answer = requests.request(
                    method, f"{self._root}{path}", json=body, headers=headers, timeout=10
                )
                code = "" if answer.ok else answer.json().get("code")
                if answer.status_code not in {502, 503} or code in REFUSALS:
                    return answer
            assert time.monotonic() < until, f"{method} {path}: no answer"
            time.sleep(0.05)

    def submit(self, kind: str, metadata: dict, **values: object) -> str | None:
        """Submits a task; returns its session, None for none."""
        wait_until(self._has_room, 120, "the end of earlier tasks")
        self._number += 1
        text = f"{self.name}-{self._number}"
        metadata = {**metadata, "text": text, "runs": str(self._runs)}
        body = {
            "task_type": kind,
            "model_id": "m",
            "task_preset": kind,
            "metadata": metadata,
            "timeout_seconds": 60,
            "wait_seconds": 3600,
            **values,
        }
        answer = self.call("POST", "/api/tasks/submit", body)
        if not answer.ok:
            found = answer.json()
            assert found["code"] in REFUSALS, found
            self.refused[found["code"]] += 1
            return None
        task = answer.json()
        if named := values.get("session_id"):
            assert task["session_id"] == named
        self._open.add(task["task_id"])
        self.accepted[task["task_id"]] = {**metadata, "session": values.get("session_id")}
        return task["session_id"]

    def _has_room(self) -> bool:
        if self._ended.is_set() or len(self._open) < OPEN_TASKS:
            return True
        for task in list(self._open):
            shown = self.call("GET", f"/api/tasks/{task}").json()
            if shown["status"] not in {"pending", "running"}:
                self._open.remove(task)
        self.pause(0.05, 0.1)
        return len(self._open) < OPEN_TASKS


class SessionClient(TaskClient):
    """Talks to a session until that has ended, or until it ends it."""

    def turn(self) -> None:
        session = self.submit(
            "session", self._metadata(), create_session=self._chance.random() < 0.5
        )
        for _ in range(self._chance.randint(0, 8)):
            if session is None or self._ended.is_set():
                return
            self.pause(0, 1.5)
            session = self.submit("session", self._metadata(), session_id=session)
        what = self._chance.random()
        if session is not None and what < 0.6:
            drain = "?drain=true" if what < 0.3 else ""
            answer = self.call("DELETE", f"/api/sessions/{session}{drain}")
            assert answer.status_code in {200, 404}, answer.text

    def _metadata(self) -> dict:
        seconds = self._chance.choice((0, 0.02, 0.3, 1.5))
        return {"seconds": seconds, "fail": self._chance.random() < 0.1}


class OneOffClient(TaskClient):
    def turn(self) -> None:
        seconds, code = self._chance.choice((0, 0.1, 0.5)), self._chance.choice((0, 0, 0, 3))
        self.submit("oneoff", {"seconds": seconds, "code": code})
        self.pause(0.2, 1.5)


class TaskKiller(Killer):
    """Remembers which workers it has killed."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.workers: set[str] = set()

    def kill_missing(self) -> None:
        """Kills of each kind that has not had its turn; on a busy host a worker's phase is missed often."""
        for kind in sorted(set(KINDS) - {kind for kind, _ in self.killed}):
            wait_until(lambda kind=kind: self._kill(kind, None), 20, f"a {kind} to kill")
            self.killed[kind, "none"] += 1

    def _living(self) -> dict:
        # Any of them: the killer chooses among all processes when this one has none.
        living = super()._living()
        self.workers |= living.keys()
        return living


def wrong(record: dict, asked: dict, runs: list[str], killed: set[str]) -> str:
    """What is wrong about a task that has ended; "": nothing."""
    status, code, error = record["status"], record.get("code", ""), record.get("error", "")
    private = record["private"]
    others = [worker for worker in runs if worker not in {private, "-"}]
    problem = ""
    if others:
        problem = f"it ran on {others}, and not on {private}"
    elif len(runs) > int(record["attempt"]):
        problem = f"{len(runs)} runs"
    elif asked["session"] not in {None, private}:
        problem = f"it was moved from the session that its client has named to {private}"
    elif record.get("worker_id") not in {None, "", private}:
        problem = f"its worker is {record['worker_id']}, not {private}"
    elif status == JobStatus.COMPLETED:
        if not runs or asked.get("fail") or asked.get("code"):
            problem = "completed"
    elif status != JobStatus.FAILED:
        problem = status
    elif asked.get("fail") and "as it was told" in error:
        pass
    elif asked.get("code") and code == "handler":
        if record.get("exit_code") != "3" or not error.startswith("exit code 3"):
            problem = "another exit code"
    elif "code" in asked:
        # A container is lost only when it was killed.
        if private not in killed:
            problem = "a container that the test has not killed"
    elif not runs and code in SESSION_ENDS and private in error:
        pass
    elif runs and private not in killed and code != "session_ended":
        problem = "a session that the test has not killed"
    return problem


def wrong_events(root: str, task: str, record: dict[str, str]) -> list[str]:
    """What is wrong about the events of a task that has ended; their form is checked by the parser."""
    answer = requests.get(f"{root}/api/tasks/{task}/events", timeout=30)
    assert answer.status_code == 200, answer.text
    finish = sse.stream_of(answer.content)[-1].data
    status = {"COMPLETED": "completed", "FAILED": "failed"}[record["status"]]
    named = bool(finish.get("code")) == (status == "failed")
    if finish["status"] == status and finish["task_id"] == task and named:
        return []
    return [f"{task}: {record['status']} {record.get('code')} {record.get('error')}: {finish}"]


@pytest.mark.slow
@pytest.mark.timeout(300 + 2 * KILLS_S + ENDED_S + GONE_S)
def test_every_task_ends_as_it_should_and_no_device_is_held_whatever_is_killed(
    start_ownpod, tmp_path, capsys
):
    def preset(code: str, **values: object) -> dict:
        return {
            "command": [sys.executable, "-c", code],
            "env": {"PYTHONUNBUFFERED": "1"},
            "timeout": 60,
            **values,
        }

    session = {"idleTimeout": 1, "maxLifetime": 6, "queue": 3}
    presets = {
        "session": preset(SESSION, session=session, oneOff=False),
        "oneoff": preset(ONE_OFF, session=False, protocol="stdout"),
    }
    file = tmp_path / "workers.yaml"
    file.write_text(yaml.safe_dump({"models": {"m": {"presets": presets}}}))
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES=f"cpu:{DEVICES}",
        OWNPOD_APPENDFSYNC="always",
        OWNPOD_LEASE_S=4,
        OWNPOD_SHUTDOWN_GRACE_S=2,
    )
    runs, processes = tmp_path / "runs", Processes(tmp_path / "var")
    root = ownpod.base.removesuffix("/v2")
    clients: list[TaskClient] = [
        SessionClient(root, runs, random.Random(f"{SEED} s{n}"), f"s{n}")
        for n in range(SESSION_CLIENTS)
    ]
    clients.append(OneOffClient(root, runs, random.Random(f"{SEED} o"), "o"))
    watcher = Watcher(ownpod.redis_url, processes)
    with ending(watcher, *clients):
        for client in clients:
            client.start()
        killer = TaskKiller(ownpod, processes, random.Random(SEED))
        killer.run(time.monotonic() + KILLS_S)
        killer.kill_missing()
        began = time.monotonic()
        for client in clients:
            client.end()
            assert client.failure is None
            assert not client.is_alive()
        asked = {task: values for c in clients for task, values in c.accepted.items()}
        records = all_ended(ownpod, set(asked))
        done_s = time.monotonic() - began
        gone_s = wait_until_gone(ownpod, processes)
        found: dict[str, list[str]] = {}
        for line in runs.read_text().splitlines():
            text, worker = line.split(" ")
            found.setdefault(text, []).append(worker)
        problems = []
        for task, values in asked.items():
            record = records[task]
            if problem := wrong(record, values, found.get(values["text"], []), killer.workers):
                shown = {n: v for n, v in record.items() if n not in {"input", "task", "output"}}
                problems.append(f"{task} {values}: {problem}: {shown}")
            problems += wrong_events(root, task, record)
        ends = Counter(f"{r['status']} {r.get('code', '')}".strip() for r in records.values())
        with capsys.disabled():
            print(
                f"\nsessions, seed {SEED}: {len(asked)} tasks ({', '.join(f'{n} {k}' for k, n in ends.most_common())}), "
                f"refused {dict(sum((c.refused for c in clients), Counter()))}, {killer.killed.total()} kills "
                f"in {KILLS_S:g} s, all done {done_s:.1f} s after the last, all gone {gone_s:.1f} s later\n{killer.table()}"
            )
        assert problems == []
        assert watcher.wrong == []
        assert {kind for kind, _ in killer.killed} == set(KINDS)
        assert ends["COMPLETED"]
    # Nothing is left that keeps a device from the next task.
    last = OneOffClient(root, runs, random.Random(SEED), "last")
    last.turn()
    ((task, record),) = all_ended(ownpod, set(last.accepted)).items()
    assert record["status"] in {JobStatus.COMPLETED, JobStatus.FAILED}, task
    assert record["exit_code"] in {"0", "3"}


def all_ended(ownpod, tasks: set[str]) -> dict[str, dict[str, str]]:
    """The records of tasks, when all of them have ended."""
    with connect(ownpod.redis_url) as client:

        def look() -> dict[str, dict[str, str]]:
            return {task: client.hgetall(keys.job(task)) for task in tasks}

        def ended() -> bool:
            return all(JobStatus(r["status"]).terminal for r in look().values() if r)

        try:
            wait_until(ended, ENDED_S)
        except AssertionError:
            left = [r for r in look().values() if not r or not JobStatus(r["status"]).terminal]
            raise AssertionError(f"not ended after {ENDED_S:g} s: {left}") from None
        records = look()
        assert all(records.values()), "a task's record is gone"
        return records
