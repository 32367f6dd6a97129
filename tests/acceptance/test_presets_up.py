"""Presets of a running OwnPod: in the GPU service's file from the start, and in `workers.yaml` after a SIGHUP."""

import json
import re
import signal
import sys

import pytest
import requests
import yaml
from helpers import ROOT, run_command, wait_until

from ownpod.processes import free_port

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

SERVICE_FILE = """
models:
  llama-7b:
    inference:
      docker_image: "llm-runner:latest"
      command: ["sh", "-c", "echo $MODEL_NAME $METADATA_PROMPT"]
      env_vars: {MODEL_NAME: "llama-7b"}
"""


def pools(ownpod):
    """The pools of each device, as `ownpod gpus` lists them."""
    done = run_command(
        *(sys.executable, "-m", "ownpod", "gpus", "list", "--json"),
        **{key: str(value) for key, value in ownpod.environ.items()},
    )
    if done.returncode:
        return done.stderr
    return {row["id"]: row["pools"] for row in json.loads(done.stdout)}


def test_presets_after_a_sighup_give_the_devices_of_a_running_agent_their_difficulty(
    start_ownpod, tmp_path
):
    file = tmp_path / "workers.yaml"
    template = {"command": ["true"]}
    content = {"endpoints": {"local-ep": {"template": template, "workersMax": 0}}}
    file.write_text(yaml.safe_dump(content))
    ownpod = start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        GPU_DEVICE_IDS="0,1",
    )
    preset = {"image": "i", "command": ["true"]}
    file.write_text(yaml.safe_dump({**content, "models": {"m": {"presets": {"p": preset}}}}))
    ownpod.process.send(signal.SIGHUP)

    def are_low():
        return pools(ownpod) == {"cpu-0": ["low"], "cpu-1": ["low"]}

    wait_until(are_low, 60, "the agent's devices")
    # The API follows the signal by itself.
    wait_until(lambda: requests.get(f"{ownpod.base}/m-p/health", timeout=60).ok)
    assert "agent of host" in ownpod.output
    assert ownpod.output.count("agent of host") == 1


def test_the_gpu_services_environment_starts_ownpod_as_it_is(start_ownpod, tmp_path):
    file = tmp_path / "model_presets.yaml"
    file.write_text(SERVICE_FILE)
    ownpod = start_ownpod(
        OWNPOD_PRESETS_FILE=file,
        OWNPOD_ENGINE="process",
        GPU_DEVICE_IDS="0,1",
        GPU_DEVICE_DIFFICULTY="0:low,1:high",
        SESSION_IDLE_TIMEOUT_SECONDS="300",
        SESSION_MAX_LIFETIME_SECONDS="3600",
        SESSION_QUEUE_MAX_SIZE="5",
        DEFAULT_TASK_TIMEOUT="300",
        MAX_TASK_TIMEOUT="1800",
        TASK_MEMORY_LIMIT="16g",
        TASK_CPU_QUOTA="100000",
        ALLOWED_DOCKER_IMAGES="pytorch/pytorch:*,tensorflow/tensorflow:*,nvcr.io/nvidia/*",
        INTERNAL_API_KEY="your-internal-api-key-here",
    )
    wait_until(lambda: pools(ownpod) == {"cpu-0": ["low"], "cpu-1": ["high"]}, 60, "the devices")
    url = f"{ownpod.base}/llama-7b-inference/health"
    assert requests.get(url, timeout=9).status_code == 401
    key = {"Authorization": "Bearer your-internal-api-key-here"}
    assert requests.get(url, headers=key, timeout=9).status_code == 200
    task = {
        "task_type": "oneoff",
        "task_difficulty": "high",
        "model_id": "llama-7b",
        "task_preset": "inference",
        "metadata": {"prompt": "Hi"},
    }
    base = ownpod.base.removesuffix("/v2")
    answer = requests.post(
        f"{base}/api/tasks/submit",
        json=task,
        headers={"X-API-Key": "your-internal-api-key-here"},
        timeout=90,
    )
    assert answer.status_code == 200, answer.text
    events = [
        (kind, json.loads(data))
        for kind, data in re.findall(r"event: (\w+)\ndata: (.*)\n", answer.text)
    ]
    assert {data["gpu_class"] for kind, data in events if kind == "connection"} == {"high"}
    assert "of llama-7b-inference started on cpu-1" in ownpod.output
    assert ("text", {"content": "llama-7b Hi\n"}) in events, answer.text
    assert events[-1][0] == "task_finish"
    assert events[-1][1]["status"] == "completed"
    wrong = {**task, "task_difficulty": "huge"}
    refused = requests.post(f"{base}/api/tasks/submit", json=wrong, headers=key, timeout=9)
    assert refused.status_code == 400
    assert "known difficulties: high, low" in refused.json()["detail"]
    wrong = {**task, "task_preset": "training"}
    refused = requests.post(f"{base}/api/tasks/submit", json=wrong, headers=key, timeout=9)
    assert refused.status_code == 400
    assert "known presets: inference" in refused.json()["detail"]


def test_a_wrong_preset_stops_the_start_with_one_line(tmp_path):
    file = tmp_path / "model_presets.yaml"
    file.write_text(SERVICE_FILE.replace("command", "commands"))
    for command in ("up", "api", "dispatch", "agent"):
        options = ("--port", free_port()) if command in {"up", "api"} else ()
        done = run_command(
            *(sys.executable, "-m", "ownpod", command, *options),
            cwd=tmp_path,
            OWNPOD_PRESETS_FILE=file,
            OWNPOD_DATA_DIR=tmp_path / "var",
            REDIS_URL="" if command == "up" else "redis://127.0.0.1:1/0",
            PYTHONPATH=ROOT,
        )
        assert done.returncode != 0
        (line,) = (done.stdout + done.stderr).splitlines()
        assert f"{file}: models.llama-7b.inference.commands: is not a key here" in line
