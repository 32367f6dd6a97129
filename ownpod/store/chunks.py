"""What running jobs' handlers yield; the commands are in ``chunks.lua``."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ownpod.errors import JobNotFound
from ownpod.rules.jobs import Job
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.common import CALL_TOKEN_BYTES, Part, fields

_CURSOR = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def parse_cursor(text: str) -> tuple[int, int] | None:
    """Attempt and index of a cursor "<attempt>-<index>"; None for any other text.

    Nine digits are more than Redis keeps of either; a longer number is no cursor.
    """
    match = _CURSOR.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]))


def call_token() -> str:
    """A new token for :meth:`Chunks.add`."""
    return secrets.token_hex(CALL_TOKEN_BYTES)


@dataclass(frozen=True)
class Stream:
    """What a job's handler has yielded, from index ``start`` on, and the job. ``chunks`` are JSON texts."""

    job: Job
    start: int
    chunks: list[str]
    cursor: str
    """The stored cursor of ``/stream`` as it was read."""


@dataclass(frozen=True)
class NewChunk:
    """A chunk to add, see :meth:`Chunks.add`."""

    job_id: str
    attempt: int
    chunk: str
    token: str


class Chunks(Part):
    """Chunks and progress of jobs."""

    def add(
        self, job_id: str, attempt: int, chunks: list[str], *, token: str | None = None
    ) -> bool:
        """Appends chunks to what the attempt's handler has yielded.

        Args:
            job_id: the job.
            attempt: the number of the attempt.
            chunks: JSON texts.
            token: from :func:`call_token`; a second call with the same token adds nothing. Needed where
                the call is repeated outside of this method, as by :func:`ownpod.store.retry.patient`.

        Returns:
            False: the job has moved on, so the run can be stopped. Also after these chunks, if all chunks
            are more than :data:`ownpod.store.common.CHUNK_BYTES`: the job is FAILED then.
        """
        token = call_token() if token is None else token
        return bool(self._call("chunks", token, job_id, attempt, self._result_ttl_s, *chunks))

    def add_all(self, new: Sequence[NewChunk]) -> list[bool | None]:
        """Adds chunks of several jobs in one request to Redis, which is not repeated.

        Returns:
            For each what :meth:`add` would return; None: Redis has refused it.

        Raises:
            AnswerLost: some may have been added.
            RedisUnavailable: none was added.
        """
        calls = [(one.token, one.job_id, one.attempt, self._result_ttl_s, one.chunk) for one in new]
        answers = self._call.all("chunks", calls)
        return [None if isinstance(found, Exception) else bool(found) for found in answers]

    def progress(self, job_id: str, attempt: int, output: str) -> bool:
        """Writes a running job's progress, JSON text, which is its output until it ends, and an entry of its journal unless
        it is long.

        Returns:
            False: the job has moved on.
        """
        return bool(self._call("progress", call_token(), job_id, attempt, output))

    @redis_reads
    def stream(self, job_id: str, endpoint: str, start: tuple[int | None, int] | None) -> Stream:
        """Reads what a job's handler has yielded.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            start: attempt and index to begin with (of another attempt: from the beginning; attempt
                None is any); None: at the cursor of ``/stream``.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        cursor = ""
        if start is None:
            (drained,) = fields(self._redis, job_id, "drained")
            cursor = drained or ""
            start = parse_cursor(cursor) or (0, 0)
        attempt, index = start
        while True:
            with self._redis.pipeline() as pipe:
                # One step: chunks come before the state they belong to.
                pipe.hmget(keys.job(job_id), *Job.FIELDS)
                pipe.lrange(keys.chunks(job_id), index, -1)
                values, chunks = pipe.execute()
            if values[0] is None:
                raise JobNotFound(job_id)
            job = Job.from_record(values)
            if job.endpoint != endpoint:
                raise JobNotFound(job_id)
            if index == 0 or attempt in {None, job.attempt}:
                return Stream(job=job, start=index, chunks=chunks, cursor=cursor)
            # The index is of another attempt's chunks, so this attempt is read from its beginning.
            index = 0

    def save_cursor(self, stream: Stream) -> None:
        """Moves the cursor of ``/stream`` behind the chunks that were answered."""
        end = f"{stream.job.attempt}-{stream.start + len(stream.chunks)}"
        self._call("save_cursor", "", stream.job.id, stream.cursor, end)
