"""Keeps the output of a host's workers in Redis: a thread reads each worker's output, and one thread writes all lines.

How far the output is kept is written in the same step as the lines, so an agent that is killed costs no line, and the
next one repeats none. While Redis is away the last lines wait in memory.
"""

import logging
import threading
import time
from collections.abc import Collection, Mapping

from ownpod.agent.engine import LOG_LINES, Engine, EngineError, Source
from ownpod.errors import OwnPodError, RedisUnavailable
from ownpod.rules.output import BURST_BYTES, BURST_LINES, PAUSE_S, Line, Lines, Mask, plain
from ownpod.store.outputs import Kept, Outputs, Place, new_batch

log = logging.getLogger(__name__)

READ_S = 30.0
"""Seconds for which one read waits for output."""

TOGETHER_S = 0.05
"""Seconds between two reads of a worker that writes, so that they bring many lines each."""

WRITE_S = 0.1
"""Seconds between two writes to Redis, for the same reason."""

RETRY_S = 1.0
"""Seconds until the next try after the engine or Redis did not answer."""

LAST_S = 10.0
"""Seconds for which the end of a worker waits for the last lines of its output."""


class Follower:
    """Reads the output of one worker, until the worker has ended or :meth:`close`.

    Args:
        worker_id: the worker's id.
        engine: has started the worker.
        outputs: where the lines are kept.
        mask: hides the worker's secrets.
        changed: is set when there is something to be kept.
    """

    def __init__(
        self, worker_id: str, engine: Engine, outputs: Outputs, mask: Mask, changed: threading.Event
    ) -> None:
        self.worker_id = worker_id
        self._engine = engine
        self._outputs = outputs
        self._mask = mask
        self._changed = changed
        self._lock = threading.Lock()
        self._pending: list[Line] = []
        self._place: Place | None = None
        """How far the output is kept with the pending lines; None: there are none."""
        self._kept = ""
        """The last batch that was kept."""
        self._source: Source | None = None
        self._closed = threading.Event()
        self._conflict = threading.Event()
        self._read_all = threading.Event()
        self._kept_all = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"output-{worker_id}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the reading; the output is read on later."""
        self._closed.set()
        self._wake()

    def finish(self, timeout_s: float) -> bool:
        """Waits until all output of a worker that has ended is kept. Returns whether it is."""
        self._wake()
        return self._kept_all.wait(timeout_s)

    def write(self) -> None:
        """Keeps what is pending; for one thread. Raises: RedisUnavailable, it stays pending."""
        # Before the lines, because the last of them come before it.
        ended = self._read_all.is_set()
        with self._lock:
            lines, place, before = self._pending, self._place, self._kept
            self._pending, self._place = [], None
        if place is not None:
            try:
                kept = self._outputs.append(self.worker_id, lines, before, place)
            except RedisUnavailable:
                with self._lock:
                    self._pending = _bounded([*lines, *self._pending])
                    self._place = self._place or place
                raise
            self._written(kept, place)
        if ended:
            self._kept_all.set()

    def _written(self, kept: Kept, place: Place) -> None:
        with self._lock:
            self._kept = place.batch
            if kept is Kept.CONFLICT:
                # Another agent has continued, or an append whose answer was lost was executed.
                self._pending, self._place = [], None
                self._conflict.set()
        if kept is Kept.NO_WORKER:
            self._closed.set()
        if kept is not Kept.YES:
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._source is not None:
                self._source.wake()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                try:
                    if self._read_on():
                        break
                except (RedisUnavailable, EngineError) as error:
                    log.debug("output of worker %s: %s; tried again", self.worker_id, error)
                    self._closed.wait(RETRY_S)
        except OwnPodError as error:
            log.warning("output of worker %s is not kept: %s", self.worker_id, error)
        except Exception:
            log.exception("output of worker %s is not kept any more", self.worker_id)
        finally:
            self._read_all.set()
            self._changed.set()

    def _read_on(self) -> bool:
        """Reads from where the output is kept. Returns whether the worker has ended.

        Raises:
            RedisUnavailable, EngineError: the next call continues where the output is kept.
        """
        place = self._outputs.place(self.worker_id)
        source = self._engine.follow(self.worker_id, place.position)
        with self._lock:
            self._kept, self._pending, self._place = place.batch, [], None
            self._conflict.clear()
            self._source = source
        try:
            return self._read(source, Lines(place.state, mask=self._mask), place.position)
        finally:
            with self._lock:
                self._source = None
            source.close()

    def _read(self, source: Source, lines: Lines, position: str) -> bool:
        while not self._closed.is_set() and not self._conflict.is_set():
            part = source.read(PAUSE_S if lines.leaves_out else READ_S)
            if part is None:
                if last := lines.finish():
                    self._add(last, position, lines.state())
                return not self._conflict.is_set()
            now_s, position = time.monotonic(), part.position
            if part.skipped:
                lines.skip(max(part.skipped, 0), now_s)
            if found := lines.feed(part.data, now_s):
                self._add(found, position, lines.state())
            if part.data:
                self._closed.wait(TOGETHER_S)
        return False

    def _add(self, lines: list[Line], position: str, state: str) -> None:
        with self._lock:
            if not self._conflict.is_set():
                self._pending = _bounded([*self._pending, *lines])
                self._place = Place(new_batch(), position, state)
        self._changed.set()


class Followers:
    """The followers of all workers of a host.

    Args:
        engine: has started the workers.
        outputs: where their lines are kept.
    """

    def __init__(self, engine: Engine, outputs: Outputs) -> None:
        self._engine = engine
        self._outputs = outputs
        self._lock = threading.Lock()
        self._followers: dict[str, Follower] = {}
        self._masks: Mapping[str, Mask] = {}
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def keep(self, masks: Mapping[str, Mask], running: Collection[str]) -> None:
        """Reads the output of exactly these workers.

        Args:
            masks: what hides the secrets of each worker with a record of this host.
            running: those of them that run. The others are read until :meth:`finish`.
        """
        with self._lock:
            self._masks = masks
            for worker_id in self._followers.keys() - masks.keys():
                self._followers.pop(worker_id).close()
            for worker_id in running:
                self._follow(worker_id)

    def finish(self, worker_id: str) -> None:
        """Keeps the rest of the output of a worker that has ended, before the engine removes it."""
        with self._lock:
            follower = self._follow(worker_id)
        if follower is not None and not follower.finish(LAST_S):
            log.warning("worker %s: the end of its output is not kept", worker_id)
        with self._lock:
            if self._followers.get(worker_id) is follower:
                self._followers.pop(worker_id, None)
        if follower is not None:
            follower.close()

    def log(self, worker_id: str) -> str:
        """The last lines of a worker that has ended. Raises: RedisUnavailable, EngineError."""
        lines = self._outputs.last(worker_id, LOG_LINES)
        if lines:
            return "\n".join(line.text for line in lines)
        with self._lock:
            mask = self._masks.get(worker_id, plain)
        return mask(self._engine.log(worker_id))

    def close(self) -> None:
        """Ends all threads; the next agent reads on."""
        with self._lock:
            self._closed.set()
            followers, self._followers = self._followers, {}
        for follower in followers.values():
            follower.close()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(LAST_S)

    def _follow(self, worker_id: str) -> Follower | None:
        if self._closed.is_set():
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="outputs", daemon=True)
            self._thread.start()
        if worker_id not in self._followers:
            mask = self._masks.get(worker_id, plain)
            self._followers[worker_id] = Follower(
                worker_id, self._engine, self._outputs, mask, self._changed
            )
        return self._followers[worker_id]

    def _write(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._closed.wait(WRITE_S)
            self._changed.clear()
            with self._lock:
                followers = tuple(self._followers.values())
            for follower in followers:
                try:
                    follower.write()
                except RedisUnavailable as error:
                    log.debug("output of worker %s: %s; tried again", follower.worker_id, error)
                    self._changed.set()
                    self._closed.wait(RETRY_S)
                    break
                except Exception:
                    log.exception("output of worker %s was not kept", follower.worker_id)


def _bounded(lines: list[Line]) -> list[Line]:
    """The last of these lines, as many as are kept of a worker."""
    lines = lines[-BURST_LINES:]
    size = 0
    for place in range(len(lines), 0, -1):
        size += len(lines[place - 1].text.encode())
        if size > BURST_BYTES:
            return lines[place:]
    return lines
