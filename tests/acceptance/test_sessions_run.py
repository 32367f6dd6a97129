"""Sessions for real: `ownpod up`, the engine `process`, and an unmodified handler of the real SDK as a session's worker."""

import contextlib
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import begun, job_store, load_settings, new_job, node_processes, wait_until

from ownpod.configuration import load_endpoints
from ownpod.errors import SessionEnded
from ownpod.registry import Registry
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Phase, new_worker_id
from ownpod.rules.sessions import Reason, Status, wish_for
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.fleet import Fleet
from ownpod.store.sessions import Sessions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HANDLERS = Path(__file__).with_name("handlers.py")
EP = "llama-chat"


class Client:
    """A client of sessions, on the store of a running OwnPod."""

    def __init__(self, ownpod, file):
        self.ownpod = ownpod
        config = load_settings(OWNPOD_WORKERS_FILE=file)
        self.store = job_store(connect(ownpod.redis_url))
        self.sessions = Sessions(self.store, result_ttl_s=1800)
        self.registry = Registry(load_endpoints(config), Fleet(self.store.client), config)
        self.count = 0

    def open(self, *, reuse=True, **limits):
        wish = wish_for(self.registry.endpoint(EP), **limits)
        opened = self.sessions.open(wish, owner="", worker_id=new_worker_id(), reuse=reuse)
        return opened.id

    def submit(self, session, *, movable=False, options=None, **job_input):
        self.count += 1
        return self.store.jobs.create(
            new_job(
                f"task-{self.count}",
                EP,
                input=json.dumps(job_input),
                queue=self.store.messages.own_queue(EP, session),
                private=session,
                movable=movable,
                affinity="strict",
                max_attempts=3 if movable else 1,
                **(options or {}),
            )
        )

    def job(self, job_id):
        return self.store.jobs.get(job_id, EP)

    def ended(self, job_id, seconds=60):
        def last():
            job = self.job(job_id)
            return job if job.status.terminal else None

        return wait_until(last, seconds, f"the end of {job_id}")

    def output(self, job_id):
        job = self.ended(job_id)
        assert job.status is JobStatus.COMPLETED, job
        return json.loads(job.output)

    def get(self, session):
        return self.sessions.get(session)

    def killed(self, session, seconds=60):
        wait_until(lambda: self.get(session).status is Status.KILLED, seconds, "the session's end")
        return self.get(session)

    @property
    def held(self):
        return [hold for holds in Agents(self.store.client).all_holds().values() for hold in holds]


@pytest.fixture
def start(start_ownpod, tmp_path):
    """Starts an OwnPod with one preset, whose handler takes ``load_s`` to load."""

    def start(*, load_s=0, devices=2, environ=None, **session):
        preset = {
            "command": [sys.executable, str(HANDLERS)],
            "env": {"HANDLER": "sync", "PYTHONUNBUFFERED": "1", "LOAD_S": str(load_s)},
            "session": session,
        }
        models = {"llama": {"presets": {"chat": preset}}}
        file = tmp_path / "workers.yaml"
        file.write_text(yaml.safe_dump({"models": models}))
        ownpod = start_ownpod(
            OWNPOD_WORKERS_FILE=file,
            OWNPOD_WORKERS="",
            OWNPOD_ENGINE="process",
            OWNPOD_DEVICES=f"cpu:{devices}",
            OWNPOD_SHUTDOWN_GRACE_S=2,
            **(environ or {}),
        )
        return Client(ownpod, file)

    return start


def processes_of(session):
    """The processes of a session's worker."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("RUNPOD_POD_ID") == session
    ]


def test_one_process_answers_all_tasks_of_a_session_and_its_load_is_paid_once(start):
    client = start(load_s=3, idleTimeout=6)
    began = time.monotonic()
    session = client.open()
    assert client.get(session).status is Status.INITIALIZING
    first = client.output(client.submit(session, text="1"))
    assert time.monotonic() - began >= 3
    outputs = [client.output(client.submit(session, text=str(number))) for number in range(2, 8)]
    assert {output["pid"] for output in outputs} == {first["pid"]}
    assert [output["echo"] for output in outputs] == [str(number) for number in range(2, 8)]
    # Another task without a session's id gets the same one, because it is idle.
    wait_until(lambda: client.get(session).is_idle, 10)
    wait_until(lambda: client.open() == session, 10, "the idle session")
    found = client.get(session)
    assert (found.worker.tasks_done, found.load_s >= 3) == (7, True)
    ended = client.killed(session)
    assert ended.reason is Reason.IDLE_TIMEOUT
    wait_until(lambda: not client.held and not processes_of(session), 20, "the device is free")
    with pytest.raises(SessionEnded):
        client.submit(session, text="late")


def test_a_long_task_survives_the_idle_time_and_later_ones_come_in_order(start, tmp_path):
    client = start(idleTimeout=2)
    session, runs = client.open(), tmp_path / "runs"
    jobs = [
        client.submit(session, text=f"t{number}", seconds=6 if not number else 0, runs=str(runs))
        for number in range(4)
    ]
    assert {client.output(job)["pid"] for job in jobs} == {client.output(jobs[0])["pid"]}
    lines = [line.split() for line in runs.read_text().splitlines()]
    assert [text for sign, _, text in lines if sign == "+"] == ["t0", "t1", "t2", "t3"]
    assert client.killed(session).reason is Reason.IDLE_TIMEOUT


def test_the_lifetime_lets_the_running_task_end_and_fails_what_waits(start, tmp_path):
    client = start(maxLifetime=6, idleTimeout=0)
    session, runs, go = client.open(), tmp_path / "runs", tmp_path / "go"
    running = client.submit(session, text="a", until=str(go), runs=str(runs))
    wait_until(begun(runs, "a"), 60)
    named = client.submit(session, text="b")
    found = client.submit(session, movable=True, text="c")
    assert client.ended(named).error == f"session {session} ended: max_lifetime"
    # The other one does not wait for the end of this session: its new session has a device of its own.
    other = json.loads(client.ended(found).output)
    assert client.job(running).status is JobStatus.IN_PROGRESS
    assert client.get(session).worker.phase is Phase.DRAINING
    go.touch()
    assert client.output(running)["pid"] != other["pid"]
    assert client.killed(session).reason is Reason.MAX_LIFETIME
    assert client.job(found).worker_id != session


def test_a_kill_ends_the_running_task_and_the_process_at_once(start, tmp_path):
    client = start()
    session, runs = client.open(), tmp_path / "runs"
    running = client.submit(session, text="a", until=str(tmp_path / "never"), runs=str(runs))
    wait_until(begun(runs, "a"), 60)
    waiting = client.submit(session, text="b")
    client.sessions.end(session, drain=False)
    for job in (running, waiting):
        assert client.ended(job).error == f"session {session} ended: manual"
    assert client.killed(session).reason is Reason.MANUAL
    wait_until(lambda: not client.held and not processes_of(session), 20, "the device is free")
    # The device is another session's at once.
    assert client.output(client.submit(client.open(), text="c"))["echo"] == "c"


def test_the_task_of_a_crashed_session_fails_and_no_other_worker_runs_it(start, tmp_path):
    client = start()
    session, runs = client.open(), tmp_path / "runs"
    named = client.submit(session, text="a", until=str(tmp_path / "never"), runs=str(runs))
    wait_until(begun(runs, "a"), 60)
    found = client.submit(session, movable=True, text="b")
    for process in processes_of(session):
        with contextlib.suppress(psutil.Error):
            process.kill()
    job = client.ended(named)
    assert job.status is JobStatus.FAILED
    assert (job.worker_id, client.killed(session).reason) == (session, Reason.CRASHED)
    # It had not begun, and its client had named no session.
    assert client.output(found)["echo"] == "b"
    assert client.job(found).worker_id != session
    lines = [line.split()[2] for line in runs.read_text().splitlines()]
    assert lines == ["a"]


def test_a_session_that_asks_for_a_restart_keeps_its_id_its_device_and_its_queue(start):
    client = start(idleTimeout=6)
    session = client.open()
    jobs = [
        client.submit(session, text=str(number), do="refresh" if number == 1 else "echo")
        for number in range(4)
    ]
    outputs = [client.output(job) for job in jobs]
    before, after = outputs[:2], outputs[2:]
    assert (
        len({output["pid"] for output in before}) == len({output["pid"] for output in after}) == 1
    )
    assert before[0]["pid"] != after[0]["pid"]
    assert [output["echo"] for output in after] == ["2", "3"]
    assert {client.job(job).worker_id for job in jobs} == {session}

    def counted():
        worker = client.get(session).worker
        return (worker.tasks_done, worker.restart) == (4, 0)

    wait_until(counted, what="four tasks")
    assert len(client.held) == 1
    # Its idle time ends it, as ever, and nothing is left.
    assert client.killed(session).reason is Reason.IDLE_TIMEOUT
    wait_until(lambda: not client.held and not processes_of(session), 20, "the device is free")


def test_a_handler_that_does_not_end_after_its_timeout_is_replaced_and_the_next_task_runs(
    start, tmp_path
):
    client = start()
    session, runs = client.open(), tmp_path / "runs"
    hangs = client.submit(
        session,
        text="a",
        until=str(tmp_path / "never"),
        runs=str(runs),
        options={"execution_timeout_ms": 5000},
    )
    wait_until(begun(runs, "a"), 60)
    (before,) = {line.split()[1] for line in runs.read_text().splitlines()}
    waiting = client.submit(session, text="b")
    assert client.ended(hangs).status is JobStatus.TIMED_OUT
    output = client.output(waiting)
    assert (output["echo"], output["pid"] != int(before)) == ("b", True)
    assert client.job(waiting).worker_id == session


def test_a_killed_node_costs_no_task_of_a_session(start, tmp_path):
    client = start()
    session, runs, go = client.open(), tmp_path / "runs", tmp_path / "go"
    job = client.submit(session, text="a", until=str(go), runs=str(runs))
    wait_until(begun(runs, "a"), 60)
    nodes = node_processes(client.ownpod, session)
    assert nodes
    for node in nodes:
        node.kill()
    go.touch()
    output = client.output(job)
    assert (output["echo"], client.job(job).attempt) == ("a", 1)
    assert client.output(client.submit(session, text="b"))["pid"] == output["pid"]
