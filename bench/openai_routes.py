"""Measures of OpenAI routes: how late the chunks of a stream are, of one and of 200 at once, beside the events of /stream."""

import random
import re
import selectors
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from client import Client, request, spread
from measures import EndpointStats
from system import ENDPOINT, HERE, OwnPod, Processes, Used, processes

from ownpod.rules.pulling import worker_environment

STREAMS = 200
EVERY_S = 1.0
"""Seconds between two chunks of each of many streams."""

ALONE_S = 0.02
"""The same, of a single stream."""

LONGEST_S = 120
"""Seconds until all streams have ended."""

WARM = 3
"""Number of single streams that are not measured."""

KINDS = ("openai", "events")
_SENT = re.compile(rb'"number\\?": (\d+), \\?"at\\?": ([0-9.]+)')
_LAST = b"\r\n0\r\n\r\n"


@dataclass
class Stream:
    """A response that is read: for each chunk when it was sent, and when it arrived."""

    client: Client
    began: float
    end: bytes
    """What a whole stream has near its end."""
    chunks: int
    """How many the worker sends. The last event of /stream has all of them again."""
    sent: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    first_byte: float = 0.0
    ended: float = 0.0
    rest: bytes = b""

    def read(self) -> bool:
        """Reads what has arrived; whether the response has ended. Raises: ConnectionError, if it is not whole."""
        got, now = self.client.socket.recv(1 << 18), time.monotonic()
        data = self.rest + got
        found = list(_SENT.finditer(data))
        for match in found[: self.chunks - len(self.sent)]:
            if int(match[1]) != len(self.sent):
                raise ConnectionError(f"chunk {match[1]!r} instead of {len(self.sent)}")
            self.sent.append(float(match[2]))
            self.arrived.append(now)
        # A chunk that has been split is searched again; one that was found is not.
        self.rest = data[found[-1].end() if found else -2000 :][-2000:]
        if data.endswith(_LAST) or not got:
            if self.end not in data[-2000:] or not got:
                raise ConnectionError(f"the stream is not whole: {data[-300:]!r}")
            self.ended = now
            return True
        return False

    @property
    def late_ms(self) -> list[float]:
        return [(at - sent) * 1000 for sent, at in zip(self.sent, self.arrived, strict=True)]


def _opened(kind: str, port: int, chunks: int, every_s: float, phase: float) -> Stream:
    """A request for a stream, which was sent; see streamer.py for its values."""
    given = {"stream": True, "chunks": chunks, "every_s": every_s, "phase": phase, "messages": []}
    if kind == "openai":
        path, began = f"/v2/{ENDPOINT}/openai/v1/chat/completions", time.monotonic()
        stream = Stream(Client(port), began, b"data: [DONE]", chunks)
        stream.client.socket.sendall(request("POST", path, given))
        return stream
    body = {"input": {"openai_route": "/v1/chat/completions", "openai_input": given}}
    began = time.monotonic()
    client = Client(port)
    job_id = client.ask(request("POST", f"/v2/{ENDPOINT}/run", body)).json()["id"]
    asked = request("GET", f"/v2/{ENDPOINT}/stream/{job_id}")
    client.socket.sendall(asked.replace(b"\r\n", b"\r\nAccept: text/event-stream\r\n", 1))
    return Stream(client, began, b'"]}\n\n', chunks)


def _read(coming: Iterable[Stream], pause_s: float = 0.0) -> list[Stream]:
    """Opens streams, one each ``pause_s``, and reads all of them to their ends."""
    todo, found, next_s = iter(coming), list[Stream](), time.monotonic()
    until, is_coming = next_s + LONGEST_S, True
    with selectors.DefaultSelector() as selector:
        while selector.get_map() or is_coming:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(selector.get_map())} streams have not ended")
            if is_coming and time.monotonic() >= next_s:
                next_s += pause_s
                if is_coming := (stream := next(todo, None)) is not None:
                    selector.register(stream.client.socket, selectors.EVENT_READ, stream)
                    found.append(stream)
            left_s = max(0.0, next_s - time.monotonic()) if is_coming else 1.0
            for key, _ in selector.select(left_s):
                if key.data.read():
                    selector.unregister(key.fileobj)
                    key.data.client.close()
    return found


def _system(group: Processes) -> OwnPod:
    """One API process, and a worker that runs many jobs at once."""
    system = OwnPod(group, [], [], api=1)
    url = f"http://127.0.0.1:{system.port}/v2/{ENDPOINT}"
    values = worker_environment(url, "streams", key="any")
    group.start(HERE / "streamer.py", STREAMS=STREAMS, **values)
    system.ready(1)
    return system


def openai(_stage: object, *, quick: bool) -> EndpointStats:
    """One stream at a time of an OpenAI route, in turn with the events of /stream: how late each chunk arrives."""
    count, chunks = (20, 20) if quick else (60, 50)
    found: dict[str, list[Stream]] = {kind: [] for kind in KINDS}
    chance = random.Random(1)
    with processes() as group:
        system = _system(group)
        for _ in range(count + WARM):
            for kind in KINDS:
                found[kind] += _read([_opened(kind, system.port, chunks, ALONE_S, chance.random())])
    figures: EndpointStats = {}
    for kind, streams in found.items():
        measured = streams[WARM:]
        figures |= spread(f"{kind}_first_ms", [stream.late_ms[0] for stream in measured])
        figures |= spread(f"{kind}_ms", [ms for stream in measured for ms in stream.late_ms[1:]])
        whole = [(stream.arrived[0] - stream.began) * 1000 for stream in measured]
        figures |= spread(f"{kind}_whole_ms", whole)
    return figures | {"ratio": figures["openai_ms_p50"] / figures["events_ms_p50"]}


def openai_streams(_stage: object, *, quick: bool) -> EndpointStats:
    """200 streams at once in one API process, of an OpenAI route and then of /stream's events: how late a chunk is, its CPU, and the most chunks a second."""
    chunks = 8 if quick else 20
    figures: EndpointStats = {}
    with processes() as group:
        system = _system(group)
        for kind in KINDS:
            # Not measured: threads are created, and code runs for the first time.
            _many(kind, system, 2, 0.2)
            used = Used(system)
            streams = _many(kind, system, chunks, EVERY_S)
            for name, ms in used.per_job(sum(len(one.sent) for one in streams)).items():
                figures[f"{kind}_{name.removeprefix('cpu_')}"] = ms
            # While all of them are open: what comes before and after is the opening and the end of 200 requests.
            begin = max(stream.arrived[0] for stream in streams)
            end = min(stream.ended for stream in streams)
            late = [
                ms
                for stream in streams
                for sent, ms in zip(stream.sent, stream.late_ms, strict=True)
                if begin <= sent <= end
            ]
            figures[f"{kind}_open"] = len(streams)
            figures |= spread(f"{kind}_ms", late)
            busy = _many(kind, system, chunks, 0.0)
            took_s = max(one.ended for one in busy) - min(one.sent[0] for one in busy)
            figures[f"{kind}_per_s"] = len(busy) * chunks / took_s
    figures["ratio"] = figures["openai_ms_p99"] / figures["events_ms_p99"]
    figures["api_ratio"] = figures["openai_api_ms"] / figures["events_api_ms"]
    return figures


def _many(kind: str, system: OwnPod, chunks: int, every_s: float) -> list[Stream]:
    """Many streams, which are opened one after the other. When in a pause the chunks of each come is left to chance, with a fixed seed."""
    chance = random.Random(STREAMS)
    coming = (_opened(kind, system.port, chunks, every_s, chance.random()) for _ in range(STREAMS))
    streams = _read(coming, every_s / STREAMS)
    if any(len(stream.sent) != chunks for stream in streams):
        raise ConnectionError("a stream has not had all of its chunks")
    return streams
