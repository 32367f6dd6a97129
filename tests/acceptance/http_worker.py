"""A worker of a load-balanced endpoint, FastAPI under uvicorn: ``python http_worker.py PORT``. ``/seen`` has what has reached it."""

import asyncio
import json
import os
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from ownpod.processes import die_with_parent

app = FastAPI()
seen = {"now": 0, "most": 0, "requests": 0, "left": 0, "health": 200, "paths": []}


@app.get("/ping")
async def ping():
    return Response(status_code=seen["health"])


@app.get("/seen")
async def show():
    return seen


@app.post("/health/{status}")
async def become(status: int):
    seen["health"] = status


@app.get("/sleep/{seconds}")
@app.post("/sleep/{seconds}")
async def sleep(seconds: float, request: Request, until: str = ""):
    """``until``: at most so long, and no longer than until this file exists."""
    seen["requests"] += 1
    seen["now"] += 1
    seen["most"] = max(seen["most"], seen["now"])
    await request.body()
    left = asyncio.create_task(gone(request))
    ends = asyncio.get_running_loop().time() + seconds
    done = set()
    while not done and (rest := ends - asyncio.get_running_loop().time()) > 0:
        if until and Path(until).exists():  # noqa: ASYNC240
            break
        done, _ = await asyncio.wait({left}, timeout=min(rest, 0.05) if until else rest)
    left.cancel()
    seen["left"] += bool(done)
    seen["now"] -= 1
    return {"pid": os.getpid()}


async def gone(request):
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@app.get("/events/{count}")
async def events(count: int, pause: float = 0.02):
    async def lines():
        for number in range(count):
            yield f"data: {json.dumps(number)}\n\n"
            await asyncio.sleep(pause)

    return StreamingResponse(lines(), media_type="text/event-stream")


@app.websocket("/ws")
async def echo(socket: WebSocket):
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass


@app.post("/count/{number}")
async def count(number: int):
    return {"number": number}


@app.get("/die")
async def die():
    seen["requests"] += 1
    os._exit(1)


@app.get("/status/{status}")
async def answer(status: int):
    return Response(json.dumps({"own": status}), status, media_type="application/json")


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def reflect(request: Request):
    """What has arrived; a large body comes back unchanged."""
    body = await request.body()
    seen["paths"].append(request.scope["raw_path"].decode())
    if len(body) > 100_000:
        return Response(body, media_type="application/octet-stream")
    return {
        "method": request.method,
        "path": request.scope["raw_path"].decode(),
        "query": request.url.query,
        "headers": dict(request.headers),
        "body": body.decode(),
    }


if __name__ == "__main__":
    die_with_parent()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
