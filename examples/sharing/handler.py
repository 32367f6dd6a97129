"""A RunPod worker for the example of two endpoints that share a device: it takes some seconds to load."""

import os
import time

import runpod

time.sleep(float(os.environ.get("LOAD_S", "0")))


def handler(job):
    """{"seconds": 1.5} -> {"worker": "<its id>"}, after 1.5 s."""
    time.sleep(float(job["input"].get("seconds", 0)))
    return {"worker": os.environ.get("RUNPOD_POD_ID")}


runpod.serverless.start({"handler": handler})
