"""Journals of jobs: what is recorded of a job besides its chunks; the commands are in ``journal.lua``."""

import json
from collections.abc import Mapping
from typing import Any

from ownpod.errors import JobNotFound
from ownpod.rules.event_data import Ending
from ownpod.rules.events import START, Cursor, Section, parse_entry, resumes_at
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.task_views import TaskType, task_facts
from ownpod.store import keys
from ownpod.store.chunks import call_token
from ownpod.store.client import redis_reads
from ownpod.store.common import CALL_TOKEN_BYTES, CALLS_KEPT, Part
from ownpod.store.scripts import constants

JOURNAL_ENTRIES, JOURNAL_BYTES = 5000, 1024 * 1024
"""Number of entries, and their bytes, that are kept of a job. Older ones are dropped."""

LAST_ENTRIES = 200
"""Number of last entries among which :meth:`Journal.last_logs` finds log lines."""

MOST_CHUNKS = 256
"""Number of chunks that one read brings."""

JOURNAL_PROGRESS = 16_384
"""Bytes of a progress update up to which the journal has it."""

JOURNAL_CONSTANTS = constants(
    IN_QUEUE=JobStatus.IN_QUEUE.value,
    IN_PROGRESS=JobStatus.IN_PROGRESS.value,
    JOURNAL_ENTRIES=JOURNAL_ENTRIES,
    JOURNAL_BYTES=JOURNAL_BYTES,
    JOURNAL_PROGRESS=JOURNAL_PROGRESS,
    JOURNAL_CALLS_LENGTH=CALLS_KEPT * (2 * CALL_TOKEN_BYTES + 1),
)
"""Lua in front of ``journal.lua``, together with the constants of ``common.lua`` or :data:`OTHER_CONSTANTS`."""

OTHER_CONSTANTS = constants(
    JOB=keys.JOB,
    CHUNKS=keys.CHUNKS,
    JOURNAL=keys.JOURNAL,
    RUNS=keys.RUNS,
    WAITING=keys.WAITING,
    ENDPOINT=keys.ENDPOINT,
)
"""Lua in front of ``journal.lua`` in files without those of ``common.lua``; what such a file has itself it has twice."""

_FIELDS = (
    *Job.FIELDS,
    *("journal_first", "journal_base", "code", "exit_code", "lost", "max_attempts"),
    *("queue", "moves", "private", "task"),
)


class Journal(Part):
    """Journals of jobs."""

    def add(
        self,
        job_id: str,
        event: str,
        data: Mapping[str, Any],
        *,
        attempt: int | None = None,
        token: str | None = None,
    ) -> bool:
        """Adds an entry to a job's journal, which its typed events show.

        Args:
            job_id: the job.
            event: the name of the event: ``worker``, ``logs``, ``output``.
            data: the event's data, as JSON.
            attempt: only while this is the job's last attempt; None: in any.
            token: from :func:`ownpod.store.chunks.call_token`; a second call with the same token adds nothing.

        Returns:
            False: the job has ended, or is in another attempt.
        """
        number: int | str = "" if attempt is None else attempt
        call = call_token() if token is None else token
        return bool(self._call("add_entry", call, job_id, event, json.dumps(data), number))

    def add_to_all(
        self, endpoint: str, worker_id: str, event: str, data: Mapping[str, Any]
    ) -> None:
        """Adds an entry to the journals of all jobs that wait in a worker's own queue, or run on the worker."""
        self._call("add_entries", call_token(), endpoint, worker_id, event, json.dumps(data))

    @redis_reads
    def read(self, job_id: str, endpoint: str, cursor: Cursor | None = None) -> Section:
        """Reads a job, and what comes after a cursor of its chunks and journal, in one step.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            cursor: what the client has; None: nothing.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        start, first, attempt = cursor or START, 0, None
        while True:
            index = start.chunks if attempt in {None, start.attempt} else 0
            with self._redis.pipeline() as pipe:
                # One step: chunks and entries come before the state that they belong to.
                pipe.hmget(keys.job(job_id), *_FIELDS)
                pipe.lrange(keys.chunks(job_id), index, index + MOST_CHUNKS)
                pipe.lrange(keys.journal(job_id), max(0, start.entries - first), -1)
                values, chunks, entries = pipe.execute()
            if values[0] is None:
                raise JobNotFound(job_id)
            job = Job.from_record(values[: len(Job.FIELDS)])
            if job.endpoint != endpoint:
                raise JobNotFound(job_id)
            now_first, base, code, exit_code, lost, most, *rest = values[len(Job.FIELDS) :]
            queue, moves, private, task = rest
            facts = task_facts(task)
            at = _begin(cursor, job, int(base or 0))
            same = at == start and first == int(now_first or 0)
            if same and index == (at.chunks if at.attempt == job.attempt else 0):
                return Section(
                    job=job,
                    start=at,
                    chunks=chunks[:MOST_CHUNKS],
                    whole=len(chunks) <= MOST_CHUNKS,
                    first=max(at.entries, first),
                    entries=entries,
                    ending=Ending(
                        code=code,
                        exit_code=int(exit_code) if exit_code else None,
                        all_lost=int(lost or 0) >= int(most or 1),
                    ),
                    moves=int(moves or 0),
                    session_id=private if facts.type == TaskType.SESSION else None,
                    # A job of the queue API that has a session names it.
                    found=private is not None and (not task or facts.found),
                    waits_for=self._waits_for(job, queue),
                    one_off=facts.type == TaskType.ONE_OFF,
                )
            # The cursor is of an earlier attempt or submission, or entries have been dropped.
            start, first, attempt = at, int(now_first or 0), job.attempt

    @redis_reads
    def last_logs(self, job_id: str, count: int) -> list[dict[str, Any]]:
        """Data of the last log lines of a job, of those among its last :data:`LAST_ENTRIES` entries, the oldest first."""
        texts: Any = self._redis.lrange(keys.journal(job_id), -LAST_ENTRIES, -1)
        found = [entry for entry in map(parse_entry, texts) if entry is not None]
        return [json.loads(entry.data) for entry in found if entry.event == "logs"][-count:]

    def _waits_for(self, job: Job, queue: str | None) -> str | None:
        if queue in {None, self._messages.queue(job.endpoint)}:
            return None
        return self._messages.worker_of(job.endpoint, queue or "")


def _begin(cursor: Cursor | None, job: Job, base: int) -> Cursor:
    """Where to read from: a client without a cursor gets no entries from before a retry."""
    at = resumes_at(job, cursor or START)
    return Cursor(entries=base) if at == START else at
