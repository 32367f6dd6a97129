"""Docker tests: the image, the compose file, and nodes as containers. A Docker engine must run.

`make test-docker` runs all of them. Base images that cannot be pulled are stood in for, see
standins.sh.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def docker_engine():
    """A Docker engine, which ``DOCKER_HOST`` or the default socket reaches."""
    engine = ["docker", "info"]
    if (
        not shutil.which("docker")
        or subprocess.run(engine, capture_output=True, check=False).returncode
    ):
        pytest.exit("no Docker engine: install and start one (apt-get install docker.io; dockerd)")


@pytest.fixture(scope="session")
def images(docker_engine):
    """The images `ownpod` and `ownpod/worker-echo`, built from this tree."""
    subprocess.run([HERE / "standins.sh"], check=True, timeout=600)
    for name, folder in {
        "ownpod": ROOT,
        "ownpod/worker-echo": ROOT / "examples/worker-echo",
    }.items():
        subprocess.run(
            ["docker", "build", "--quiet", "--tag", name, folder], check=True, timeout=900
        )
    yield
    subprocess.run([HERE / "standins.sh", "remove"], check=True, timeout=60)
