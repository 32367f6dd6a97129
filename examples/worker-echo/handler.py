"""A minimal RunPod worker that returns its text, and the text reversed."""

import time

import runpod


def handler(job):
    """{"text": "abc", "seconds": 1.5} -> {"echo": "abc", "reversed": "cba"}, after 1.5 s."""
    data = job["input"]
    text = str(data.get("text", ""))
    time.sleep(float(data.get("seconds", 0)))
    return {"echo": text, "reversed": text[::-1]}


runpod.serverless.start({"handler": handler})
