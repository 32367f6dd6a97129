"""Sessions while their idle time ends, and while every process is killed: no task is lost, none runs elsewhere."""

import contextlib
import json
import random
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import yaml
from chaos import SEED, Parts, processes_of, soon
from helpers import wait_until

from ownpod.agent.commands import MARK
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HANDLERS = Path(__file__).with_name("handlers.py")
EP = "llama-chat"
TERMINAL = {"COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"}
CODES = {"session_ended", "crashed", "lost", "host_lost", "start_failed", "no_device"}
"""What a task of a session may fail with when something is killed."""

PARTS: Parts = {
    "agent": lambda line, depth: "ownpod agent" in line and depth == 1,
    "node": lambda line, _: "celeryd: " in line and "celeryd: housekeeping" not in line,
    "dispatcher": lambda line, depth: "ownpod dispatch" in line and depth == 1,
    "API": lambda line, depth: "gunicorn" in line and depth == 2,
    "housekeeping": lambda line, _: "celeryd: housekeeping" in line,
    "Redis": lambda line, _: "redis.sock" in line,
}


@pytest.fixture
def start(start_ownpod, tmp_path):
    """Starts an OwnPod with one preset."""

    def start(devices=2, **session):
        preset = {
            "command": [sys.executable, str(HANDLERS)],
            "env": {"HANDLER": "sync", "PYTHONUNBUFFERED": "1"},
            "session": session,
        }
        file = tmp_path / "workers.yaml"
        file.write_text(yaml.safe_dump({"models": {"llama": {"presets": {"chat": preset}}}}))
        return start_ownpod(
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES=f"cpu:{devices}",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )

    return start


def submit(ownpod, *, session_id=None, key=None, **metadata):
    """A task, as a careful client submits it: again, under the same key, until there is an answer."""
    body = {
        "task_type": "session",
        "task_difficulty": "low",
        "model_id": "llama",
        "task_preset": "chat",
        "metadata": metadata,
    } | ({"session_id": session_id} if session_id else {})
    headers = {"Accept": "application/json", "Idempotency-Key": key or str(uuid.uuid4())}
    url = f"{ownpod.base.removesuffix('/v2')}/api/tasks/submit"
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(requests.RequestException):
            answer = requests.post(url, json=body, headers=headers, timeout=30)
            full = {"queue_full", "full"}
            if answer.status_code not in {502, 503} or answer.json().get("code") in full:
                return answer
        assert time.monotonic() < until
        time.sleep(0.05)


def session_of(ownpod, session_id):
    url = f"{ownpod.base.removesuffix('/v2')}/api/sessions/{session_id}"
    return requests.get(url, timeout=30).json()


def status(ownpod, job_id):
    return requests.get(f"{ownpod.base}/{EP}/status/{job_id}", timeout=30).json()


def test_a_task_at_the_moment_of_the_idle_end_is_run_or_refused(start):
    ownpod = start(idleTimeout=1)
    chance = random.Random(SEED)
    run, refused = 0, 0
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            first = submit(ownpod, text="first").json()
            ownpod_session = first["session_id"]
            wait_until(
                lambda job=first["task_id"]: status(ownpod, job)["status"] == "COMPLETED", 60
            )
            # The end is due a second after the last task, and checked once a second.
            due = time.monotonic() + 1
            pauses = [due + chance.uniform(0, 1.2) for _ in range(8)]

            def one(at, session=ownpod_session):
                threading.Event().wait(max(at - time.monotonic(), 0))
                return submit(ownpod, session_id=session, text="late")

            for answer in list(pool.map(one, pauses)):
                if answer.status_code == 404:
                    assert answer.json()["code"] == "session_ended"
                    refused += 1
                    continue
                assert answer.status_code in {200, 503}, answer.text
                if answer.status_code == 503:
                    assert answer.json()["code"] == "queue_full"
                    continue
                job = answer.json()["task_id"]
                wait_until(lambda job=job: status(ownpod, job)["status"] in TERMINAL, 60)
                done = status(ownpod, job)
                assert (done["status"], done["workerId"]) == ("COMPLETED", ownpod_session)
                run += 1
            wait_until(lambda s=ownpod_session: session_of(ownpod, s)["status"] == "killed", 60)
    assert run + refused > 0


def kill_something(ownpod, chance, kinds):
    """Kills a process of a kind; returns the kind."""
    kind = chance.choice(kinds)
    if kind == "worker":
        found = soon(lambda: workers_of(ownpod))
    else:
        found = soon(lambda: processes_of(ownpod, kind, PARTS))
    if found:
        with contextlib.suppress(psutil.Error):
            chance.choice(sorted(found, key=lambda p: p.pid)).kill()
    return kind


def workers_of(ownpod):
    """The processes of managed workers of this OwnPod."""
    mark, found = f"ownpod:{Path(ownpod.environ['OWNPOD_DATA_DIR']).resolve() / 'agent'}/", []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            living = process.status() != psutil.STATUS_ZOMBIE
            if living and process.environ().get(MARK, "").startswith(mark):
                found.append(process)
    return found


def test_kills_of_everything_lose_no_task_and_run_none_on_another_worker(start, tmp_path):
    ownpod = start(idleTimeout=3)
    chance, runs = random.Random(SEED), tmp_path / "runs"
    tasks: dict[str, str] = {}
    stop = threading.Event()

    def client(number):
        mine, session = random.Random(f"{SEED} {number}"), None
        for count in range(1000):
            if stop.is_set():
                return
            named = session if session and mine.random() < 0.7 else None
            answer = submit(
                ownpod,
                session_id=named,
                text=f"{number}-{count}",
                seconds=mine.choice([0, 0.1, 0.6]),
                runs=str(runs),
            )
            if answer.status_code == 200:
                body = answer.json()
                session = body["session_id"]
                tasks[body["task_id"]] = named or ""
            else:
                known = {"session_ended", "session_not_found", "queue_full"}
                assert answer.json().get("code") in known, (answer.status_code, answer.text)
                session = None
            stop.wait(mine.uniform(0.5, 3))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(runs.exists, 60, "the first task")
        until, kinds = time.monotonic() + 30, [*PARTS, "worker"]
        # On a loaded machine a client submits a task in some seconds only.
        while time.monotonic() < until or (len(tasks) <= 10 and time.monotonic() < until + 60):
            kill_something(ownpod, chance, kinds)
            stop.wait(chance.uniform(0.3, 1.5))
    finally:
        stop.set()
        for thread in threads:
            thread.join(90)

    def open_tasks():
        with contextlib.suppress(requests.RequestException, KeyError, ValueError):
            return [t for t in tasks if status(ownpod, t)["status"] not in TERMINAL]
        return ["?"]

    wait_until(lambda: not open_tasks(), 90, "the end of all tasks")
    with connect(ownpod.redis_url) as redis:
        for task, named in tasks.items():
            values = redis.hmget(keys.job(task), "status", "worker_id", "private", "code", "error")
            state, worker, private, code, error = values
            assert state in {"COMPLETED", "FAILED"}, values
            if worker is not None:
                assert worker == private, values
            if named:
                # A task that named its session ran there or failed.
                assert private == named, values
            if state == "FAILED":
                assert code in CODES, (code, error)
        managed = Managed(redis)
        wait_until(lambda: not managed.list(), 75, "the end of all sessions")
        free = lambda: not [h for m in Agents(redis).all_holds().values() for h in m]  # noqa: E731
        wait_until(free, 75, "free devices")
    wait_until(lambda: not workers_of(ownpod), 75, "the end of all processes")
    lines = [line.split() for line in runs.read_text().splitlines()]
    print(json.dumps({"tasks": len(tasks), "runs": len(lines)}))
    assert len(tasks) > 10
