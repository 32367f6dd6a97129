"""200 streams of an OpenAI route at once in one API process: each client gets all of its own chunks, once and in order."""

import contextlib
import json
import re
import socket

import psutil
import pytest
import requests
from helpers import job_store, one_api, wait_until
from test_many_streams import read

from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome
from ownpod.store import keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STREAMS, CHUNKS = 200, 12
DONE = "data: [DONE]\n\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""The end of a chunked response."""
USAGE = {"prompt_tokens": 3, "completion_tokens": CHUNKS}


@pytest.fixture
def api(client, redis_server, tmp_path):
    """The port and process of one API process."""
    with one_api(tmp_path, redis_server.url) as found:
        yield found


def opened(port, name):
    """A connection with a request for a streamed chat."""
    body = json.dumps({"model": "m", "messages": [], "stream": True, "user": name}).encode()
    sock = socket.create_connection(("127.0.0.1", port), 60)
    sock.sendall(
        b"POST /v2/ep/openai/v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return sock


def event(**data):
    return f"data: {json.dumps(data)}\n\n"


def events_of(name):
    """The events of a chat, the last one with its tokens."""
    words = [event(choices=[{"delta": {"content": f"{name} {n}"}}]) for n in range(CHUNKS)]
    return [*words, event(choices=[], usage=USAGE)]


def body_of(response):
    """The text of a chunked response."""
    head, _, rest = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), response[:500]
    assert re.search(rb"(?i)content-type: text/event-stream", head)
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body.decode()


def test_200_streams_of_one_process_each_get_all_their_chunks_once_and_in_order(api, client):
    port, process = api
    store, names = job_store(client), [f"client-{number}" for number in range(STREAMS)]
    url = f"http://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        socks = {
            stack.enter_context(contextlib.closing(opened(port, name))): name for name in names
        }
        wait_until(lambda: client.zcard(keys.queued("ep")) == STREAMS, 60, "all jobs")
        attempts = {}
        for job_id in client.zrange(keys.queued("ep"), 0, -1):
            attempt = store.jobs.claim(job_id, worker_id="w", claim=job_id, lease_s=60)
            attempts[json.loads(attempt.input)["openai_input"]["user"]] = attempt
        assert set(attempts) == set(names)
        # All streams are open at the same time: none has ended before all have begun.
        for number in range(CHUNKS + 1):
            for name, attempt in attempts.items():
                text = events_of(name)[number]
                # Of every other worker an event comes in two fragments.
                cut = len(text) // 2 if int(name.partition("-")[2]) % 2 else len(text)
                parts = [json.dumps(part) for part in (text[:cut], text[cut:]) if part]
                for part in parts:
                    assert store.chunks.add(attempt.job_id, attempt.number, [part])
        assert requests.get(f"{url}/health", timeout=30).ok
        for attempt in attempts.values():
            store.jobs.finish(attempt, Outcome(JobStatus.COMPLETED, output="[]", execution_ms=500))
        had = read(socks, LAST_CHUNK, 150)
    for sock, response in had.items():
        assert body_of(response) == "".join([*events_of(socks[sock]), DONE])
    worker = psutil.Process(process.pid).children()[0]
    wait_until(
        lambda: (
            not [
                found
                for found in worker.net_connections()
                if found.status == "ESTABLISHED" and found.laddr.port == port
            ]
        ),
        30,
        "the end of all connections",
    )
    # Nothing waits for the jobs any more.
    wait_until(lambda: not client.zcard(keys.ATTENDED))
    counts = [
        f'ownpod_openai_{name}_count{{endpoint="ep"}} {STREAMS}.0'
        for name in ("time_to_first_token_seconds", "output_tokens_per_second")
    ]
    rate = f'ownpod_openai_output_tokens_per_second_sum{{endpoint="ep"}} {STREAMS * CHUNKS * 2}.0'

    def all_counted():
        metrics = requests.get(f"{url}/metrics", timeout=60).text
        return all(line in metrics for line in [*counts, rate])

    wait_until(all_counted)
