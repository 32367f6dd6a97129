"""One request of an OpenAI client and its job, from the submission until the job ends or the client goes."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ownpod.api.jobs.following import Following
from ownpod.api.jobs.routes import cancel_for
from ownpod.api.jobs.submissions import Submission
from ownpod.api.metrics.openai import note_reply
from ownpod.api.services import Services
from ownpod.errors import (
    AnswerLost,
    JobNotFound,
    OwnPodError,
    RedisUnavailable,
    TooManyWaiting,
)
from ownpod.rules.jobs import Job, JobStatus, new_job_id
from ownpod.rules.openai import Rendering, Reply, error, reply_of, unbegun
from ownpod.rules.openai_replies import WORKER_LOST
from ownpod.store.chunks import Stream

log = logging.getLogger(__name__)

T = TypeVar("T")

WAITING_S = 10.0
"""Seconds for which the headers of a stream wait for its first chunk, and between comments on a silent stream. OpenAI's clients
ignore comments, and proxies close a connection that is silent for long."""

TAIL = 4096
"""Characters of a response's end that are remembered: the last events of a stream have the numbers of tokens."""

AWAY_S = 15.0
"""Seconds for which an exchange waits for a Redis that does not answer, as during its restart. Workers go on meanwhile."""

AGAIN_S = 0.5
"""Seconds between two reads of a Redis that does not answer."""

GONE = "cancelled because its client has gone"
STOPPED = "cancelled because the API process of its client has ended"
NOT_IN_TIME = "cancelled because it did not end in time for its client"

STOPPING = "OwnPod is stopping"

RESTART_S = 1
"""Seconds after which a client may repeat a request that this process ended."""


AGAIN = "Redis did not answer; repeat the request with the same Idempotency-Key to get its job"

REPEAT_S = 2
"""Seconds after which a client may repeat a request that Redis has not answered."""


def unknown(*, has_key: bool, message: str = AnswerLost().message) -> Reply:
    """The response to a request whose job may exist. ``has_key``: with an idempotency key, the same request gets the same job; without
    one it would make a second job.
    """
    return unbegun(503, AGAIN, REPEAT_S) if has_key else error(503, message)


def _is_lost(job: Job, attempt: int) -> bool:
    """Whether a job runs this attempt no more, although it has not ended."""
    return job.attempt != attempt or job.status is JobStatus.IN_QUEUE


class ClientGone(Exception):
    """The client has closed its connection, so that a response would be lost."""


class Exchange:
    """A client's request whose job exists. :meth:`close` must be called at its end; it cancels a job that still runs. One with an
    idempotency key is cancelled when it has had no client for :data:`ownpod.housekeeping.unattended.GONE_S`.

    Args:
        svc: the services.
        submission: the job to create.
        streams: the client reads events.
        keep: the job runs on without its client.
        peer: the socket of the client's connection; None: not known.
        wait_s: seconds for which the client waits: for the job's end, or for the first chunk of a stream.

    Raises:
        As :meth:`ownpod.api.jobs.submissions.Submissions.submit`.
        AnswerLost: the job may exist, and is cancelled unless the endpoint keeps it, or another request has its idempotency key.
        TooManyWaiting: this process has no room for another waiting request. No job was created.
        ClientGone: the client has gone.
    """

    def __init__(
        self,
        svc: Services,
        submission: Submission,
        *,
        streams: bool,
        keep: bool,
        peer: socket.socket | None,
        wait_s: float,
    ) -> None:
        svc.notices.check_room()
        self._streams = streams
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        """When the first part of the output was there; None: there was none."""
        self._tail = ""
        self._completed: Job | None = None
        self.endpoint = submission.endpoint
        self._svc = svc
        self._request_id = submission.request_id
        self._deadline = self._began_s + wait_s
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._closed = self._ended = False
        self.job_id, self._earlier = new_job_id(sync=True), False
        self.worker_id: str | None = None
        self._keep = keep
        # With an idempotency key the job may have other readers, and its client may come again: the sweep cancels it if none has.
        self._owns = submission.idempotency_key is None and not keep
        self._has_key = submission.idempotency_key is not None
        self._reason = GONE
        self._submit(submission)
        try:
            self._follow(peer, streams=streams)
        except (RedisUnavailable, TooManyWaiting) as problem:
            # There is a job, so this is no error after which a client may repeat its request.
            self.close()
            log.info("job %s is not followed: %s", self.job_id, problem)
            raise AnswerLost from problem
        except BaseException:
            self.close()
            raise

    def _submit(self, submission: Submission) -> None:
        svc, new_id = self._svc, self.job_id
        if not self._keep:
            # Before there is a job: if this process dies at any time, or the job's creation is not answered, the sweep cancels it.
            svc.readers.enter(new_id)
        try:
            submitted = svc.submissions.submit(replace(submission, job_id=new_id))
        except BaseException as problem:
            if not self._keep:
                left = svc.readers.leave if isinstance(problem, AnswerLost) else svc.readers.forget
                left(new_id)
            raise
        self.job_id, self._earlier = submitted.job_id, submitted.earlier
        if self._earlier and not self._keep:
            svc.readers.forget(new_id)

    def _follow(self, peer: socket.socket | None, *, streams: bool) -> None:
        svc, job_id = self._svc, self.job_id
        # A job that an earlier request keeps is not for the sweep.
        attends = not (self._keep or self._earlier)
        if attends or (not self._keep and svc.readers.enter(job_id, only_attended=True)):
            self._stack.callback(self._leave)
        self._wait = self._stack.enter_context(svc.notices.subscribe(job_id, end_only=not streams))
        self._connection = self._stack.enter_context(
            svc.held.watch(peer, lambda: svc.notices.wake(job_id))
        )
        subscribe = partial(svc.store.jobs.subscribe, job_id, svc.notices.channel)
        self._patiently(partial(subscribe, end_only=not streams))

    def reply(self) -> Reply:
        """The response to a request without a stream, when the job has ended or the client's time is over.

        Raises:
            ClientGone: its client has gone.
        """
        try:
            return self._reply()
        except (JobNotFound, RedisUnavailable) as problem:
            return self._lost(problem)

    def _lost(self, problem: OwnPodError) -> Reply:
        # A worker may have begun, so that the client must not repeat the request by itself.
        log.info("the answer of job %s is lost: %s", self.job_id, problem)
        message = "OwnPod lost the request's job; see its log"
        if isinstance(problem, RedisUnavailable):
            return unknown(has_key=self._has_key, message=message)
        return error(problem.http_status, message)

    def _reply(self) -> Reply:
        notice, jobs = "", self._svc.store.jobs
        while True:
            job = jobs.ended_job(notice)
            if job is None:
                job = self._patiently(partial(jobs.get, self.job_id, self.endpoint))
            self.worker_id = job.worker_id
            if job.status.terminal:
                job = self._end(job)
                reply = reply_of(job, self._chunks(job))
                self._note(reply.body)
                return reply
            if (late := self._late()) is not None:
                return late
            notice = self._pause(self._deadline - time.monotonic())

    def texts(self, rendering: Rendering) -> Iterator[str | Reply]:
        """The parts of a stream. "": nothing has come for :data:`WAITING_S`. A reply: the error with which the stream ends.

        Raises:
            ClientGone: its client has gone.
        """
        try:
            yield from self._texts(rendering)
        except (JobNotFound, RedisUnavailable) as problem:
            yield self._lost(problem)

    def _texts(self, rendering: Rendering) -> Iterator[str | Reply]:
        start, silent_s = (0, 0), time.monotonic()
        following = Following(self._svc.store.chunks, self.job_id, self.endpoint, self._wait)
        while True:
            part = self._patiently(partial(following.read, start))
            job = part.job
            self.worker_id = job.worker_id
            if rendering.has_begun and _is_lost(job, start[0]):
                yield error(500, "the worker was lost while it answered", WORKER_LOST)
                return
            written = self._rendered(part, rendering)
            start = (job.attempt, part.start + len(part.chunks))
            ends = self._ended or rendering.failed or isinstance(written, Reply)
            if ends and not self._ended:
                # A handler that reports an error ends by itself. If it does not, the sweep cancels the job.
                self._owns = False
            if written:
                if isinstance(written, str):
                    self._note(written)
                yield written
                silent_s = time.monotonic()
            if ends:
                return
            if (late := self._late_stream(rendering)) is not None:
                yield late
                return
            if time.monotonic() - silent_s >= WAITING_S:
                yield ""
                silent_s = time.monotonic()
            left_s = silent_s + WAITING_S - time.monotonic()
            if not rendering.has_begun:
                left_s = min(left_s, self._deadline - time.monotonic())
            self._pause(left_s)

    def _rendered(self, part: Stream, rendering: Rendering) -> str | Reply:
        """What is written for these chunks and, if the job has ended, for its end. A reply: nothing was written, and this is the
        response.
        """
        written = ""
        for chunk in part.chunks:
            if (found := rendering.first_error(chunk)) is not None:
                return found
            written += rendering.text_of(chunk)
        if part.job.status.terminal:
            job = self._end(part.job)
            if not rendering.has_begun and (reply := reply_of(job)).is_error:
                return reply
            written += rendering.end_of(job)
        return written

    def _late_stream(self, rendering: Rendering) -> Reply | None:
        if not rendering.has_begun:
            return self._late()
        if not self._svc.notices.stopped:
            return None
        self._reason = STOPPED
        return error(503, STOPPING, "server_stopping")

    def close(self) -> None:
        """Ends the exchange, and cancels the job if it has not ended. May be called again, and in any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._owns and not self._ended:
                self._cancel()
        finally:
            self._stack.close()
        self._measure()

    def _end(self, job: Job) -> Job:
        """Notes the job's end. Returns the job, with :attr:`ownpod.rules.jobs.Job.all_lost`."""
        self._ended = True
        if job.status is JobStatus.COMPLETED:
            self._completed = job
        elif job.status is JobStatus.FAILED:
            read = partial(self._svc.store.jobs.were_all_lost, self.job_id)
            return replace(job, all_lost=self._patiently(read))
        return job

    def _measure(self) -> None:
        """Adds a reply to the metrics, after it was sent."""
        if self._completed is not None:
            first_s = None
            if self._streams and self._first_s is not None:
                first_s = self._first_s - self._began_s
            note_reply(
                self._svc.replies,
                self.endpoint,
                first_s=first_s,
                ran_ms=self._completed.ran_ms,
                tail=self._tail,
            )

    def _cancel(self) -> None:
        # Without Redis, the sweep cancels it later.
        with contextlib.suppress(OwnPodError):
            cancel_for(
                self._svc,
                self.job_id,
                self.endpoint,
                reason=self._reason,
                request_id=self._request_id,
            )
            self._ended = True

    def _leave(self) -> None:
        if self._ended:
            self._svc.readers.forget(self.job_id)
        else:
            self._svc.readers.leave(self.job_id)

    def _note(self, text: str) -> None:
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._tail = (self._tail + text)[-TAIL:]

    def _pause(self, seconds: float) -> str:
        """Waits for an event of the job. Raises: ClientGone."""
        # Reading the notices of chunks also takes the wake of a close that came before.
        if self._connection.closed:
            raise ClientGone
        notice = self._wait(max(0.0, min(seconds, self._connection.check_s)))
        if self._connection.closed:
            raise ClientGone
        return notice

    def _patiently(self, read: Callable[[], T]) -> T:
        """What a read of Redis returns, which is repeated for :data:`AWAY_S`. Raises: ClientGone, and as ``read``."""
        until_s = time.monotonic() + AWAY_S
        while True:
            try:
                return read()
            except RedisUnavailable:
                if self._svc.notices.stopped or time.monotonic() >= until_s:
                    raise
            self._pause(AGAIN_S)

    def _late(self) -> Reply | None:
        """The response without the job's end; None: it can still be awaited."""
        if self._svc.notices.stopped:
            self._reason = STOPPED
            return unbegun(503, f"{STOPPING}; repeat the request", RESTART_S)
        if time.monotonic() < self._deadline:
            return None
        self._reason = NOT_IN_TIME
        limit_s = self._svc.settings.openai_timeout_s
        return error(504, f"no worker answered within {limit_s} s (OWNPOD_OPENAI_TIMEOUT_S)")

    def _chunks(self, job: Job) -> list[str]:
        """What the handler yielded, where the job's output does not have it."""
        if job.status is not JobStatus.COMPLETED or (job.output or "[]") != "[]":
            return []
        read = partial(self._svc.store.chunks.stream, self.job_id, self.endpoint, (0, 0))
        return self._patiently(read).chunks
