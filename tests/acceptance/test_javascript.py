"""RunPod's official JavaScript client against OwnPod, unmodified."""

import json
import subprocess

import pytest
from helpers import environment


@pytest.mark.timeout(300)
def test_every_operation_of_the_javascript_client(shared, javascript):
    done = subprocess.run(
        ["node", "use.mjs"],
        cwd=javascript,
        env=environment(BASE=shared.base, KEY="any"),
        capture_output=True,
        text=True,
        timeout=250,
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
