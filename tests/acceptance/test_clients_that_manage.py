"""RunPod's official Python package, flash, and a deploy script make, change and use endpoints of the running server."""

import json
import shlex
import sys

import pytest
import requests
from helpers import ROOT, run_command
from managing import ADMIN, ENV, POOL, START, flash_environment, managing, root_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def ownpod(tmp_path_factory):
    with managing(tmp_path_factory.mktemp("managing")) as found:
        yield found


PYTHON_CLIENT = """
import json, os, sys
import runpod

runpod.api_key = os.environ["RUNPOD_API_KEY"]
command, env, pool = json.loads(sys.argv[1])
said = {}
for name, more in (("first", {}), ("second", {"SECOND": "1"})):
    said[name] = runpod.create_template(
        f"python-{name}", "org/worker:1", docker_start_cmd=command, env={**env, **more}, is_serverless=True
    )
said["endpoint"] = runpod.create_endpoint(
    "python-client", said["first"]["id"], gpu_ids=pool, workers_max=1, scaler_type="REQUEST_COUNT", scaler_value=1
)
said["listed"] = runpod.get_endpoints()
said["changed"] = runpod.update_endpoint_template(said["endpoint"]["id"], said["second"]["id"])
said["output"] = runpod.Endpoint(said["endpoint"]["id"]).run_sync({"text": "from python"}, timeout=90)
try:
    runpod.create_endpoint("no-template", "none", gpu_ids=pool)
except runpod.error.QueryError as error:
    said["refused"] = str(error)
runpod.api_key = "wrong"
try:
    runpod.get_endpoints()
except runpod.error.AuthenticationError as error:
    said["unauthorized"] = str(error)
print(json.dumps(said))
"""


def test_the_python_package_makes_a_template_and_an_endpoint_and_runs_a_job_on_it(ownpod):
    root = root_of(ownpod)
    done = run_command(
        sys.executable,
        "-c",
        PYTHON_CLIENT,
        json.dumps([shlex.join(START), ENV, POOL]),
        timeout=150,
        RUNPOD_API_KEY=ADMIN,
        RUNPOD_API_BASE_URL=root,
        RUNPOD_ENDPOINT_BASE_URL=f"{root}/v2",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    made = said["endpoint"]
    assert said["first"]["dockerArgs"] == shlex.join(START)
    assert {pair["key"]: pair["value"] for pair in said["first"]["env"]} == ENV
    assert (made["gpuIds"], made["workersMax"], made["templateId"]) == (
        POOL,
        1,
        said["first"]["id"],
    )
    (listed,) = [found for found in said["listed"] if found["id"] == made["id"]]
    assert listed["name"] == "python-client"
    assert said["changed"] == {"id": made["id"], "templateId": said["second"]["id"]}
    assert said["output"]["echo"] == "from python"
    assert "template 'none' not found" in said["refused"]
    assert said["unauthorized"]
    found = requests.get(
        f"{root}/v1/endpoints/{made['id']}",
        headers={"Authorization": f"Bearer {ADMIN}"},
        timeout=60,
    ).json()
    assert (found["version"], found["env"]) == (2, {**ENV, "SECOND": "1"})


FLASH_CLIENT = """
import asyncio, json, sys
from runpod_flash import Endpoint

async def main(endpoint):
    job = await endpoint.run({"text": "from flash"})
    first = await job.status()
    await job.wait(timeout=90)
    sync = await endpoint.runsync({"text": "sync"}, timeout=90)
    long = await endpoint.run({"text": "long", "seconds": 60})
    await long.cancel()
    stopped = await long.status()
    print(json.dumps([first, job.output, job.done, sync.output, stopped]))

asyncio.run(main(Endpoint(id=sys.argv[1])))
"""


def test_flashs_client_of_an_existing_endpoint_runs_jobs(ownpod, tmp_path):
    root, headers = root_of(ownpod), {"Authorization": f"Bearer {ADMIN}"}

    def post(path, body):
        answer = requests.post(f"{root}{path}", json=body, headers=headers, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    template = {"name": "flash", "imageName": "org/worker:1", "dockerStartCmd": START, "env": ENV}
    template = post("/v1/templates", {**template, "isServerless": True})
    endpoint = {"templateId": template["id"], "workersMax": 1, "idleTimeout": 60}
    endpoint |= {"scalerType": "REQUEST_COUNT", "scalerValue": 1}
    made = post("/v1/endpoints", endpoint)
    done = run_command(
        *(sys.executable, "-W", "ignore", "-c", FLASH_CLIENT, made["id"]),
        cwd=tmp_path,
        timeout=150,
        HOME=tmp_path,
        **flash_environment(root),
    )
    assert done.returncode == 0, done.stderr
    first, output, ended, sync, stopped = json.loads(done.stdout.splitlines()[-1])
    assert first in {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
    assert (output["echo"], ended, sync["echo"], stopped) == (
        "from flash",
        True,
        "sync",
        "CANCELLED",
    )
    requests.delete(f"{root}/v1/endpoints/{made['id']}", headers=headers, timeout=60)


FLASH_DEPLOY = """
import asyncio, json
from runpod_flash import GpuGroup
from runpod_flash.core.resources.load_balancer_sls_resource import LoadBalancerSlsResource

async def main():
    resource = LoadBalancerSlsResource(
        name="flash-lb", imageName="org/web:1", gpus=[GpuGroup.AMPERE_24], env={"PORT": "8000"},
        workersMax=1, scalerValue=2,
    )
    made = await resource.deploy()
    print(json.dumps({"id": made.id, "url": made.endpoint_url, "type": made.type.value}))

asyncio.run(main())
"""


def test_flash_makes_a_load_balanced_endpoint(ownpod, tmp_path):
    root = root_of(ownpod)
    done = run_command(
        *(sys.executable, "-W", "ignore", "-c", FLASH_DEPLOY),
        cwd=tmp_path,
        timeout=150,
        HOME=tmp_path,
        **flash_environment(root),
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert (made["type"], made["url"]) == (
        "LB",
        f"https://{made['id']}.127.0.0.1:{ownpod.port}",
    )
    url, headers = f"{root}/v2/serverless/{made['id']}", {"Authorization": f"Bearer {ADMIN}"}
    found = requests.get(url, headers=headers, timeout=60).json()
    assert (found["type"], found["scaling"]) == (
        "LOAD_BALANCER",
        {"type": "REQUEST_COUNT", "requestCount": 2},
    )
    assert found["env"]["PORT"] == "8000"
    requests.delete(url, headers=headers, timeout=60)


def deploy(ownpod, **more):
    root = root_of(ownpod)
    return run_command(
        sys.executable,
        ROOT / "examples" / "deploy" / "deploy.py",
        timeout=150,
        **{
            "RUNPOD_API_KEY": ADMIN,
            "RUNPOD_REST_URL": f"{root}/v1",
            "RUNPOD_INVOKE_URL": f"{root}/v2",
            "ENDPOINT_NAME": "from-ci",
            "IMAGE": "org/worker:1",
            "START_CMD": shlex.join(START),
            "TEST_INPUT": json.dumps({"text": "hello"}),
            **{f"WORKER_ENV_{name}": value for name, value in ENV.items()},
            **more,
        },
    )


def test_the_deploy_example_makes_an_endpoint_and_its_second_run_changes_it(ownpod, tmp_path):
    def all_of(path):
        headers = {"Authorization": f"Bearer {ADMIN}"}
        found = requests.get(f"{root_of(ownpod)}/v1/{path}", headers=headers, timeout=60).json()
        return [one for one in found if one["name"].startswith("from-ci")]

    summary = tmp_path / "summary.md"
    first = deploy(ownpod, GITHUB_STEP_SUMMARY=summary)
    assert first.returncode == 0, first.stderr + first.stdout
    (template,), (made,) = all_of("templates"), all_of("endpoints")
    assert f"`{made['id']}` | 1 | `org/worker:1` | COMPLETED" in summary.read_text()
    second = deploy(ownpod, IMAGE="org/worker:2", EXECUTION_TIMEOUT_S="900")
    assert second.returncode == 0, second.stderr + second.stdout
    assert f"endpoint  {made['id']}, version 2" in second.stdout
    (changed,) = all_of("endpoints")
    assert (changed["id"], changed["executionTimeoutMs"]) == (made["id"], 900_000)
    assert [one["id"] for one in all_of("templates")] == [template["id"]]


def test_the_deploy_example_ends_with_the_reason_where_it_is_refused(ownpod):
    wrong = deploy(ownpod, RUNPOD_API_KEY="wrong")
    assert wrong.returncode == 1
    assert "HTTP 401" in wrong.stderr
    no_gpu = deploy(ownpod, ENDPOINT_NAME="other", GPU_TYPES="NVIDIA H200")
    assert no_gpu.returncode == 1
    assert "no host has a device of pool NVIDIA H200" in no_gpu.stderr
