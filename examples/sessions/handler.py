"""A RunPod worker for the examples of sessions: its model takes some seconds to load, and stays loaded between tasks."""

import os
import time

import runpod

# As `from_pretrained` would: the worker requests its first task when this has ended.
time.sleep(float(os.environ.get("LOAD_S", "3")))
heard = []


def handler(job):
    """{"prompt": "hello parrot"} -> the words of an answer, one at a time; it remembers the earlier prompts of its session."""
    heard.append(str(job["input"].get("prompt", "")))
    seconds = float(job["input"].get("seconds", 0.5))
    words = f"{heard[-1]}! You have spoken {len(heard)} times; first you said: {heard[0]}".split()
    for number, word in enumerate(words):
        time.sleep(seconds / len(words))
        yield word if number == 0 else f" {word}"


runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
