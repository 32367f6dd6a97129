"""Workers in production mode, on the real SDK, in two versions."""

import fcntl
import shutil
import subprocess
import sys
import venv
from functools import partial
from pathlib import Path

import pytest
from helpers import ROOT, Process, pull_worker, wait_until, worker_states

OLD = "1.7.0"


@pytest.fixture(scope="session")
def python_with_the_old_sdk():
    """Kept in .venv: it takes half a minute to make."""
    folder = Path(sys.prefix) / f"runpod-{OLD}"
    python = folder / "bin" / "python"
    with Path(sys.prefix, "runpod.lock").open("w") as lock:
        # Another process of this run may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            install = [python, "-m", "pip", "install", "--quiet", f"runpod=={OLD}", "setuptools<81"]
            subprocess.run(install, check=True, timeout=300)
            (folder / "done").touch()
    return python


@pytest.fixture(params=["current", OLD])
def python(request):
    """With the SDK of each version."""
    if request.param == OLD:
        return request.getfixturevalue("python_with_the_old_sdk")
    return sys.executable


@pytest.fixture
def start_ownpod(start_ownpod):
    """Of an endpoint that lists no workers."""
    return partial(start_ownpod, OWNPOD_WORKERS_FILE=ROOT / "examples" / "pull.yaml")


@pytest.fixture
def ownpod(start_ownpod):
    return start_ownpod()


@pytest.fixture
def start_worker(tmp_path):
    started: list[Process] = []

    def start(ownpod, kind="sync", name="gpu-1", **environ):
        log = tmp_path / f"{name}-{len(started)}.log"
        started.append(pull_worker(ownpod.port, log, name=name, kind=kind, **environ))
        wait_until(lambda: worker_states(ownpod).get(name) == "ready", 40, f"{name} ready")
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        print(worker.output[-3000:])
