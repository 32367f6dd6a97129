"""Job records in Redis. Every change is one call of ``transitions.lua``, fenced by the attempt.

Losing a race is a return value, not an error. Any call raises
:class:`~ownpod.errors.RedisUnavailable` when Redis is away or refuses to write.
"""

import functools
import importlib.resources
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ownpod import keys
from ownpod.errors import JobNotFound, RedisUnavailable
from ownpod.jobs import MOVES, Attempt, Job, JobStatus, NewJob, Outcome

if TYPE_CHECKING:
    from ownpod.broker import JobMessages

P = ParamSpec("P")
R = TypeVar("R")

REFUSALS = re.compile(r"\b(OOM|READONLY|MISCONF|LOADING|MASTERDOWN|NOREPLICAS)\b")
"""In an answer of Redis: it is full, read-only, cannot save, or not up yet."""

PURGE_STEP = 1000
"""Jobs cancelled by one call of the script: some 10 ms in which Redis does nothing else."""

_ATTEMPT_FIELDS = (
    "endpoint",
    "attempt",
    "input",
    "s3_config",
    "execution_timeout_ms",
    "started_ms",
)


def connect(url: str, *, client_name: str | None = None) -> redis.Redis:
    """A client with bounded waits: 3 s to connect, 5 s for an answer, one repetition.

    Nothing is sent before the first command.
    """
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=5,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
        client_name=client_name,
    )


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def redis_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turns the driver's errors into RedisUnavailable, here and nowhere else."""

    @functools.wraps(method)
    def translated(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise RedisUnavailable(f"Redis cannot be reached: {error}") from error
        except redis.ResponseError as error:
            if not REFUSALS.search(str(error)):
                raise
            raise RedisUnavailable(f"Redis refuses to write: {error}") from error

    return translated


def _script() -> str:
    moves = ", ".join(
        f"{old} = {{{', '.join(f'{new} = true' for new in sorted(allowed))}}}"
        for old, allowed in MOVES.items()
    )
    states = ", ".join(f"{status} = '{status}'" for status in JobStatus)
    constants = (
        f"local S = {{{states}}}\n"
        f"local MOVES = {{{moves}}}\n"
        f'local JOB, ENDPOINT = "{keys.JOB}", "{keys.ENDPOINT}"\n'
        f'local LEASES, EVENTS = "{keys.LEASES}", "{keys.EVENTS}"\n'
    )
    return constants + importlib.resources.files("ownpod").joinpath("transitions.lua").read_text()


class JobStore:
    """Job records, and the messages that go with them.

    Args:
        client: from :func:`connect`.
        messages: makes the Celery message of a job.
        result_ttl_s: how long a finished job's record stays.
    """

    def __init__(self, client: redis.Redis, messages: "JobMessages", *, result_ttl_s: int) -> None:
        self._redis = client
        self._messages = messages
        self._result_ttl_s = result_ttl_s
        self._script = client.register_script(_script())

    @redis_errors
    def _call(self, command: str, *arguments: str | float) -> Any:
        return self._script(args=[command, now_ms(), *arguments])

    def create(self, job: NewJob) -> None:
        """Writes record and message in one step; a repetition with the same id changes nothing."""
        queue, message = self._messages.for_job(job.id, job.endpoint)
        fields = (part for field in job.record().items() for part in field)
        self._call("create", job.id, job.endpoint, queue, message, *fields)

    def claim(self, job_id: str, *, worker_id: str, claim: str, lease_s: float) -> Attempt | None:
        """Begins the next attempt, if the job waits; else there is nothing to do: None.

        ``claim`` is unique for each delivery of the message; the same again gives the same attempt.
        """
        lease_end_ms = now_ms() + int(lease_s * 1000)
        values = self._call("claim", job_id, worker_id, claim, lease_end_ms, *_ATTEMPT_FIELDS)
        if values is None:
            return None
        endpoint, number, job_input, s3_config, timeout_ms, started_ms = values
        return Attempt(
            job_id=job_id,
            endpoint=endpoint,
            worker_id=worker_id,
            number=int(number),
            input=job_input,
            s3_config=s3_config,
            execution_timeout_ms=int(timeout_ms),
            started_ms=int(started_ms),
        )

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Writes how the attempt ended. False: the job has moved on, nothing was changed."""
        fields: list[str | int] = []
        for name, value in (
            ("output", outcome.output),
            ("error", outcome.error),
            ("execution_ms", outcome.execution_ms),
        ):
            if value is not None:
                fields += [name, value]
        done = self._call(
            "finish", attempt.job_id, attempt.number, outcome.status, self._result_ttl_s, *fields
        )
        return bool(done)

    def hand_back(
        self,
        job_id: str,
        endpoint: str,
        attempt: int,
        *,
        lost: bool,
        reason: str,
        expired_only: bool = False,
    ) -> JobStatus | None:
        """Puts the job at the front of its endpoint's queue, for the next attempt.

        Args:
            job_id: the job.
            endpoint: its endpoint.
            attempt: the number of the attempt that ends here.
            lost: the worker may have begun it. Counts; the last one allowed ends in FAILED.
            reason: the error of a job that ends here.
            expired_only: only if the attempt's lease has run out.

        Returns:
            The job's state now; None if the job has moved on and nothing was changed.
        """
        queue, message = self._messages.for_job(job_id, endpoint)
        status = self._call(
            "hand_back",
            job_id,
            attempt,
            queue,
            message,
            int(lost),
            reason,
            self._result_ttl_s,
            now_ms() if expired_only else 0,
        )
        return None if status is None else JobStatus(status)

    def cancel(self, job_id: str, endpoint: str, *, reason: str) -> JobStatus:
        """Cancels a job that has not ended; answers the state it has now.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        queue, message = self._messages.for_job(job_id, endpoint)
        status = self._call("cancel", job_id, endpoint, queue, message, self._result_ttl_s, reason)
        if status is None:
            raise JobNotFound(job_id)
        return JobStatus(status)

    def purge(self, endpoint: str, *, reason: str) -> int:
        """Cancels the jobs that wait at this moment; running ones and later ones are untouched.

        Returns:
            How many were cancelled.
        """
        removed, left = 0, self._call("purge", endpoint, *self._messages.lists(endpoint))
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
        return set(self._call("renew", now_ms() + int(lease_s * 1000), *arguments))

    @redis_errors
    def expired(self, *, limit: int) -> list[Job]:
        """Running jobs whose lease has run out, the oldest first."""
        ids: Any = self._redis.zrange(
            keys.LEASES, "-inf", f"({now_ms()}", byscore=True, offset=0, num=limit
        )
        return [job for job in map(self._read, ids) if job is not None]

    @redis_errors
    def job(self, job_id: str, endpoint: str) -> Job:
        """The record, without its payload.

        Raises:
            JobNotFound: the endpoint has no such job.
        """
        job = self._read(job_id)
        if job is None or job.endpoint != endpoint:
            raise JobNotFound(job_id)
        return job

    def _read(self, job_id: str) -> Job | None:
        values: Any = self._redis.hmget(keys.job(job_id), Job.FIELDS)
        return None if values[0] is None else Job.from_record(values)

    @redis_errors
    def shorten_ttl(self, job: Job, ttl_ms: int) -> None:
        """Lets a finished job's record go after ``ttl_ms``, if that is sooner than it would."""
        left_ms: Any = self._redis.pttl(keys.job(job.id))
        if left_ms > ttl_ms:
            self._redis.pexpire(keys.job(job.id), ttl_ms)

    @redis_errors
    def counts(self, endpoint: str) -> tuple[int, dict[str, str], dict[str, int]]:
        """How many jobs wait, which run (id -> worker id), and how many ever ended in each state.

        The last has ``"retried"`` too: attempts after the first.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(keys.queued(endpoint))
            pipe.hgetall(keys.running(endpoint))
            pipe.hgetall(keys.counts(endpoint))
            waiting, running, ended = pipe.execute()
        return waiting, running, {state: int(count) for state, count in ended.items()}

    @redis_errors
    def ping(self) -> None:
        """Whether Redis answers."""
        self._redis.ping()
