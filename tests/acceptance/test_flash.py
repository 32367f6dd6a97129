"""runpod-flash makes, changes and removes endpoints of the running server, and runs jobs on them."""

import json
import shlex
import sys

import pytest
import requests
from helpers import run_command
from managing import ADMIN, ENV, START, flash_environment, managing, root_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HEADERS = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    with managing(tmp_path_factory.mktemp("flash")) as found:
        yield found


DEPLOY = """
import asyncio, json, sys
from runpod_flash import Endpoint, GpuGroup, PodTemplate

command, env, workers_max = json.loads(sys.argv[1])

async def main():
    endpoint = Endpoint(
        name="from-flash",
        image="org/worker:1",
        gpu=GpuGroup.AMPERE_24,
        workers=(0, workers_max),
        idle_timeout=60,
        env=env,
        template=PodTemplate(name="t", dockerArgs=command),
        execution_timeout_ms=600_000,
    )
    job = await endpoint.runsync({"text": "from flash"}, timeout=90)
    print(json.dumps([job.output, endpoint._endpoint_url]))

asyncio.run(main())
"""

WITH_VOLUME = """
import asyncio, json
from runpod_flash import DataCenter, Endpoint, GpuGroup, NetworkVolume

async def main():
    volume = NetworkVolume(name="models", size=10, datacenter=DataCenter.EU_RO_1)
    endpoint = Endpoint(name="with-volume", image="org/worker:1", gpu=GpuGroup.AMPERE_24, volume=volume)
    print(json.dumps(await endpoint._ensure_endpoint_ready()))

asyncio.run(main())
"""

CPU = """
import asyncio, json
from runpod_flash import CpuInstanceType, Endpoint

async def main():
    endpoint = Endpoint(name="on-cpus", image="org/worker:1", cpu=CpuInstanceType.CPU3G_2_8)
    print(json.dumps(await endpoint._ensure_endpoint_ready()))

asyncio.run(main())
"""

LIVE = """
import asyncio, json
from runpod_flash import Endpoint, GpuGroup

@Endpoint(name="live", gpu=GpuGroup.AMPERE_24, workers=(0, 1))
async def double(number):
    return number * 2

try:
    print(json.dumps(asyncio.run(asyncio.wait_for(double(21), 20))))
except asyncio.TimeoutError:
    print(json.dumps("waits"))
"""

UNDEPLOY = """
import asyncio, json
from runpod_flash.core.resources import ResourceManager

async def main():
    manager = ResourceManager()
    print(json.dumps([await manager.undeploy_resource(i) for i in list(manager.list_all_resources())]))

asyncio.run(main())
"""


@pytest.fixture
def flash(ownpod, tmp_path):
    """Runs a program with flash in a directory of its own, where flash remembers what it has made. Its last line, as JSON."""
    root = root_of(ownpod)

    def run(program, *arguments, **environ):
        # In a file, because flash sends the source of functions.
        (tmp_path / "program.py").write_text(program)
        done = run_command(
            *(sys.executable, "-W", "ignore", "program.py", *arguments),
            cwd=tmp_path,
            timeout=150,
            HOME=tmp_path,
            **flash_environment(root),
            **environ,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout.splitlines()[-1])

    return run


def get(ownpod, path):
    """Rows without those of ``workers.yaml``."""
    found = requests.get(f"{root_of(ownpod)}{path}", headers=HEADERS, timeout=60).json()
    return [row for row in found if row["name"] != "local-ep"]


def test_an_image_is_deployed_changed_and_removed(ownpod, flash):
    command = shlex.join(START)
    output, url = flash(DEPLOY, json.dumps([command, ENV, 1]))
    assert output["echo"] == "from flash"
    (made,) = get(ownpod, "/v1/endpoints?includeTemplate=true")
    assert url.endswith(f"/v2/{made['id']}")
    assert made["template"]["imageName"] == "org/worker:1"
    assert (made["idleTimeout"], made["executionTimeoutMs"]) == (60, 600_000)
    # The same once more, from what flash remembers.
    output, again = flash(DEPLOY, json.dumps([command, ENV, 1]))
    (same,) = get(ownpod, "/v1/endpoints")
    assert (again, same["version"]) == (url, made["version"])
    flash(DEPLOY, json.dumps([command, {**ENV, "SECOND": "1"}, 2]))
    (changed,) = get(ownpod, "/v1/endpoints")
    assert (changed["id"], changed["workersMax"]) == (made["id"], 2)
    # flash adds the key that it has, so that a worker can call other endpoints.
    env = {**ENV, "SECOND": "1", "RUNPOD_API_KEY": ADMIN}
    assert (changed["env"], changed["version"]) == (env, made["version"] + 1)
    (removed,) = flash(UNDEPLOY)
    assert removed["success"], removed
    assert get(ownpod, "/v1/endpoints") == []


def test_an_endpoint_with_a_volume_and_one_for_cpus_are_made(ownpod, flash):
    url = flash(WITH_VOLUME)
    (made,) = get(ownpod, "/v1/endpoints")
    assert url.endswith(f"/v2/{made['id']}")
    (volume,) = get(ownpod, "/v1/networkvolumes")
    assert (volume["name"], volume["dataCenterId"]) == ("models", "EU-RO-1")
    assert made["networkVolumeIds"] == [volume["id"]]
    flash(CPU)
    (found,) = [row for row in get(ownpod, "/v1/endpoints") if row["computeType"] == "CPU"]
    assert (found["name"], found["cpuFlavorIds"], found["vcpuCount"]) == ("on-cpus", ["cpu3g"], 2)
    done = {one["name"]: one["success"] for one in flash(UNDEPLOY)}
    # flash deletes no volumes.
    assert (sorted(done), get(ownpod, "/v1/endpoints")) == (
        ["models", "on-cpus", "with-volume"],
        [],
    )


def test_a_live_function_is_a_job_for_runpods_image(ownpod, flash):
    assert flash(LIVE, FLASH_IS_LIVE_PROVISIONING="true") == "waits"
    (made,) = get(ownpod, "/v1/endpoints?includeTemplate=true")
    assert made["name"] == "live-live"
    assert made["template"]["imageName"].startswith("runpod/flash:")
    flash(UNDEPLOY)
    assert get(ownpod, "/v1/endpoints") == []
