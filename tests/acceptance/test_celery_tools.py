"""OwnPod as Celery users operate it: Flower and the `celery` command show its state, and change it for good."""

import contextlib
import json
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest
import requests
from helpers import (
    OwnPod,
    RedisServer,
    answers,
    node_processes,
    run_command,
    sdk_worker,
    wait_until,
)

from ownpod.processes import free_port

BIN = Path(sys.executable).parent


class Operated(OwnPod):
    """An OwnPod with its Flower, and the `celery` command beside it."""

    def __init__(self, directory, urls, **environ):
        self.flower = f"http://127.0.0.1:{free_port()}"
        options = ("--flower", "--flower-port", self.flower.rpartition(":")[2])
        self.ids = [re.sub(r"[^0-9]+", "-", url).strip("-") for url in urls]
        super().__init__(directory, *options, workers=",".join(urls), **environ)

    def command(self, *command):
        """The output of a command on this host."""
        done = run_command(*command, **self.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def celery(self, *command):
        return self.command(BIN / "celery", "-A", "ownpod", *command)

    def control(self, *command, node=None):
        """Sends a command to one node, whose answer ends the wait, or to all."""
        to = ("-t", "30", "-d", node) if node else ("-t", "4")
        return self.celery("control", *to, *command)

    def inspect(self, what, *more):
        """The answers of all nodes, by worker id; asked again if one was too busy to answer in time."""

        def asked():
            command = (BIN / "celery", "-A", "ownpod", "inspect", what, "-t", "1.5", "--json")
            done = run_command(*command, **self.environ)
            if done.returncode:
                return None
            said = done.stdout
            nodes = json.loads(said[said.index("{") : said.rindex("}") + 1])
            found = {name.partition("@")[0]: answer for name, answer in nodes.items()}
            return found if found.keys() == {*self.ids, "housekeeping", *more} else None

        return wait_until(asked, 60, f"an answer of each node to {what}")

    def node(self, worker_id):
        return f"{worker_id}@{next(iter(self.hosts()))}"

    def hosts(self):
        return {name.partition("@")[2] for name in self.flower_workers()}

    def flower_workers(self):
        return requests.get(f"{self.flower}/api/workers?refresh=1", timeout=60).json()

    def task(self, job):
        return requests.get(f"{self.flower}/api/tasks", timeout=60).json().get(job) or {}

    def worker(self, worker_id):
        """As the API shows it; one that it does not know yet has no state."""
        found = self.get("/health")["ownpod"]["workers"]
        return next((w for w in found if w["id"] == worker_id), {"state": None})


@pytest.fixture(scope="module")
def operated(tmp_path_factory):
    directory = tmp_path_factory.mktemp("operated")
    ports = [free_port() for _ in range(2)]
    workers = [sdk_worker(port, directory / f"{port}.log", kind="async") for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for url in urls:
        wait_until(lambda url=url: answers(url), 60, "the workers")
    ownpod = Operated(directory, urls)
    try:
        wait_until(lambda: answers(ownpod.flower), 30)
        wait_until(lambda: len(ownpod.flower_workers()) == 3, 30)
        wait_until(lambda: is_watched(ownpod), 30)
        yield ownpod
    finally:
        ownpod.stop()
        print(ownpod.output)
        for worker in workers:
            worker.kill()


def is_watched(ownpod):
    """Waits until nodes send task events, which Flower switches on within seconds."""
    job = ownpod.submit(text="watched")
    ownpod.ended(job)
    return ownpod.task(job).get("state")


def running(operated, end):
    """A job that runs until the file ``end`` exists, because commands of Celery may take 10 s."""
    job = operated.submit(until=str(end))
    wait_until(lambda: operated.status(job)["status"] == "IN_PROGRESS")
    return job


@pytest.fixture
def end(tmp_path):
    """A file that ends the jobs of a test; it is there after the test."""
    found = tmp_path / "end"
    yield found
    found.touch()


@pytest.mark.parametrize(
    ("job_input", "state"),
    [({"text": "fine"}, "SUCCESS"), ({"do": "raise", "text": "bad"}, "FAILURE")],
)
def test_a_task_in_flower_ends_as_its_job_does(operated, job_input, state):
    job = operated.submit(**job_input)
    status = operated.ended(job)["status"]
    assert status == {"SUCCESS": "COMPLETED", "FAILURE": "FAILED"}[state]
    task = wait_until(lambda: (t := operated.task(job)).get("state") == state and t, 10)
    assert task["args"] == f"ownpod local-ep {json.dumps(job_input)}"
    assert task["worker"].partition("@")[0] in operated.ids


def test_a_job_that_times_out_has_failed_in_flower_while_its_handler_runs(operated, end):
    body = {"input": {"until": str(end)}, "policy": {"executionTimeout": 5000}}
    job = operated.post("/run", body)["id"]
    assert operated.ended(job)["status"] == "TIMED_OUT"
    task = wait_until(lambda: (t := operated.task(job)).get("state") == "FAILURE" and t, 2)
    assert "TIMED_OUT" in task["exception"]


@pytest.mark.parametrize("terminate", ["false", "true"])
def test_flowers_revoke_and_terminate_cancel_the_job(operated, terminate, end):
    job = running(operated, end)
    revoke = f"{operated.flower}/api/task/revoke/{job}?terminate={terminate}"
    assert requests.post(revoke, timeout=60).status_code == 200
    done = wait_until(lambda: (s := operated.status(job))["status"] == "CANCELLED" and s, 5)
    assert done["error"] == "revoked with Celery's tools"
    wait_until(lambda: operated.task(job).get("state") == "REVOKED", 10)


def test_revoke_cancels_a_job_that_waits(operated, end):
    held = [running(operated, end), running(operated, end)]
    job = operated.submit(text="never")
    waiting = operated.status(job)
    assert (waiting["status"], waiting["queuePosition"]) == ("IN_QUEUE", 1)
    assert waiting["waitingReason"] == "it waits for a free worker: 2 of 2 are healthy"
    operated.control("revoke", job)
    wait_until(lambda: operated.status(job)["status"] == "CANCELLED", 5)
    end.touch()
    for one in held:
        assert operated.ended(one, 40)["status"] == "COMPLETED"


def test_inspect_shows_the_jobs_of_each_node(operated, end):
    job = running(operated, end)
    worker_id = operated.status(job)["workerId"]
    assert [task["id"] for task in operated.inspect("active")[worker_id]] == [job]
    assert operated.inspect("reserved")[worker_id] == []
    described = operated.inspect("ownpod_node")
    assert described[worker_id]["jobs"] == [job]
    assert described[worker_id]["state"] == "ready"
    assert described["housekeeping"] == {"worker": None}
    assert operated.inspect("stats")[worker_id]["pool"]["max-concurrency"] == 1
    end.touch()
    operated.ended(job, 40)


@pytest.mark.parametrize(
    ("pause", "resume"),
    [
        (("ownpod_pause", "for a while"), ("ownpod_resume",)),
        (("cancel_consumer", "ownpod.local-ep"), ("add_consumer", "ownpod.local-ep")),
    ],
)
def test_a_paused_node_takes_no_job_and_stays_visible(operated, pause, resume):
    first, second = operated.ids
    operated.control(*pause, node=operated.node(first))
    wait_until(lambda: operated.worker(first)["state"] == "paused", 5)
    assert operated.get("/health")["workers"]["throttled"] == 1
    done = [operated.ended(operated.submit(text="x")) for _ in range(6)]
    assert {d["workerId"] for d in done} == {second}
    assert first in {name.partition("@")[0] for name in operated.flower_workers()}
    operated.control(*pause)
    wait_until(lambda: operated.worker(second)["state"] == "paused", 5)
    job = operated.submit(text="y")
    wait_until(lambda: "is paused" in operated.status(job).get("waitingReason", ""), 5)
    operated.control(*resume)
    assert operated.ended(job)["status"] == "COMPLETED"
    wait_until(lambda: {operated.worker(i)["state"] for i in operated.ids} == {"ready"}, 5)


def test_celery_lists_shows_retries_and_cancels_jobs(operated, end):
    failed = operated.ended(operated.submit(do="raise", text="for the list"))["id"]
    listed = operated.celery("jobs", "list", "--status", "failed", "-n", "5")
    assert listed.splitlines()[0].split()[:3] == ["JOB", "ENDPOINT", "STATUS"]
    assert failed in listed
    shown = json.loads(operated.celery("jobs", "show", failed))
    assert (shown["status"], shown["input"]["text"]) == ("FAILED", "for the list")
    old, _, new = operated.celery("retry", failed).strip().partition(" -> ")
    assert (old, operated.ended(new)["status"]) == (failed, "FAILED")
    again = operated.celery("retry", "--failed", "--endpoint", "local-ep")
    assert f"{new} -> " in again
    assert f"{failed} -> " not in again
    job = running(operated, end)
    assert operated.celery("cancel", job).split() == [job, "CANCELLED"]
    table = operated.celery("workers")
    assert all(worker_id in table for worker_id in operated.ids)


def test_metrics_agree_with_health(operated):
    operated.ended(operated.submit(text="counted"))
    health = operated.get("/health")["jobs"]
    text = requests.get(f"http://127.0.0.1:{operated.port}/metrics", timeout=60).text
    completed = 'ownpod_jobs_ended_total{endpoint="local-ep",status="COMPLETED"}'
    assert f"{completed} {health['completed']}.0" in text
    assert 'ownpod_workers{endpoint="local-ep",state="ready"} 2.0' in text


def test_a_worker_is_added_changed_drained_and_removed_while_jobs_run(operated, tmp_path, end):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    worker = sdk_worker(port, tmp_path / "third.log", kind="async")
    ownpod = BIN / "ownpod"
    try:
        wait_until(lambda: answers(url), 40)
        operated.command(ownpod, "workers", "add", url, "--id", "third")
        wait_until(lambda: operated.worker("third")["state"] == "ready", 15)
        for worker_id in operated.ids:
            operated.command(ownpod, "workers", "drain", worker_id)
        wait_until(lambda: operated.get("/health")["workers"]["throttled"] == 2, 10)
        # A node publishes it a moment before its event loop fetches no more.
        wait_until(
            lambda: (
                not any(
                    queue["name"] == "ownpod.local-ep"
                    for node, queues in operated.inspect("active_queues", "third").items()
                    if node in operated.ids
                    for queue in queues
                )
            )
        )
        first = tmp_path / "first"
        job = running(operated, first)
        assert operated.status(job)["workerId"] == "third"
        # A changed capacity waits for the job, and then takes effect.
        added = operated.post("/workers", {"url": url, "id": "third", "capacity": 2})
        assert added == {"id": "third", "url": url, "capacity": 2}
        first.touch()
        assert operated.ended(job)["status"] == "COMPLETED"
        both = [running(operated, end), running(operated, end)]
        wait_until(lambda: operated.worker("third").get("running") == 2)
        requests.delete(f"{operated.endpoint}/workers/third", timeout=60).raise_for_status()
        end.touch()
        assert [operated.ended(one)["status"] for one in both] == ["COMPLETED"] * 2
        # The other process of the API knows it a moment later.
        wait_until(lambda: len(operated.get("/workers")["workers"]) == 2)
        for worker_id in operated.ids:
            operated.command(ownpod, "workers", "resume", worker_id)
        assert operated.ended(operated.submit(text="z"))["status"] == "COMPLETED"
        assert "third" not in operated.command(ownpod, "workers", "list")
    finally:
        worker.kill()


def test_shutdown_lets_a_node_finish_and_stay_away(operated, end):
    job = running(operated, end)
    worker_id = operated.status(job)["workerId"]
    (other,) = set(operated.ids) - {worker_id}
    # A node that is ending sends no reply.
    shutdown = ("control", "shutdown", "-d", operated.node(worker_id))
    run_command(BIN / "celery", "-A", "ownpod", *shutdown, **operated.environ)
    end.touch()
    done = operated.ended(job)
    assert (done["status"], done["workerId"]) == ("COMPLETED", worker_id)
    wait_until(lambda: "was shut down by a remote command" in operated.output, 15)
    wait_until(lambda: operated.worker(worker_id)["state"] == "unhealthy", 10)
    assert operated.ended(operated.submit(text="x"))["workerId"] == other


def pids(ownpod):
    """The processes of the API that serve."""
    for child in psutil.Process(ownpod.process.pid).children():
        # One that has just ended is not there.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ownpod-api" in " ".join(child.cmdline()):
                yield from [process.pid for process in child.children()]


def test_sighup_reads_the_configuration_again(start_ownpod, start_worker, tmp_path, end):
    (one, _), (two, _) = start_worker(), start_worker()
    file = tmp_path / "workers.yaml"

    def write(text):
        file.write_text(f"endpoints: {{{text}}}")

    write(f"local-ep: {{workers: [{{url: '{one}'}}]}}")
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file)
    job = running(ownpod, end)
    write(f"local-ep: {{workers: [{{url: '{two}'}}]}}, more: {{workers: []}}")
    ownpod.process.send(signal.SIGHUP)

    def workers():
        try:
            return [w["url"] for w in ownpod.get("/workers")["workers"]]
        except (requests.RequestException, ValueError, KeyError):
            return None

    wait_until(lambda: workers() == [two], 20)
    end.touch()
    assert ownpod.ended(job)["status"] == "COMPLETED"
    assert ownpod.ended(ownpod.submit(text="x"))["status"] == "COMPLETED"
    # A process of the API with the old configuration may still answer.
    more = f"{ownpod.base}/more/health"
    wait_until(lambda: requests.get(more, timeout=60).status_code == 200)
    before = set(pids(ownpod))
    write("[}")
    ownpod.process.send(signal.SIGHUP)
    wait_until(lambda: ownpod.output.count("the old configuration stays: ") >= 2, 20)
    wait_until(lambda: len(set(pids(ownpod)) - before) >= 2 and workers() == [two], 30)
    # A node, and a process of the API, that begin while the file is broken serve as those before did.
    (node, *_) = node_processes(ownpod, ownpod.get("/workers")["workers"][0]["id"])
    node.kill()
    assert ownpod.ended(ownpod.submit(text="x"), 40)["status"] == "COMPLETED"
    assert "exited with code" not in ownpod.output


def test_the_node_of_an_added_worker_waits_for_redis(start_ownpod, start_worker, tmp_path):
    redis = RedisServer(tmp_path)
    url, _ = start_worker()
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {local-ep: {}}")
    try:
        ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, REDIS_URL=redis.url)
        ownpod.post("/workers", {"url": url, "id": "added"})
        assert ownpod.ended(ownpod.submit(text="x"))["status"] == "COMPLETED"
        redis.stop()
        for process in node_processes(ownpod, "added"):
            process.kill()
        wait_until(lambda: "node added ended by SIGKILL" in ownpod.output, 10)
        wait_until(lambda: re.search(r"\[added\] waiting for Redis", ownpod.output), 20)
        redis.start()
        wait_until(lambda: "id" in ownpod.post("/run", {"input": {}}), 20)
        assert ownpod.ended(ownpod.submit(text="x"))["status"] == "COMPLETED"
    finally:
        redis.stop()


def test_flower_asks_for_a_key_where_there_are_keys_and_can_be_read_only(
    start_ownpod, start_worker
):
    url, _ = start_worker()
    port = free_port()
    ownpod = start_ownpod(
        url,
        options=("--flower", "--flower-port", port),
        OWNPOD_API_KEYS="one,two",
        OWNPOD_FLOWER_READ_ONLY="true",
    )
    flower = f"http://127.0.0.1:{port}"
    wait_until(lambda: answers(flower), 20)
    assert requests.get(f"{flower}/workers", timeout=60).status_code == 401
    assert requests.get(f"{flower}/workers", auth=("ownpod", "two"), timeout=60).status_code == 200
    revoke = f"{flower}/api/task/revoke/x"
    assert requests.post(revoke, auth=("ownpod", "one"), timeout=60).status_code in {403, 405}
    assert requests.get(f"http://127.0.0.1:{ownpod.port}/metrics", timeout=60).status_code == 401
    headers = {"Authorization": "Bearer one"}
    metrics = requests.get(f"http://127.0.0.1:{ownpod.port}/metrics", headers=headers, timeout=60)
    assert "ownpod_jobs" in metrics.text


def test_every_move_is_a_line_of_json(start_ownpod, start_worker):
    url, _ = start_worker()
    ownpod = start_ownpod(url, OWNPOD_LOG_FORMAT="json")
    headers = {"X-Request-ID": "trace-1"}
    answer = requests.post(
        f"{ownpod.endpoint}/run", json={"input": {"text": "x"}}, headers=headers, timeout=60
    )
    assert answer.headers["X-Request-ID"] == "trace-1"
    job = answer.json()["id"]
    ownpod.ended(job)

    def moves():
        lines = [line.partition("| ")[2] for line in ownpod.output.splitlines()]
        said = [json.loads(line) for line in lines if line.startswith("{")]
        mine = [line for line in said if line.get("job") == job]
        return {line["status"]: line for line in mine} if len(mine) == 3 else None

    # The API's line and the node's may come in either order.
    found = wait_until(moves, 5)
    assert found.keys() == {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
    assert {line["requestId"] for line in found.values()} == {"trace-1"}
    ran = {
        (found[status]["worker"], found[status]["attempt"])
        for status in ("IN_PROGRESS", "COMPLETED")
    }
    assert ran == {(ownpod.status(job)["workerId"], 1)}
