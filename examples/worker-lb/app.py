"""A worker of a load-balanced endpoint: any HTTP server that listens on ``PORT`` and answers ``/ping``."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator

import uvicorn
from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

WORKER = os.environ.get("RUNPOD_POD_ID", "by-hand")
loaded = asyncio.Event()
busy = {"now": 0, "most": 0}


@contextlib.asynccontextmanager
async def load(_: FastAPI) -> AsyncIterator[None]:
    """Loads the model. Until it is there, ``/ping`` answers 204: starting, and no requests yet."""
    asyncio.get_running_loop().call_later(float(os.environ.get("LOAD_S", "0")), loaded.set)
    yield


app = FastAPI(lifespan=load)


class Prompt(BaseModel):
    """The body of ``/generate``. FastAPI answers 422 to another one, and the client gets that answer."""

    text: str
    seconds: float = 0.0


@app.get("/ping")
async def ping() -> Response:
    """200: ready, 204: starting, anything else: broken."""
    return Response(status_code=200 if loaded.is_set() else 204)


@app.post("/generate")
async def generate(prompt: Prompt) -> dict[str, object]:
    """Answers after ``seconds``, with the worker's id and the largest number of requests that it had at a time."""
    busy["now"] += 1
    busy["most"] = max(busy.values())
    try:
        await asyncio.sleep(prompt.seconds)
    finally:
        busy["now"] -= 1
    return {"worker": WORKER, "text": prompt.text.upper(), "most_at_once": busy["most"]}


@app.get("/stream")
async def stream(count: int = 5) -> StreamingResponse:
    """Server-sent events, one each 0.2 seconds."""

    async def events() -> AsyncIterator[str]:
        for number in range(count):
            yield f"data: {json.dumps({'number': number})}\n\n"
            await asyncio.sleep(0.2)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.websocket("/ws")
async def echo(socket: WebSocket) -> None:
    """Sends back what it gets."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(f"{WORKER}: {await socket.receive_text()}")
    except WebSocketDisconnect:
        pass


if __name__ == "__main__":
    # All addresses, not 127.0.0.1, because in a container the front comes from outside.
    host = os.environ.get("HOST", "0.0.0.0")
    uvicorn.run(app, host=host, port=int(os.environ.get("PORT", "80")), log_level="warning")
