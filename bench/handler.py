"""The measured worker: {"seconds": s} -> {}-like answer after s seconds."""

import time

import runpod


def handler(job):
    time.sleep(job["input"].get("seconds", 0))
    return {"ok": True}


runpod.serverless.start({"handler": handler})
