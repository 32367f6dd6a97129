"""An OpenAI server that answers as vLLM's, without a model: it repeats the words of the request.

Words of the last message that begin with "!" are commands: ``!until=FILE`` and ``!pause=FILE`` (wait until this file exists,
before or after the first word), ``!status=CODE`` (refuse), ``!break`` (an error event after the first word), ``!raise``,
``!note=FILE`` (append "+" at the start, "-" at the end, "x" if the client leaves, each with the number of the process).

As a program it is a load-balanced worker on PORT.
"""

import asyncio
import base64
import contextlib
import json
import os
import struct
import threading
from pathlib import Path

from aiohttp import web

MODEL = "org/small"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"


class Refused(Exception):
    """An answer of vLLM that is an error. ``code``: its HTTP status."""

    def __init__(self, code, message, kind="BadRequestError", param=None):
        super().__init__(message)
        self.code = code
        self.flat = {"message": message, "type": kind, "param": param, "code": code}

    def body(self, *, flat=False):
        """``flat``: as vLLM until 0.10 and SGLang write it."""
        return {"object": "error", **self.flat} if flat else {"error": self.flat}


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def models():
    found = {"id": MODEL, "object": "model", "created": 1700000000, "owned_by": "vllm"}
    return {"object": "list", "data": [found]}


class Order:
    """What a request orders. Raises :class:`Refused` as vLLM does."""

    def __init__(self, route, body):
        if (model := body.get("model", MODEL)) != MODEL:
            raise Refused(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
        if not 0 <= float(body.get("temperature") or 0) <= 2:
            raise Refused(400, "temperature must be in [0, 2]", param="temperature")
        text = self._text(route, body)
        commands = [word[1:].partition("=") for word in text.split() if word.startswith("!")]
        self.commands = {name: value for name, _, value in commands}
        words = [word for word in text.split() if not word.startswith("!")]
        self.prompt_tokens = len(words)
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        self.tokens = [f"{' ' if at else ''}{word}" for at, word in enumerate(words[:limit])]
        self.note("+")
        if "status" in self.commands:
            code = int(self.commands["status"])
            kinds = {429: "RateLimitError", 500: "InternalServerError"}
            raise Refused(code, f"refused with {code}", kinds.get(code, "BadRequestError"))

    @staticmethod
    def _text(route, body):
        found = body.get({CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input"}[route])
        if isinstance(found, list) and found and isinstance(found[-1], dict):
            found = found[-1].get("content")
            if isinstance(found, list):
                found = "".join(part.get("text", "") for part in found)
        if not isinstance(found, str):
            raise Refused(400, "1 validation error: Field required")
        return found

    @property
    def text(self):
        return "".join(self.tokens)

    def usage(self):
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": len(self.tokens)}
        return counts | {"total_tokens": sum(counts.values())}

    def note(self, sign):
        if path := self.commands.get("note"):
            with Path(path).open("a") as file:
                file.write(f"{sign} {os.getpid()}\n")

    async def produce(self):
        """Yields the words. What stops it early is noted, as vLLM aborts a request whose client has left."""
        done = False
        try:
            if "raise" in self.commands:
                raise RuntimeError("the engine is dead")
            await self._wait("until")
            for number, token in enumerate(self.tokens):
                if number == 1:
                    await self._wait("pause")
                    if "break" in self.commands:
                        raise Refused(500, "broken in the middle", "InternalServerError")
                yield token
            done = True
        finally:
            self.note("-" if done else "x")

    async def _wait(self, command):
        while command in self.commands and not Path(self.commands[command]).exists():  # noqa: ASYNC110, ASYNC240 - another process makes the file
            await asyncio.sleep(0.02)


async def answer(route, body):
    """The object of a request that does not stream."""
    if route == MODELS:
        return models()
    if route == EMBEDDINGS:
        return embeddings(body)
    order = Order(route, body)
    async for _ in order.produce():
        pass
    head = {"created": 1700000000, "model": MODEL}
    if route == CHAT:
        message = {"role": "assistant", "content": order.text, "tool_calls": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        found = {"id": "chatcmpl-1", "object": "chat.completion"}
        return {**found, **head, "choices": [choice], "usage": order.usage()}
    if route == COMPLETIONS:
        choice = {"index": 0, "text": order.text, "logprobs": None, "finish_reason": "stop"}
        found = {"id": "cmpl-1", "object": "text_completion"}
        return {**found, **head, "choices": [choice], "usage": order.usage()}
    return response_object(order, "completed")


def embeddings(body):
    if body.get("model") != MODEL:
        raise Refused(404, f"The model `{body.get('model')}` does not exist.", "NotFoundError")
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = []
    for index, text in enumerate(texts):
        vector = [float(len(str(text))), 0.5, -1.0]
        if body.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
        data.append({"object": "embedding", "embedding": vector, "index": index})
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return {"object": "list", "data": data, "model": MODEL, "usage": usage}


def response_object(order, status):
    part = {"type": "output_text", "text": order.text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    found = {"id": "resp_1", "object": "response", "created_at": 1700000000, "status": status}
    found |= {"model": MODEL, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    if status == "in_progress":
        return {**found, "output": []}
    usage = {"input_tokens": order.prompt_tokens, "output_tokens": len(order.tokens)}
    usage |= {"total_tokens": sum(usage.values())}
    usage |= {"input_tokens_details": {"cached_tokens": 0}}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}}
    return {**found, "output": [{**item, "content": [part]}], "usage": usage}


async def events(route, body):
    """Yields the events of a stream, each as the text that the server writes. Raises before the first event only."""
    order = Order(route, body)
    if route == RESPONSES:
        async for event in response_events(order):
            yield event
        return
    chat = route == CHAT
    head = {"id": "chatcmpl-1" if chat else "cmpl-1", "created": 1700000000, "model": MODEL}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"

    def event(choices, **more):
        return f"data: {compact({**head, 'choices': choices, **more})}\n\n"

    def choice(content, finish=None, **delta):
        found = {"index": 0, "logprobs": None, "finish_reason": finish}
        return [found | ({"delta": {**delta, "content": content}} if chat else {"text": content})]

    if chat:
        yield event(choice("", role="assistant"))
    try:
        async with contextlib.aclosing(order.produce()) as tokens:
            async for token in tokens:
                yield event(choice(token))
    except Refused as error:
        yield f"data: {compact(error.body())}\n\n"
        yield "data: [DONE]\n\n"
        return
    yield event(choice("", "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event([], usage=order.usage())
    yield "data: [DONE]\n\n"


async def response_events(order):
    number = 0

    def event(kind, **data):
        nonlocal number
        found = {"type": kind, "sequence_number": number, **data}
        number += 1
        return f"event: {kind}\ndata: {compact(found)}\n\n"

    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    whole = response_object(order, "completed")
    item = whole["output"][0]
    empty = {"type": "output_text", "text": "", "annotations": []}
    begun = {**item, "status": "in_progress", "content": []}
    yield event("response.created", response=response_object(order, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=begun)
    yield event("response.content_part.added", **where, part=empty)
    async with contextlib.aclosing(order.produce()) as tokens:
        async for token in tokens:
            yield event("response.output_text.delta", **where, delta=token, logprobs=[])
    yield event("response.output_text.done", **where, text=order.text, logprobs=[])
    yield event("response.content_part.done", **where, part=item["content"][0])
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=whole)


@web.middleware
async def as_fastapi(request, handler):
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)


def make_app(*, flat=False):
    """The server's app. ``flat``: its errors are SGLang's."""

    async def serve(request):
        body = {}
        try:
            if request.method == "POST":
                body = json.loads(await request.read())
            if not body.get("stream"):
                return web.json_response(text=compact(await answer(request.path, body)))
            source = events(request.path, body)
            first = await anext(source)
        except Refused as error:
            return web.json_response(error.body(flat=flat), status=error.code)
        except RuntimeError as error:
            body = Refused(500, str(error), "InternalServerError").body(flat=flat)
            return web.json_response(body, status=500)
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await reply.prepare(request)
        async with contextlib.aclosing(source):
            await write(reply, first)
            async for event in source:
                await write(reply, event)
        return reply

    async def write(reply, event):
        # In two parts with a pause, so that the reader gets fragments of events.
        half = len(event) // 2
        await reply.write(event[:half].encode())
        await asyncio.sleep(0.001)
        await reply.write(event[half:].encode())

    async def ping(_request):
        return web.json_response({"status": "healthy"})

    app = web.Application(middlewares=[as_fastapi])
    app.router.add_get("/ping", ping)
    app.router.add_get(MODELS, serve)
    for route in (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS):
        app.router.add_post(route, serve)
    return app


async def serve_forever(app, port, ready=None):
    # With cancellation: as vLLM, it stops a request whose client has left.
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    if ready is not None:
        ready.set()
    await asyncio.Event().wait()


def serve_in_thread(port, *, flat=False):
    """Serves until the process ends; returns when it accepts connections."""
    ready = threading.Event()

    def run():
        asyncio.run(serve_forever(make_app(flat=flat), port, ready))

    threading.Thread(target=run, daemon=True).start()
    if not ready.wait(30):
        raise TimeoutError("the server has not started")


if __name__ == "__main__":
    asyncio.run(serve_forever(make_app(), int(os.environ["PORT"])))
