"""The errors of OwnPod, in one tree; those of presets are in :mod:`ownpod.preset_errors`. Each class has its HTTP status, and its docstring is the default message.

The API answers an error as ``{"error": message}``, the shape of RunPod's errors, unless its ``body`` is another. So a message must name the value
that is wrong and what to change, and must not contain secrets or inputs.
"""

from typing import Any, ClassVar


class OwnPodError(Exception):
    """OwnPod could not execute this request."""

    http_status: ClassVar[int] = 500
    """Status of the API's response."""
    code: ClassVar[str] = ""
    """A word for programs, in answers about tasks and sessions; "": one for the status."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self)

    @property
    def body(self) -> dict[str, Any]:
        """The API's response, a JSON object."""
        return {"error": self.message} | ({"code": self.code} if self.code else {})


class ConfigurationError(OwnPodError):
    """A setting has a value that OwnPod cannot use."""


class StartError(OwnPodError):
    """OwnPod cannot start here."""


class ExtraMissing(StartError):
    """An optional part of OwnPod is not installed.

    Args:
        part: the feature that needs the extra, in the words of the docs.
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


class EndpointPaused(OwnPodError):
    """Endpoint is paused (max_workers=0). Set max_workers > 0 to accept work.

    Args:
        detail: sentences in place of the second one, for an endpoint that is paused by its hours or has expired.
    """

    http_status = 409

    def __init__(self, detail: str = "") -> None:
        detail = detail or "Set max_workers > 0 to accept work."
        super().__init__(f"Endpoint is paused (max_workers=0). {detail}")

    @property
    def body(self) -> dict[str, Any]:
        """RunPod's response word for word, because scripts compare the code and the text."""
        return {
            "status": self.http_status,
            "title": "Conflict",
            "detail": self.message,
            "code": "ENDPOINT_PAUSED",
        }


class NotForLoadBalancer(OwnPodError):
    """not allowed for LB API"""

    http_status = 400


class AffinityWorkerGone(OwnPodError):
    """The worker that ``X-Runpod-Worker-Id`` names is not there.

    Args:
        worker_id: the id in the header.
    """

    http_status = 404
    reason = "affinity_worker_gone"
    """RunPod's word, which clients compare."""

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"the endpoint has no worker {worker_id!r}, or it is leaving")

    @property
    def body(self) -> dict[str, Any]:
        """A problem as RunPod's, with its ``reason``."""
        return {
            "status": self.http_status,
            "title": "Not Found",
            "detail": self.message,
            "reason": self.reason,
        }


class SessionError(OwnPodError):
    """The session cannot be used."""

    def __init__(self, message: str, **more: Any) -> None:
        super().__init__(message)
        self._more = more

    @property
    def body(self) -> dict[str, Any]:
        """The GPU service's clients read ``detail``, OwnPod's read ``error``."""
        return {"detail": self.message, "error": self.message, "code": self.code, **self._more}


class SessionNotFound(SessionError):
    """There is no such session, or it is another key's."""

    http_status = 404
    code = "session_not_found"

    def __init__(self, session_id: str) -> None:
        super().__init__(f"Session {session_id} not found")


class SessionEnded(SessionError):
    """The session takes no more tasks. ``reason``: a value of :class:`ownpod.rules.sessions.Reason`, or ""."""

    http_status = 404
    code = "session_ended"

    def __init__(self, session_id: str, reason: str) -> None:
        super().__init__(f"Session {session_id} has ended: {reason or 'manual'}")
        self.session_id, self.reason = session_id, reason


class SessionQueueFull(SessionError):
    """The session's queue is full."""

    http_status = 503
    code = "queue_full"

    def __init__(self, session_id: str, size: int, most: int) -> None:
        super().__init__(f"Session {session_id} queue is full", queue_size=size, queue_max=most)
        self.session_id, self.most = session_id, most


class NoDeviceFree(SessionError):
    """No device is free or freeable, and the request does not wait for one."""

    http_status = 503
    code = "full"

    def __init__(self, difficulty: str) -> None:
        super().__init__(f"no device of the difficulty {difficulty!r} is free; try again later")


class JobNotFound(OwnPodError):
    """There is no such job."""

    http_status = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job {job_id!r} not found: the id is wrong, the job belongs to another endpoint, "
            "or its record has expired"
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
        super().__init__(f"worker {worker_id!r} not found; known workers: {names}")


class OutputNotFound(OwnPodError):
    """No managed worker has this id, or its record has expired."""

    http_status = 404

    def __init__(self, worker_id: str) -> None:
        super().__init__(
            f"managed worker {worker_id!r} not found: the id is wrong, the worker is not one that OwnPod starts, "
            "or its record has expired"
        )


class WorkerConflict(OwnPodError):
    """The change conflicts with the configuration, or with another worker's id or URL."""

    http_status = 409


class UnsupportedMediaType(OwnPodError):
    """The body must have the content type application/json."""

    http_status = 415


class QueueFull(OwnPodError):
    """The endpoint's queue is full; try again later.

    Args:
        limit: number of jobs that may wait.
        where: the queue, and what limits it.
    """

    http_status = 429

    def __init__(self, limit: int, where: str = "this endpoint's queue, its maxQueueDepth") -> None:
        super().__init__(f"{limit} jobs wait in {where}; try again later")


class TooManyWorkers(OwnPodError):
    """The endpoint's maxWorkers is reached."""

    http_status = 429

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the endpoint has {limit} pulling workers, its maxWorkers; stop one, or raise maxWorkers"
        )


class Unauthorized(OwnPodError):
    """This request needs an API key: send it as 'Authorization: Bearer <key>'."""

    http_status = 401


class Forbidden(OwnPodError):
    """This API key is for another endpoint."""

    http_status = 403


class TooManyWaiting(OwnPodError):
    """This API process has no thread for another waiting request; nothing was changed, try again."""

    http_status = 503


class RedisUnavailable(OwnPodError):
    """Redis cannot be reached; nothing was changed, try again."""

    http_status = 503


class AnswerLost(RedisUnavailable):
    """Redis did not answer in time and may have executed the request: check the result before repeating it."""


class SchemaMismatch(RedisUnavailable):
    """Another version of OwnPod wrote the records in Redis; nothing was changed."""

    def __init__(self, version: str, supported: int) -> None:
        super().__init__(
            f"the records in this Redis have schema version {version}, this OwnPod supports version "
            f"{supported} only: run the OwnPod of that version, or upgrade as docs/howto/upgrade.md describes; "
            "nothing was changed"
        )


class JobNotCompleted(OwnPodError):
    """The job is FAILED or TIMED_OUT, so its Celery task fails, too."""


class WorkerError(OwnPodError):
    """A request to a worker failed."""


class WorkerUnavailable(WorkerError):
    """The worker takes no job now, and has not started this one. The attempt does not count."""


class WorkerSilent(WorkerUnavailable):
    """The worker accepts connections, but does not answer; the handler may block it."""


class WorkerAwaited(WorkerUnavailable):
    """The pulling worker has not polled for a job since its node started."""


class WorkerStandsBy(WorkerUnavailable):
    """The cloud worker gets no job now, because of a rule: it is not needed, or it may not."""


class WorkerRecordBroken(WorkerUnavailable):
    """The pulling worker's entries in Redis are invalid."""

    http_status = 503


class JobRejected(WorkerError):
    """The worker refused the job, or its response is invalid. A retry would end the same way."""


class AttemptLost(WorkerError):
    """The worker may have started the job, and its result is lost. The attempt counts."""


class CatalogNotFound(OwnPodError):
    """There is no such object in the catalog."""

    http_status = 404

    def __init__(self, kind: str, row_id: str) -> None:
        super().__init__(f"{kind} {row_id!r} not found")


class CatalogRefused(OwnPodError):
    """A rule of the catalog forbids this change."""

    http_status = 400


class CatalogImpossible(CatalogRefused):
    """No host can start the workers: RunPod has no such rule, so REST v1 answers 400 too, and not RunPod's 500."""


class CatalogInUse(CatalogRefused):
    """The object is in use."""


class CatalogReadOnly(OwnPodError):
    """The object is defined in the configuration file, and is changed there."""

    http_status = 409
