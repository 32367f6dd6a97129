"""`make demo`: starts two example workers and `ownpod up`, and runs one job through the API."""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import requests

from ownpod.errors import OwnPodError, StartError
from ownpod.processes import check_port
from ownpod.rules.pulling import worker_environment
from ownpod.supervised import START_S, Group, write

HERE = Path(__file__).parent
WORKER_PORTS = (18000, 18001)
API = "http://127.0.0.1:8000"
ENDPOINT = f"{API}/v2/local-ep"
WORKERS = ",".join(f"http://localhost:{port}" for port in WORKER_PORTS)


def main() -> int:
    """Runs the demo. The exit code is 0 only if the job is COMPLETED."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--once", action="store_true", help="end after the job")
    options.add_argument("--pull", action="store_true", help="start workers that pull jobs")
    chosen = options.parse_args()
    group = Group()
    group.handle_signals()
    try:
        for port in (8000,) if chosen.pull else (*WORKER_PORTS, 8000):
            _check(port)
        if chosen.pull:
            # A worker ends only after the answer to its current request for jobs, which this setting makes shorter.
            pull = {"OWNPOD_WORKERS_FILE": str(HERE / "pull.yaml"), "OWNPOD_WORKER_GONE_S": "10"}
            _start_ownpod(group, **pull)
            _until(group, _serves, "OwnPod")
            for letter in "AB":
                environ = worker_environment(ENDPOINT, f"worker-{letter}", key="any")
                _start_worker(group, letter, serves=_ready, environ=environ)
        else:
            for letter, port in zip("AB", WORKER_PORTS, strict=True):
                serve = ["--rp_serve_api", "--rp_api_host", "localhost", "--rp_api_port", str(port)]
                _start_worker(group, letter, *serve, serves=functools.partial(_answers, port))
            _until(group, lambda: group.serving, "the example workers")
            _start_ownpod(group, OWNPOD_WORKERS=WORKERS)
        _until(group, _ready, "two workers that are ready")
        status = "" if group.stopping else _one_job(group)
        if not chosen.once:
            while not group.stopping:
                group.supervise(1.0)
    except OwnPodError as error:
        write("demo", f"error: {error}")
        status = ""
    finally:
        group.end(60)
    return 0 if status == "COMPLETED" else 1


def _until(group: Group, ready: Callable[[], bool], what: str) -> None:
    """Copies the log until a condition is true. Raises: StartError, if that takes longer than a minute."""
    deadline = time.monotonic() + START_S
    while not group.stopping and not ready():
        if time.monotonic() > deadline:
            raise StartError(f"{what} did not start within {START_S:g} s; ending everything")
        group.supervise(0.1)


def _start_ownpod(group: Group, **environ: str) -> None:
    command = [sys.executable, "-m", "ownpod", "up"]
    group.spawn("ownpod up", command, {**os.environ, **environ}, serves=_serves)


def _start_worker(
    group: Group,
    letter: str,
    *serve: str,
    serves: Callable[[], bool],
    environ: Mapping[str, str] | None = None,
) -> None:
    handler = str(HERE / "worker-echo" / "handler.py")
    command = [sys.executable, handler, *serve]
    group.spawn(f"worker-{letter}", command, {**os.environ, **(environ or {})}, serves=serves)


def _check(port: int) -> None:
    try:
        check_port("127.0.0.1", port)
    except StartError as error:
        raise StartError(
            f"{error.message.partition(';')[0]}; the demo needs ports 18000, 18001 and 8000: "
            "end what listens there, or use `ownpod up --port`"
        ) from None


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://localhost:{port}/openapi.json", timeout=2).ok
    except requests.RequestException:
        return False


def _serves() -> bool:
    return _ready_workers() is not None


def _ready() -> bool:
    return _ready_workers() == len(WORKER_PORTS)


def _ready_workers() -> int | None:
    try:
        health = requests.get(f"{ENDPOINT}/health", timeout=2).json()
    except (requests.RequestException, ValueError):
        return None
    ready: int = health["workers"]["ready"]
    return ready


def _one_job(group: Group) -> str:
    job = {"input": {"text": "ownpod demo run", "seconds": 1}}
    group.supervise(0.5)
    write("demo", f"POST {ENDPOINT}/run  {json.dumps(job)}")
    answer = requests.post(f"{ENDPOINT}/run", json=job, timeout=5).json()
    shown, began = "", time.monotonic()
    while not group.stopping and time.monotonic() - began < 60:
        line = json.dumps(answer)
        if answer["status"] != shown:
            write("demo", f"{time.monotonic() - began:5.2f} s  {line}")
            shown = answer["status"]
        if shown not in {"IN_QUEUE", "IN_PROGRESS"}:
            break
        group.supervise(0.02)
        answer = requests.get(f"{ENDPOINT}/status/{answer['id']}", timeout=5).json()
    for line in (
        "",
        "try next:",
        f"  curl -s -X POST {ENDPOINT}/run -d '{json.dumps(job)}'",
        f"  curl -s {ENDPOINT}/status/{answer['id']}",
        f"  curl -s -X POST {ENDPOINT}/runsync -d '{json.dumps(job)}'",
        f"  curl -s {ENDPOINT}/health",
        f"  curl -sN {ENDPOINT}/stream/{answer['id']}",
        "  .venv/bin/celery -A ownpod inspect active",
        f"  {API}/docs/ in a browser",
        "",
    ):
        write("demo", line)
    return shown


if __name__ == "__main__":
    sys.exit(main())
