"""Schemas of responses: documentation only, shown in ``/openapi.json``. No response is checked against them."""

from marshmallow import INCLUDE, Schema, fields, validate

from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Phase


class SubmittedSchema(Schema):
    """The response of ``/run``, ``/retry`` and ``/cancel``."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)


class StatusSchema(SubmittedSchema):
    """The response of ``/status``, ``/status-sync`` and ``/runsync``."""

    delayTime = fields.Integer(metadata={"description": "ms in the queue"})  # noqa: N815
    executionTime = fields.Integer(metadata={"description": "ms on the worker"})  # noqa: N815
    workerId = fields.String()  # noqa: N815
    output = fields.Raw()
    error = fields.String()
    retries = fields.Integer()
    queuePosition = fields.Integer(  # noqa: N815
        metadata={"description": "OwnPod only: place of a waiting job in its queue, from 1"}
    )
    waitingReason = fields.String(metadata={"description": "OwnPod only: why the job waits"})  # noqa: N815


class ChunkSchema(Schema):
    output = fields.Raw(required=True)


class StreamSchema(Schema):
    """The response of ``/stream`` as JSON."""

    status = fields.Enum(JobStatus, by_value=fields.String, required=True)
    stream = fields.List(fields.Nested(ChunkSchema), required=True)


class PurgedSchema(Schema):
    removed = fields.Integer(required=True)
    status = fields.String(required=True, validate=validate.OneOf(["completed"]))


class DeliverySchema(Schema):
    """One try of a webhook."""

    try_ = fields.Integer(data_key="try")
    timeMs = fields.Integer()  # noqa: N815
    httpStatus = fields.Integer(allow_none=True)  # noqa: N815
    error = fields.String(allow_none=True)


class AttemptSchema(Schema):
    """An attempt whose job was requeued. Lost attempts count towards ``maxAttempts``."""

    attempt = fields.Integer()
    workerId = fields.String()  # noqa: N815
    startedMs = fields.Integer()  # noqa: N815
    endedMs = fields.Integer()  # noqa: N815
    lost = fields.Boolean()
    reason = fields.String()


class ListedSchema(StatusSchema):
    """A job in ``/requests``: without its output, with its deliveries and its earlier attempts."""

    class Meta:
        exclude = ("output", "queuePosition", "waitingReason")

    createdAt = fields.Integer(  # noqa: N815
        required=True, metadata={"description": "ms since the epoch"}
    )
    webhook = fields.List(fields.Nested(DeliverySchema))
    attempts = fields.List(fields.Nested(AttemptSchema))


class RequestsSchema(Schema):
    """The response of ``/requests``."""

    requests = fields.List(fields.Nested(ListedSchema), required=True)
    next = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "value of ?before= for the next page; null on the last page"},
    )


class JobCountsSchema(Schema):
    completed = fields.Integer(required=True)
    failed = fields.Integer(required=True)
    inProgress = fields.Integer(required=True)  # noqa: N815
    inQueue = fields.Integer(required=True)  # noqa: N815
    retried = fields.Integer(required=True)


class WorkerCountsSchema(Schema):
    idle = fields.Integer(required=True)
    initializing = fields.Integer(required=True)
    ready = fields.Integer(required=True)
    running = fields.Integer(required=True)
    throttled = fields.Integer(required=True)
    unhealthy = fields.Integer(required=True)


class HealthSchema(Schema):
    """The response of ``/health``."""

    jobs = fields.Nested(JobCountsSchema, required=True)
    workers = fields.Nested(WorkerCountsSchema, required=True)
    ownpod = fields.Dict(required=True)


class DetailsSchema(Schema):
    """The response of ``/requests/{id}``: the fields of the job's record."""

    class Meta:
        unknown = INCLUDE

    id = fields.String(required=True)
    status = fields.String(required=True)
    input = fields.Raw(required=True)
    output = fields.Raw()


class HistorySchema(Schema):
    """The response of ``/history``."""

    samples = fields.List(
        fields.List(fields.Integer()),
        required=True,
        metadata={
            "description": "each [ms since the epoch, waiting jobs, running jobs], the oldest first"
        },
    )


class EndpointsSchema(Schema):
    """The response of ``/v2/``."""

    endpoints = fields.List(
        fields.String(), required=True, metadata={"description": "ids of endpoints"}
    )
    types = fields.Dict(
        keys=fields.String(),
        values=fields.String(validate=validate.OneOf(["QB", "LB"])),
        required=True,
        metadata={"description": "by id: QB has a queue, LB is load-balanced"},
    )
    presets = fields.Dict(
        keys=fields.String(),
        values=fields.Dict(keys=fields.String(), values=fields.String()),
        metadata={"description": "by id: model_id and task_preset of an endpoint with sessions"},
    )


class WorkerAddedSchema(Schema):
    """The response after a worker was added or changed."""

    id = fields.String(required=True)
    url = fields.String(required=True)
    capacity = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"description": "null: any number, only of a load-balanced endpoint's worker"},
    )


class WorkerChangedSchema(Schema):
    """The response after a worker was drained, resumed or removed."""

    id = fields.String(required=True)
    drained = fields.Boolean()
    removed = fields.Boolean()


class WorkerSchema(WorkerAddedSchema):
    """A worker and its state."""

    state = fields.String(required=True)
    reason = fields.String(required=True)
    running = fields.Integer(
        required=True, metadata={"description": "number of its running jobs, or open requests"}
    )
    jobs = fields.List(
        fields.String(), required=True, metadata={"description": "ids of its running jobs"}
    )
    held = fields.Integer(
        required=True,
        metadata={
            "description": "lingering slots: the job has ended, the worker has not finished its run"
        },
    )
    open = fields.Integer(
        metadata={
            "description": "load-balanced only: requests, streams and WebSockets that are open"
        }
    )
    waiting = fields.Integer(
        metadata={"description": "load-balanced only: requests that wait for this worker"}
    )
    total = fields.Integer(
        metadata={"description": "load-balanced only: requests since the front's start"}
    )


class LeftOutSchema(Schema):
    """A worker added at run time whose entry cannot be used."""

    id = fields.String(required=True)
    reason = fields.String(required=True)


class ManagedWorkerSchema(Schema):
    """A worker that OwnPod has started, or is to start. Times in ms since the epoch."""

    id = fields.String(required=True)
    phase = fields.Enum(Phase, by_value=fields.String, required=True)
    reason = fields.String(required=True, metadata={"description": "its phase in words"})
    release = fields.String(required=True)
    outdated = fields.Boolean(
        required=True, metadata={"description": "it has an earlier release than new workers"}
    )
    host = fields.String(required=True, allow_none=True)
    devices = fields.List(fields.String(), required=True)
    createdAt = fields.Integer(required=True)  # noqa: N815
    startedAt = fields.Integer(required=True, allow_none=True)  # noqa: N815
    readyAt = fields.Integer(required=True, allow_none=True)  # noqa: N815


class WorkerReportSchema(ManagedWorkerSchema):
    """A worker that OwnPod has started, also after its end. Times in ms since the epoch."""

    endpoint = fields.String(required=True)
    placedAt = fields.Integer(required=True, allow_none=True)  # noqa: N815
    stoppedAt = fields.Integer(required=True, allow_none=True)  # noqa: N815
    exitCode = fields.Integer(  # noqa: N815
        required=True,
        allow_none=True,
        metadata={"description": "negative: the signal that ended it"},
    )
    outOfMemory = fields.Boolean(  # noqa: N815
        required=True, metadata={"description": "the kernel ended it because of its memory limit"}
    )
    endedIn = fields.String(  # noqa: N815
        required=True,
        metadata={"description": 'the phase in which it ended badly; "": it did not'},
    )
    endedBadly = fields.Boolean(  # noqa: N815
        required=True,
        metadata={"description": "it ended by itself, did not start, or its host was lost"},
    )


class PostMortemSchema(WorkerReportSchema):
    """A worker that ended badly."""

    log = fields.List(
        fields.String(), required=True, metadata={"description": "last lines of its output"}
    )


class OutputLineSchema(Schema):
    """A line of a worker's output."""

    id = fields.String(required=True)
    at = fields.Integer(required=True, metadata={"description": "ms since the epoch"})
    run = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "id of its job, with - and the number of a later attempt"},
    )
    text = fields.String(required=True)


class OutputSchema(Schema):
    """The response of ``/workers/<id>/logs``."""

    worker = fields.Nested(WorkerReportSchema, required=True)
    lines = fields.List(fields.Nested(OutputLineSchema), required=True)
    next = fields.String(required=True, metadata={"description": "`after` of the next request"})
    ended = fields.Boolean(required=True, metadata={"description": "no more lines come"})


class StartFailuresSchema(Schema):
    """Starts of workers that failed in a row."""

    unhealthy = fields.Boolean(required=True)
    count = fields.Integer(required=True)
    pauseSeconds = fields.Integer(required=True)  # noqa: N815
    worker = fields.String(required=True)
    reason = fields.String(required=True)
    exitCode = fields.Integer(required=True, allow_none=True)  # noqa: N815
    log = fields.List(
        fields.String(), required=True, metadata={"description": "last lines of its output"}
    )


class GivenUpSchema(Schema):
    """A release that was given up."""

    number = fields.Integer(required=True)
    reason = fields.String(required=True)


class ReleasesSchema(Schema):
    """Where the releases of an endpoint are. ``state`` is that of the last one, in words."""

    current = fields.Integer(required=True, allow_none=True)
    next = fields.Integer(required=True, allow_none=True)
    image = fields.String(required=True, allow_none=True)
    digest = fields.String(required=True)
    state = fields.String(required=True)
    givenUp = fields.Nested(GivenUpSchema, required=True, allow_none=True)  # noqa: N815


class ManagedWorkersSchema(Schema):
    """The workers of an endpoint with a template."""

    workers = fields.List(fields.Nested(ManagedWorkerSchema), required=True)
    failures = fields.Nested(StartFailuresSchema, required=True, allow_none=True)
    releases = fields.Nested(ReleasesSchema, required=True, allow_none=True)


class ManagedWorkersAndEndsSchema(ManagedWorkersSchema):
    """The same, with the last workers that ended badly."""

    ended = fields.List(fields.Nested(PostMortemSchema), required=True)


class WorkersSchema(Schema):
    """The response of ``/workers``."""

    workers = fields.List(fields.Nested(WorkerSchema), required=True)
    managed = fields.Nested(ManagedWorkersAndEndsSchema, required=True)
    leftOut = fields.List(fields.Nested(LeftOutSchema), required=True)  # noqa: N815


class PausedSchema(Schema):
    """The response of ``/run``, ``/runsync`` and ``/retry`` for a paused endpoint, as RunPod answers it."""

    status = fields.Integer(required=True, validate=validate.OneOf([409]))
    title = fields.String(required=True)
    detail = fields.String(required=True)
    code = fields.String(required=True, validate=validate.OneOf(["ENDPOINT_PAUSED"]))


class WorkerGoneSchema(Schema):
    """The response to a request that names a worker which is not there."""

    status = fields.Integer(required=True, validate=validate.OneOf([404]))
    title = fields.String(required=True)
    detail = fields.String(required=True)
    reason = fields.String(required=True, validate=validate.OneOf(["affinity_worker_gone"]))


class ErrorSchema(Schema):
    """Every other response with a status of 400 or above."""

    error = fields.String(required=True)
