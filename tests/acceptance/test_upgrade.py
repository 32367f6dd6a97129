"""A rolling upgrade from the last version without a schema version, and processes that meet another one."""

import io
import subprocess
import sys
import tarfile
import threading
import time

import pytest
import redis
import requests
from helpers import ROOT, Process, RedisServer, answers, run_command, wait_until

from ownpod.processes import free_port
from ownpod.store import keys
from ownpod.store.schema import VERSION

OLD = "6b8af33"
"""The last commit whose processes know no schema version."""


@pytest.fixture(scope="session")
def old_code(tmp_path_factory):
    """The directory with the old version's code."""
    found = subprocess.run(
        ["git", "archive", OLD], cwd=ROOT, capture_output=True, timeout=50, check=False
    )
    if found.returncode:
        pytest.skip(f"there is no git history with {OLD} here: {found.stderr.decode()[:200]}")
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture
def own_redis(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.stop()


class Parts:
    """API and supervisor of a version's code, on one Redis."""

    def __init__(self, code, log_directory, name, **environ):
        self._code, self._logs, self._name = code, log_directory, name
        self._environ = {"PYTHONPATH": code, "WEB_CONCURRENCY": 1, **environ}
        self.started = []

    def start(self, *arguments):
        process = Process(
            *(sys.executable, "-m", "ownpod", *arguments),
            log=self._logs / f"{self._name}-{arguments[0]}.log",
            cwd=self._code,
            **self._environ,
        )
        self.started.append(process)
        return process


def test_the_old_code_is_what_runs(old_code):
    code = "import ownpod, os; print(os.path.dirname(ownpod.__file__))"
    found = run_command(sys.executable, "-c", code, cwd=old_code, PYTHONPATH=old_code)
    assert found.stdout.strip() == str(old_code / "ownpod")
    assert not (old_code / "ownpod" / "schema.py").exists()


@pytest.mark.timeout(300)
def test_a_rolling_upgrade_completes_each_accepted_job_once(
    old_code, start_worker, own_redis, tmp_path
):
    urls = [start_worker("sync")[0] for _ in range(2)]
    environ = {"REDIS_URL": own_redis.url, "OWNPOD_WORKERS": ",".join(urls), "OWNPOD_LEASE_S": 6}
    old = Parts(old_code, tmp_path, "old", **environ)
    new = Parts(ROOT, tmp_path, "new", **environ)
    runs = tmp_path / "runs"
    runs.touch()
    ports, accepted, stop = [free_port(), free_port()], [], threading.Event()
    current = [ports[0]]

    def submit():
        while not stop.is_set():
            body = {"input": {"seconds": 0.1, "runs": str(runs), "text": f"j{len(accepted)}"}}
            url = f"http://127.0.0.1:{current[0]}/v2/local-ep/run"
            accepted.append(requests.post(url, json=body, timeout=100).json()["id"])
            time.sleep(0.05)

    try:
        old_api = old.start("api", "--port", ports[0])
        old_supervisor = old.start("dispatch")
        wait_until(lambda: answers(f"http://127.0.0.1:{ports[0]}/health"), 40)
        flow = threading.Thread(target=submit, daemon=True)
        flow.start()
        wait_until(lambda: runs.read_text().count("-") >= 5, 40)

        # The new supervisor waits, old ones drain, the new API comes before the old one goes.
        new.start("dispatch")
        wait_until(lambda: "standing by" in new.started[0].output, 40)
        new.start("api", "--port", ports[1])
        wait_until(lambda: answers(f"http://127.0.0.1:{ports[1]}/health"), 40)
        done = runs.read_text().count("-")
        wait_until(lambda: runs.read_text().count("-") >= done + 5, 40)
        old_supervisor.stop()
        current[0] = ports[1]
        done = runs.read_text().count("-")
        wait_until(lambda: runs.read_text().count("-") >= done + 5, 40)
        old_api.stop()
        done = runs.read_text().count("-")
        wait_until(lambda: runs.read_text().count("-") >= done + 5, 40)
        stop.set()
        flow.join(100)

        def state(job_id):
            url = f"http://127.0.0.1:{ports[1]}/v2/local-ep/status/{job_id}"
            return requests.get(url, timeout=100).json().get("status")

        wait_until(lambda: {state(job_id) for job_id in accepted} == {"COMPLETED"}, 60)
        begun = [line for line in runs.read_text().splitlines() if line.startswith("+")]
        assert len(begun) == len(accepted) > 15
        with redis.Redis.from_url(own_redis.url, decode_responses=True) as client:
            assert client.hget(keys.counts("local-ep"), "COMPLETED") == str(len(accepted))
            assert client.get(keys.SCHEMA) == str(VERSION)
            assert client.zcard(keys.LEASES) == client.zcard(keys.EXPIRIES) == 0
    finally:
        stop.set()
        for process in [*old.started, *new.started]:
            process.kill()


@pytest.fixture
def newer_redis(own_redis):
    with redis.Redis.from_url(own_redis.url) as client:
        client.set(keys.SCHEMA, VERSION + 1)
    return own_redis


def test_up_ends_with_one_line_where_the_records_are_a_newer_versions(newer_redis, tmp_path):
    found = run_command(
        *(sys.executable, "-m", "ownpod", "up", "--port", free_port()),
        REDIS_URL=newer_redis.url,
        OWNPOD_DATA_DIR=tmp_path / "var",
    )
    assert found.returncode == 2
    (line,) = (found.stdout + found.stderr).strip().splitlines()
    assert f"schema version {VERSION + 1}" in line


def test_a_command_ends_with_one_line_where_the_records_are_a_newer_versions(newer_redis):
    found = run_command(
        *(sys.executable, "-m", "ownpod", "workers", "add", "http://gpu-1:8000"),
        REDIS_URL=newer_redis.url,
    )
    assert found.returncode == 2
    (line,) = (found.stdout + found.stderr).strip().splitlines()
    assert f"schema version {VERSION + 1}" in line


@pytest.mark.timeout(300)
def test_a_supervisor_waits_for_records_of_its_version_and_then_runs_jobs(
    newer_redis, start_worker, tmp_path
):
    url, _ = start_worker("sync")
    port = free_port()
    parts = Parts(ROOT, tmp_path, "new", REDIS_URL=newer_redis.url, OWNPOD_WORKERS=url)
    base = f"http://127.0.0.1:{port}"
    try:
        supervisor = parts.start("dispatch")
        parts.start("api", "--port", port)
        wait_until(lambda: "waiting: " in supervisor.output, 30)
        wait_until(lambda: answers(f"{base}/health"), 30)
        answer = requests.post(f"{base}/v2/local-ep/run", json={"input": {}}, timeout=60)
        assert answer.status_code == 503
        assert f"schema version {VERSION + 1}" in answer.json()["error"]
        with redis.Redis.from_url(newer_redis.url) as client:
            assert [key.decode() for key in client.scan_iter()] == [keys.SCHEMA]
            assert supervisor.output.count("schema version") == 1
            client.delete(keys.SCHEMA)
        wait_until(lambda: requests.get(f"{base}/health", timeout=60).ok, 30)
        body = {"input": {"text": "hi"}}
        answer = requests.post(f"{base}/v2/local-ep/runsync?wait=90000", json=body, timeout=100)
        assert answer.json()["output"]["echo"] == "hi"
    finally:
        for process in parts.started:
            process.kill()
