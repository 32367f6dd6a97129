"""Handlers of the real SDK; the environment's HANDLER says which one this process serves.

What a job does stands in its input: {"do": ..., "seconds": s, "note": a file that each run appends
a line to when it starts}.
"""

import asyncio
import os
import time
from pathlib import Path

import runpod


def begin(job):
    data = job["input"]
    if "note" in data:
        with Path(data["note"]).open("a") as notes:
            notes.write(f"{os.getpid()}\n")
    if data.get("do") == "exit":
        os._exit(1)
    return data


def end(data):
    match data.get("do", "echo"):
        case "raise":
            raise ValueError("boom")
        case "error":
            return {"error": "it says no"}
        case "empty":
            return {}
        case "none":
            return None
        case "list":
            return [1, "two", None]
        case "big":
            return {"data": "x" * 5_000_000}
        case _:
            return {"echo": data.get("text", ""), "pid": os.getpid()}


def sync(job):
    data = begin(job)
    time.sleep(data.get("seconds", 0))
    return end(data)


async def asynchronous(job):
    data = begin(job)
    await asyncio.sleep(data.get("seconds", 0))
    return end(data)


def generator(job):
    data = begin(job)
    for number in range(data.get("count", 3)):
        time.sleep(data.get("seconds", 0))
        yield {"number": number}
    if data.get("do") == "raise":
        raise ValueError("boom")


HANDLERS = {"sync": sync, "async": asynchronous, "generator": generator}
runpod.serverless.start({"handler": HANDLERS[os.environ["HANDLER"]]})
