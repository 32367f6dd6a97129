"""docker-compose.yml on a real engine: README's quick start, and containers that die."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
import requests
from helpers import ROOT, environment, readme_blocks, wait_until

API = "http://localhost:8000"
ENDPOINT = f"{API}/v2/local-ep"

DEMO = "http://worker-a:8000,http://worker-b:8000"

pytestmark = pytest.mark.timeout(600)


def compose_command():
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return "docker compose" if plugin.returncode == 0 else "docker-compose"


def bash(script, **environ):
    script = script.replace("docker compose", compose_command())
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env=environment(COMPOSE_PROJECT_NAME="ownpod-test", **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, (script, done.stdout)
    return done.stdout


def take_down():
    bash("docker compose logs --tail 30 --no-color; docker compose ps")
    bash("docker rm --force worker-a worker-b >/dev/null 2>&1 || true")
    bash("docker compose --profile demo down --volumes --timeout 20")


@pytest.fixture
def clean():
    yield
    take_down()


@pytest.fixture(scope="module")
def demo(images):
    """All of it, with the two example workers; answers a service's container."""
    up = "docker compose --profile demo up -d"
    try:
        bash(up, OWNPOD_LEASE_S="3", OWNPOD_WORKERS=DEMO)
        yield lambda name: bash(f"docker compose ps -q {name}").split()[-1]
    finally:
        take_down()


def workers(state):
    """How many there are."""
    try:
        return requests.get(f"{ENDPOINT}/health", timeout=60).json()["workers"][state]
    except (requests.RequestException, ValueError):
        return None


def wait_for_workers():
    wait_until(lambda: workers("idle") == 2, 60, "two idle workers")


def ended(job, seconds=90):
    def look():
        try:
            status = requests.get(f"{ENDPOINT}/status/{job}", timeout=60).json()
        except (requests.RequestException, ValueError):
            return None
        return status if status.get("status") not in {"IN_QUEUE", "IN_PROGRESS", None} else None

    return wait_until(look, seconds, f"the end of {job}")


def submit(**job_input):
    return requests.post(f"{ENDPOINT}/run", json={"input": job_input}, timeout=60).json()["id"]


def test_readmes_quick_start(images, clean):
    start, workers, job = readme_blocks(docker=True)
    bash(start)
    bash(workers)
    assert published("worker-a", "worker-b") == set()
    wait_for_workers()
    job, _, down = job.rpartition("\n")[0].rpartition("\n")
    run_job(job)
    bash(down)
    assert "ownpod" not in bash("docker network ls --format '{{.Name}}'").split()


def test_workers_that_are_published_on_the_host_are_reached_as_localhost(images, clean):
    for name, port in {"worker-a": 18000, "worker-b": 18001}.items():
        bash(f"docker run -d --rm --name {name} -p {port}:8000 ownpod/worker-echo")
    workers = "http://localhost:18000,http://localhost:18001"
    bash("docker compose up -d", OWNPOD_WORKERS=workers)
    wait_for_workers()
    run_job(readme_blocks(docker=True)[-1].rpartition("docker stop")[0])


def run_job(script):
    said = bash(script)
    assert re.search(r'"status": "(IN_QUEUE|IN_PROGRESS|COMPLETED)"', said)
    assert re.search(r"^event: status$", said, re.MULTILINE)
    last = json.loads(said[said.rindex("\n{\n") :])
    assert (last["status"], last["output"]["reversed"]) == ("COMPLETED", "nur omed dopnwo")


def published(*containers):
    """The host's addresses at which ports of these containers can be reached."""
    form = "{{range .NetworkSettings.Ports}}{{range .}}{{println .HostIp}}{{end}}{{end}}"
    return set(bash(f"docker inspect --format '{form}' {' '.join(containers)}").split())


@pytest.mark.parametrize("name", ["dispatcher", "api", "redis", "worker-a"])
def test_a_container_that_dies_is_started_again_and_costs_no_job(demo, name):
    wait_for_workers()
    jobs = [submit(text=f"{name} {n}", seconds=3) for n in range(4)]
    wait_until(lambda: workers("running") == 2, 20, "busy workers")
    pid = int(bash(f"docker inspect --format '{{{{.State.Pid}}}}' {demo(name)}"))
    os.kill(pid, signal.SIGKILL)
    if name == "worker-a":
        # As the demo's workers have no restart policy: whoever runs them starts them.
        time.sleep(1)
        bash("docker compose --profile demo up -d", OWNPOD_LEASE_S="3", OWNPOD_WORKERS=DEMO)
    outputs = [ended(job)["output"]["echo"] for job in jobs]
    assert outputs == [f"{name} {n}" for n in range(4)]


def test_stopping_lets_a_running_job_finish(demo):
    wait_for_workers()
    job = submit(text="x", seconds=5)
    wait_until(lambda: workers("running") == 1, 20, "a busy worker")
    bash("docker compose stop dispatcher")
    status = requests.get(f"{ENDPOINT}/status/{job}", timeout=60).json()
    bash("docker compose start dispatcher")
    assert (status["status"], "retries" in status) == ("COMPLETED", False)


def test_only_this_host_reaches_the_api_and_flower_and_no_worker_reaches_redis(demo):
    assert published(*map(demo, ("worker-a", "worker-b", "redis", "dispatcher"))) == set()
    assert published(demo("api"), demo("flower")) == {"127.0.0.1"}
    inside = f"docker exec {demo('worker-a')} python -c"
    # The dispatcher's address is known there, so names are; those of the other network are not.
    bash(f"{inside} 'import socket; socket.gethostbyname(\"dispatcher\")'")
    for name, port in {"redis": 6379, "api": 8000, "flower": 5555}.items():
        script = f'import socket; socket.create_connection(("{address(demo(name))}", {port}), 3)'
        bash(f"! {inside} '{script}' 2>/dev/null")


def address(container):
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return bash(f"docker inspect --format '{form}' {container}").strip()


def test_the_supervisors_health_check_follows_redis(demo):
    container = demo("dispatcher")
    bash(f"docker exec {container} python -m ownpod.tools.alive")
    bash(f"docker pause {demo('redis')}")
    try:
        bash(f"! docker exec {container} python -m ownpod.tools.alive")
    finally:
        bash(f"docker unpause {demo('redis')}")
    wait_for_workers()


def test_the_image_is_not_roots_and_all_is_healthy(demo):
    for name in ("api", "dispatcher", "flower"):
        assert bash(f"docker exec {demo(name)} id -u").strip() == "1000"
    for name in ("redis", "api", "dispatcher", "flower"):
        command = f"docker inspect --format '{{{{.State.Health.Status}}}}' {demo(name)}"
        wait_until(lambda command=command: bash(command).strip() == "healthy", 60, name)
    names = {"housekeeping", "worker-a-8000", "worker-b-8000"}

    def flower():
        nodes = requests.get("http://localhost:5555/api/workers?refresh=1", timeout=20).json()
        return {node.partition("@")[0] for node in nodes}

    wait_until(lambda: flower() == names, 60, "nodes in Flower")
