"""Parts of tests of the front: HAProxy on free ports, and small workers over HTTP and WebSocket."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import uvicorn
from helpers import wait_until

from ownpod.front.balancer import Balancer
from ownpod.front.binary import find_haproxy
from ownpod.front.layout import Layout
from ownpod.processes import free_port
from ownpod.rules.balancing import Balancing, FrontState, Route, Server
from ownpod.rules.credentials import digest_of

KEY = "key-of-tests"
Scope = MutableMapping[str, Any]


@dataclass
class WebWorker:
    """A worker of a load-balanced endpoint: a small ASGI app under a real uvicorn.

    Paths: /ping, /echo (the request as JSON), /hold (answers when ``release`` is set), /status/<code>, /events (a
    stream that goes on until ``release``), /upload (bytes of the body), and a WebSocket at any path, which echoes.
    """

    name: str = "w1"
    health: int = 200
    port: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most: int = 0
    """Most requests at a time."""
    seen: list[str] = field(default_factory=list)
    aborted: int = 0
    """Requests whose client left."""
    loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def serving(self) -> Iterator["WebWorker"]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_level="error",
            lifespan="off",
            ws="websockets-sansio",
            proxy_headers=False,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started, what="uvicorn serves")
        try:
            yield self
        finally:
            self.let_go()
            server.should_exit = server.force_exit = True
            thread.join(60)
            listener.close()

    def let_go(self) -> None:
        """Has the held requests and streams end."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.release.set)

    def server(self, **more: Any) -> Server:
        return Server(self.name, "127.0.0.1", self.port, **more)

    async def _app(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Scope]],
        send: Callable[[Scope], Awaitable[None]],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        if scope["type"] == "websocket":
            await self._socket(receive, send)
            return
        path = scope["path"]
        if path == "/ping":
            await _answer(send, self.health, b"")
            return
        self.running += 1
        self.most = max(self.most, self.running)
        self.seen.append(f"{scope['method']} {scope['raw_path'].decode()}")
        try:
            await self._request(scope, receive, send)
        finally:
            self.running -= 1

    async def _request(self, scope: Scope, receive: Any, send: Any) -> None:
        path = scope["path"]
        if path.startswith("/status/"):
            await _answer(send, int(path.rpartition("/")[2]), b"from the worker")
        elif path == "/hold":
            await self._hold(receive, send)
        elif path == "/events":
            await self._events(send)
        elif path == "/upload":
            size = 0
            while True:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
            await _answer(send, 200, str(size).encode())
        else:
            headers = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
            shown = {
                "worker": self.name,
                "method": scope["method"],
                "path": scope["raw_path"].decode(),
                "query": scope["query_string"].decode(),
                "headers": headers,
            }
            more = [(b"x-runpod-worker-id", b"forged")]
            await _answer(send, 200, json.dumps(shown).encode(), more)

    async def _hold(self, receive: Any, send: Any) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        left = asyncio.create_task(gone())
        freed = asyncio.create_task(self.release.wait())
        done, rest = await asyncio.wait({left, freed}, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        if left in done:
            self.aborted += 1
            return
        await _answer(send, 200, self.name.encode())

    async def _events(self, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
        await self.release.wait()
        await send({"type": "http.response.body", "body": b"data: last\n\n"})

    async def _socket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "headers": [(b"x-worker", self.name.encode())]})
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            while (message := await receive())["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": f"{self.name}: {message['text']}"})
        finally:
            self.running -= 1


async def _answer(
    send: Any, status: int, body: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-length", str(len(body)).encode()), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Front:
    """HAProxy as the front, with endpoints whose workers are given."""

    balancer: Balancer
    port: int
    api_port: int
    directory: Path
    layout: Layout

    def url(self, path: str, endpoint: str = "ep") -> str:
        return f"http://127.0.0.1:{self.port}/lb/{endpoint}{path}"

    def apply(
        self, *servers: Server, keys: bool = True, lost: Collection[str] = (), **values: Any
    ) -> FrontState:
        """Has the endpoint "ep" with these servers and limits."""
        state = FrontState(
            routes={
                "ep": Route(
                    "ep",
                    Balancing(**values),
                    tuple(servers),
                    is_limited=bool(values.get("capacity")),
                )
            },
            queues={"queue"},
            keys={"*": {digest_of(KEY)}, "other": {digest_of("key-of-other")}} if keys else None,
            lost={"ep": lost},
        )
        self.balancer.apply(state)
        return state

    def get(self, path: str = "/echo", method: str = "GET", **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {KEY}"} | more.pop("headers", {})
        more.setdefault("timeout", 100)
        return requests.request(method, self.url(path), headers=headers, **more)

    def background(self, path: str, **more: Any) -> "Background":
        return Background(lambda: self.get(path, **more))

    def reading(self, endpoint: str = "ep") -> Any:
        return self.balancer.read()[endpoint]

    def shown(self, path: str) -> Any:
        """What the worker got of a request whose path no client has changed."""
        raw = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY}\r\nConnection: close\r\n\r\n"
        return json.loads(self.raw(raw.encode()).partition(b"\r\n\r\n")[2])

    def raw(self, data: bytes, wait_s: float = 5.0) -> bytes:
        """What the front answers to these bytes, until it closes or has sent nothing more for a moment."""
        with socket.create_connection(("127.0.0.1", self.port), wait_s) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    received += part
            return received


class Background:
    """A request in a thread."""

    def __init__(self, call: Callable[[], requests.Response]) -> None:
        self._answer: requests.Response | Exception | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._call()
        except Exception as error:  # noqa: BLE001 - the test reads it
            self._answer = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def answer(self, seconds: float = 100) -> requests.Response:
        self._thread.join(seconds)
        assert self.done, "no answer in time"
        if isinstance(self._answer, Exception):
            raise self._answer
        assert self._answer is not None
        return self._answer


@contextlib.contextmanager
def front(directory: Path, **values: Any) -> Iterator[Front]:
    """A front on a free port, before its first state."""
    haproxy = find_haproxy()
    assert haproxy.path is not None, haproxy.problem
    port, api_port = free_port(), values.pop("api_port", None) or free_port()
    layout = Layout(binds=(("127.0.0.1", port),), api=("127.0.0.1", api_port), **values)
    balancer = Balancer(layout, directory, haproxy.path)
    balancer.start()
    try:
        yield Front(balancer, port, api_port, directory, layout)
    finally:
        balancer.stop()
