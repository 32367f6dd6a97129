"""Managed workers as containers: `ownpod up` with the engine `docker`, and RunPod's SDK in the image."""

import ipaddress
import subprocess
import sys

import pytest
import requests
import yaml
from helpers import ROOT, OwnPod, agent_of, run_command, wait_until

pytestmark = pytest.mark.timeout(600)

IMAGE = "ownpod/worker-echo"


def docker(*command):
    done = subprocess.run(
        ["docker", *command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


@pytest.fixture
def bridge(images):
    """The address of this host on Docker's bridge, which containers reach as host.docker.internal."""
    # Not the gateway, which older engines name only for a bridge that was there before them.
    form = "{{(index .IPAM.Config 0).Subnet}}"
    (subnet,) = docker("network", "inspect", "bridge", "--format", form)
    return str(next(ipaddress.ip_network(subnet).hosts()))


class Managed(OwnPod):
    """An OwnPod that listens on the bridge."""

    def __init__(self, directory, address, **environ):
        self.address = address
        super().__init__(directory, "--host", address, **environ)
        self.base = f"http://{address}:{self.port}/v2"
        self.endpoint = f"{self.base}/local-ep"


@pytest.fixture
def start(bridge, tmp_path):
    started = []

    def made(**endpoint):
        values = {
            "workersMax": 2,
            "idleTimeout": 2,
            "scalerType": "REQUEST_COUNT",
            "scalerValue": 1,
        }
        # The image's own command serves RunPod's local API; this one pulls.
        template = {"image": IMAGE, "command": ["python", "handler.py"], "limits": {"pids": 200}}
        content = {"endpoints": {"local-ep": {**values, "template": template, **endpoint}}}
        (tmp_path / "workers.yaml").write_text(yaml.safe_dump(content))
        ownpod = Managed(
            tmp_path,
            bridge,
            OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
            OWNPOD_ENGINE="docker",
            OWNPOD_DEVICES="cpu:2",
            OWNPOD_API_KEYS="a-key",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )
        started.append(ownpod)
        return ownpod

    yield made
    for ownpod in started:
        ownpod.stop()
        print(ownpod.output)
    if left := containers():
        docker("rm", "--force", *left)


KEY = {"Authorization": "Bearer a-key"}


def call(ownpod, method, path, body=None):
    return requests.request(
        method, f"{ownpod.endpoint}{path}", json=body, headers=KEY, timeout=30
    ).json()


def submit(ownpod, **job_input):
    return call(ownpod, "POST", "/run", {"input": job_input})["id"]


def completed(ownpod, job):
    return call(ownpod, "GET", f"/status/{job}")["status"] == "COMPLETED"


def containers():
    return docker("ps", "--all", "--quiet", "--filter", "label=ownpod.worker")


def test_an_endpoint_scales_from_zero_to_two_containers_and_back(start):
    ownpod = start(gpu={"count": 1})
    assert containers() == []
    jobs = [submit(ownpod, text=f"job {n}", seconds=2) for n in range(4)]
    most = 0

    def done():
        nonlocal most
        most = max(most, len(containers()))
        return all(completed(ownpod, job) for job in jobs)

    wait_until(done, 180, "four jobs")
    assert most == 2
    wait_until(lambda: containers() == [], 90, "no container")


def test_a_killed_agent_ends_no_container_and_the_next_one_adopts_it(start):
    ownpod = start(workersMax=1)
    job = submit(ownpod, text="a", seconds=20)
    wait_until(lambda: call(ownpod, "GET", f"/status/{job}")["status"] == "IN_PROGRESS", 120)
    before = containers()
    agent_of(ownpod).kill()
    wait_until(lambda: ownpod.output.count("agent of host") == 2, 60, "the next agent")
    assert containers() == before
    wait_until(lambda: completed(ownpod, job), 60)
    assert "retries" not in call(ownpod, "GET", f"/status/{job}")
    wait_until(lambda: containers() == [], 90, "the idle container is removed")


def test_an_image_that_is_not_there_is_explained_and_the_job_waits(start):
    ownpod = start(template={"image": "ownpod-test/not-there:1"}, workersMax=1)
    job = submit(ownpod, text="a")

    def failures():
        return call(ownpod, "GET", "/health")["ownpod"]["managed"]["failures"]

    wait_until(failures, 120, "a failed start")
    assert "ownpod-test/not-there:1" in failures()["reason"]
    status = call(ownpod, "GET", f"/status/{job}")
    assert status["status"] == "IN_QUEUE"
    assert "not-there" in status["waitingReason"]


def test_the_end_of_up_ends_its_containers(start):
    ownpod = start(workersMin=1, workersMax=1)
    wait_until(lambda: call(ownpod, "GET", "/health")["workers"]["ready"] == 1, 120)
    assert len(containers()) == 1
    assert ownpod.stop() == 0
    assert containers() == []


def test_the_deploy_example_deploys_a_container_with_a_network_volume(bridge, tmp_path):
    (tmp_path / "workers.yaml").write_text("endpoints: {}\n")
    ownpod = Managed(
        tmp_path,
        bridge,
        OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
        OWNPOD_ENGINE="docker",
        OWNPOD_ADMIN_KEYS="admin",
        OWNPOD_VOLUMES_DIR=tmp_path / "volumes",
        OWNPOD_SHUTDOWN_GRACE_S=2,
    )
    try:
        done = run_command(
            sys.executable,
            ROOT / "examples" / "deploy" / "deploy.py",
            timeout=240,
            RUNPOD_API_KEY="admin",
            RUNPOD_REST_URL=f"{ownpod.base.removesuffix('/v2')}/v1",
            RUNPOD_INVOKE_URL=ownpod.base,
            ENDPOINT_NAME="from-ci",
            IMAGE=IMAGE,
            START_CMD="python handler.py",
            VOLUME_NAME="models",
            TEST_INPUT='{"text": "hello"}',
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert "COMPLETED" in done.stdout
        volume = next(line.split()[1] for line in done.stdout.splitlines() if "volume" in line)
        assert (tmp_path / "volumes" / volume).is_dir()
        (container,) = containers()
        form = "{{range .Mounts}}{{.Source}}:{{.Destination}} {{end}}"
        assert f"{tmp_path}/volumes/{volume}:/runpod-volume" in docker(
            "inspect", container, "--format", form
        )
    finally:
        ownpod.stop()
        print(ownpod.output)
        if left := containers():
            docker("rm", "--force", *left)
