"""One tree of errors. Each class has its HTTP status, and its docstring is the default message."""

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
    """An optional part of OwnPod is not installed.

    Args:
        part: name of the part that needs the extra, as users know it.
        extra: name of the extra under ``[project.optional-dependencies]`` in ``pyproject.toml``.
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
            f"job {job_id!r} not found; it never existed, is another endpoint's, or its result expired"
        )


class NotRetryable(OwnPodError):
    """Only FAILED and TIMED_OUT jobs can be retried."""

    http_status = 409

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(
            f"job {job_id!r} is {status}; only FAILED and TIMED_OUT jobs can be retried"
        )


class IdempotencyConflict(OwnPodError):
    """This Idempotency-Key was used with another body; use a new key for a new job."""

    http_status = 409


class WorkerNotFound(OwnPodError):
    """The endpoint has no such worker."""

    http_status = 404

    def __init__(self, worker_id: str, known: list[str]) -> None:
        names = ", ".join(known) or "none"
        super().__init__(f"worker {worker_id!r} not found; the endpoint's workers: {names}")


class WorkerConflict(OwnPodError):
    """The worker conflicts with another worker, or is defined in the configuration file."""

    http_status = 409


class UnsupportedMediaType(OwnPodError):
    """The body must have the content type application/json."""

    http_status = 415


class QueueFull(OwnPodError):
    """The endpoint's queue is full; try again later."""

    http_status = 429

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs wait in this endpoint's queue, its maxQueueDepth; try again later"
        )


class TooManyWorkers(OwnPodError):
    """The endpoint has the maximum number of workers that pull."""

    http_status = 429

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the endpoint has {limit} workers that pull, its maxWorkers; stop one, or raise the limit"
        )


class Unauthorized(OwnPodError):
    """This needs an API key: send it as 'Authorization: Bearer <key>'."""

    http_status = 401


class Forbidden(OwnPodError):
    """This API key is not for this endpoint."""

    http_status = 403


class TooManyWaiting(OwnPodError):
    """All threads for waiting requests of this API process are in use; nothing was changed, try again."""

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
            f"{own} only: run an OwnPod with that version, or upgrade as docs/howto/upgrade.md describes; "
            "nothing was changed"
        )


class JobNotCompleted(OwnPodError):
    """The job is FAILED or TIMED_OUT, therefore its Celery task fails."""


class WorkerError(OwnPodError):
    """The worker did not execute the request."""


class WorkerUnavailable(WorkerError):
    """The worker takes no jobs now, and did not start this one."""


class WorkerSilent(WorkerUnavailable):
    """The worker accepts connections but does not answer; it may be busy."""


class WorkerAwaited(WorkerUnavailable):
    """The worker pulls, and has not requested a job since its node started."""


class WorkerRecordBroken(WorkerUnavailable):
    """The worker pulls, and its entries in Redis cannot be used."""

    http_status = 503


class JobRejected(WorkerError):
    """The worker refused the job, or its answer is invalid; a retry would end in the same way."""


class AttemptLost(WorkerError):
    """The worker may have started the job, and no answer will come."""
