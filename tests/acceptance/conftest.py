"""The real processes, started once for all tests that do not end any of them."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import CHROMIUM, Browser
from helpers import OwnPod, Process, answers, sdk_worker, wait_until

from ownpod.processes import free_port

KINDS = ["sync", "async", "generator"]


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Process]]]:
    """Starts workers of a test's own, on the real SDK: (URL, process)."""
    started: list[Process] = []

    def start(kind: str = "sync", port: int = 0, *, wait: bool = True) -> tuple[str, Process]:
        port = port or free_port()
        worker = sdk_worker(port, tmp_path / f"worker-{port}.log", kind=kind)
        started.append(worker)
        url = f"http://127.0.0.1:{port}"
        if wait:
            wait_until(lambda: answers(url), 40, "the worker")
        return url, worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def start_ownpod(tmp_path: Path) -> Iterator[Callable[..., OwnPod]]:
    """Starts an OwnPod of a test's own; prints its log when the test has failed."""
    started: list[OwnPod] = []

    def start(*urls: str, options: tuple[object, ...] = (), **environ: object) -> OwnPod:
        found = OwnPod(tmp_path, *options, workers=",".join(urls), **environ)
        started.append(found)
        return found

    yield start
    for found in started:
        found.stop()
        print(found.output)


@pytest.fixture(scope="module")
def browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """A browser; a module's ``BROWSER_OPTIONS`` are more options of its command line."""
    if not CHROMIUM:
        pytest.skip("needs chromium: apt-get install chromium")
    options = getattr(request.module, "BROWSER_OPTIONS", ())
    directory = tmp_path_factory.mktemp("browser")
    profile, log = directory / "profile", directory / "chromium.log"
    with contextlib.closing(Browser(profile, log, *options)) as found:
        yield found


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with RunPod's JavaScript SDK."""
    if not shutil.which("npm"):
        pytest.skip("no Node: install node and npm to test the JavaScript client")
    here = Path(__file__).parent / "javascript"
    directory = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "use.mjs"):
        shutil.copy(here / name, directory)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=directory, check=True, timeout=180)
    return directory


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPod]:
    """One OwnPod with an endpoint for each kind of handler; two workers in ``local-ep`` (sync)."""
    directory = tmp_path_factory.mktemp("shared")
    ports = {kind: free_port() for kind in [*KINDS, "second"]}
    workers = {
        name: sdk_worker(port, directory / f"{name}.log", kind="sync" if name == "second" else name)
        for name, port in ports.items()
    }
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    for url in urls.values():
        wait_until(lambda url=url: answers(url), 60, "the workers")
    endpoints = {
        "local-ep": [urls["sync"], urls["second"]],
        "async-ep": [urls["async"]],
        "generator-ep": [urls["generator"]],
    }
    lines = ["endpoints:"]
    for name, found in endpoints.items():
        lines += [f"  {name}:", "    workers:", *(f"      - url: {url}" for url in found)]
    file = directory / "workers.yaml"
    file.write_text("\n".join(lines))
    ownpod = OwnPod(
        directory,
        OWNPOD_WORKERS_FILE=file,
        # Every time-out but a job's own is shorter than the jobs of these tests.
        OWNPOD_WORKER_STATUS_TIMEOUT_S=1,
        OWNPOD_WORKER_RUN_READ_TIMEOUT_S=2,
        OWNPOD_WORKER_CANCEL_TIMEOUT_S=1,
        OWNPOD_WORKER_CONNECT_TIMEOUT_S=2,
        OWNPOD_RUNSYNC_TIMEOUT_MS=2000,
    )
    yield ownpod
    ownpod.stop()
    print(ownpod.output)
    for worker in workers.values():
        worker.kill()
