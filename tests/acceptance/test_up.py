"""``ownpod up``: parts are supervised from the first second, and restarted at once after each kill."""

import contextlib
import shutil
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest
import requests
from helpers import ROOT, Process, node_processes, run_command, wait_until

from ownpod.processes import Backoff, free_port


def part(ownpod_pid, name):
    """The running part of an `ownpod up` with this text in its command line."""
    for process in psutil.Process(ownpod_pid).children():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and name in line:
                return process
    return None


class Client(threading.Thread):
    """Submits jobs without a pause, from the moment the API answers."""

    def __init__(self, endpoint):
        super().__init__(daemon=True)
        self._endpoint = endpoint
        self.accepted: list[str] = []
        self.enough = threading.Event()

    def run(self):
        while not self.enough.is_set():
            try:
                answer = requests.post(
                    f"{self._endpoint}/run", json={"input": {"text": "x"}}, timeout=9
                )
                self.accepted.append(answer.json()["id"])
            except (requests.RequestException, ValueError, KeyError):
                time.sleep(0.01)


@pytest.mark.timeout(300)
def test_a_kill_in_the_first_seconds_under_load_ends_nothing_and_loses_no_job(
    start_worker, tmp_path
):
    url, _ = start_worker("async")
    port = free_port()
    client = Client(f"http://127.0.0.1:{port}/v2/local-ep")
    client.start()
    command = (sys.executable, "-m", "ownpod", "up", "--port", port)
    began = time.monotonic()
    up = Process(
        *command,
        log=tmp_path / "up.log",
        cwd=tmp_path,
        PYTHONPATH=ROOT,
        OWNPOD_DATA_DIR=tmp_path / "var",
        OWNPOD_WORKERS=url,
        OWNPOD_LEASE_S=3,
        OWNPOD_LOG_LEVEL="DEBUG",
    )
    try:
        wait_until(lambda: client.accepted, 40)
        # With running jobs the log is never quiet. `up` must know that the API serves, which takes as long as all on this machine.
        now = time.monotonic()
        until = now + max(3, (now - began) / 2)
        wait_until(lambda: time.monotonic() > until)
        victim = part(up.pid, "gunicorn")
        victim.kill()
        before = len(client.accepted)
        wait_until(lambda: (p := part(up.pid, "gunicorn")) and p.pid != victim.pid, 20)
        wait_until(lambda: len(client.accepted) > before + 20, 30)
        wait_until(lambda: "| ready: " in up.output, 30)
        client.enough.set()
        client.join(60)
        jobs = set(client.accepted)
        base = f"http://127.0.0.1:{port}/v2/local-ep"

        def unfinished():
            for job in list(jobs):
                answer = requests.get(f"{base}/status/{job}", timeout=60).json()
                if answer["status"] != "COMPLETED":
                    return True
                jobs.discard(job)
            return False

        wait_until(lambda: not unfinished(), 60)
        assert up.running
    finally:
        client.enough.set()
        up.send(signal.SIGTERM)
        up.wait()
        print(up.output)


def kill_and_wait(kill, answers) -> None:
    kill()
    wait_until(answers, 30)
    # It must have served for a while before it is killed again, also for `up`, which notices some time later that it serves.
    until = time.monotonic() + Backoff.STEADY_S + 3
    wait_until(lambda: time.monotonic() > until)


@pytest.mark.timeout(300)
def test_an_api_that_is_killed_eight_times_is_back_at_once_each_time(start_ownpod):
    ownpod = start_ownpod("http://127.0.0.1:1")
    starts = [0]

    def listening():
        return ownpod.output.count("Listening at")

    def kill():
        starts.append(listening())
        part(ownpod.process.pid, "gunicorn").kill()

    def answers():
        # Workers of the process before may still answer, so a new one must have begun to listen.
        with contextlib.suppress(requests.RequestException):
            return listening() > starts[-1] and ownpod.get("/health")
        return None

    wait_until(answers)
    until = time.monotonic() + Backoff.STEADY_S
    wait_until(lambda: time.monotonic() > until)
    for _ in range(8):
        kill_and_wait(kill, answers)
    # No pause before a start, after the eighth end as after the first.
    assert ownpod.output.count("api ended by SIGKILL; starting it again at once") == 8


@pytest.mark.timeout(300)
def test_a_node_that_is_killed_eight_times_is_back_at_once_each_time(start_worker, start_ownpod):
    url, _ = start_worker()
    ownpod = start_ownpod(url)
    node_id = url.removeprefix("http://").replace(".", "-").replace(":", "-")
    victims = []

    def kill():
        (victim,) = wait_until(lambda: node_processes(ownpod, node_id))
        victims.append(victim.pid)
        victim.kill()

    def answers():
        return any(p.pid not in victims for p in node_processes(ownpod, node_id))

    until = time.monotonic() + Backoff.STEADY_S
    wait_until(lambda: time.monotonic() > until)
    for _ in range(8):
        kill_and_wait(kill, answers)
    # No pause before a start, after the eighth end as after the first.
    assert ownpod.output.count(f"{node_id} ended by SIGKILL; starting it again in 0.0 s") == 8
    assert ownpod.ended(ownpod.submit(text="after"))["status"] == "COMPLETED"


def test_celery_uses_ownpods_settings_beside_a_foreign_celeryconfig(tmp_path, redis_server):
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'amqp://foreign'\ntimezone = 'Mars'\n")
    done = run_command(
        *(Path(sys.executable).parent / "celery", "-A", "ownpod", "report"),
        cwd=tmp_path,
        REDIS_URL=redis_server.url,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert done.returncode == 0, done.stderr
    assert "ownpod.broker.workarounds:JobPool" in done.stdout
    assert "foreign" not in done.stdout
    assert "Mars" not in done.stdout


def test_a_wheel_has_no_modules_beside_the_package(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "celeryconfig.py", "wsgi.py"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "ownpod", source / "ownpod")
    done = run_command(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", tmp_path, source),
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ownpod"}
    assert "ownpod/celeryconfig.py" in names
