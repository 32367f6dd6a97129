"""A worker that yields: each word as it is made, like a language model's tokens."""

import time

import runpod


def handler(job):
    """{"text": "a b c", "seconds": 0.2} -> "a", "b", "c", each 0.2 s after the last."""
    data = job["input"]
    for word in str(data.get("text", "one two three four five")).split():
        time.sleep(float(data.get("seconds", 0.2)))
        yield word


# Whoever only asks for /status gets the whole, too.
runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
