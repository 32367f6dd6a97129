"""The processes: how they start, what they say when they cannot, and that they end with nothing
left. Also Celery's, gunicorn's and Flower's own commands on them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests
from helpers import (
    Process,
    RedisServer,
    answers,
    node_processes,
    run_command,
    wait_until,
)

from ownpod.processes import free_port
from ownpod.store.client import connect

PYTHON = sys.executable
BIN = Path(sys.executable).parent


def run(*command, **environ):
    """The command's exit code and its output."""
    done = run_command(*command, **environ)
    return done.returncode, done.stdout + done.stderr


def children(pid):
    return psutil.Process(pid).children(recursive=True)


def all_gone(processes):
    return lambda: not any(p.is_running() and p.status() != "zombie" for p in processes)


def kill_everything(ownpod):
    everything = [psutil.Process(ownpod.process.pid), *children(ownpod.process.pid)]
    for process in everything:
        # The others end with the first.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(all_gone(everything[1:]))
    ownpod.process.wait()


def test_the_ready_line_is_the_last_and_names_come_first(start_worker, start_ownpod):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    lines = ownpod.output.splitlines()
    ready = (
        f"ownpod     | ready: http://127.0.0.1:{ownpod.port}/v2/<endpoint>  "
        "endpoints: local-ep  workers: 1 of 1 ready"
    )
    # A part may log something afterwards.
    assert ready == [line for line in lines if line.startswith("ownpod ")][-1]
    assert {line.split(" | ")[0].strip() for line in lines} == {
        "redis",
        "dispatch",
        "front",
        "api",
        "ownpod",
    }


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything(start_ownpod, signum):
    ownpod = start_ownpod("http://127.0.0.1:1")
    # redis, the front and its HAProxy, gunicorn and its two workers, the supervisor and its two nodes
    started = wait_until(lambda: len(found := children(ownpod.process.pid)) == 9 and found)
    ownpod.process.send(signum)
    assert ownpod.process.wait() == 0
    wait_until(all_gone(started))
    assert ownpod.output.splitlines()[-1] == "ownpod     | stopped"


def test_a_killed_up_takes_everything_with_it(start_ownpod):
    ownpod = start_ownpod("http://127.0.0.1:1")
    started = children(ownpod.process.pid)
    ownpod.process.kill()
    wait_until(all_gone(started), 30)


@pytest.mark.parametrize("part", ["redis.sock", "gunicorn", "ownpod dispatch"])
def test_a_part_that_ends_is_started_again(start_ownpod, start_worker, part):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    done = ownpod.submit(text="before")
    ownpod.ended(done)

    def find():
        mine = psutil.Process(ownpod.process.pid).children()
        for process in mine:
            # One that has just ended is not there.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != "zombie" and part in " ".join(process.cmdline()):
                    return process
        return None

    victim = find()
    victim.kill()
    wait_until(lambda: (p := find()) and p.pid != victim.pid, 20)
    wait_until(lambda: answers(f"{ownpod.base}/local-ep/health"), 20)
    assert "ended by SIGKILL; starting it again" in ownpod.output
    wait_until(lambda: post_again(ownpod), 20)
    # As in `post_again`.
    wait_until(lambda: ownpod.status(done).get("status") == "COMPLETED")


def post_again(ownpod):
    """Whether the API takes a job again, which then completes."""
    try:
        job = ownpod.post("/run", {"input": {"text": "after"}})["id"]
    except (requests.RequestException, KeyError):
        return False
    # An API process that Redis has never answered answers 503 for a second more.
    return wait_until(lambda: ownpod.status(job).get("status") == "COMPLETED")


def test_the_embedded_redis_can_be_set_to_write_always(start_ownpod):
    ownpod = start_ownpod("http://127.0.0.1:1", OWNPOD_APPENDFSYNC="always")
    with connect(ownpod.redis_url) as client:
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


def test_a_node_that_keeps_ending_is_reported_in_health(start_ownpod, start_worker):
    url, _ = start_worker()
    ownpod = start_ownpod(url, "http://127.0.0.1:1", OWNPOD_LEASE_S=30)

    def kill_node():
        for process in node_processes(ownpod, "127-0-0-1-1"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def reason():
        kill_node()
        (worker,) = [
            w for w in ownpod.get("/health")["ownpod"]["workers"] if w["id"] == "127-0-0-1-1"
        ]
        return "keeps ending: ended by SIGKILL" in worker["reason"] and worker

    assert wait_until(reason, 40)["state"] == "unhealthy"
    # The other one works on.
    assert ownpod.ended(ownpod.submit(text="x"))["status"] == "COMPLETED"


def test_ending_during_a_long_job_is_quick_and_keeps_the_job(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker("async")
    ownpod = start_ownpod(url, OWNPOD_SHUTDOWN_GRACE_S=1)
    note, end = tmp_path / "note", tmp_path / "end"
    job = ownpod.submit(until=str(end), note=str(note))
    wait_until(note.exists)
    # It does not wait for the job, which ends only later.
    assert ownpod.stop() == 0
    assert "1 unfinished jobs handed over" in ownpod.output
    ownpod.start()
    end.touch()
    done = ownpod.ended(job, 30)
    assert done["status"] == "COMPLETED"
    assert "retries" not in done


def test_a_job_that_ends_within_the_grace_ends_as_always(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker()
    ownpod = start_ownpod(url, OWNPOD_SHUTDOWN_GRACE_S=20)
    note = tmp_path / "note"
    job = ownpod.submit(seconds=2, note=str(note))
    wait_until(note.exists)
    assert ownpod.stop() == 0
    ownpod.start()
    assert ownpod.status(job)["status"] == "COMPLETED"
    assert len(note.read_text().split()) == 1


def test_a_request_that_waits_is_answered_when_the_api_ends(start_ownpod):
    from concurrent.futures import ThreadPoolExecutor

    ownpod = start_ownpod("http://127.0.0.1:1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ownpod.post, "/runsync?wait=60000", {"input": {}})
        wait_until(lambda: ownpod.get("/health")["jobs"]["inQueue"] == 1)
        ownpod.stop()
        assert waiting.result(60)["status"] == "IN_QUEUE"


def test_records_and_queue_survive_a_restart_of_everything(start_worker, start_ownpod):
    url, worker = start_worker()
    ownpod = start_ownpod(url)
    done = ownpod.ended(ownpod.submit(text="before"))
    worker.kill()
    waiting = [ownpod.submit(text=str(n)) for n in range(5)]
    # AOF everysec: what is a second old survives a kill, too; while the disk is slow, Redis waits 2 s more.
    time.sleep(3.2)
    kill_everything(ownpod)
    start_worker(port=int(url.rpartition(":")[2]))
    ownpod.start()
    assert ownpod.status(done["id"]) == done
    assert [ownpod.ended(job)["output"]["echo"] for job in waiting] == list("01234")


def test_a_running_job_survives_a_kill_of_everything(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    note, end = tmp_path / "note", tmp_path / "end"
    job = ownpod.submit(until=str(end), note=str(note))
    wait_until(note.exists)
    time.sleep(3.2)
    kill_everything(ownpod)
    end.touch()
    ownpod.start()
    done = ownpod.ended(job, 40)
    assert (done["status"], done["retries"]) == ("COMPLETED", 1)


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def one_line(code, said):
    assert code != 0
    lines = said.strip().splitlines()
    assert len(lines) == 1, said
    return lines[0]


@pytest.mark.parametrize("command", ["up", "api"])
def test_a_port_in_use_is_one_line(tmp_path, taken_port, redis_server, command):
    before = set(tmp_path.iterdir())
    code, said = run(
        *(PYTHON, "-m", "ownpod", command, "--port", taken_port),
        OWNPOD_DATA_DIR=tmp_path / "var",
        REDIS_URL=redis_server.url,
    )
    line = one_line(code, said)
    assert f"port {taken_port}: Address already in use" in line
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["up", "api", "dispatch"])
def test_a_missing_redis_is_one_line(tmp_path, command):
    code, said = run(PYTHON, "-m", "ownpod", command, REDIS_URL="redis://127.0.0.1:1/0")
    assert "REDIS_URL: " in one_line(code, said)


@pytest.mark.parametrize("command", ["api", "dispatch"])
def test_no_redis_at_all_is_one_line(tmp_path, command):
    code, said = run(PYTHON, "-m", "ownpod", command, OWNPOD_DATA_DIR=tmp_path)
    assert "REDIS_URL is not set and no embedded Redis runs" in one_line(code, said)


@pytest.mark.parametrize(
    "command",
    [
        (PYTHON, "-m", "ownpod", "up"),
        (PYTHON, "-m", "ownpod", "api"),
        (PYTHON, "-m", "ownpod", "dispatch"),
        (BIN / "celery", "-A", "ownpod", "inspect", "active"),
    ],
)
def test_a_wrong_setting_is_one_line(command):
    code, said = run(*command, OWNPOD_LEASE_S="soon")
    line = one_line(code, said)
    assert line == "ownpod: OWNPOD_LEASE_S='soon': must be a number from 1 to 3600"


def test_a_wrong_workers_file_is_one_line(tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {a: {workers: [{url: 'localhost:1'}]}}")
    code, said = run(PYTHON, "-m", "ownpod", "up", OWNPOD_WORKERS_FILE=file)
    assert "a.workers.0.url: must be an http://" in one_line(code, said)


def test_two_in_one_data_directory_is_one_line(start_ownpod, tmp_path):
    start_ownpod("http://127.0.0.1:1")
    code, said = run(
        *(PYTHON, "-m", "ownpod", "up", "--port", free_port()), OWNPOD_DATA_DIR=tmp_path / "var"
    )
    assert "another `ownpod up` runs in" in one_line(code, said)
    # Neither its lock nor its address has been touched.
    assert (tmp_path / "var" / "redis.url").exists()


def test_a_data_directory_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    code, said = run(
        *(PYTHON, "-m", "ownpod", "up", "--port", free_port()),
        OWNPOD_DATA_DIR=tmp_path / "file" / "var",
    )
    assert "OWNPOD_DATA_DIR=" in one_line(code, said)


def test_celery_sees_the_nodes_and_what_they_run(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    note, end = tmp_path / "note", tmp_path / "end"
    job = ownpod.submit(until=str(end), note=str(note))
    wait_until(note.exists)
    # No REDIS_URL: the embedded one is found by its file.
    environ = {"OWNPOD_DATA_DIR": tmp_path / "var", "OWNPOD_WORKERS": url}

    def asked(what):
        code, said = run(
            *(BIN / "celery", "-A", "ownpod", "inspect", what, "-t", "1.5", "--json"), **environ
        )
        # Nodes that are too busy do not reply in time.
        found = json.loads(said[said.index("{") : said.rindex("}") + 1]) if code == 0 else {}
        return len(found) == 2 and found

    def inspect(what):
        return wait_until(lambda: asked(what), 120, "the replies of both nodes")

    active = inspect("active")
    (node,) = [name for name in active if not name.startswith("housekeeping@")]
    worker_id = ownpod.status(job)["workerId"]
    assert node.startswith(f"{worker_id}@")
    assert [task["id"] for task in active[node]] == [job]
    queues = [queue["name"] for queue in inspect("active_queues")[node]]
    assert queues == [f"ownpod.local-ep.{worker_id}", "ownpod.local-ep"]
    assert inspect("stats")[node]["pool"]["max-concurrency"] == 1
    end.touch()


@pytest.mark.parametrize(
    "command",
    [
        ("purge", "-f", "-Q", "ownpod.local-ep"),
        ("purge", "-f"),
        ("amqp", "queue.purge", "ownpod.local-ep"),
    ],
)
def test_a_purge_with_celery_cancels_the_jobs_and_they_stay_so(start_ownpod, tmp_path, command):
    ownpod = start_ownpod("http://127.0.0.1:1", OWNPOD_LEASE_S=1)
    jobs = [ownpod.submit() for _ in range(3)]
    code, said = run(
        *(BIN / "celery", "-A", "ownpod", *command),
        OWNPOD_DATA_DIR=tmp_path / "var",
        OWNPOD_WORKERS="http://127.0.0.1:1",
    )
    assert code == 0, said
    assert "3" in said
    for job in jobs:
        status = ownpod.status(job)
        assert status["status"] == "CANCELLED"
        # The recovery, which runs each second here, may finish a purge.
        assert status["error"] in {
            "purged with Celery's tools",
            "removed from the queue by a purge",
        }
    assert ownpod.get("/health")["jobs"]["inQueue"] == 0


def test_flower_shows_the_nodes(start_worker, start_ownpod, tmp_path):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    port = free_port()
    flower = Process(
        *(BIN / "celery", "-A", "ownpod", "flower", f"--port={port}", "--address=127.0.0.1"),
        log=tmp_path / "flower.log",
        OWNPOD_DATA_DIR=tmp_path / "var",
        OWNPOD_WORKERS=url,
        FLOWER_UNAUTHENTICATED_API="true",
    )
    try:
        base = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(base), 30)
        nodes = wait_until(
            lambda: len(requests.get(f"{base}/api/workers?refresh=1", timeout=20).json()) == 2, 30
        )
        assert nodes

        def seen():
            # Task events come on when Flower asks for them, within seconds.
            job = ownpod.submit(text="seen")
            ownpod.ended(job)
            task = requests.get(f"{base}/api/tasks", timeout=20).json().get(job)
            return task if task and task["name"] else None

        task = wait_until(seen, 30)
        assert task["name"] == "ownpod.run_job"
        assert task["args"] == 'ownpod local-ep {"text": "seen"}'
    finally:
        flower.stop()


def test_gunicorn_and_celery_alone_are_an_ownpod(start_worker, tmp_path):
    """No `ownpod` command: the WSGI application, and a node made by its name."""
    url, _ = start_worker()
    redis = RedisServer(tmp_path)
    port = free_port()
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS": url}
    worker_id = url[7:].replace(".", "-").replace(":", "-")
    processes = [
        Process(
            *(BIN / "gunicorn", "wsgi:app", "-b", f"127.0.0.1:{port}"),
            log=tmp_path / "api.log",
            **environ,
        ),
        Process(
            *(BIN / "celery", "-A", "ownpod", "worker", "-n", f"{worker_id}@%h", "-l", "info"),
            log=tmp_path / "node.log",
            **environ,
        ),
    ]
    try:
        endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
        wait_until(lambda: answers(f"{endpoint}/health"), 30)
        answer = requests.post(
            f"{endpoint}/runsync?wait=90000", json={"input": {"text": "x"}}, timeout=100
        ).json()
        assert (answer["status"], answer["workerId"]) == ("COMPLETED", worker_id)
    finally:
        for process in processes:
            print(process.output)
            assert process.stop() == 0
        redis.stop()


def test_a_celery_worker_that_is_no_workers_node_cannot_take_jobs(redis_server):
    code, said = run(
        *(BIN / "celery", "-A", "ownpod", "worker", "-n", "any@%h", "-Q", "ownpod.local-ep"),
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS="http://127.0.0.1:1",
    )
    assert code != 0
    assert "name it after one: -n <worker id>@%h, with one of 127-0-0-1-1" in said


def test_api_and_dispatch_work_alone(start_worker, tmp_path):
    url, _ = start_worker()
    redis = RedisServer(tmp_path)
    port = free_port()
    environ = {"REDIS_URL": redis.url, "OWNPOD_WORKERS": url}
    command = (PYTHON, "-m", "ownpod")
    dispatch = Process(*command, "dispatch", log=tmp_path / "dispatch.log", **environ)
    api = Process(*command, "api", "--port", port, log=tmp_path / "api.log", **environ)
    try:
        endpoint = f"http://127.0.0.1:{port}/v2/local-ep"
        wait_until(lambda: answers(f"{endpoint}/health"), 30)
        body = {"input": {"text": "apart"}}
        answer = requests.post(f"{endpoint}/runsync?wait=90000", json=body, timeout=100).json()
        assert answer["output"]["echo"] == "apart"
    finally:
        assert api.stop() == 0
        assert dispatch.stop() == 0
        redis.stop()


def test_a_node_that_dies_is_started_again(start_worker, start_ownpod):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    worker_id = ownpod.ended(ownpod.submit())["workerId"]

    (victim,) = wait_until(lambda: node_processes(ownpod, worker_id))
    victim.kill()
    wait_until(lambda: [p for p in node_processes(ownpod, worker_id) if p.pid != victim.pid])
    assert ownpod.ended(ownpod.submit(text="again"))["output"]["echo"] == "again"
    assert "ended by SIGKILL; starting it again in" in ownpod.output


def test_help_and_version_need_nothing():
    assert run(PYTHON, "-m", "ownpod", "--help")[0] == 0
    code, said = run(PYTHON, "-m", "ownpod", "--version")
    assert (code, said.split()[:2]) == (0, ["ownpod,", "version"])


def demo(*options, **environ):
    """What `make demo` prints; it must succeed."""
    code, said = run("make", "demo", "ONCE=1", *options, PATH=os.environ["PATH"], **environ)
    assert code == 0, said
    return said


@pytest.mark.parametrize("options", [[], ["PULL=1"]], ids=["push", "pull"])
def test_the_demo_runs_once(options):
    said = demo(*options)
    shown = [line for line in said.splitlines() if line.startswith("demo ") and '"status"' in line]
    assert '"IN_QUEUE"' in shown[0]
    assert '"COMPLETED"' in shown[-1]
    assert "nur omed dopnwo" in shown[-1]


@pytest.mark.timeout(300)
def test_the_demo_of_managed_workers_goes_from_no_worker_to_two_and_back():
    said = demo("MANAGED=1", timeout=280)
    assert "from no worker to 2 and back" in said
    assert "jobs: 0 wait, 0 run, 6 completed" in said


@pytest.mark.timeout(300)
def test_the_demo_of_sharing_swaps_twice_and_never_in_the_middle():
    said = demo("SHARE=1", timeout=280)
    assert "the jobs came as A A B A A and ran as A A A B A" in said
    assert "images-ep gave its device to text-ep: 1" in said
    assert "text-ep gave its device to images-ep: 1" in said
    assert "device 0 is being freed (images-ep, idle" in said


@pytest.mark.timeout(300)
def test_the_demo_of_load_balancing_holds_limits_streams_and_keeps_a_websocket():
    said = demo("LB=1", timeout=280)
    assert "answered: HELLO by worker" in said
    assert "answered by 2 workers, each with 1 request at a time at most" in said
    assert 'data: {"number": 4} after' in said
    assert "without a word:" in said


@pytest.mark.timeout(580)
def test_the_demo_of_openai_clients_asks_a_real_model():
    # The first run in a tree downloads 130 MB.
    said = demo("LLM=1", timeout=560)
    assert "models: smollm2-135m-instruct" in said
    assert re.search(r"\d+ tokens; the first after [\d.]+ s, then [\d.]+ tokens/s", said), said
    assert re.search(r"job \S+: CANCELLED", said), said
    assert "2 vectors of 576 numbers" in said
    assert re.search(r'HTTP 400 \{"error": \{.*an array', said), said


@pytest.mark.timeout(300)
def test_the_demo_of_sessions_loads_its_model_once_and_ends_when_it_is_idle():
    said = demo("SESSION=1", timeout=280)
    assert "text_delta   'hello! You have spoken 1 times; first you said: hello'" in said
    assert "text_delta   'again! You have spoken 2 times; first you said: hello'" in said
    assert "idle_timeout, after 2 tasks" in said
    assert "HTTP 404 session_ended" in said
    assert 'output       {"counted": 3}' in said
