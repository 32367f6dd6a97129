"""The measured worker: waits for "seconds" and returns the time of its end; or returns "text"."""

import time

import runpod


def handler(job):
    given = job["input"]
    if "text" in given:
        return given["text"]
    time.sleep(given.get("seconds", 0))
    return {"ok": True, "at": time.time()}


runpod.serverless.start({"handler": handler})
