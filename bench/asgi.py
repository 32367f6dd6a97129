"""A worker of a load-balanced endpoint for the measures: ``uvicorn asgi:app``. A bare ASGI application, so that it costs little.

``/noop``, ``/sleep/<seconds>``, ``/events/<count>`` (each event has the time at which it was sent), and an echoing WebSocket at any path.
"""

import asyncio
import json
import time

PAUSE_S = 0.02
"""Seconds between two events."""


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await echo(receive, send)
    elif scope["type"] == "http":
        _, name, argument = f"{scope['path']}/".split("/")[:3]
        if name == "events":
            await events(int(argument), send)
        else:
            await asyncio.sleep(float(argument or 0))
            await answer(send)


async def answer(send):
    body = b'{"ok": true}'
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def events(count, send):
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(count):
        event = f"data: {json.dumps({'at': time.monotonic()})}\n\n"
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await asyncio.sleep(PAUSE_S)
    await send({"type": "http.response.body", "body": b""})


async def echo(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text") or ""})
