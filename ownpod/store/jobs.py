"""A job's way from its submission to its end; the commands are in ``jobs.lua``."""

import hmac
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ownpod.errors import (
    IdempotencyConflict,
    JobNotFound,
    NotRetryable,
    QueueFull,
    SessionEnded,
    SessionQueueFull,
)
from ownpod.rules.jobs import Job, JobStatus, NewJob
from ownpod.rules.runs import Attempt, Outcome, Run, execution_ms
from ownpod.store import keys
from ownpod.store.client import redis_reads
from ownpod.store.common import Part, fields
from ownpod.store.retry import unrepeatable
from ownpod.store.runs import decode_run

RETRYABLE = (JobStatus.FAILED, JobStatus.TIMED_OUT)
"""As RunPod documents; a retry is a new submission, not a move of the state machine."""

_ATTEMPT_FIELDS = (
    *("endpoint", "attempt", "input", "s3_config", "execution_timeout_ms", "created_ms"),
    *("ttl_ms", "started_ms", "callback", "request_id"),
    *("low_priority", "stays", "hops", "remote_begun"),
)


@dataclass(frozen=True)
class Idempotency:
    """A client's ``Idempotency-Key``: ``key`` is its digest with endpoint and caller, ``body`` the
    body's digest, ``ttl_s`` the seconds for which the key is kept.
    """

    key: str
    body: str
    ttl_s: int


class Jobs(Part):
    """Moves jobs through their states."""

    def create(
        self,
        job: NewJob,
        *,
        most_queued: int = 0,
        idempotency: Idempotency | None = None,
        channel: str | None = None,
    ) -> str:
        """Writes record and message in one step; a repetition with the same id changes nothing.

        Args:
            job: the job.
            most_queued: number of jobs that may wait in the endpoint; 0 is any number.
            idempotency: the key under which the client submits the job.
            channel: is notified of the job's end, as by :meth:`subscribe`.

        Returns:
            The job's id, or that of the job that was created earlier under the same key and whose
            record still exists.

        Raises:
            QueueFull: ``most_queued`` jobs wait already.
            SessionEnded: the session takes no more tasks.
            SessionQueueFull: as many tasks as may wait for the session already.
            IdempotencyConflict: the key was used for another body.
        """
        once = idempotency or Idempotency(key="", body="", ttl_s=0)
        reply = self._call(
            "create",
            "",
            job.id,
            job.endpoint,
            job.queue or "",
            self._messages.description(job.endpoint, job.input),
            most_queued,
            keys.idempotency(once.key) if once.key else "",
            once.ttl_s,
            once.body,
            "" if job.created_ms is None else job.created_ms,
            job.ttl_ms,
            int(job.low_priority),
            job.private or "",
            *(() if channel is None else ("watched", channel)),
            *(part for field in job.record().items() for part in field),
        )
        match reply:
            case ["created"]:
                return job.id
            case ["full"]:
                raise QueueFull(most_queued)
            case ["ended", reason]:
                raise SessionEnded(job.private or "", reason)
            case ["busy", waiting, most]:
                raise SessionQueueFull(job.private or "", waiting, most)
            case [earlier, body] if body == once.body:
                return str(earlier)
        raise IdempotencyConflict

    @redis_reads
    def earlier(self, idempotency: Idempotency) -> str | None:
        """The job that was created under a key, if its record still exists; None: :meth:`create` would create one.

        Raises:
            IdempotencyConflict: the key was used for another body.
        """
        key = keys.idempotency(idempotency.key)
        found: Any = self._redis.hmget(key, "job", "digest")
        job_id, body = found
        if job_id is None or not self._redis.exists(keys.job(job_id)):
            return None
        if body != idempotency.body:
            raise IdempotencyConflict
        return str(job_id)

    def subscribe(self, job_id: str, channel: str, *, end_only: bool) -> None:
        """Notifies a channel of Redis from now on: of the job's end, as "<job id> <state> <answer>" with
        what :meth:`ended_job` reads; or of each move and chunk, as "<job id> <state>" or "<job id> CHUNK".
        """
        name = "watched" if end_only else "followed"
        self._call("subscribe", "", job_id, name, channel)

    @unrepeatable
    def retry(self, job_id: str, endpoint: str, new_id: str) -> None:
        """Submits a FAILED or TIMED_OUT job again, as a new job or, with its own id, as itself. It waits
        in the same queue as before.

        Raises:
            JobNotFound: the endpoint has no such job.
            NotRetryable: the job is in another state.
            SessionEnded: its session, or the worker of its one-off task, takes no more tasks.
        """
        status = self._call("retry", str(uuid.uuid4()), job_id, endpoint, new_id)
        if status is None:
            raise JobNotFound(job_id)
        if status == "ENDED":
            private = fields(self._redis, job_id, "private")[0] or ""
            raise SessionEnded(private, "")
        if status not in RETRYABLE:
            raise NotRetryable(job_id, status)

    def claim(
        self, job_id: str, *, worker_id: str, claim: str, lease_s: float
    ) -> Attempt | Run | None:
        """Begins the next attempt of a waiting job, or adopts one that an earlier node of the worker left.

        Args:
            job_id: the job.
            worker_id: the node's worker. A pinned job is claimed by its own worker only.
            claim: unique for each delivery of the message; the same again gives the same attempt.
            lease_s: seconds until the lease expires.

        Returns:
            The attempt. A run: the job is not to be run, but that run may still occupy the worker.
            None: there is nothing to do.
        """
        options = (worker_id, claim, int(lease_s * 1000), self._result_ttl_s)
        reply = self._call("claim", "", job_id, *options, *_ATTEMPT_FIELDS)
        if reply is None:
            return None
        entry, *values = reply
        run = decode_run(job_id, entry)
        if not values:
            return run
        now_ms = int(values.pop(0))
        record = dict(zip(_ATTEMPT_FIELDS, values, strict=True))
        return Attempt(
            job_id=job_id,
            endpoint=record["endpoint"],
            worker_id=worker_id,
            number=int(record["attempt"]),
            input=record["input"],
            s3_config=record["s3_config"],
            execution_timeout_ms=int(record["execution_timeout_ms"]),
            expires_ms=int(record["created_ms"]) + int(record["ttl_ms"]),
            started_ms=int(record["started_ms"]),
            ran_ms=max(0, now_ms - int(record["started_ms"])),
            callback_token=record["callback"],
            request_id=record["request_id"],
            low_priority=record["low_priority"] == "1",
            stays=record["stays"] is not None,
            hops=int(record["hops"] or 0),
            remote_begun=record["remote_begun"] == record["attempt"],
            run=run,
        )

    def renew(self, attempts: Iterable[Attempt], *, lease_s: float) -> set[str]:
        """Renews the leases of running attempts; returns the ids of jobs that have moved on."""
        arguments = [part for held in attempts for part in (held.job_id, held.number)]
        if not arguments:
            return set()
        return set(self._call("renew", "", int(lease_s * 1000), *arguments))

    def finish(self, attempt: Attempt, outcome: Outcome, *, slot_free: bool = True) -> bool:
        """Writes how the attempt ended.

        Args:
            attempt: the attempt.
            outcome: its end.
            slot_free: the run does not occupy the worker any more.

        Returns:
            False: the job has moved on, and nothing was changed.
        """
        changes: list[str | int] = []
        for name, value in (
            ("output", outcome.output),
            ("error", outcome.error),
            ("execution_ms", execution_ms(outcome.execution_ms)),
        ):
            if value is not None:
                changes += [name, value]
        free = attempt.worker_id if slot_free else ""
        arguments = (attempt.number, free, outcome.status, self._result_ttl_s)
        return bool(self._call("finish", "", attempt.job_id, *arguments, *changes))

    def requeue(
        self,
        job_id: str,
        attempt: int,
        *,
        lost: bool,
        reason: str,
        freed: str = "",
        lease_end_ms: int = 0,
    ) -> JobStatus | None:
        """Puts the job at the front of its queue, for the next attempt. A pinned job is put there after
        a pause, because its worker's node would take it again at once.

        Args:
            job_id: the job.
            attempt: the number of the attempt that ends here.
            lost: the worker may have begun the attempt. It counts; the last one allowed ends in FAILED.
            reason: the error of a job that ends here.
            freed: the worker's id, if the attempt does not occupy the worker any more.
            lease_end_ms: only if the attempt's lease is still this one, see
                :class:`ownpod.store.queue.Expired`.

        Returns:
            The job's state now; None if the job has moved on and nothing was changed.
        """
        status = self._call(
            "requeue",
            "",
            job_id,
            attempt,
            freed,
            int(lost),
            reason,
            self._result_ttl_s,
            lease_end_ms,
        )
        return None if status is None else JobStatus(status)

    def cancel(self, job_id: str, endpoint: str, *, reason: str) -> JobStatus:
        """Cancels a job that has not ended; returns the state it has now.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        status = self._call("cancel", "", job_id, endpoint, self._result_ttl_s, reason)
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    @redis_reads
    def awaits_callback(self, job_id: str, endpoint: str, token: str) -> bool:
        """Whether the token is that of the job's last run: one small read, before a result is parsed."""
        of_endpoint, of_run = (
            value or "" for value in fields(self._redis, job_id, "endpoint", "callback")
        )
        # Tokens are compared in constant time, and also where the endpoint is wrong.
        same = hmac.compare_digest(of_run.encode(), token.encode())
        return bool(of_run) and same and of_endpoint == endpoint

    def callback(self, job_id: str, endpoint: str, token: str, output: str) -> JobStatus:
        """Takes a result, JSON text, that the worker posted. Completes the job, if no node waits for its run.

        Returns:
            The job's state now.

        Raises:
            JobNotFound: the token is not that of the job's last run.
        """
        status = self._call("callback", "", job_id, endpoint, token, self._result_ttl_s, output)
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    @redis_reads
    def get(self, job_id: str, endpoint: str) -> Job:
        """The record with its output and progress; :meth:`ownpod.store.listing.Listing.get` reads neither.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        values = fields(self._redis, job_id, *Job.FIELDS)
        if values[0] is None:
            raise JobNotFound(job_id)
        job = Job.from_record(values)
        if job.endpoint != endpoint:
            raise JobNotFound(job_id)
        return job

    @staticmethod
    def ended_job(answer: str) -> Job | None:
        """The job in a notice of its end; None: the notice has none, so the record is to be read."""
        if not answer:
            return None
        return Job.from_record([None if part is False else part for part in json.loads(answer)])

    @redis_reads
    def were_all_lost(self, job_id: str) -> bool:
        """Whether as many attempts of a job were lost as it may have. Its record's other fields do not have it."""
        lost, most = fields(self._redis, job_id, "lost", "max_attempts")
        return int(lost or 0) >= int(most or 1)

    @redis_reads
    def has_ended(self, job_id: str) -> bool:
        """Whether a job is in a terminal state, or its record is gone."""
        (status,) = fields(self._redis, job_id, "status")
        return status is None or JobStatus(status).terminal

    @redis_reads
    def retried_as(self, job_id: str) -> str | None:
        """The id of the job that a retry of this one made; None: there is none."""
        return fields(self._redis, job_id, "retried_as")[0]
