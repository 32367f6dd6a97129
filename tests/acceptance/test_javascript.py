"""RunPod's official JavaScript client against OwnPod, unmodified."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import environment

HERE = Path(__file__).parent / "javascript"


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    if not shutil.which("npm"):
        if os.environ.get("CI"):
            pytest.fail("no Node: these tests must run in CI")
        pytest.skip("no Node: install node and npm to test the JavaScript client")
    directory = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "use.mjs"):
        shutil.copy(HERE / name, directory)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
    subprocess.run(install, cwd=directory, check=True, timeout=180)
    return directory


@pytest.mark.timeout(240)
def test_every_operation_of_the_javascript_client(shared, project):
    done = subprocess.run(
        ["node", "use.mjs"],
        cwd=project,
        env=environment(BASE=shared.base, KEY="any"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["run"]["status"] == "IN_QUEUE"
    assert said["status"]["succeeded"] is True
    assert said["status"]["output"]["echo"] == "js"
    assert said["runSync"]["output"]["echo"] == "sync"
    assert said["longRunSync"]["output"]["echo"] == "long"
    assert said["stream"] == [{"output": {"number": number}} for number in range(4)]
    assert said["cancel"]["status"] == "CANCELLED"
    assert said["health"]["jobs"]["inQueue"] == 1
    assert said["purgeQueue"] == {"removed": 1, "status": "completed"}
