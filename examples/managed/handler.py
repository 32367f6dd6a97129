"""A RunPod worker for the examples of managed workers: it sleeps, and returns its input."""

import os
import time

import runpod


def handler(job):
    """{"text": "abc", "seconds": 1.5} -> {"echo": {...}, "worker": "<its id>"}, after 1.5 s."""
    data = job["input"]
    time.sleep(float(data.get("seconds", 0)))
    return {"echo": data, "worker": os.environ.get("RUNPOD_POD_ID")}


runpod.serverless.start({"handler": handler})
