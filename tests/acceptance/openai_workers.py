"""An OwnPod with endpoints for OpenAI's clients, and their workers: handlers that answer as RunPod's own workers do."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from shutil import copy, rmtree
from typing import Any

import openai
import requests
from helpers import OwnPod, Process, wait_until

from ownpod.processes import free_port
from ownpod.rules.pulling import worker_environment

HERE = Path(__file__).parent / "llm"
MODEL = "org/small"
"""The only model of these workers."""


class Llm(OwnPod):
    """An OwnPod whose endpoints serve :data:`MODEL`."""

    def url(self, endpoint: str) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.base}/{endpoint}/openai/v1"

    @contextmanager
    def clients(self) -> Iterator[Callable[..., openai.OpenAI]]:
        """Makes OpenAI clients of an endpoint, and closes them at the end. Their defaults: two retries, and 600 s."""
        with ExitStack() as made:

            def make(endpoint: str, **options: Any) -> openai.OpenAI:
                client = openai.OpenAI(base_url=self.url(endpoint), api_key="any", **options)
                return made.enter_context(client)

            yield make

    def jobs(self, endpoint: str, text: object = "") -> list[dict]:
        """The endpoint's jobs whose input has this text, newest first, with all their details."""
        base = f"{self.base}/{endpoint}/requests"
        found = requests.get(base, params={"limit": 100}, timeout=60).json()["requests"]
        details = (requests.get(f"{base}/{row['id']}", timeout=60).json() for row in found)
        return [job for job in details if str(text) in str(job["input"])]

    def statuses(self, endpoint: str, text: object) -> list[str]:
        return [job["status"] for job in self.jobs(endpoint, text)]


class Notes:
    """What an engine has noted of one request, see ``llm/llm_engine.py``, and the files that let it go on."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "note"
        self.go = directory / "go"

    def signs(self) -> str:
        """For each request a plus, then a minus if it was answered, or an x if it was stopped."""
        return "".join(line[0] for line in self._lines())

    def workers(self) -> set[str]:
        """The processes that have run a request."""
        return {line.split()[1] for line in self._lines()}

    def wait(self, signs: str) -> None:
        wait_until(lambda: self.signs() == signs, 30, f"{signs} in the notes")

    def text(self, text: str, *commands: str) -> str:
        """A message with its commands. ``commands``: as ``until``, whose file is :attr:`go`, or ``status=429``."""
        found = [f"!note={self.path}"]
        for command in commands:
            waits = command in {"until", "pause"}
            found.append(f"!{command}={self.go}" if waits else f"!{command}")
        return " ".join([text, *found])

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


def endpoints_of(pushed: Iterable[tuple[str, int]], pulling: Iterable[str], more: str = "") -> str:
    """``workers.yaml``."""
    lines = ["endpoints:", *(f"  {name}: {{}}" for name in pulling)]
    for name, port in pushed:
        worker = f"{{id: {name}-1, url: 'http://127.0.0.1:{port}', capacity: 8}}"
        lines.append(f"  {name}: {{workers: [{worker}]}}")
    return "\n".join([*lines, more]) + "\n"


@contextmanager
def serving(
    directory: Path,
    pull: Iterable[str] = (),
    push: Iterable[str] = (),
    more: str = "",
    **environ: object,
) -> Iterator[tuple[Llm, Callable[..., Process]]]:
    """Starts an OwnPod and workers, and waits for them.

    Args:
        directory: for their files.
        pull: kinds of ``llm/llm_worker.py``; the endpoint of each is ``<kind>-pull``.
        push: the same with the local API; the endpoint of each is ``<kind>-push``.
        more: more lines of ``workers.yaml``, below ``endpoints``.
        environ: variables of OwnPod.

    Yields:
        The OwnPod, and a function that starts a worker which pulls: ``start(kind, endpoint, name)``.
    """
    ports = {f"{kind}-push": free_port() for kind in push}
    workers: list[Process] = []

    def run(kind: str, name: str, *options: object, **values: object) -> Process:
        log = directory / f"{name}.log"
        program = HERE / "llm_worker.py"
        # In a session, because the SDK sends pings from a process that outlives the worker.
        command = (sys.executable, program, *options)
        workers.append(Process(*command, log=log, session=True, KIND=kind, **values))
        return workers[-1]

    def start(kind: str, endpoint: str, name: str, *, wait: bool = True) -> Process:
        url = f"{ownpod.base}/{endpoint}"
        values = {**worker_environment(url, name, key="k"), "RUNPOD_PING_INTERVAL": "1000"}
        worker = run(kind, name, **values)
        if wait:
            wait_until(lambda: ready(endpoint, name), 60, f"{name} ready")
        return worker

    def ready(endpoint: str, name: str) -> bool:
        health = requests.get(f"{ownpod.base}/{endpoint}/health", timeout=60).json()
        states = {worker["id"]: worker["state"] for worker in health["ownpod"]["workers"]}
        return states.get(name) == "ready"

    for name, port in ports.items():
        serve = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", port)
        run(name.removesuffix("-push"), f"{name}-1", *serve)
    file = directory / "workers.yaml"
    file.write_text(endpoints_of(ports.items(), [f"{kind}-pull" for kind in pull], more))
    ownpod = None
    try:
        ownpod = Llm(directory, OWNPOD_WORKERS_FILE=file, **environ)
        for kind in pull:
            start(kind, f"{kind}-pull", f"{kind}-pull-1", wait=False)
        for name in [*ports, *(f"{kind}-pull" for kind in pull)]:
            wait_until(lambda name=name: ready(name, f"{name}-1"), 60, f"{name} ready")
        yield ownpod, start
    finally:
        if ownpod is not None:
            ownpod.stop()
            print(ownpod.output)
        for worker in workers:
            worker.kill()
            print(worker.output[-2000:])


def python_with(name: str, *packages: str) -> Path:
    """A Python with packages whose requirements contradict OwnPod's. Kept in .venv: it takes minutes to make."""
    folder = Path(sys.prefix) / name
    python, done = folder / "bin" / "python", folder / "done"
    with Path(sys.prefix, f"{name}.lock").open("w") as lock:
        # Another process of this run may be at it.
        flock(lock, LOCK_EX)
        if not done.exists() or done.read_text() != " ".join(packages):
            rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            options = ("--quiet", "--disable-pip-version-check", "--no-compile")
            install = [python, "-m", "pip", "install", *options, *packages]
            subprocess.run(install, check=True, timeout=600)
            done.write_text(" ".join(packages))
    return python


def node_folder(directory: Path) -> Path:
    """Installs the npm packages of ``llm/package.json`` there, beside the programs that use them."""
    for file in (HERE / "package.json", *HERE.glob("*.mjs")):
        copy(file, directory)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=directory, check=True, timeout=280, env={**os.environ})
    return directory
