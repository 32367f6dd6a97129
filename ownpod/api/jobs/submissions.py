"""Submitting a job and awaiting its end, without Flask: for the routes, and for every other way by which jobs come in."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ownpod import log
from ownpod.api.jobs.pins import Pins
from ownpod.api.workers.managed import ManagedWorkers, NoManagedWorkers
from ownpod.errors import EndpointPaused, RedisUnavailable
from ownpod.registry import Registry
from ownpod.rules.affinity import Affinity, Pin
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.hours import Pause
from ownpod.rules.jobs import Job, JobStatus, NewJob, new_job_id
from ownpod.rules.payload import readable
from ownpod.settings import Settings
from ownpod.store.jobs import Idempotency
from ownpod.store.notices import Notices
from ownpod.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A client's request for a job.

    Attributes:
        endpoint: id of the endpoint.
        body: what :class:`ownpod.api.schemas.RunSchema` has loaded.
        request_id: the client's ``X-Request-ID``.
        idempotency_key: the client's ``Idempotency-Key``, checked; None: there is none.
        caller: the digest of the caller's key; "": none. Two callers can use the same idempotency key.
        pin: the worker that the client names; None: any worker.
        private: the session, or the worker of a one-off task, that alone runs the job; None: it is no task.
        movable: the client named no session, so the job may move to another one.
        one_off: ``private`` is the worker of a one-off task.
        task: JSON text of :class:`ownpod.rules.task_views.TaskFacts`.
        job_id: the job's id; None: a new one.
        owner: of a task, the digest of its client's key; other keys of its endpoint do not see it.
        hops: number of OwnPods that the job has come through.
    """

    endpoint: str
    body: dict[str, Any]
    request_id: str | None = None
    idempotency_key: str | None = None
    caller: str = ""
    pin: Pin | None = None
    private: str | None = None
    movable: bool = False
    one_off: bool = False
    task: str | None = None
    job_id: str | None = None
    owner: str | None = None
    hops: int = 0


@dataclass(frozen=True)
class Submitted:
    """The id of a submission's job. ``earlier``: an earlier request created it, with the same idempotency key."""

    job_id: str
    earlier: bool


class Submissions:
    """Creates jobs, and waits for their ends.

    Args:
        registry: the endpoints.
        store: the job records.
        notices: wakes the threads that wait.
        settings: how long idempotency keys are remembered.
        wanted: wakes the scaler; may raise RedisUnavailable.
        now_ms: Redis's clock, in ms since the epoch; may raise RedisUnavailable.
        managed: the records of managed workers, for jobs that name one.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        notices: Notices,
        settings: Settings,
        *,
        wanted: Callable[[], None],
        now_ms: Callable[[], int],
        managed: ManagedWorkers | None = None,
    ) -> None:
        self._wanted = wanted
        self._now_ms = now_ms
        self._registry = registry
        self._store = store
        self._notices = notices
        self._settings = settings
        self._pins = Pins(registry, store, managed or NoManagedWorkers())

    def check_open(self, endpoint_id: str) -> Endpoint:
        """The endpoint, if it takes jobs now.

        Raises:
            EndpointNotFound: there is no such endpoint.
            EndpointPaused: its ``workersMax`` is 0 now, or it has expired.
            RedisUnavailable: Redis does not answer. Only an endpoint with hours or an expiry asks Redis.
        """
        endpoint = self._registry.endpoint(endpoint_id)
        if self._pause(endpoint):
            # Another process may just have changed it, and its caller's next request must be taken.
            endpoint = self._registry.newer().get(endpoint_id, endpoint)
            if pause := self._pause(endpoint):
                raise EndpointPaused(pause.detail)
        return endpoint

    def _pause(self, endpoint: Endpoint) -> Pause | None:
        # Redis's clock, which the scaler has, too. It costs a command where the time decides only.
        return endpoint.pause_at(self._now_ms() if endpoint.has_hours else 0)

    def submit(self, submission: Submission) -> Submitted:
        """Queues a job.

        Raises:
            EndpointNotFound: there is no such endpoint.
            EndpointPaused: its ``workersMax`` is 0 now, or it has expired.
            AffinityWorkerGone: the job needs one worker, which is not there.
            SessionEnded, SessionQueueFull: its session does not take it.
            QueueFull: the endpoint's ``maxQueueDepth`` is reached.
            IdempotencyConflict: the key was used for another body.
            RedisUnavailable: Redis does not answer.
        """
        new_id = submission.job_id or new_job_id(sync=False)
        job_id = self._create(submission, new_id)
        return Submitted(job_id, earlier=job_id != new_id)

    def earlier(self, submission: Submission) -> str | None:
        """The job that an earlier request created with this idempotency key; None: there is none.

        Raises:
            IdempotencyConflict: the key was used for another body.
            RedisUnavailable: Redis does not answer.
        """
        once = self._idempotency(submission)
        return None if once is None else self._store.jobs.earlier(once)

    def submit_and_wait(self, submission: Submission, wait_s: float) -> Job:
        """Queues a job and waits for its end, at most ``wait_s`` seconds.

        Returns:
            The job at its end, or as it is when the time is over or this process ends.

        Raises:
            TooManyWaiting: this process has no room for another waiting request.
            Others: as :meth:`submit`.
        """
        deadline, new_id = time.monotonic() + wait_s, new_job_id(sync=True)
        # The subscription comes first: a fast worker could end the job before a later one.
        with self._notices.subscribe(new_id, end_only=True) as wait:
            job_id = self._create(submission, new_id, channel=self._notices.channel)
            if job_id == new_id:
                notice = wait(wait_s)
                return self._at_end(job_id, submission.endpoint, wait, deadline, notice)
        # The idempotency key is an earlier request's, so this request waits for that request's job.
        return self.await_end(job_id, submission.endpoint, deadline)

    def retry(self, job_id: str, endpoint_id: str) -> str:
        """Submits a FAILED or TIMED_OUT job again, and returns the id that it has now.

        Raises:
            EndpointNotFound: there is no such endpoint.
            EndpointPaused: its ``workersMax`` is 0 now, or it has expired.
            JobNotFound: the endpoint has no such job.
            NotRetryable: the job is in another state.
        """
        endpoint = self.check_open(endpoint_id)
        new_id = job_id if self._settings.retry_same_id else new_job_id(sync=False)
        self._store.jobs.retry(job_id, endpoint_id, new_id)
        self._want_worker(endpoint)
        return new_id

    def _want_worker(self, endpoint: Endpoint, pin: Pin | None = None) -> None:
        """Wakes the scaler for a job of an endpoint whose first worker it is to start, or that may need a stopped worker
        again. Later ones can wait a second.
        """
        if endpoint.managed is None:
            return
        resumes = pin is not None and pin.affinity is Affinity.STRICT_RESUME
        if not resumes and any(worker.is_managed for worker in endpoint.workers):
            return
        # The job is queued, and the scaler also wakes by itself.
        with contextlib.suppress(RedisUnavailable):
            self._wanted()

    def await_end(self, job_id: str, endpoint_id: str, deadline: float) -> Job:
        """Waits for the end of a job that exists, at most until ``deadline``, in s of the monotonic clock.

        Raises:
            JobNotFound: the endpoint has no such job.
            TooManyWaiting: this process has no room for another waiting request.
        """
        with self._notices.subscribe(job_id, end_only=True) as wait:
            self._store.jobs.subscribe(job_id, self._notices.channel, end_only=True)
            return self._at_end(job_id, endpoint_id, wait, deadline)

    def _create(self, submission: Submission, job_id: str, *, channel: str | None = None) -> str:
        pin, private = submission.pin, submission.private
        if private is not None:
            # A paused endpoint has sessions, whose queues have limits of their own.
            endpoint = self._registry.endpoint(submission.endpoint)
            queue: str | None = self._store.messages.own_queue(endpoint.id, private)
        else:
            endpoint = self.check_open(submission.endpoint)
            queue = None if pin is None else self._pins.queue(endpoint, pin)
        created = self._store.jobs.create(
            _new_job(job_id, endpoint, submission, queue, stays=self._stays(submission)),
            most_queued=0 if private is not None else endpoint.max_queue_depth,
            idempotency=self._idempotency(submission),
            channel=channel,
        )
        if created == job_id:
            log.moving(
                job_id,
                JobStatus.IN_QUEUE,
                endpoint=endpoint.id,
                requestId=submission.request_id,
            )
            if private is None:
                self._want_worker(endpoint, pin)
        return created

    def _stays(self, submission: Submission) -> bool:
        """Whether the job never goes to a cloud worker, by its request, or by its client's key."""
        policy = submission.body["policy"] or {}
        keys = self._settings.overflow_never_keys
        return policy.get("overflow") is False or submission.caller in {key.digest for key in keys}

    def _idempotency(self, submission: Submission) -> Idempotency | None:
        if submission.idempotency_key is None:
            return None
        owner = json.dumps([submission.endpoint, submission.caller, submission.idempotency_key])
        # Parsed, so that the same input in another notation is the same body.
        body = submission.body | {"input": readable(submission.body["input"])}
        return Idempotency(
            key=hashlib.sha256(owner.encode()).hexdigest(),
            body=hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(),
            ttl_s=self._settings.idempotency_ttl_s,
        )

    def _at_end(
        self,
        job_id: str,
        endpoint_id: str,
        wait: Callable[[float], str],
        deadline: float,
        notice: str = "",
    ) -> Job:
        """The job at its end, or at ``deadline``. ``wait`` is of :meth:`ownpod.store.notices.Notices.subscribe`,
        and ``notice`` is its last return value.
        """
        while True:
            # A short result is in the notice; a long one is read from the record.
            job = self._store.jobs.ended_job(notice) or self._store.jobs.get(job_id, endpoint_id)
            left_s = deadline - time.monotonic()
            if job.status.terminal or left_s <= 0 or self._notices.stopped:
                return job
            notice = wait(left_s)


def _new_job(
    job_id: str, endpoint: Endpoint, submission: Submission, queue: str | None, *, stays: bool
) -> NewJob:
    body = submission.body
    policy, s3_config = body["policy"] or {}, body["s3_config"]
    return NewJob(
        id=job_id,
        endpoint=endpoint.id,
        input=body["input"],
        s3_config=None if s3_config is None else json.dumps(s3_config),
        webhook=body["webhook"],
        execution_timeout_ms=policy.get("execution_timeout_ms") or endpoint.execution_timeout_ms,
        ttl_ms=policy.get("ttl_ms") or endpoint.ttl_ms,
        low_priority=policy.get("low_priority") or False,
        max_attempts=_most_attempts(endpoint, submission),
        request_id=submission.request_id,
        queue=queue,
        affinity=_affinity(submission, queue),
        private=submission.private,
        movable=submission.movable,
        owner=submission.owner,
        stays=stays,
        hops=submission.hops,
        task=submission.task,
    )


def _most_attempts(endpoint: Endpoint, submission: Submission) -> int:
    """A job of a session that its client named has one attempt, because a lost one takes the session's state with it."""
    named = submission.private is not None and not submission.movable
    return 1 if named and not submission.one_off else endpoint.max_attempts


def _affinity(submission: Submission, queue: str | None) -> str | None:
    if submission.private is not None:
        return Affinity.STRICT.value
    return None if queue is None or submission.pin is None else submission.pin.affinity.value
