"""Deploys a worker to a serverless endpoint: volume, template, endpoint, one job as a test, a summary.

It speaks RunPod's REST v1 and job API, so it works with RunPod and, with another base URL, with OwnPod. It needs
Python only. Settings are variables of the environment, because CI systems set those:

    RUNPOD_API_KEY     a key that may manage
    RUNPOD_REST_URL    base URL of the management API, e.g. http://localhost:8000/v1
    RUNPOD_INVOKE_URL  base URL of the job API, e.g. http://localhost:8000/v2
    ENDPOINT_NAME, IMAGE, START_CMD, GPU_TYPES, VOLUME_NAME, TEST_INPUT   what is deployed, see below
"""

import json
import os
import pathlib
import shlex
import sys
import time
import urllib.error
import urllib.request

KEY = os.environ.get("RUNPOD_API_KEY", "")
REST = os.environ.get("RUNPOD_REST_URL", "http://localhost:8000/v1").rstrip("/")
INVOKE = os.environ.get("RUNPOD_INVOKE_URL", "http://localhost:8000/v2").rstrip("/")
NAME = os.environ.get("ENDPOINT_NAME", "deployed")
IMAGE = os.environ.get("IMAGE", "ownpod/worker-echo:latest")
START_CMD = shlex.split(os.environ.get("START_CMD", ""))
GPU_TYPES = [name for name in os.environ.get("GPU_TYPES", "").split(",") if name]
VOLUME_NAME = os.environ.get("VOLUME_NAME", "")
TEST_INPUT = os.environ.get("TEST_INPUT", '{"text": "hello"}')
WORKERS_MAX = int(os.environ.get("WORKERS_MAX", "1"))
EXECUTION_TIMEOUT_S = int(os.environ.get("EXECUTION_TIMEOUT_S", "600"))
ENV = {
    name.removeprefix("WORKER_ENV_"): value
    for name, value in os.environ.items()
    if name.startswith("WORKER_ENV_")
}


def call(method, url, body=None):
    """Sends a request; returns the JSON of the answer, None if it has none. Ends the script if it is refused."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=330) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {url}: HTTP {error.code}: {error.read().decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"{method} {url}: {error.reason}")
    return json.loads(text) if text else None


def named(path, name):
    """The object with this name, None if there is none."""
    return next((found for found in call("GET", f"{REST}/{path}") if found["name"] == name), None)


def volume():
    """The id of the network volume, which is made if there is none; None without VOLUME_NAME."""
    if not VOLUME_NAME:
        return None
    body = {
        "name": VOLUME_NAME,
        "size": 10,
        "dataCenterId": os.environ.get("DATA_CENTER", "EU-RO-1"),
    }
    return (named("networkvolumes", VOLUME_NAME) or call("POST", f"{REST}/networkvolumes", body))[
        "id"
    ]


def template():
    """The id of the template, which is made or changed."""
    body = {
        "name": f"{NAME}-template",
        "imageName": IMAGE,
        "dockerStartCmd": START_CMD,
        "env": ENV,
        "containerDiskInGb": 20,
        "volumeInGb": 0,
    }
    found = named("templates", body["name"])
    if found:
        return call("PATCH", f"{REST}/templates/{found['id']}", body)["id"]
    return call("POST", f"{REST}/templates", {**body, "isServerless": True})["id"]


def endpoint(template_id, volume_id):
    """The endpoint, which is made or changed."""
    body = {
        "name": NAME,
        "templateId": template_id,
        "workersMin": 0,
        "workersMax": WORKERS_MAX,
        "idleTimeout": 5,
        "executionTimeout": EXECUTION_TIMEOUT_S,
        "scalerType": "QUEUE_DELAY",
        "scalerValue": 1,
    }
    if GPU_TYPES:
        body |= {"gpuTypeIds": GPU_TYPES, "gpuCount": 1}
    else:
        body["computeType"] = "CPU"
    if volume_id:
        body["networkVolumeId"] = volume_id
    found = named("endpoints", NAME)
    if found:
        body.pop("computeType", None)
        return call("PATCH", f"{REST}/endpoints/{found['id']}", body)
    return call("POST", f"{REST}/endpoints", body)


def test(endpoint_id):
    """Runs one job; returns its last state."""
    job = call("POST", f"{INVOKE}/{endpoint_id}/runsync", {"input": json.loads(TEST_INPUT)})
    while job["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
        time.sleep(2)
        job = call("GET", f"{INVOKE}/{endpoint_id}/status/{job['id']}")
    return job


def main():
    volume_id = volume()
    print(f"volume    {volume_id or 'none'}", flush=True)
    template_id = template()
    print(f"template  {template_id}", flush=True)
    made = endpoint(template_id, volume_id)
    print(f"endpoint  {made['id']}, version {made['version']}", flush=True)
    job = test(made["id"])
    print(f"job       {job['id']}: {job['status']}", flush=True)
    if job["status"] != "COMPLETED":
        sys.exit(f"the test job did not complete: {json.dumps(job)}")
    summary = (
        f"### {NAME}\n\n| endpoint | version | image | job | ms |\n| --- | --- | --- | --- | --- |\n"
        f"| `{made['id']}` | {made['version']} | `{IMAGE}` | {job['status']} | {job.get('executionTime', '')} |\n"
    )
    file = os.environ.get("GITHUB_STEP_SUMMARY")
    if file:
        with pathlib.Path(file).open("a") as out:
            out.write(summary)
    print(summary)


if __name__ == "__main__":
    main()
