"""Workers on the real SDK that answer as RunPod's own workers do; the environment's KIND names the one.

``vllm``: worker-vllm since 2026-08, a proxy of `vllm serve`. ``vllm-mid`` and ``vllm-mid-raw0``: before, with the engine in
the process, RAW_OPENAI_OUTPUT=1 and 0. ``vllm-29``: its older error objects. ``sglang``: worker-sglang. ``infinity``:
worker-infinity-embedding. What they yield was read in their handlers.
"""

import json
import os
import socket

import aiohttp
import llm_engine
import requests
from llm_engine import CHAT, COMPLETIONS, EMBEDDINGS, MODEL, MODELS, RESPONSES, Refused

KIND = os.environ["KIND"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


SERVER_PORT = free_port()
SERVER = f"http://127.0.0.1:{SERVER_PORT}"


def worker_error(message):
    return {"error": {"message": message, "type": "worker_error", "code": None}}


async def vllm(job):
    data = job.get("input") or {}
    if data.get("openai_input"):
        route, method, body = data.get("openai_route") or CHAT, "POST", data["openai_input"]
    elif data.get("openai_route"):
        route, method, body = data["openai_route"], "GET", None
    elif "prompt" in data:
        route, method, body = COMPLETIONS, "POST", {"prompt": data["prompt"], "model": MODEL}
    else:
        yield worker_error("Job input must contain one of: openai_input (+openai_route), ...")
        return
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{SERVER}{route}", json=body) as response,
        ):
            if response.status >= 400:
                text = await response.text()
                yield worker_error(f"vLLM returned HTTP {response.status}: {text}")
            elif isinstance(body, dict) and body.get("stream") is True:
                async for fragment in response.content.iter_any():
                    yield fragment.decode("utf-8", errors="replace")
            else:
                yield await response.json(content_type=None)
    except aiohttp.ClientError as error:
        yield worker_error(f"Request to vLLM failed: {error}")


def in_process(*, raw, flat):
    """The worker's handler with the engine in its process. ``raw``: strings, else lists. ``flat``: 2.9's errors."""

    async def openai(data):
        route, body = data["openai_route"], data["openai_input"]
        routes = (CHAT, COMPLETIONS) if flat else (CHAT, COMPLETIONS, RESPONSES)
        if route == MODELS:
            yield llm_engine.models()
            return
        if route not in routes:
            yield Refused(400, "Invalid route").body(flat=flat)
            return
        try:
            if not body.get("stream"):
                yield await llm_engine.answer(route, body)
                return
            source = llm_engine.events(route, body)
            first = await anext(source)
        except Refused as error:
            yield error.body(flat=flat)
            return
        if route == RESPONSES:
            yield first
            async for event in source:
                yield event
            return
        batch, size = [], 1

        def add(event):
            if raw:
                batch.append(event)
            elif "[DONE]" not in event:
                batch.append(json.loads(event.removeprefix("data: ").rstrip("\n")))

        add(first)
        async for event in source:
            if len(batch) >= size:
                yield "".join(batch) if raw else list(batch)
                batch.clear()
                size = min(size * 3, 50)
            add(event)
        if batch:
            yield "".join(batch) if raw else list(batch)

    async def native(data):
        text = data["prompt"]
        usage = {"input": len(text.split()), "output": 1}
        yield {"choices": [{"tokens": [text]}], "usage": usage}

    def source_of(job):
        return (openai if job["input"].get("openai_route") else native)(job["input"])

    async def handler_29(job):
        async for item in source_of(job):
            yield item

    async def handler_mid(job):
        try:
            async for item in source_of(job):
                yield item
        except Exception as error:  # noqa: BLE001 - as the worker does
            yield {"error": str(error)}

    return handler_29 if flat else handler_mid


def sglang_events(response):
    for line in response.iter_lines():
        chunk = line.decode().strip().removeprefix("data: ")
        if not chunk:
            continue
        try:
            lines = json.dumps(json.loads(chunk), indent=4).split("\n")
        except ValueError:
            lines = [chunk]
        yield "\n".join(f"data: {line}" for line in lines) + "\n\n"


async def sglang(job):
    # It blocks the SDK's loop, as worker-sglang does.
    data = job["input"]
    route, body = data["openai_route"], data.get("openai_input")
    response = requests.post(SERVER + route, json=body, timeout=60)  # noqa: ASYNC210 - it blocks the loop, too
    if body.get("stream", False):
        for event in sglang_events(response):
            yield event
    else:
        for line in response.iter_lines():
            if line:
                yield line.decode()


async def infinity(job):
    data = job["input"]
    route, body = data.get("openai_route"), data.get("openai_input")
    if route == MODELS:
        found = {"id": MODEL, "stats": {}, "object": "model", "owned_by": "infinity"}
        return {"data": [found | {"created": 1700000000, "backend": "torch"}], "object": "list"}
    if route != EMBEDDINGS:
        return Refused(400, f"Invalid OpenAI Route: {route}").body(flat=True)
    if body.get("model") != MODEL:
        text = f"Engine for model name {body.get('model')} not found."
        return Refused(400, text).body(flat=True)
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    return [llm_engine.embeddings({"model": MODEL, "input": texts})]


HANDLERS = {
    "vllm": vllm,
    "vllm-mid": in_process(raw=True, flat=False),
    "vllm-mid-raw0": in_process(raw=False, flat=False),
    "vllm-29": in_process(raw=True, flat=True),
    "sglang": sglang,
    "infinity": infinity,
}

if __name__ == "__main__":
    if KIND in {"vllm", "sglang"}:
        llm_engine.serve_in_thread(SERVER_PORT, flat=KIND == "sglang")
    import runpod

    concurrency = int(os.environ.get("MAX_CONCURRENCY", "30"))
    config = {"handler": HANDLERS[KIND], "concurrency_modifier": lambda _current: concurrency}
    if KIND != "infinity":
        config["return_aggregate_stream"] = True
    runpod.serverless.start(config)
