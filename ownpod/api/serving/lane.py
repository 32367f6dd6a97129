"""The short way of workers' chunks: one thread adds the chunks of all streams that have arrived meanwhile, in one request to Redis.

A worker posts each chunk of each stream as a request of its own. Through gunicorn's parser, a thread and Flask, these requests took three
quarters of an API process's CPU time, and the chunks of 200 streams waited for one another.

The first chunk of a run goes the long way, which checks everything; after it, one chunk a minute does. The others go the short way while
their header is the same, byte for byte, as that of a chunk that was accepted, see :class:`ownpod.api.workers.reports.Reports`. Where
the short way fails, as without Redis, the request goes the long way, which answers as always; a token prevents a second copy of its chunk.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from gunicorn.util import http_date

from ownpod.api.serving.channel import Channel
from ownpod.api.workers.reports import KnownHeader, Reports
from ownpod.errors import OwnPodError
from ownpod.rules.payload import chunk_of
from ownpod.store.chunks import Chunks, NewChunk, call_token

log = logging.getLogger(__name__)

BATCH = 64
"""Number of chunks that are added in one request to Redis, at most. With more, the first one would wait too long for the last one."""

HOOKS = ("pre_request", "post_request")
"""gunicorn's settings of functions that are called for each request."""


class HasRequest(Protocol):
    """A connection whose request has arrived."""

    sock: Channel

    def next_request(self) -> None:
        """Starts the next request after a response."""


@dataclass
class Finished:
    """Connections that the lane has finished with."""

    kept: list[Any] = field(default_factory=list)
    """Their request was answered."""
    broken: list[Any] = field(default_factory=list)
    """They must be closed."""
    long_way: list[Any] = field(default_factory=list)
    """Their request must go the long way."""


def may_answer(cfg: Any) -> bool:
    """Whether gunicorn's settings let requests be answered without gunicorn: connections are kept, and nothing counts, logs or
    watches requests.
    """
    seen = (cfg.accesslog, cfg.logconfig, cfg.logconfig_dict, cfg.logconfig_json)
    counted = (*seen, cfg.syslog, cfg.statsd_host, cfg.max_requests)
    hooks = [cfg.settings[name] for name in HOOKS]
    watched = any(hook.get() != hook.default for hook in hooks)
    return bool(cfg.keepalive) and not watched and not any(counted)


class Lane:
    """Takes requests, and answers them in a thread of its own, which starts with the first one.

    Args:
        reports: what was accepted.
        chunks: the store of chunks.
        finished: is called in that thread.
    """

    def __init__(
        self, reports: Reports, chunks: Chunks, finished: Callable[[Finished], None]
    ) -> None:
        self._reports, self._chunks, self._finished = reports, chunks, finished
        self._queue = SimpleQueue[tuple[HasRequest, KnownHeader]]()
        self._lock = threading.Lock()
        self._has_started = False

    def takes(self, conn: HasRequest) -> bool:
        """Takes a connection's request that is READY, if it can go the short way. The connection is not to be used until ``finished``
        is called.
        """
        arrival = conn.sock.arrival
        if arrival.header_digest is None:
            return False
        header = self._reports.known(arrival.header_digest)
        if header is None or not self._ensure_started():
            return False
        self._queue.put((conn, header))
        return True

    def _ensure_started(self) -> bool:
        if not self._has_started:
            with self._lock:
                if not self._has_started:
                    try:
                        threading.Thread(target=self._run, name="lane", daemon=True).start()
                    except RuntimeError as error:
                        # The system has no thread left.
                        log.warning("chunks go the long way: %s", error)
                        return False
                    self._has_started = True
        return True

    def _run(self) -> None:
        while True:
            self._finished(self._answered([self._queue.get(), *self._waiting(BATCH - 1)]))

    def _waiting(self, most: int | None = None) -> list[tuple[HasRequest, KnownHeader]]:
        """The requests that wait, at most ``most``; None: all."""
        found: list[tuple[HasRequest, KnownHeader]] = []
        try:
            while most is None or len(found) < most:
                found.append(self._queue.get_nowait())
        except Empty:
            pass
        return found

    def _answered(self, batch: list[tuple[HasRequest, KnownHeader]]) -> Finished:
        finished = Finished()
        if (added := self._added(batch)) is None:
            # Otherwise those that wait would wait until the next call fails, too.
            finished.long_way += [conn for conn, _ in (*batch, *self._waiting())]
            return finished
        date = http_date()
        for (conn, header), was_added in zip(batch, added, strict=True):
            digest = conn.sock.arrival.header_digest
            if not was_added and digest is not None:
                self._reports.forget(digest)
            if was_added is None:
                finished.long_way.append(conn)
            elif _answer(conn, _response(date, header.request_id)):
                finished.kept.append(conn)
            else:
                finished.broken.append(conn)
        return finished

    def _added(self, batch: list[tuple[HasRequest, KnownHeader]]) -> list[bool | None] | None:
        """For each chunk: True: it was added; False: the job has moved on; None: it goes the long way. None for the whole batch: the call
        has failed.
        """
        try:
            ended = self._reports.not_running(header.run for _, header in batch)
            new = []
            for conn, header in batch:
                arrival = conn.sock.arrival
                arrival.token = call_token()
                if header.run not in ended:
                    new.append(NewChunk(*header.attempt, chunk_of(arrival.body), arrival.token))
            added = iter(self._chunks.add_all(new) if new else ())
            return [None if header.run in ended else next(added) for _, header in batch]
        except OwnPodError as error:
            log.info("%d chunks go the long way: %s", len(batch), error)
        except Exception:
            # All streams of this process depend on this thread.
            log.exception("%d chunks go the long way", len(batch))
        return None


def _answer(conn: HasRequest, response: bytes) -> bool:
    """Sends the response, and starts the next request. Returns whether the connection can be kept."""
    try:
        conn.sock.arrival.drop()
        if conn.sock.send_now(response):
            conn.next_request()
            return True
    except Exception:
        log.exception("a worker's connection is closed")
    return False


def _response(date: str, request_id: str | None) -> bytes:
    """As Flask's and gunicorn's response to a chunk."""
    known = "" if request_id is None else f"X-Request-ID: {request_id}\r\n"
    return (
        f"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: {date}\r\nConnection: keep-alive\r\n"
        f"Content-Type: application/json\r\nContent-Length: 2\r\n{known}\r\n{{}}"
    ).encode()
