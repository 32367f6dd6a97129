"""Handlers of the real SDK; the environment's HANDLER names the one that this process serves.

What a job does stands in its input: {"do": ..., "seconds": s, "note": a file that each run appends
a line to when it starts, "runs": one to which each run writes when it starts and when it ends,
"until": the run goes on until this file exists, that of a generator after its last part}. LOAD_S: seconds that its load takes, as that of a model does.
"""

import asyncio
import os
import sys
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
    if data.get("do") == "progress":
        runpod.serverless.progress_update(job, {"percent": 50})
    mark(data, "+")
    return data


def mark(data, sign):
    """In one write, as several processes may write to the file at a time."""
    if "runs" in data:
        with Path(data["runs"]).open("a") as runs:
            runs.write(f"{sign} {os.getpid()} {data['text']}\n")


def waits(data):
    return "until" in data and not Path(data["until"]).exists()


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
        case "refresh":
            return {"echo": "refreshed", "pid": os.getpid(), "refresh_worker": True}
        case "list":
            return [1, "two", None]
        case "big":
            return {"data": "x" * 5_000_000}
        case "volume":
            print("the secret is", os.environ["TOKEN"], flush=True)
            folder = Path(os.environ["OWNPOD_VOLUME_MODELS"])
            (folder / "out.txt").write_text(data["text"])
            found = {"path": str(folder), "weights": (folder / "weights.txt").read_text()}
            return found | {"length": len(os.environ["TOKEN"])}
        case _:
            return {"echo": data.get("text", ""), "pid": os.getpid()}


def sync(job):
    data = begin(job)
    time.sleep(data.get("seconds", 0))
    while waits(data):
        time.sleep(0.05)
    mark(data, "-")
    return end(data)


async def asynchronous(job):
    data = begin(job)
    await asyncio.sleep(data.get("seconds", 0))
    while waits(data):  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(0.05)
    mark(data, "-")
    return end(data)


def generator(job):
    data = begin(job)
    for number in range(data.get("count", 3)):
        time.sleep(data.get("seconds", 0))
        yield {"number": number}
    while waits(data):
        time.sleep(0.05)
    mark(data, "-")
    if data.get("do") == "raise":
        raise ValueError("boom")


async def asynchronous_generator(job):
    data = begin(job)
    for number in range(data.get("count", 3)):
        await asyncio.sleep(data.get("seconds", 0))
        yield {"number": number}
    while waits(data):  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(0.05)
    mark(data, "-")


HANDLERS = {
    "sync": sync,
    "async": asynchronous,
    "generator": generator,
    "async-generator": asynchronous_generator,
}
time.sleep(float(os.environ.get("LOAD_S", "0")))
config = {"handler": HANDLERS[os.environ["HANDLER"]]}
if "CONCURRENCY" in os.environ:
    config["concurrency_modifier"] = lambda _: int(os.environ["CONCURRENCY"])
if "REFRESH" in os.environ:
    config["refresh_worker"] = True
if "AGGREGATE" in os.environ:
    config["return_aggregate_stream"] = True
if "CERTIFICATE" in os.environ:
    # The same as behind a proxy with HTTPS that needs a token.
    import uvicorn
    from fastapi.responses import JSONResponse
    from runpod.serverless.modules.rp_fastapi import WorkerAPI

    app = WorkerAPI(config).rp_app

    @app.middleware("http")
    async def check_token(request, call_next):
        if request.headers.get("X-Token") != "let-me-in":
            return JSONResponse({"detail": "a token is needed"}, 401)
        return await call_next(request)

    certificate = os.environ["CERTIFICATE"]
    port = int(sys.argv[sys.argv.index("--rp_api_port") + 1])
    uvicorn.run(app, host="127.0.0.1", port=port, ssl_certfile=certificate, ssl_keyfile=certificate)
else:
    runpod.serverless.start(config)
