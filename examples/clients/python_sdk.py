"""Runs a job with the official Python SDK: pip install runpod, then python python_sdk.py"""

import os

import runpod

runpod.endpoint_url_base = os.environ.get("OWNPOD_URL", "http://localhost:8000") + "/v2"
runpod.api_key = os.environ.get("OWNPOD_API_KEY", "any, while OwnPod has no keys")

endpoint = runpod.Endpoint(os.environ.get("OWNPOD_ENDPOINT", "local-ep"))

job = endpoint.run({"input": {"text": "hello from Python"}})
print(job.job_id, job.status())
print(job.output(timeout=60))
