"""Job records in Redis. Every change is one call of ``transitions.lua``, fenced by the attempt.

Losing a race is a return value, not an error. Any call raises
:class:`~ownpod.errors.RedisUnavailable` when Redis is away or refuses to write, and
:class:`~ownpod.errors.AnswerLost` when Redis may have executed the command.

Instants are Redis's: callers pass durations, and no host's clock is read here.
"""

import hmac
import json
import logging
import re
import secrets
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from ownpod.broker.messages import DESCRIPTION, JobMessages
from ownpod.errors import IdempotencyConflict, JobNotFound, NotRetryable, QueueFull
from ownpod.rules.jobs import MOVES, Job, JobStatus, NewJob
from ownpod.rules.runs import LONGEST_MS, Attempt, Outcome, Run, RunCheck, execution_ms
from ownpod.store import keys
from ownpod.store.client import clock_ms, redis_errors, redis_reads, schema_version
from ownpod.store.retry import unrepeatable
from ownpod.store.schema import Guard
from ownpod.store.scripts import Scripts

PURGE_STEP = 1000
"""Jobs cancelled by one call of the script: some 10 ms in which Redis does nothing else."""

log = logging.getLogger(__name__)

RETRYABLE = (JobStatus.FAILED, JobStatus.TIMED_OUT)
"""As RunPod documents; a retry is a new submission, not a move of the state machine."""

RECENT = 10_000
"""Jobs that ``/requests`` can list, for each endpoint."""

ATTEMPTS_LOGGED = 20
"""A job's last attempts that were handed back; enough to see what happened."""

_MINUTE = 60_000
BUCKETS_MS: tuple[int, ...] = (
    *(5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000),
    *(_MINUTE, 5 * _MINUTE, 10 * _MINUTE, 30 * _MINUTE, 60 * _MINUTE),
)
"""Upper ends of the histograms' buckets."""

WEBHOOK_LEASE_MS = 60_000
"""ms until a webhook's message is looked for again, and until a try that ended without a result is
repeated; longer than a try may take."""

WEBHOOK_KEPT_S = 86_400
"""s that a record stays at least while its webhook is owed; counted from the job's end, and again from each
time that the webhook is due or tried."""

SAMPLES, SAMPLE_MS = 240, 15_000
"""Entries of an endpoint's history, and the ms between two: an hour."""

CHUNK_BYTES = 64 * 1024 * 1024
"""Bytes of chunks that are kept of a job. A generator without an end must not fill Redis: at its
``maxmemory`` it refuses every job."""

BROKEN_MS = 60_000
"""Pause in ms before a record that cannot be read is read again; it must not keep the others waiting."""

LREM_MOST = 10_000
"""Messages that a cancel compares at most, some 1 ms, to find its own; see ``transitions.lua``."""

CALL_TOKEN_BYTES, CALLS_KEPT = 4, 4
"""Random bytes in the token of a call that adds chunks, and how many tokens a record keeps."""

REPEATABLE = frozenset(
    {
        *(
            "create",
            "subscribe",
            "retry",
            "claim",
            "record_run",
            "clear_run",
            "adopt",
            "hand_over",
            "callback",
        ),
        *("chunks", "progress", "save_cursor", "requeue", "finish", "cancel", "expire", "expired"),
        *("sample", "renew", "purge", "purge_some"),
    }
)
"""Commands of ``transitions.lua`` that change nothing when they are executed a second time."""

INSIST = frozenset({"create", "retry", "cancel", "callback", "purge"})
"""The repeatable commands that clients send: an error would mean "not done" for a command that Redis
may have executed."""

RETRIED = (
    *("endpoint", "input", "s3_config", "webhook", "execution_timeout_ms", "ttl_ms"),
    *("low_priority", "max_attempts", "request_id", "description"),
)
"""Fields that a retry's record takes over."""

LONGEST_TOLD = 16_384
"""Bytes of output and error that who waits for a job is sent with the news; longer ones are to be read."""

RUNS_KEPT_S = 8 * 86_400
"""After a worker's last job, what it may still be at is forgotten; no job runs longer."""

_ATTEMPT_FIELDS = (
    "endpoint",
    "attempt",
    "input",
    "s3_config",
    "execution_timeout_ms",
    "created_ms",
    "ttl_ms",
    "started_ms",
    "callback",
    "request_id",
)


_CURSOR = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def parse_cursor(text: str) -> tuple[int, int] | None:
    """Attempt and index of a cursor "<attempt>-<index>"; None if it is none.

    Nine digits are more than Redis keeps of either; a longer number is no cursor.
    """
    found = _CURSOR.fullmatch(text)
    return None if found is None else (int(found[1]), int(found[2]))


def _run(job_id: str, entry: str) -> Run | None:
    """Out of an entry of a worker's runs; None: nothing was begun."""
    said = json.loads(entry)
    if "run" not in said:
        return None
    return Run(
        job_id=job_id,
        attempt=said["attempt"],
        id=said["run"],
        check=RunCheck(said["look"]),
        execution_timeout_ms=said["timeoutMs"],
        callback=said["callback"],
    )


def _constants(messages: JobMessages) -> str:
    moves = ", ".join(
        f"{old} = {{{', '.join(f'{new} = true' for new in sorted(allowed))}}}"
        for old, allowed in MOVES.items()
    )
    states = ", ".join(f"{status} = '{status}'" for status in JobStatus)
    webhook_list, webhook_message = messages.for_webhook("@job@")
    return (
        f"local S = {{{states}}}\n"
        f"local MOVES = {{{moves}}}\n"
        f'local JOB, ENDPOINT, CHUNKS = "{keys.JOB}", "{keys.ENDPOINT}", "{keys.CHUNKS}"\n'
        f'local RUNS, RUNS_KEPT_S = "{keys.RUNS}", {RUNS_KEPT_S}\n'
        f'local LEASES, EXPIRIES = "{keys.LEASES}", "{keys.EXPIRIES}"\n'
        f'local WEBHOOKS = "{keys.WEBHOOKS}"\n'
        f"local RECENT, WEBHOOK_LEASE_MS = {RECENT}, {WEBHOOK_LEASE_MS}\n"
        f"local WEBHOOK_KEPT_S = {WEBHOOK_KEPT_S}\n"
        f"local BUCKETS_MS = {{{', '.join(map(str, BUCKETS_MS))}}}\n"
        f'local DESCRIPTION = "{DESCRIPTION}"\n'
        f"local ATTEMPTS_LOGGED, LONGEST_TOLD = {ATTEMPTS_LOGGED}, {LONGEST_TOLD}\n"
        f"local CHUNK_BYTES, LONGEST_MS, BROKEN_MS = {CHUNK_BYTES}, {LONGEST_MS}, {BROKEN_MS}\n"
        f"local LREM_MOST, CALLS_KEPT = {LREM_MOST}, {CALLS_KEPT * (2 * CALL_TOKEN_BYTES + 1)}\n"
        f"local RETRIED = {{{', '.join(map(repr, RETRIED))}}}\n"
        f"local ANSWER = {{{', '.join(map(repr, Job.FIELDS))}}}\n"
        f'local WEBHOOK_LIST, WEBHOOK_MESSAGE = "{webhook_list}", [==[{webhook_message}]==]\n'
    )


@dataclass(frozen=True)
class Idempotency:
    """A client's ``Idempotency-Key``: ``key`` is its digest with endpoint and caller, ``body`` the
    body's, ``ttl_s`` how long it is remembered.
    """

    key: str
    body: str
    ttl_s: int


@dataclass(frozen=True)
class Stream:
    """What a job's handler has yielded, from ``start`` on, and how the job is. ``chunks`` are JSON."""

    job: Job
    start: int
    chunks: list[str]
    cursor: str
    """The stored cursor of ``/stream`` as it was read."""


@dataclass(frozen=True)
class Histogram:
    """How many observations each bucket of :data:`BUCKETS_MS` has, and one more above; not summed up."""

    buckets: list[int]
    sum_ms: int


def _histogram(found: Mapping[str, int]) -> Histogram:
    buckets = [found.get(str(number), 0) for number in range(1, len(BUCKETS_MS) + 2)]
    return Histogram(buckets, found.get("sum", 0))


@dataclass(frozen=True)
class EndpointStats:
    """What is measured of an endpoint: jobs that wait and since when the oldest, jobs that run by worker
    id, and what ever happened; see ``transitions.lua``.
    """

    waiting: int
    oldest_ms: int | None
    running: Mapping[str, int]
    counts: Mapping[str, int]
    webhooks: Mapping[str, int]
    delay: Histogram
    execution: Histogram


@dataclass(frozen=True)
class Expired:
    """A running attempt whose lease has run out at ``lease_end_ms``, on Redis's clock."""

    id: str
    endpoint: str
    attempt: int
    worker_id: str
    lease_end_ms: int


def call_token() -> str:
    """A new token for :meth:`JobStore.add_chunks`."""
    return secrets.token_hex(CALL_TOKEN_BYTES)


def _log_broken(ids: Iterable[str]) -> None:
    for job_id in ids:
        log.error("job %s: its record cannot be read, it is left out for a while", job_id)


class JobStore:
    """Job records, and the messages that go with them.

    Args:
        client: from :func:`ownpod.store.client.connect`.
        messages: makes the Celery message of a job.
        result_ttl_s: how long a finished job's record stays.
    """

    def __init__(self, client: redis.Redis, messages: JobMessages, *, result_ttl_s: int) -> None:
        self.client = self._redis = client
        self.messages = messages
        self._result_ttl_s = result_ttl_s
        self._script = Scripts(
            client,
            "jobs.lua",
            _constants(messages),
            repeatable=REPEATABLE,
            insist=INSIST,
        )
        self.schema = Guard(lambda: schema_version(client))
        """Checks the version of the records, for what runs no script."""

    def now_ms(self) -> int:
        """Redis's clock, in ms since the epoch: what instants in records are compared with."""
        return clock_ms(self._redis)

    def _call(self, command: str, *arguments: str | float, token: str = "") -> Any:
        return self._script(command, token, *arguments)

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
            most_queued: how many jobs may wait in the endpoint; 0 is any number.
            idempotency: the key it is submitted under.
            channel: is told of the job's end, as by :meth:`watch`.

        Returns:
            The job's id, or that of the job that was created earlier under the same key and whose
            record is still there.

        Raises:
            QueueFull: so many wait already.
            IdempotencyConflict: the key was used for another body.
        """
        description = self.messages.description(job.endpoint, job.input)
        queue, message = self.messages.for_job(
            job.id, job.endpoint, low=job.low_priority, description=description
        )
        once = idempotency or Idempotency(key="", body="", ttl_s=0)
        found = self._call(
            "create",
            job.id,
            job.endpoint,
            queue,
            message,
            most_queued,
            keys.idempotency(once.key) if once.key else "",
            once.ttl_s,
            once.body,
            "" if job.created_ms is None else job.created_ms,
            job.ttl_ms,
            int(job.low_priority),
            "description",
            description,
            *(() if channel is None else ("watched", channel)),
            *(part for field in job.record().items() for part in field),
        )
        match found:
            case ["created"]:
                return job.id
            case ["full"]:
                raise QueueFull(most_queued)
            case [earlier, body] if body == once.body:
                return str(earlier)
        raise IdempotencyConflict

    def subscribe(self, job_id: str, channel: str, *, end_only: bool) -> None:
        """From now on a channel of Redis is told of the job's end, as "<job id> <state> <answer>" with
        what :meth:`ended_job` reads; or of each move and chunk, as "<job id> <what>".
        """
        self._call("subscribe", job_id, "watched" if end_only else "followed", channel)

    @unrepeatable
    def retry(self, job_id: str, endpoint: str, new_id: str) -> None:
        """Submits a FAILED or TIMED_OUT job again, as a new job or, with its own id, as itself.

        Raises:
            JobNotFound: the endpoint has no such job.
            NotRetryable: it is in another state.
        """
        messages = self.messages.either(new_id, endpoint)
        status = self._call("retry", job_id, endpoint, new_id, *messages, token=str(uuid.uuid4()))
        if status is None:
            raise JobNotFound(job_id)
        if status not in RETRYABLE:
            raise NotRetryable(job_id, status)

    def claim(
        self, job_id: str, *, worker_id: str, claim: str, lease_s: float
    ) -> Attempt | Run | None:
        """Begins the next attempt, if the job waits, or goes on with one that an earlier node left.

        ``claim`` is unique for each delivery of the message; the same again gives the same attempt.

        Returns:
            The attempt. A run: the job is not to be run, but the worker may still be at that one.
            None: there is nothing to do.
        """
        options = (worker_id, claim, int(lease_s * 1000), self._result_ttl_s)
        found = self._call("claim", job_id, *options, *_ATTEMPT_FIELDS)
        if found is None:
            return None
        entry, *values = found
        run = _run(job_id, entry)
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
            run=run,
        )

    def record_run(self, run: Run, worker_id: str) -> None:
        """Says what a worker is at, before it may begin, or better than before."""
        entry = {
            "attempt": run.attempt,
            "run": run.id,
            "look": run.check,
            "timeoutMs": run.execution_timeout_ms,
            "callback": run.callback,
        }
        self._call("record_run", worker_id, run.job_id, run.attempt, json.dumps(entry))

    def clear_run(self, worker_id: str, job_id: str, attempt: int) -> None:
        """The worker is done with an attempt that was over before: its slot is free."""
        self._call("clear_run", worker_id, job_id, attempt)

    @redis_reads
    def run(self, worker_id: str, job_id: str, attempt: int) -> Run | None:
        """What a worker may still be at of a job; None: nothing."""
        entry: Any = self._redis.hget(keys.runs(worker_id), f"{job_id}:{attempt}")
        return None if entry is None else _run(job_id, entry)

    @redis_reads
    def orphans(self, worker_id: str) -> list[tuple[str, int]]:
        """Job and attempt of all that a worker may be at."""
        names: Any = self._redis.hkeys(keys.runs(worker_id))
        parts = (name.rpartition(":") for name in names)
        return [(job_id, int(attempt)) for job_id, _, attempt in parts]

    def adopt(
        self,
        job_id: str,
        endpoint: str,
        attempt: int,
        worker_id: str,
        *,
        reason: str,
        lease_s: float,
    ) -> str:
        """Settles what an earlier node of a worker left; before the new one takes any job.

        Where the run can still bring its result, this node goes on with it: "resumed". Else the job
        is handed back, and a slot "waits" for the end of the run, or is "free" at once. Both are
        messages in the worker's own queue.
        """
        own = self.messages.for_worker(job_id, attempt, endpoint, worker_id)
        return str(
            self._call(
                "adopt",
                job_id,
                attempt,
                worker_id,
                self._result_ttl_s,
                reason,
                int(lease_s * 1000),
                *own,
                *self.messages.either(job_id, endpoint),
            )
        )

    def hand_over(
        self,
        job_id: str,
        endpoint: str,
        attempt: int,
        worker_id: str,
        *,
        reason: str,
        lease_s: float,
    ) -> JobStatus | None:
        """A node that ends leaves a run that outlives it to its successor, for so long; any other job
        goes back to its queue, and no attempt counts. Answers the job's state, as :meth:`requeue`.
        """
        status = self._call(
            "hand_over",
            job_id,
            attempt,
            worker_id,
            self._result_ttl_s,
            reason,
            int(lease_s * 1000),
            *self.messages.either(job_id, endpoint),
        )
        return None if status is None else JobStatus(status)

    @redis_reads
    def awaits_callback(self, job_id: str, endpoint: str, token: str) -> bool:
        """Whether the token is that of the job's last run: one small read, before a result is parsed."""
        found: Any = self._redis.hmget(keys.job(job_id), ["endpoint", "callback"])
        of_endpoint, of_run = (value or "" for value in found)
        # Tokens are compared in constant time, and also where the endpoint is wrong.
        same = hmac.compare_digest(of_run.encode(), token.encode())
        return bool(of_run) and same and of_endpoint == endpoint

    def callback(self, job_id: str, endpoint: str, token: str, output: str) -> JobStatus:
        """A result that the worker posted by itself; JSON text. Completes the job, if no node can.

        Returns:
            The job's state now.

        Raises:
            JobNotFound: the token is not that of the job's last run.
        """
        status = self._call("callback", job_id, endpoint, token, self._result_ttl_s, output)
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    def add_chunks(
        self, job_id: str, attempt: int, chunks: list[str], *, token: str | None = None
    ) -> bool:
        """Appends to what the attempt's handler has yielded.

        Args:
            job_id: the job.
            attempt: the number of the attempt.
            chunks: JSON texts.
            token: from :func:`call_token`; a call with the same one again adds nothing. Needed where
                the caller repeats the call by itself.

        Returns:
            False: the job has moved on, so the run can be stopped. Also after these chunks, if they
            are more than :data:`CHUNK_BYTES` in all: the job is FAILED then.
        """
        token = call_token() if token is None else token
        return bool(self._call("chunks", job_id, attempt, self._result_ttl_s, *chunks, token=token))

    def progress(self, job_id: str, attempt: int, output: str) -> bool:
        """What a running job's handler says of its progress, JSON text, is its output until it ends.
        False: the job moved on.
        """
        return bool(self._call("progress", job_id, attempt, output))

    def finish(self, attempt: Attempt, outcome: Outcome, *, slot_free: bool = True) -> bool:
        """Writes how the attempt ended. False: the job has moved on, nothing was changed.

        ``slot_free``: the worker is done with it, too.
        """
        fields: list[str | int] = []
        for name, value in (
            ("output", outcome.output),
            ("error", outcome.error),
            ("execution_ms", execution_ms(outcome.execution_ms)),
        ):
            if value is not None:
                fields += [name, value]
        free = attempt.worker_id if slot_free else ""
        arguments = (attempt.number, free, outcome.status, self._result_ttl_s)
        done = self._call("finish", attempt.job_id, *arguments, *fields)
        return bool(done)

    def requeue(
        self,
        job_id: str,
        endpoint: str,
        attempt: int,
        *,
        lost: bool,
        reason: str,
        freed: str = "",
        lease_end_ms: int = 0,
    ) -> JobStatus | None:
        """Puts the job at the front of its endpoint's queue, for the next attempt.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            attempt: the number of the attempt that ends here.
            lost: the worker may have begun it. Counts; the last one allowed ends in FAILED.
            reason: the error of a job that ends here.
            freed: the worker, if it has nothing of the job.
            lease_end_ms: only if the attempt's lease is still this one, see :class:`Expired`.

        Returns:
            The job's state now; None if the job has moved on and nothing was changed.
        """
        status = self._call(
            "requeue",
            job_id,
            attempt,
            freed,
            int(lost),
            reason,
            self._result_ttl_s,
            lease_end_ms,
            *self.messages.either(job_id, endpoint),
        )
        return None if status is None else JobStatus(status)

    def cancel(self, job_id: str, endpoint: str, *, reason: str) -> JobStatus:
        """Cancels a job that has not ended; answers the state it has now.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        messages = self.messages.either(job_id, endpoint)
        status = self._call("cancel", job_id, endpoint, self._result_ttl_s, reason, *messages)
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    @unrepeatable
    def purge(self, endpoint: str, *, reason: str) -> int:
        """Cancels the jobs that wait at this moment; running ones and later ones are untouched.

        Returns:
            How many were cancelled.
        """
        # Not what is cancelled here: the sweep may help, as it finishes purges that broke off.
        token = str(uuid.uuid4())
        while (
            removed := int(
                self._call("purge", endpoint, *self.messages.lists(endpoint), token=token)
            )
        ) < 0:
            self.finish_purge(endpoint, reason=reason)
        self.finish_purge(endpoint, reason=reason)
        return removed

    def finish_purge(self, endpoint: str, *, reason: str) -> int:
        """Cancels what a purge has taken out of the queue, also one that broke off; how many."""
        removed, left = 0, True
        while left:
            step = ("purge_some", endpoint, PURGE_STEP, self._result_ttl_s, reason)
            cancelled, left = self._call(*step)
            removed += cancelled
        return removed

    def renew(self, attempts: Iterable[Attempt], *, lease_s: float) -> set[str]:
        """Renews the leases of running attempts; answers the ids of jobs that have moved on."""
        arguments = [part for held in attempts for part in (held.job_id, held.number)]
        if not arguments:
            return set()
        return set(self._call("renew", int(lease_s * 1000), *arguments))

    def expire(self, *, limit: int) -> list[str]:
        """Ends jobs that waited longer than their ttl; answers their ids."""
        ended, broken = self._call("expire", limit, self._result_ttl_s)
        _log_broken(broken)
        return list(ended)

    def republish(self, job_id: str, endpoint: str) -> bool:
        """Gives a waiting job a new message; False: it does not wait."""
        messages = self.messages.either(job_id, endpoint)
        return bool(self._call("republish", job_id, *messages))

    @redis_reads
    def retried_as(self, job_id: str) -> str | None:
        """The job that a retry of this one made."""
        return self._fields(job_id, "retried_as")[0]

    @redis_reads
    def has_ended(self, job_id: str) -> bool:
        """Whether a job is in a terminal state, or gone."""
        (status,) = self._fields(job_id, "status")
        return status is None or JobStatus(status).terminal

    @redis_reads
    def stream(self, job_id: str, endpoint: str, start: tuple[int | None, int] | None) -> Stream:
        """What a job's handler has yielded.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            start: attempt and index to begin with (of another attempt: from the beginning; an attempt
                None is any); None: where ``/stream`` was read to.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        cursor = ""
        if start is None:
            (drained,) = self._fields(job_id, "drained")
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
            # What was read so far is another attempt's: this one from its beginning.
            index = 0

    def save_cursor(self, stream: Stream) -> None:
        """Moves the cursor of ``/stream`` behind what was answered."""
        end = f"{stream.job.attempt}-{stream.start + len(stream.chunks)}"
        self._call("save_cursor", stream.job.id, stream.cursor, end)

    def expired(self, *, limit: int) -> list[Expired]:
        """Running jobs whose lease has run out, the oldest first."""
        found, broken = self._call("expired", limit)
        _log_broken(broken)
        return [
            Expired(job_id, endpoint, int(attempt), worker_id, int(float(lease_end)))
            for job_id, endpoint, attempt, worker_id, lease_end in found
        ]

    @staticmethod
    def ended_job(answer: str) -> Job | None:
        """A job that has ended, out of the news of that; None: it is to be read."""
        if not answer:
            return None
        return Job.from_record([None if part is False else part for part in json.loads(answer)])

    @redis_reads
    def job(self, job_id: str, endpoint: str) -> Job:
        """The record with its output and progress; :meth:`ownpod.store.listing.Listing.get` reads neither.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        job = self._read(job_id)
        if job is None or job.endpoint != endpoint:
            raise JobNotFound(job_id)
        return job

    def _read(self, job_id: str) -> Job | None:
        values = self._fields(job_id, *Job.FIELDS)
        return None if values[0] is None else Job.from_record(values)

    def _fields(self, job_id: str, *names: str) -> list[str | None]:
        values: Any = self._redis.hmget(keys.job(job_id), names)
        return list(values)

    @redis_reads
    def counts(self, endpoint: str) -> tuple[int, dict[str, str], dict[str, int]]:
        """How many jobs wait, which run (id -> worker id), and how many ever ended in each state.

        The last has ``"retried"`` too: attempts after the first.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            pipe.hgetall(keys.running(endpoint))
            pipe.hgetall(keys.counts(endpoint))
            waiting, running, ended = pipe.execute()
        told = {*JobStatus, "retried"}
        return waiting, running, {name: int(ended[name]) for name in ended if name in told}

    @redis_reads
    def position(self, job: Job) -> int | None:
        """How many go before a waiting job, and it; None: it waits no more. Cheap in any queue."""
        queued, low = keys.queued(job.endpoint), keys.of_endpoint(job.endpoint, "low")
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrank(queued, job.id)
            pipe.zrank(low, job.id)
            pipe.zcount(low, "-inf", job.created_ms)
            pipe.zcard(queued)
            pipe.zcard(low)
            rank, low_rank, lower, all_waiting, all_low = pipe.execute()
        if rank is None:
            return None
        before = rank - lower if low_rank is None else all_waiting - all_low + low_rank
        return int(max(0, before)) + 1

    def sample(self, endpoint: str) -> None:
        """Adds to :meth:`history` how many jobs wait and run now, once each :data:`SAMPLE_MS`."""
        self._call("sample", endpoint, SAMPLE_MS, SAMPLES)

    @redis_reads
    def history(self, endpoint: str) -> list[list[int]]:
        """The last hour: ms since the epoch, jobs that waited, jobs that ran; the oldest first."""
        samples: Any = self._redis.lrange(keys.of_endpoint(endpoint, "history"), 0, -1)
        hour_ago = self.now_ms() - 3_600_000
        return [sample for sample in map(json.loads, samples) if sample[0] >= hour_ago]

    @redis_reads
    def stats(self, endpoint: str) -> EndpointStats:
        """What is measured of an endpoint."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            pipe.zrange(keys.queued(endpoint), 0, 0, withscores=True)
            pipe.hvals(keys.running(endpoint))
            for name in ("counts", "webhooks", "delay", "execution"):
                pipe.hgetall(keys.of_endpoint(endpoint, name))
            waiting, oldest, running, *hashes = pipe.execute()
        counts, webhooks, delay, execution = (
            {name: int(value) for name, value in found.items()} for found in hashes
        )
        return EndpointStats(
            waiting=waiting,
            oldest_ms=int(oldest[0][1]) if oldest else None,
            running=Counter(running),
            counts=counts,
            webhooks=webhooks,
            delay=_histogram(delay),
            execution=_histogram(execution),
        )

    @redis_errors
    def ping(self) -> None:
        """Whether Redis answers."""
        self._redis.ping()
