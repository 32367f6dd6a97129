"""Waits until a container may have ended, through the engine's events."""

import contextlib
import threading
from collections.abc import Callable, Iterable

from ownpod.agent.docker_api import Events
from ownpod.agent.engine import EngineError

RETRY_S = 1.0
"""Seconds between two tries to subscribe to the events of an engine that is away."""


class Changes:
    """Counts events in a thread, which starts at the first :meth:`wait`.

    Args:
        subscribe: opens the stream of events; may raise EngineError.
    """

    def __init__(self, subscribe: Callable[[], Events]) -> None:
        self._subscribe = subscribe
        self._changed = threading.Condition()
        self._count = 0
        self._seen = 0
        self._ended: set[str] = set()
        self._stream: Events | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def wait(self, timeout_s: float) -> None:
        """Blocks until there was an event since the last call, at most ``timeout_s``. For one thread."""
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="events", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._count != self._seen, timeout_s)
            self._seen = self._count

    def has_ended(self, container_id: str) -> bool:
        """Whether there was an event that the container has ended: an engine lists it as running for a moment longer."""
        with self._changed:
            return container_id in self._ended

    def keep(self, container_ids: Iterable[str]) -> None:
        """Forgets all other containers."""
        with self._changed:
            self._ended.intersection_update(container_ids)

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        with self._changed:
            stream, thread = self._stream, self._thread
        if stream is not None:
            stream.close()
        if thread is not None:
            thread.join(5)

    def _run(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(EngineError):
                self._follow()
            self._closed.wait(RETRY_S)

    def _follow(self) -> None:
        stream = self._subscribe()
        with self._changed:
            self._stream = stream
        try:
            # Events before the subscription are lost, so the caller checks once now, and once after its end.
            self._notify()
            if not self._closed.is_set():
                for event in stream:
                    self._notify((event.get("Actor") or {}).get("ID"))
        finally:
            with self._changed:
                self._stream = None
            stream.close()
            self._notify()

    def _notify(self, container_id: str | None = None) -> None:
        with self._changed:
            if container_id is not None:
                self._ended.add(container_id)
            self._count += 1
            self._changed.notify_all()
