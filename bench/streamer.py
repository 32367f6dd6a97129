"""A worker that asks for jobs as the SDK does, and streams as worker-vllm does: one event of a chat for each chunk, in a request of its own.

A job's ``openai_input`` has ``chunks``, how many, ``every_s``, the pause from one to the next, and ``phase``, from 0 to 1, when in a
pause they come. Each event has its number and when it was sent.
"""

import asyncio
import json
import os
import time
from urllib.parse import urlsplit

from ownpod.processes import die_with_parent

MOST = int(os.environ["STREAMS"])
WORKER, KEY = os.environ["RUNPOD_POD_ID"], os.environ["RUNPOD_AI_API_KEY"]
TAKE = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", WORKER)
STREAM, DONE = (
    os.environ[f"RUNPOD_WEBHOOK_POST_{what}"].replace("$RUNPOD_POD_ID", WORKER)
    for what in ("STREAM", "OUTPUT")
)


HEADER = (
    f"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nAuthorization: {KEY}\r\n"
    "User-Agent: RunPod-Python-SDK/1.12.0(Linux 6.1.0; x86_64) Language/Python 3.11.7\r\n"
    "charset: utf-8\r\nContent-Type: application/x-www-form-urlencoded\r\n"
)
"""What the SDK sends with each request, beside ``Host``, ``Content-Length`` and, with a job's id, ``X-Request-ID``."""


class Connection:
    """A connection of raw bytes, because an HTTP library needs as much CPU for a request as OwnPod."""

    def __init__(self) -> None:
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, url: str, body: str = "", job_id: str = ""
    ) -> tuple[int, bytes]:
        """Sends a request, about a job; returns status and body of the answer."""
        parts = urlsplit(url)
        if self._streams is None:
            self._streams = await asyncio.open_connection(parts.hostname, parts.port)
        reader, writer = self._streams
        data = body.encode()
        writer.write(
            f"{method} {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\n{HEADER}"
            f"X-Request-ID: {job_id or WORKER}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        answer = await reader.readexactly(int(length or 0))
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), answer

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def event(number: int) -> str:
    """The chunk: an event as vLLM's, as text."""
    about = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1780000000,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}],
        "number": number,
        "at": time.monotonic(),
    }
    return f"data: {json.dumps(about)}\n\n"


async def run(job: dict) -> None:
    """Streams one job."""
    given, id_ = job["input"]["openai_input"], job["id"]
    connection, every_s = Connection(), given["every_s"]
    begin = time.monotonic()
    if every_s:
        begin += (given["phase"] * every_s - begin) % every_s
    for number in range(given["chunks"]):
        await asyncio.sleep(max(0.0, begin + number * every_s - time.monotonic()))
        await connection.ask(
            "POST", STREAM.replace("$ID", id_), json.dumps({"output": event(number)}), id_
        )
    url = f"{DONE.replace('$ID', id_)}&isStream=true"
    await connection.ask("POST", url, json.dumps({"output": []}), id_)
    connection.close()


async def main() -> None:
    connection = Connection()
    running: set[asyncio.Task[None]] = set()
    while True:
        running = {task for task in running if not task.done()}
        if len(running) >= MOST:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            continue
        url = TAKE.replace("/job-take/", "/job-take-batch/")
        url += f"&batch_size={MOST - len(running)}&job_in_progress={int(bool(running))}"
        try:
            status, body = await connection.ask("GET", url)
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
            await asyncio.sleep(0.1)
            continue
        if status == 200:
            running |= {asyncio.create_task(run(job)) for job in json.loads(body)}


if __name__ == "__main__":
    die_with_parent()
    asyncio.run(main())
