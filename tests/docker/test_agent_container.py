"""A whole agent in a container: it fetches a model into a directory of its host, and starts workers beside itself that have it."""

import contextlib
import os
import subprocess
import sys
import urllib.parse

import pytest
import requests
from helpers import ROOT, Process, free_port, redis_program, wait_until
from model_server import COMMIT, model_server
from test_managed_containers import bridge, containers, docker

__all__ = ["bridge"]

pytestmark = pytest.mark.timeout(600)

IMAGE = "ownpod/worker-echo"
PRESETS = """
models:
  tiny:
    source: hf://org/tiny
    presets:
      chat: {{image: {image}, command: [python, handler.py], protocol: runpod}}
      read:
        image: {image}
        command: [sh, -c, 'cat "$MODEL_PATH/config.json"; echo x >"$MODEL_PATH/x" || echo refused']
        protocol: stdout
"""
TASK = {"task_difficulty": "low", "model_id": "tiny", "metadata": {"text": "hello"}}
ROOT_FOLDER = "/data/models"
"""Where the agent's own container has the models: not the path of the host."""


def text_of(*command):
    done = subprocess.run(
        ["docker", *command], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.fixture
def server(bridge):
    with model_server(bridge) as found:
        found.repositories["org/tiny"] = {"config.json": b'{"size": "tiny"}\n'}
        yield found


class Host:
    """Redis, the API and the nodes, without an agent. ``base`` and ``redis_url`` are as containers reach them."""

    def __init__(self, directory, address):
        port, api_port = free_port(), free_port()
        self.redis_url = f"redis://{address}:{port}/0"
        self.base = f"http://{address}:{api_port}"
        (directory / "workers.yaml").write_text(PRESETS.format(image=IMAGE))
        options = f"--port {port} --bind {address} --protected-mode no --save".split()
        environ = {
            "REDIS_URL": self.redis_url,
            "OWNPOD_WORKERS_FILE": directory / "workers.yaml",
            "OWNPOD_DATA_DIR": directory / "var",
            "PYTHONPATH": ROOT,
        }
        self._log = directory / "host.log"
        self._processes = [
            Process(redis_program(), *options, "", log=self._log, cwd=directory),
            *(
                Process(*(sys.executable, "-m", "ownpod", *part), log=self._log, **environ)
                for part in (("api", "--host", address, "--port", api_port), ("dispatch",))
            ),
        ]
        wait_until(self._answers, 60, "the API")

    def _answers(self):
        try:
            return requests.get(f"{self.base}/health", timeout=5).ok
        except requests.RequestException:
            return False

    def close(self):
        for process in reversed(self._processes):
            process.stop()
        print(self._log.read_text(errors="replace"))


@pytest.fixture
def ownpod(bridge, tmp_path):
    with contextlib.closing(Host(tmp_path, bridge)) as found:
        yield found


@pytest.fixture
def agent(ownpod, server, tmp_path):
    """The container with the agent. Its name."""
    folder = tmp_path / "models"
    folder.mkdir()
    socket = urllib.parse.urlsplit(
        os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    ).path
    environ = {
        "REDIS_URL": ownpod.redis_url,
        "HF_ENDPOINT": server.url,
        "OWNPOD_AGENT_NAME": "boxed",
        "OWNPOD_DEVICES": "cpu:1",
        "OWNPOD_DIFFICULTIES": "low",
        "OWNPOD_ENGINE": "docker",
        "OWNPOD_IMAGES": IMAGE,
        "OWNPOD_MODELS_DIR": ROOT_FOLDER,
        "OWNPOD_WORKER_API_URL": ownpod.base,
    }
    name = "ownpod-test-agent"
    docker(
        *("run", "--detach", "--name", name, "--user", "root"),
        *("--volume", f"{socket}:/var/run/docker.sock", "--volume", f"{folder}:{ROOT_FOLDER}"),
        *(part for item in environ.items() for part in ("--env", "=".join(item))),
        *("ownpod", "ownpod", "agent"),
    )
    yield name
    print(text_of("logs", name))
    if left := containers():
        docker("rm", "--force", *left)
    docker("rm", "--force", name)


def submit(ownpod, **changes):
    """The answer to a submitted task once it has ended, and its events by name."""
    headers = {"Prefer": "respond-async"}
    made = requests.post(
        f"{ownpod.base}/api/tasks/submit", json={**TASK, **changes}, headers=headers, timeout=30
    ).json()
    shown = f"{ownpod.base}/api/tasks/{made['task_id']}"
    wait_until(
        lambda: requests.get(shown, timeout=9).json()["status"] in {"completed", "failed"},
        180,
        "the end of the task",
    )
    return made, requests.get(f"{shown}/events", timeout=30).text


def test_an_agent_in_a_container_fetches_a_model_once_and_its_workers_have_it(
    agent, ownpod, server, tmp_path
):
    _, events = submit(ownpod, task_type="oneoff", task_preset="read")
    assert '"status": "completed"' in events, events
    # The links of the cache lead to its file there, and the model is read-only.
    assert '{"content": "{\\"size\\": \\"tiny\\"}\\nrefused\\n"}' in events
    assert '"status": "fetching"' in events
    folder = tmp_path / "models" / "hub" / "models--org--tiny"
    assert (folder / "snapshots" / COMMIT / "config.json").read_text() == '{"size": "tiny"}\n'

    made, events = submit(ownpod, task_type="session", task_preset="chat")
    assert '"status": "completed"' in events, events
    form = "{{range .Mounts}}{{.Destination}}={{.Source}}={{.RW}} {{end}}"
    mounts = docker("inspect", "--format", form, f"ownpod-{made['session_id']}")
    assert f"/models={folder}=false" in mounts
    assert len(server.gets("/org/tiny/config.json")) == 1

    # The next agent continues with the container of the session.
    docker("restart", "--time", "20", agent)
    second, events = submit(
        ownpod, task_type="session", task_preset="chat", session_id=made["session_id"]
    )
    assert second["session_id"] == made["session_id"]
    assert '"status": "completed"' in events, events
    assert "fetching" not in events
