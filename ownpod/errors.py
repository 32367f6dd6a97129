"""One tree of errors. Each knows its HTTP status; a class's docstring is its default message."""

from typing import ClassVar


class OwnPodError(Exception):
    """OwnPod could not do this."""

    http_status: ClassVar[int] = 500

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self)


class ConfigurationError(OwnPodError):
    """A setting has a value that OwnPod cannot use."""


class StartError(OwnPodError):
    """OwnPod cannot start here."""


class ExtraMissing(StartError):
    """A part of OwnPod that is optional is not installed.

    Args:
        part: what needs the extra, as users call it.
        extra: a name of ``[project.optional-dependencies]`` in ``pyproject.toml``.
    """

    http_status = 501

    def __init__(self, part: str, extra: str) -> None:
        super().__init__(f"{part} is not installed: pip install 'ownpod[{extra}]'")


class BadRequest(OwnPodError):
    """The request has a value that OwnPod cannot use."""

    http_status = 400


class EndpointNotFound(OwnPodError):
    """There is no such endpoint."""

    http_status = 404

    def __init__(self, endpoint_id: str, known: list[str]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(f"endpoint {endpoint_id!r} not found; known endpoints: {names}")


class EndpointConflict(OwnPodError):
    """The endpoint is defined in the configuration file, and is changed there."""

    http_status = 409


class JobNotFound(OwnPodError):
    """There is no such job."""

    http_status = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job {job_id!r} not found; it never was, is another endpoint's, or its result expired"
        )


class NotRetryable(OwnPodError):
    """Only FAILED and TIMED_OUT jobs can be retried."""

    http_status = 409

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(
            f"job {job_id!r} is {status}; only FAILED and TIMED_OUT jobs can be retried"
        )


class IdempotencyConflict(OwnPodError):
    """This Idempotency-Key was used for another body; use a new key for a new job."""

    http_status = 409


class WorkerNotFound(OwnPodError):
    """The endpoint has no such worker."""

    http_status = 404

    def __init__(self, worker_id: str, known: list[str]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(f"worker {worker_id!r} not found; there are: {names}")


class WorkerConflict(OwnPodError):
    """The list of workers does not allow this."""

    http_status = 409


class UnsupportedMediaType(OwnPodError):
    """The body must have the content type application/json."""

    http_status = 415


class QueueFull(OwnPodError):
    """The endpoint's queue is full; try again later."""

    http_status = 429

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} jobs wait in this endpoint's queue, its maxQueueDepth; try again later"
        )


class TooManyWorkers(OwnPodError):
    """The endpoint has as many pulling workers as it may have."""

    http_status = 429

    def __init__(self, most: int) -> None:
        super().__init__(
            f"the endpoint has {most} pulling workers, its maxWorkers; stop one, or raise that"
        )


class Unauthorized(OwnPodError):
    """This needs an API key: send it as 'Authorization: Bearer <key>'."""

    http_status = 401


class Forbidden(OwnPodError):
    """This API key is not for this endpoint."""

    http_status = 403


class TooManyWaiting(OwnPodError):
    """As many requests wait in this API process as it has threads for; nothing was changed, try again."""

    http_status = 503


class RedisUnavailable(OwnPodError):
    """Redis cannot be reached; nothing was changed, try again."""

    http_status = 503


class AnswerLost(RedisUnavailable):
    """Redis did not answer in time and may have executed the request: check the result before you repeat it."""


class SchemaMismatch(RedisUnavailable):
    """The records in Redis are another OwnPod version's; nothing was changed."""

    def __init__(self, found: str, own: int) -> None:
        super().__init__(
            f"the records in this Redis have schema version {found}, this OwnPod works with version "
            f"{own} only: run the OwnPod that fits them, or upgrade as docs/howto/upgrade.md describes; "
            "nothing was changed"
        )


class JobNotCompleted(OwnPodError):
    """The job is FAILED or TIMED_OUT: so its Celery task fails, too."""


class WorkerError(OwnPodError):
    """A worker did not do what was asked."""


class WorkerUnavailable(WorkerError):
    """The worker takes no job now, and nothing of this one was started."""


class WorkerSilent(WorkerUnavailable):
    """The worker can be reached, but answers nothing; it may be busy."""


class WorkerAwaited(WorkerUnavailable):
    """A worker that pulls has not asked for a job since its node began."""


class WorkerRecordBroken(WorkerUnavailable):
    """The entries in Redis of a worker that pulls cannot be used."""

    http_status = 503


class JobRejected(WorkerError):
    """The worker refused the job, or gave an answer that cannot be taken; again would end the same."""


class AttemptLost(WorkerError):
    """The worker may have started the job, and no answer will come."""
