"""A server of a load-balanced endpoint that speaks OpenAI's API as vLLM's does: ``python openai_lb_server.py PORT``.

Its texts are the words of the last message. A stream sends one word for each POST to ``/next``, so that a test sees when which
word arrives; ``/seen`` has what has reached it.
"""

import asyncio
import json
import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ownpod.processes import die_with_parent

app = FastAPI()
MODEL = "small"
seen = {"paths": [], "headers": {}, "open": 0, "left": 0}
words = asyncio.Semaphore(0)


@app.get("/ping")
async def ping():
    return Response()


@app.get("/seen")
async def show():
    return seen


@app.post("/next")
async def allow():
    words.release()


@app.get("/v1/models")
async def models(request: Request):
    _note(request)
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}


@app.post("/v1/chat/completions")
async def chat(request: Request):
    _note(request)
    given = await request.json()
    if given["model"] == "busy":
        about = {"message": "too many", "type": "rate_limit_error", "param": None, "code": 429}
        return JSONResponse({"error": about}, 429, {"Retry-After": "7"})
    if given["model"] != MODEL:
        text = f"The model `{given['model']}` does not exist."
        about = {"message": text, "type": "NotFoundError", "param": "model", "code": 404}
        return JSONResponse({"error": about}, 404)
    text = given["messages"][-1]["content"]
    if given.get("stream") is True:
        return StreamingResponse(_events(text.split()), media_type="text/event-stream")
    if text == "wait":
        return await _wait(request)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    return _object("chat.completion", choice) | {"usage": usage}


def _note(request):
    query = f"?{request.url.query}" if request.url.query else ""
    seen["paths"].append(f"{request.method} {request.scope['raw_path'].decode()}{query}")
    seen["headers"] = dict(request.headers)


def _object(kind, choice):
    return {"id": "c-1", "object": kind, "created": 1, "model": MODEL, "choices": [choice]}


async def _events(parts):
    seen["open"] += 1
    try:
        for part in parts:
            await words.acquire()
            choice = {"index": 0, "delta": {"content": part}, "finish_reason": None}
            yield f"data: {json.dumps(_object('chat.completion.chunk', choice))}\n\n"
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        seen["left"] += 1
        raise
    finally:
        seen["open"] -= 1


async def _wait(request):
    """Goes on until the client leaves."""
    seen["open"] += 1
    while (await request.receive())["type"] != "http.disconnect":
        pass
    seen["open"] -= 1
    seen["left"] += 1
    return Response(status_code=499)


if __name__ == "__main__":
    die_with_parent()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
