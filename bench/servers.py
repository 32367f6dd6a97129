"""Small servers to compare with: ``python servers.py missing|copy PORT``."""

import asyncio
import socket
import sys

from ownpod.processes import die_with_parent

MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Missing(asyncio.Protocol):
    """Answers 404 to each request without a body, and keeps the connection: a worker at rest."""

    def connection_made(self, transport):
        self._transport = transport
        self._rest = b""

    def data_received(self, data):
        self._rest += data
        while b"\r\n\r\n" in self._rest:
            _, self._rest = self._rest.split(b"\r\n\r\n", 1)
            self._transport.write(MISSING)


async def missing(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Missing, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def copy(port: int) -> None:
    """Takes 8 bytes of length and so many bytes, and sends these back: the plain cost of the way."""
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            with connection:
                while length := int.from_bytes(receive(connection, 8)):
                    connection.sendall(receive(connection, length))


def receive(connection: socket.socket, length: int) -> bytearray:
    """So many bytes; none when the other side has hung up."""
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
    if sys.argv[1] == "missing":
        asyncio.run(missing(int(sys.argv[2])))
    else:
        copy(int(sys.argv[2]))
