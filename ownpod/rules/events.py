"""Typed events of a job: its chunks, its journal and its end as one stream, which a client can resume at any event. Pure.

Source: the events of the GPU service. Every event has an id, which is a :class:`Cursor`: it has the place up to which the client has the stream,
so that the events after it are the same for a client that resumes and for one that was never cut off.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ownpod.rules.event_data import Ending, final_output, finish_data, iso
from ownpod.rules.jobs import Job, JobStatus

CURSOR = re.compile(
    r"([0-9]{1,9})-(?:(end)|([0-9]{1,9})\.([0-9]{1,9})([a-z][0-9]{0,9}|))", re.ASCII
)
"""An event's id."""

_QUEUED, _CONNECTED, _RESTARTED, _OUTPUT, _IDLE = "q", "c", "r", "t", "i"
"""Marks of cursors: the last event was about the queue (with the position), the connection, the restart, the final output,
the idle session. Behind that of the connection is how often the job was moved to another session."""

PLACED = "connection"
"""Name of an entry that has no data: the worker for which the job waits has got its place on a host."""


OVERFLOW = "overflow"
"""Status of an entry of the same name whose data is that of its event: the job has gone to a cloud worker."""


class Event(NamedTuple):
    """``id``: the cursor behind the event; ``data``: JSON text."""

    id: str
    event: str
    data: str


@dataclass(frozen=True)
class Cursor:
    """A place in a job's stream: what of it the client has.

    Attributes:
        attempt: the attempt of the last event; 0: before the first.
        chunks: number of chunks of this attempt.
        entries: number of entries of the journal, over all attempts.
        mark: which event that is neither a chunk nor an entry was the last.
        ended: the client has the whole stream.
    """

    attempt: int = 0
    chunks: int = 0
    entries: int = 0
    mark: str = ""
    ended: bool = False

    @property
    def position(self) -> int:
        """The job's position in its queue that the client has; 0: none."""
        return int(self.mark[1:] or 0) if self.mark.startswith(_QUEUED) else 0

    def __str__(self) -> str:
        if self.ended:
            return f"{self.attempt}-end"
        return f"{self.attempt}-{self.chunks}.{self.entries}{self.mark}"


START, NOT_ENDED = Cursor(), Ending()


def parse(text: str) -> Cursor | None:
    """The cursor in an event's id; None for any other text."""
    match = CURSOR.fullmatch(text)
    if match is None:
        return None
    if match[2]:
        return Cursor(int(match[1]), ended=True)
    return Cursor(int(match[1]), int(match[3]), int(match[4]), match[5])


@dataclass(frozen=True)
class Section:
    """What was read of a job's stream, in one step.

    Attributes:
        job: the job.
        start: the place from which on chunks and entries were read.
        chunks: JSON texts of chunks of the job's attempt, from ``start.chunks`` on.
        whole: all chunks were read; otherwise there are more.
        first: number of the first entry that was read; entries between ``start.entries`` and it were dropped.
        entries: JSON texts ``[attempt, chunks, ms, event, data]``.
        ending: of a job that has ended.
    """

    job: Job
    start: Cursor
    chunks: Sequence[str] = ()
    whole: bool = True
    first: int = 0
    entries: Sequence[str] = ()
    ending: Ending = NOT_ENDED
    moves: int = 0
    """How often the job was moved to another session."""
    waits_for: str | None = None
    """The worker in whose own queue the job waits, or waited; None: in its endpoint's."""
    session_id: str | None = None
    """The session of a task, after its record; None: it has none, or is no task."""
    found: bool = False
    """The session was there before the job, which names it or got it as one that could run it."""
    one_off: bool = False
    """The journal has ``worker created`` and ``worker working``, because each attempt has a container of its own."""

    @property
    def more(self) -> bool:
        """There are more chunks to show. Those of a lost attempt are not shown to a client that has none of it."""
        lost = self.job.status is JobStatus.IN_QUEUE and self.start.attempt != self.job.attempt
        return not self.whole and not lost

    @property
    def connected(self) -> str:
        """The mark of a client that has the connection of this job's worker."""
        return f"{_CONNECTED}{self.moves or ''}"


@dataclass(frozen=True)
class Connection:
    """Which worker and device a job has, or what it waits for.

    Attributes:
        session_id: the session whose job it is; None: of none.
        position: of a waiting job in its queue, from 1; 0: not known.
        placed: the worker for which the job waits has its place on a host, and the job is its next.
        ready: it is ready, too.
        estimated_wait_s: whole seconds until the waiting job will probably begin; None: not known.
        data: further values of the event: gpu_id, gpu_uuid, gpu_name, gpu_class, host, reason, message.
    """

    session_id: str | None = None
    position: int = 0
    placed: bool = False
    ready: bool = False
    estimated_wait_s: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


class Entry(NamedTuple):
    """An entry of a journal. ``data``: JSON text of an object."""

    attempt: int
    chunks: int
    at_ms: int
    event: str
    data: str


def parse_entry(text: str) -> Entry | None:
    """An entry of a journal; None: it cannot be read."""
    try:
        attempt, chunks, at_ms, event, data = json.loads(text)
        if event == "logs":
            data.setdefault("timestamp", iso(at_ms))
        return Entry(int(attempt), int(chunks), int(at_ms), str(event), json.dumps(data))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _is_place(entry: Entry) -> bool:
    """Whether an entry is about a place. That a job has gone to a cloud worker is an event as it is."""
    return entry.event == PLACED and json.loads(entry.data).get("status") != OVERFLOW


def needs_connection(section: Section, cursor: Cursor) -> bool:
    """Whether :func:`events_of` uses the connection, which costs reads."""
    job = section.job
    if job.status.terminal or job.attempt != cursor.attempt:
        return True
    if cursor.attempt == 0:
        return cursor.mark != section.connected
    return job.status is JobStatus.IN_QUEUE or cursor.mark == _RESTARTED


def resumes_at(job: Job, cursor: Cursor) -> Cursor:
    """From where on a client's stream is read: chunks of another attempt than the job's are read from their beginning.

    A client that has another submission of the job (before a retry) begins again.
    """
    if cursor.ended or cursor.attempt > job.attempt:
        return START
    return cursor


def events_of(section: Section, connection: Connection) -> Iterator[Event]:
    """The events after ``section.start``.

    ``connection`` is the first event of a stream, and comes again when it changes. Its status is ``session_found`` only as that
    of the first event. An attempt begins with
    ``worker restarted``, if it is not the first, and ``worker working``, which for a one-off task comes from its journal. Final text or output come after all chunks,
    and ``task_finish`` is the last event of a job that has ended.
    """
    return _Walk(section, connection).events()


class _Walk:
    """Goes through a section. ``at`` is the place behind the last event."""

    def __init__(self, section: Section, connection: Connection) -> None:
        self._section = section
        self._job = section.job
        self._connection = connection
        self._at = section.start
        self._place = 0

    def events(self) -> Iterator[Event]:
        job = self._job
        if self._at.attempt == 0:
            if not self._at.mark:
                yield self._connected(has_place=self._connection.placed)
            yield from self._entries_of(0)
        if self._at.attempt != job.attempt and job.status is not JobStatus.IN_QUEUE:
            yield from self._begin()
        elif self._at.attempt and self._at.mark == _RESTARTED:
            yield from self._connect_and_work()
        elif self._at.attempt and self._at.mark.startswith(_CONNECTED):
            yield from self._working()
        if self._at.attempt == job.attempt and job.attempt:
            yield from self._content()
        if job.status.terminal:
            if self._section.whole:
                yield from self._end()
        elif job.status is JobStatus.IN_QUEUE and self._is_news():
            yield self._connected(has_place=self._connection.ready)

    def _event(self, name: str, data: Mapping[str, Any] | str, **at: Any) -> Event:
        self._at = replace(self._at, **at)
        text = data if isinstance(data, str) else json.dumps(data)
        return Event(str(self._at), name, text)

    # The connection.

    def _is_connected(self, *, has_place: bool) -> bool:
        """The job has a worker, or is the next of one that has its place on a host."""
        if self._job.status is JobStatus.IN_QUEUE:
            return has_place and not self._job.attempt
        return self._job.attempt > 0

    def _is_news(self) -> bool:
        """There is news of a waiting job. That its worker has got its place is an entry, so that it stands at the same place for all clients."""
        if self._at.mark == self._section.connected:
            return False
        ready = self._is_connected(has_place=self._connection.ready)
        return ready or self._at.mark != f"{_QUEUED}{self._connection.position}"

    @property
    def _is_found(self) -> bool:
        """The next event is the stream's first, of a job that waits for a session that was there before it."""
        at, section = self._at, self._section
        return section.found and not (at.attempt or at.mark or section.moves or self._job.attempt)

    def _connected(self, *, has_place: bool) -> Event:
        job, connection = self._job, self._connection
        data: dict[str, Any] = {
            "status": "queued",
            "task_id": job.id,
            "session_id": connection.session_id,
            "endpoint": job.endpoint,
        }
        mark = f"{_QUEUED}{connection.position}"
        if self._is_connected(has_place=has_place):
            data["status"] = "allocated" if connection.session_id is None else "session_ready"
            mark = self._section.connected
        elif connection.position:
            data["position"] = connection.position
            if connection.estimated_wait_s is not None:
                data["estimated_wait_seconds"] = connection.estimated_wait_s
        if data["status"] == "queued" and self._is_found:
            data["status"] = "session_found"
        return self._event("connection", data | dict(connection.data), mark=mark)

    # An attempt.

    def _begin(self) -> Iterator[Event]:
        job, earlier = self._job, self._at
        while (entry := self._next()) is not None and entry.attempt < job.attempt:
            self._take()
        self._at = Cursor(job.attempt, 0, self._at.entries, earlier.mark)
        if job.attempt > 1:
            data = {"status": "restarted", "attempt": job.attempt}
            yield self._event("worker", data, mark=_RESTARTED)
        if earlier.mark == self._section.connected and job.attempt == 1:
            yield from self._working()
        else:
            yield from self._connect_and_work()

    def _connect_and_work(self) -> Iterator[Event]:
        yield self._connected(has_place=False)
        yield from self._working()

    def _working(self) -> Iterator[Event]:
        if self._section.one_off:
            # Its container is not created yet.
            self._at = replace(self._at, mark="")
            return
        data: dict[str, Any] = {"status": "working", "attempt": self._job.attempt}
        if self._job.worker_id is not None:
            data["worker_id"] = self._job.worker_id
        yield self._event("worker", data, mark="")

    # Chunks and entries.

    def _next(self) -> Entry | None:
        """The next entry that can be read; None: there is none."""
        entries = self._section.entries
        while self._place < len(entries):
            entry = parse_entry(entries[self._place])
            if entry is not None:
                return entry
            self._take()
        return None

    def _take(self) -> None:
        self._place += 1
        self._at = replace(self._at, entries=self._section.first + self._place)

    def _dropped(self) -> Iterator[Event]:
        missing = self._section.first - self._at.entries
        if missing > 0:
            text = f"{missing} earlier {'line' if missing == 1 else 'lines'} dropped"
            data = {"log": text, "level": "warning", "stream": "ownpod"}
            yield self._event("logs", data, entries=self._section.first)

    def _entries_of(self, attempt: int) -> Iterator[Event]:
        """The next entries, up to the first one of a later attempt."""
        yield from self._dropped()
        while (entry := self._next()) is not None and entry.attempt <= attempt:
            self._take()
            if _is_place(entry):
                if self._at.mark != self._section.connected:
                    yield self._connected(has_place=True)
            elif entry.attempt == attempt:
                yield self._event(entry.event, entry.data)

    def _content(self) -> Iterator[Event]:
        yield from self._dropped()
        chunks, offset = self._section.chunks, self._at.chunks
        for index in range(len(chunks) + 1):
            last = index == len(chunks)
            while (entry := self._next()) is not None and (
                entry.attempt < self._job.attempt
                or entry.chunks <= offset + index
                or (last and self._section.whole)
            ):
                self._take()
                if entry.attempt == self._job.attempt and not _is_place(entry):
                    yield self._event(entry.event, entry.data)
            if not last:
                yield self._chunk(chunks[index])

    def _chunk(self, chunk: str) -> Event:
        is_text = chunk.lstrip().startswith('"')
        name, key = ("text_delta", "delta") if is_text else ("output_delta", "output")
        mark = self._at.mark if self._at.mark.startswith(_QUEUED) else ""
        return self._event(name, f'{{"{key}": {chunk}}}', chunks=self._at.chunks + 1, mark=mark)

    # The end.

    def _end(self) -> Iterator[Event]:
        job, mark = self._job, self._at.mark
        final = None if job.status is not JobStatus.COMPLETED else final_output(job)
        if final is not None and mark not in {_OUTPUT, _IDLE}:
            yield self._event(*final, mark=_OUTPUT)
        session = self._connection.session_id
        ending = self._section.ending
        # A task that its session or worker has ended has a code.
        went_on = ending.code is None and not ending.all_lost
        if session is not None and job.attempt and went_on and mark != _IDLE:
            data = {"status": "waiting", "worker_id": session}
            yield self._event("worker", data, mark=_IDLE)
        self._at = Cursor(job.attempt, ended=True)
        yield Event(
            str(self._at),
            "task_finish",
            json.dumps(finish_data(job, ending, session)),
        )
