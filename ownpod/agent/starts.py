"""Keeps workers from being started once the workers of the host are being ended."""

import contextlib
import threading
from collections.abc import Iterator


class Starts:
    """The starts of workers on this host, which are allowed until :meth:`close`. Threads may share one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """No start begins any more."""
        return self._closed

    @contextlib.contextmanager
    def one(self) -> Iterator[bool]:
        """Around a start. Gives False if starts are closed, so that nothing may be started."""
        with self._changed:
            allowed = not self._closed
            self._under_way += allowed
        try:
            yield allowed
        finally:
            with self._changed:
                self._under_way -= allowed
                self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Allows no further start, and waits for those that are under way. False: one still is."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._under_way, timeout_s)
