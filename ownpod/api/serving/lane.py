"""The short way of workers' chunks: one thread adds the chunks of all streams that have arrived meanwhile, in one request to Redis.

A worker posts each chunk of each stream as a request of its own. Through gunicorn's parser, Flask and a thread for each of them,
they were three quarters of an API process's CPU time, and 200 streams delayed one another.

The first chunk of a run goes the long way, which checks everything, and one a minute. The others go the short way while their header is
the same, byte for byte, as that of a chunk that was accepted, see :class:`ownpod.api.workers.reports.Reports`. Where the short way fails, as
without Redis, the request goes the long way, which answers as always; a token prevents a second copy of its chunk.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from gunicorn.util import http_date

from ownpod.api.serving.channel import Channel
from ownpod.api.workers.reports import Accepted, Reports
from ownpod.errors import OwnPodError
from ownpod.rules.payload import chunk_of
from ownpod.store.chunks import Chunks, NewChunk, call_token

log = logging.getLogger(__name__)

MOST = 64
"""Chunks that are added in one request to Redis. More than that only lets the first ones wait for the last."""

HOOKS = ("pre_request", "post_request")
"""gunicorn's settings of functions that are called for each request."""


class Client(Protocol):
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
    long: list[Any] = field(default_factory=list)
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
        self._queue = SimpleQueue[tuple[Client, Accepted]]()
        self._lock = threading.Lock()
        self._has_started = False

    def takes(self, conn: Client) -> bool:
        """Takes a connection's request that is READY, if it can go the short way. The connection is not to be used until ``finished``
        is called.
        """
        arrival = conn.sock.arrival
        if arrival.signature is None or arrival.token is not None:
            return False
        accepted = self._reports.accepted(arrival.signature)
        if accepted is None or not self._started():
            return False
        self._queue.put((conn, accepted))
        return True

    def _started(self) -> bool:
        if not self._has_started:
            with self._lock:
                if not self._has_started:
                    try:
                        threading.Thread(target=self._run, name="chunks", daemon=True).start()
                    except RuntimeError as error:
                        # The system has no thread left.
                        log.warning("chunks go the long way: %s", error)
                        return False
                    self._has_started = True
        return True

    def _run(self) -> None:
        while True:
            taken = [self._queue.get(), *self._waiting(MOST - 1)]
            finished = Finished()
            try:
                self._answer(taken, finished)
            except Exception:
                # All streams of this process depend on this thread.
                log.exception("%d connections of workers are closed", len(taken))
                finished = Finished(broken=[conn for conn, _ in taken])
            self._finished(finished)

    def _waiting(self, most: int | None = None) -> list[tuple[Client, Accepted]]:
        """The requests that wait, at most ``most``; None: all."""
        found: list[tuple[Client, Accepted]] = []
        try:
            while most is None or len(found) < most:
                found.append(self._queue.get_nowait())
        except Empty:
            pass
        return found

    def _answer(self, taken: list[tuple[Client, Accepted]], finished: Finished) -> None:
        if (added := self._added(taken)) is None:
            # What waits would only wait for the next failure.
            finished.long += [conn for conn, _ in (*taken, *self._waiting())]
            return
        date = http_date()
        for (conn, accepted), was_added in zip(taken, added, strict=True):
            channel, signature = conn.sock, conn.sock.arrival.signature
            if was_added is None:
                finished.long.append(conn)
                continue
            if not was_added and signature is not None:
                self._reports.forget(signature)
            channel.arrival.drop()
            if channel.send_now(_response(date, accepted.request_id)):
                conn.next_request()
                finished.kept.append(conn)
            else:
                finished.broken.append(conn)

    def _added(self, taken: list[tuple[Client, Accepted]]) -> list[bool | None] | None:
        """For each, whether its chunk was added, or the job has moved on; None: unknown. None for all of them: unknown, too."""
        try:
            ended = self._reports.ended(accepted.run for _, accepted in taken)
            new = []
            for conn, accepted in taken:
                arrival = conn.sock.arrival
                arrival.token = call_token()
                if accepted.run not in ended:
                    new.append(NewChunk(*accepted.attempt, chunk_of(arrival.body), arrival.token))
            added = iter(self._chunks.add_all(new) if new else ())
            return [None if accepted.run in ended else next(added) for _, accepted in taken]
        except OwnPodError as error:
            log.info("%d chunks go the long way: %s", len(taken), error)
        except Exception:
            log.exception("%d chunks go the long way", len(taken))
        return None


def _response(date: str, request_id: str | None) -> bytes:
    """As Flask's and gunicorn's response to a chunk."""
    known = "" if request_id is None else f"X-Request-ID: {request_id}\r\n"
    return (
        f"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: {date}\r\nConnection: keep-alive\r\n"
        f"Content-Type: application/json\r\nContent-Length: 2\r\n{known}\r\n{{}}"
    ).encode()
