"""A worker that yields words one by one, as a language model yields tokens."""

import time

import runpod


def handler(job):
    """{"text": "a b c", "seconds": 0.2} -> "a", "b", "c", each 0.2 s after the last."""
    data = job["input"]
    for word in str(data.get("text", "one two three four five")).split():
        time.sleep(float(data.get("seconds", 0.2)))
        yield word


# return_aggregate_stream: /status returns all words as well, for clients that do not stream.
runpod.serverless.start({"handler": handler, "return_aggregate_stream": True})
