"""Small servers to compare with: ``python servers.py waits|copy PORT``."""

import asyncio
import json
import re
import socket
import sys
import uuid

from ownpod.processes import die_with_parent

MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Waits(asyncio.Protocol):
    """Many workers with the SDK's local API whose handler sleeps: `/status` answers after a quarter of a second.
    All other requests get 404.
    """

    def connection_made(self, transport):
        self._transport = transport
        self._rest = b""

    def data_received(self, data):
        self._rest += data
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        found = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        length = int(found[1]) if found else 0
        if not end or len(rest) < length:
            return
        self._rest = rest[length:]
        path = head.split(b" ", 2)[1].decode()
        run = path.rpartition("/")[2]
        if path.endswith("/run"):
            self._answer({"id": f"test-{uuid.uuid4()}", "status": "IN_PROGRESS"})
        elif "/stream/" in path:
            error = "Stream not supported, handler must be a generator."
            self._answer({"id": run, "status": "FAILED", "error": error})
        elif "/status/" in path:
            answer = {"id": run, "status": "COMPLETED", "output": {"ok": True}}
            asyncio.get_running_loop().call_later(0.25, self._answer, answer)
        else:
            self._transport.write(MISSING)

    def _answer(self, answer):
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._transport.write(f"{head}\r\n\r\n".encode() + body)


async def waits(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Waits, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def copy(port: int) -> None:
    """Reads 8 bytes of length and as many bytes, and sends those back: the cost of the transfer alone."""
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                while length := int.from_bytes(receive(connection, 8)):
                    connection.sendall(receive(connection, length))


def receive(connection: socket.socket, length: int) -> bytearray:
    """Reads ``length`` bytes; returns b"" if the other side has closed the connection."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            return bytearray()
        view = view[count:]
    return data


if __name__ == "__main__":
    die_with_parent()
    if sys.argv[1] == "copy":
        copy(int(sys.argv[2]))
    else:
        asyncio.run(waits(int(sys.argv[2])))
