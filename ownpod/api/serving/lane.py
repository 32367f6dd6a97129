"""The short way of workers' chunks: one thread adds the chunks of all streams that have arrived meanwhile, in one request to Redis.

A worker posts each chunk of each stream as a request of its own. Through gunicorn's parser, Flask and a thread for each of them,
they were three quarters of an API process's CPU time, and 200 streams delayed one another.

The first chunk of a run goes the long way, which checks everything. A later one goes the short way while its header is the same, byte for
byte, as that of one that was just accepted, see :class:`ownpod.api.workers.reports.Reports`. Where the short way fails, as
without Redis, the request goes the long way, which answers as always; a token prevents a second copy of its chunk.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from gunicorn.util import http_date

from ownpod.api.serving.channel import Channel
from ownpod.api.workers.reports import Attempt, Reports
from ownpod.errors import OwnPodError
from ownpod.rules.payload import chunk_of
from ownpod.store.chunks import Chunks, NewChunk, call_token

log = logging.getLogger(__name__)

MOST = 64
"""Chunks that are added in one request to Redis. More than that only lets the first ones wait for the last."""


class Client(Protocol):
    """A connection whose request has arrived."""

    sock: Channel

    def next_request(self) -> None:
        """Starts the next request after a response."""


Finished = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], None]
"""Is called with connections whose request was answered, those that must be closed, and those whose request must go the long way."""


def goes_uncounted(cfg: Any) -> bool:
    """Whether gunicorn's settings let requests be answered without gunicorn: no access log, no statistics, no maximum number."""
    written = (cfg.accesslog, cfg.logconfig, cfg.logconfig_dict, cfg.logconfig_json)
    return not any((*written, cfg.syslog, cfg.statsd_host, cfg.max_requests))


class Lane:
    """Takes requests, and answers them in a thread of its own, which starts with the first one.

    Args:
        reports: what was just accepted.
        chunks: the store of chunks.
        finished: is called in that thread.
    """

    def __init__(self, reports: Reports, chunks: Chunks, finished: Finished) -> None:
        self._reports, self._chunks, self._finished = reports, chunks, finished
        self._queue = SimpleQueue[tuple[Client, Attempt]]()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def takes(self, conn: Client) -> bool:
        """Takes a connection's request that is READY, if it can go the short way. The connection is not to be used until ``finished`` is called."""
        arrival = conn.sock.arrival
        if arrival.signature is None or arrival.token is not None:
            return False
        if (attempt := self._reports.accepted(arrival.signature)) is None:
            return False
        self._start()
        self._queue.put((conn, attempt))
        return True

    def _start(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="chunks", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while True:
            taken = [self._queue.get()]
            try:
                while len(taken) < MOST:
                    taken.append(self._queue.get_nowait())
            except Empty:
                pass
            self._finished(*self._answered(taken))

    def _answered(
        self, taken: list[tuple[Client, Attempt]]
    ) -> tuple[list[Client], list[Client], list[Client]]:
        added = self._added(taken)
        response = _response()
        kept, broken, others = list[Client](), list[Client](), list[Client]()
        for (conn, _), was_added in zip(taken, added, strict=True):
            channel = conn.sock
            if was_added is None:
                others.append(conn)
                continue
            if not was_added and channel.arrival.signature is not None:
                self._reports.forget(channel.arrival.signature)
            channel.arrival.drop()
            if channel.send_now(response):
                conn.next_request()
                kept.append(conn)
            else:
                broken.append(conn)
        return kept, broken, others

    def _added(self, taken: list[tuple[Client, Attempt]]) -> list[bool | None]:
        """For each, whether its chunk was added, or the job has moved on; None: unknown."""
        new = []
        for conn, (job_id, attempt) in taken:
            arrival = conn.sock.arrival
            arrival.token = call_token()
            new.append(NewChunk(job_id, attempt, chunk_of(arrival.body), arrival.token))
        try:
            return self._chunks.add_all(new)
        except OwnPodError as error:
            log.info("%d chunks go the long way: %s", len(new), error)
        except Exception:
            # All streams of this process depend on this thread.
            log.exception("%d chunks go the long way", len(new))
        return [None] * len(new)


def _response() -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nServer: gunicorn\r\n"
        f"Date: {http_date()}\r\n"
        "Connection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    ).encode()
