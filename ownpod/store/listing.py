"""Reads of job records without their payload: recent jobs, the outline of one job, all details of one job.

A payload may have 50 MB. Only :meth:`Listing.details` reads payloads; all other methods transfer a few hundred bytes
for each job. Every method raises :class:`~ownpod.errors.RedisUnavailable`.
"""

import json
from dataclasses import dataclass
from typing import Any

import redis

from ownpod.errors import JobNotFound
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.payload import readable
from ownpod.rules.task_views import TaskFacts, task_facts
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.common import fields

PAGE = (50, 500)
"""Smallest and largest number of job ids that one step of a listing reads."""

PAYLOAD = frozenset({"output", "progress"})
OUTLINE = tuple(name for name in Job.FIELDS if name not in PAYLOAD)

LOGS = ("deliveries", "attempts")

INTERNAL = (
    *("claim", "callback", "watched", "followed", "webhook_try", "owner"),
    *("chunk_calls", "chunk_bytes", "retry_call"),
    *("journal_first", "journal_base", "journal_bytes", "journal_calls"),
    "remote_begun",
)
"""Fields of a record that :meth:`Listing.details` omits, because they are tokens, channels and internal counters."""

_COUNTS = {"attempt", "lost", "retries", "max_attempts", "low_priority", "hops", "stays"}

Place = tuple[int, str]
"""A job's place in the list: its time of creation in ms since the epoch, and its id. The list is in descending order."""


@dataclass(frozen=True)
class JobEntry:
    """A job's outline, the log of its webhook's tries, and the log of its attempts that were lost or requeued."""

    job: Job
    deliveries: list[dict[str, Any]]
    attempts: list[dict[str, Any]]


def _outline(values: list[str | None]) -> Job:
    record = dict(zip(OUTLINE, values, strict=True))
    return Job.from_record([record.get(name) for name in Job.FIELDS])


class Listing:
    """Reads job records. Writes nothing but the removal of ids without a record from the list of recent jobs.

    Args:
        client: from :func:`ownpod.store.client.connect`.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @redis_reads
    def find(self, job_id: str) -> Job | None:
        """The outline of a job of any endpoint, in which ``output`` and ``progress`` are None. None: there is no such job."""
        values: Any = self._redis.hmget(keys.job(job_id), OUTLINE)
        return None if values[0] is None else _outline(values)

    def get(self, job_id: str, endpoint: str | None = None) -> Job:
        """The outline of a job.

        Args:
            job_id: the job.
            endpoint: the endpoint to which the job must belong; None: any.

        Raises:
            JobNotFound: there is no such job.
        """
        job = self.find(job_id)
        if job is None or endpoint not in {None, job.endpoint}:
            raise JobNotFound(job_id)
        return job

    @redis_reads
    def task(self, job_id: str) -> tuple[Job, TaskFacts, str | None]:
        """The outline of a job of any endpoint, what its request was, and the private worker that alone runs it; None: any
        worker does. Raises: JobNotFound.
        """
        values: Any = self._redis.hmget(keys.job(job_id), *OUTLINE, "task", "private")
        *outline, task, private = values
        if outline[0] is None:
            raise JobNotFound(job_id)
        return _outline(outline), task_facts(task), private

    @redis_reads
    def owner(self, job_id: str) -> str | None:
        """The digest of the key to which a task belongs; None: the job is none, or does not exist."""
        (owner,) = fields(self._redis, job_id, "owner")
        return owner

    @redis_reads
    def workers(self, job_id: str) -> list[str]:
        """Ids of the workers that have run a job, the first one first. Raises: JobNotFound."""
        status, attempts, last = fields(self._redis, job_id, "status", "attempts", "worker_id")
        if status is None:
            raise JobNotFound(job_id)
        found = [str(attempt.get("workerId") or "") for attempt in json.loads(attempts or "[]")]
        return [*dict.fromkeys(filter(None, (*found, last)))]

    @redis_reads
    def details(self, job_id: str) -> dict[str, Any]:
        """All fields of the record but :data:`INTERNAL`, with the payload. Raises: JobNotFound."""
        record: Any = self._redis.hgetall(keys.job(job_id))
        if not record:
            raise JobNotFound(job_id)
        for name in INTERNAL:
            record.pop(name, None)
        for name in ("input", "output", "progress", "s3_config", "task", "remote", *LOGS):
            if name in record:
                record[name] = readable(record[name])
        if "s3_config" in record:
            record["s3_config"] = "..."
        return {
            name: int(value) if name.endswith("_ms") or name in _COUNTS else value
            for name, value in record.items()
        }

    @redis_reads
    def recent(
        self,
        endpoint: str,
        *,
        status: JobStatus | None,
        before: Place | None,
        limit: int,
        logs: bool = True,
        sees: str | None = None,
    ) -> tuple[list[JobEntry], Place | None]:
        """The endpoint's last jobs, the newest first.

        Args:
            endpoint: the endpoint's id.
            status: only jobs in this state; None: in any.
            before: the place at which the previous page ended; None: the first page.
            limit: the maximum number of jobs.
            logs: whether to read the logs; without that, they are empty.
            sees: the digest of a key, which does not get the tasks of other keys; None: all.

        Returns:
            The jobs, and the place for the next page; None: there is no next page.
        """
        entries = list[JobEntry]()
        while True:
            # With a status or a key many records may not match, so one step reads more of them.
            needed = limit - len(entries) if status is None and sees is None else PAGE[1]
            count = min(max(needed, PAGE[0]), PAGE[1])
            page = self._page(endpoint, before, count)
            matching = self._matching(endpoint, page, status, sees)
            batch = matching[: limit - len(entries)]
            for listed in self._read(batch, logs=logs):
                # The job may have changed its state, or its record may have expired, since the state was read.
                if listed is not None and status in {None, listed.job.status}:
                    entries.append(listed)
            if len(entries) == limit:
                return entries, batch[-1]
            if len(batch) < len(matching):
                before = batch[-1]
            elif len(page) < count:
                return entries, None
            else:
                before = page[-1]

    def _page(self, endpoint: str, before: Place | None, count: int) -> list[Place]:
        """The places after ``before``. By score and id, because an offset shifts when ids are added or removed."""
        key = keys.recent(endpoint)
        highest = "+inf" if before is None else f"({before[0]}"
        with self._redis.pipeline(transaction=False) as pipe:
            if before is not None:
                pipe.zrange(key, before[0], before[0], desc=True, byscore=True)
            pipe.zrange(
                key, highest, "-inf", desc=True, byscore=True, offset=0, num=count, withscores=True
            )
            *same_ms, older = pipe.execute()
        places = [
            (before[0], job_id)
            for ids in same_ms
            for job_id in ids
            if before is not None and job_id < before[1]
        ]
        places += [(int(score), job_id) for job_id, score in older]
        return places[:count]

    def _matching(
        self, endpoint: str, page: list[Place], status: JobStatus | None, sees: str | None
    ) -> list[Place]:
        """The places of the page with jobs in the state that the key sees. Removes ids without a record from the list."""
        if not page:
            return []
        names = ["status"] if sees is None else ["status", "owner"]
        with self._redis.pipeline(transaction=False) as pipe:
            for _, job_id in page:
                pipe.hmget(keys.job(job_id), names)
            found = list(zip(page, pipe.execute(), strict=True))
        gone = [job_id for (_, job_id), (state, *_) in found if state is None]
        if gone:
            self._redis.zrem(keys.recent(endpoint), *gone)
        return [
            place
            for place, (state, *owner) in found
            if state is not None
            and status in {None, state}
            and (sees is None or owner[0] in {None, sees})
        ]

    def _read(self, places: list[Place], *, logs: bool) -> list[JobEntry | None]:
        if not places:
            return []
        names = (*OUTLINE, *LOGS) if logs else OUTLINE
        with self._redis.pipeline(transaction=False) as pipe:
            for _, job_id in places:
                pipe.hmget(keys.job(job_id), names)
            records = pipe.execute()
        return [_listed(values) for values in records]


def _listed(values: list[str | None]) -> JobEntry | None:
    if values[0] is None:
        return None
    outline, texts = values[: len(OUTLINE)], values[len(OUTLINE) :] or [None, None]
    deliveries, attempts = (json.loads(text or "[]") for text in texts)
    return JobEntry(_outline(outline), deliveries, attempts)
