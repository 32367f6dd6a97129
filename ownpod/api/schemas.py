"""What a request may say and an answer says: checked here, and shown in ``/openapi.json``.

RunPod ignores keys it does not know, so these do too.
"""

import json
import math
import re
from typing import Any, NoReturn

from marshmallow import EXCLUDE, INCLUDE, Schema, ValidationError, fields, validate

from ownpod.configuration import EXECUTION_TIMEOUT_MS, TTL_MS
from ownpod.errors import BadRequest
from ownpod.rules.jobs import JobStatus
from ownpod.rules.payload import split
from ownpod.validation import WholeNumber

WAIT_MS = (1_000, 300_000)
"""RunPod's limits of ``?wait=``; values beyond are taken as the nearest."""

WEBHOOK = r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?([/?#][!-~]*)?"
"""What a webhook's URL looks like."""

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,30}")

LARGEST = 2**53 - 1
"""The largest magnitude of a whole number in a query: what JSON numbers hold exactly."""

PLACE = r"[0-9]{1,15}-[A-Za-z0-9_-]{1,255}"
"""What ``next`` and ``?before=`` of a listing look like: ms since the epoch, and a job's id."""


class _Flag(fields.Boolean):
    """true or false, and nothing that looks like it."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("must be true or false")
        return value


def _check_webhook(url: str) -> None:
    if not re.fullmatch(WEBHOOK, url):
        raise ValidationError("must be an http:// or https:// URL")


def _milliseconds(name: str, limits: tuple[int, int], what: str) -> fields.Integer:
    return WholeNumber(
        data_key=name,
        strict=True,
        load_default=None,
        allow_none=True,
        validate=validate.Range(*limits, error="must be a whole number of ms from {min} to {max}"),
        error_messages={"invalid": "must be a whole number of ms"},
        metadata={"description": what},
    )


class PolicySchema(Schema):
    class Meta:
        unknown = EXCLUDE

    execution_timeout_ms = _milliseconds(
        "executionTimeout", EXECUTION_TIMEOUT_MS, "ms the job may run"
    )
    ttl_ms = _milliseconds("ttl", TTL_MS, "ms from submission on, over queue and run")
    low_priority = _Flag(
        data_key="lowPriority",
        load_default=False,
        allow_none=True,
        metadata={"description": "waits behind the others"},
    )


class RunSchema(Schema):
    """The body of ``/run`` and ``/runsync``."""

    class Meta:
        unknown = EXCLUDE

    input = fields.Raw(
        required=True,
        allow_none=False,
        error_messages={"required": "is missing; it is what the handler gets", "null": "is null"},
        metadata={
            "description": "what the handler gets; RunPod's SDK takes objects only",
            "type": ["object", "array", "string", "number", "boolean"],
        },
    )
    webhook = fields.String(
        load_default=None,
        allow_none=True,
        validate=_check_webhook,
        error_messages={"invalid": "must be an http:// or https:// URL"},
        metadata={
            "description": "called with what /status says when the job has ended",
            "pattern": f"^{WEBHOOK}$",
        },
    )
    policy = fields.Nested(
        PolicySchema,
        load_default=dict,
        allow_none=True,
        error_messages={"type": "must be an object"},
    )
    s3_config = fields.Dict(
        data_key="s3Config",
        load_default=None,
        allow_none=True,
        error_messages={"invalid": "must be an object"},
        metadata={"description": "passed on to the worker"},
    )


class SubmittedSchema(Schema):
    """The answer of ``/run``, ``/retry`` and ``/cancel``."""

    id = fields.String(required=True)
    status = fields.Enum(JobStatus, by_value=fields.String, required=True)


class StatusSchema(SubmittedSchema):
    """The answer of ``/status``, ``/status-sync`` and ``/runsync``."""

    delayTime = fields.Integer(metadata={"description": "ms in the queue"})  # noqa: N815
    executionTime = fields.Integer(metadata={"description": "ms of running"})  # noqa: N815
    workerId = fields.String()  # noqa: N815
    output = fields.Raw()
    error = fields.String()
    retries = fields.Integer()
    queuePosition = fields.Integer(  # noqa: N815
        metadata={"description": "OwnPod's: of a job that waits, from 1"}
    )
    waitingReason = fields.String(metadata={"description": "OwnPod's: why it waits"})  # noqa: N815


class ChunkSchema(Schema):
    output = fields.Raw(required=True)


class StreamSchema(Schema):
    """The answer of ``/stream`` as JSON."""

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
    """An attempt that was handed back; ``lost`` ones count."""

    attempt = fields.Integer()
    workerId = fields.String()  # noqa: N815
    startedMs = fields.Integer()  # noqa: N815
    endedMs = fields.Integer()  # noqa: N815
    lost = fields.Boolean()
    reason = fields.String()


class ListedSchema(StatusSchema):
    """A job in ``/requests``: without its output, with the logs of webhook and attempts."""

    class Meta:
        exclude = ("output", "queuePosition", "waitingReason")

    createdAt = fields.Integer(  # noqa: N815
        required=True, metadata={"description": "ms since the epoch"}
    )
    webhook = fields.List(fields.Nested(DeliverySchema))
    attempts = fields.List(fields.Nested(AttemptSchema))


class RequestsSchema(Schema):
    """The answer of ``/requests``."""

    requests = fields.List(fields.Nested(ListedSchema), required=True)
    next = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "for ?before= of the next page; null: there is none"},
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
    """The answer of ``/health``."""

    jobs = fields.Nested(JobCountsSchema, required=True)
    workers = fields.Nested(WorkerCountsSchema, required=True)
    ownpod = fields.Dict(required=True)


class DetailsSchema(Schema):
    """The answer of ``/requests/{id}``: the job's record, with what it has."""

    class Meta:
        unknown = INCLUDE

    id = fields.String(required=True)
    status = fields.String(required=True)
    input = fields.Raw(required=True)
    output = fields.Raw()


class HistorySchema(Schema):
    """The answer of ``/history``."""

    samples = fields.List(
        fields.List(fields.Integer()),
        required=True,
        metadata={"description": "each [ms since the epoch, waiting, running], the oldest first"},
    )


class EndpointsSchema(Schema):
    """The answer of ``/v2/``."""

    endpoints = fields.List(fields.String(), required=True, metadata={"description": "their ids"})


class WorkerAddedSchema(Schema):
    """The answer to a worker that was added."""

    id = fields.String(required=True)
    url = fields.String(required=True)
    capacity = fields.Integer(required=True)


class WorkerChangedSchema(Schema):
    """The answer to a worker that was drained, resumed or removed."""

    id = fields.String(required=True)
    drained = fields.Boolean()
    removed = fields.Boolean()


class WorkerSchema(WorkerAddedSchema):
    """A worker, and how it is."""

    state = fields.String(required=True)
    reason = fields.String(required=True)
    running = fields.Integer(required=True, metadata={"description": "jobs it runs"})
    jobs = fields.List(fields.String(), required=True, metadata={"description": "their ids"})
    held = fields.Integer(
        required=True, metadata={"description": "slots still taken by jobs that have ended"}
    )


class LeftOutSchema(Schema):
    """A worker that came at run time and cannot be used."""

    id = fields.String(required=True)
    reason = fields.String(required=True)


class WorkersSchema(Schema):
    """The answer of ``/workers``."""

    workers = fields.List(fields.Nested(WorkerSchema), required=True)
    leftOut = fields.List(fields.Nested(LeftOutSchema), required=True)  # noqa: N815


class ErrorSchema(Schema):
    """Every answer that is no success."""

    error = fields.String(required=True)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


def parse_json(body: bytes) -> Any:
    """The JSON in a body.

    Raises:
        BadRequest: it is none, or too deep to read.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        reason = f" ({error})" if body.strip() else ": it is empty"
        raise BadRequest(f"the body must be JSON{reason}") from None


def parse(schema: Schema, body: bytes, *, text: str = "") -> dict[str, Any]:
    """A body checked against a schema; the member ``text`` stays JSON text.

    Raises:
        BadRequest: with the first field that is wrong, and how.
    """
    content, kept = split(body, text, parse_json)
    if kept is not None:
        content[text] = None if kept == "null" else kept
    if not isinstance(content, dict):
        raise BadRequest('the body must be a JSON object like {"input": {...}}')
    try:
        loaded: dict[str, Any] = schema.load(content)
    except ValidationError as error:
        raise BadRequest(_first(error.normalized_messages())) from None
    return loaded


def _first(messages: Any) -> str:
    place = []
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        if key != "_schema":
            place.append(str(key))
    return f"{'.'.join(place)}: {messages[0]}"


def whole_number(name: str, text: str, limits: tuple[int, int]) -> int:
    """A query's whole number, brought into the limits as RunPod does.

    Raises:
        BadRequest: it is no whole number, or one beyond :data:`LARGEST`.
    """
    if not WHOLE_NUMBER.fullmatch(text) or abs(int(text)) > LARGEST:
        raise BadRequest(
            f"{name}: must be a whole number from -{LARGEST} to {LARGEST}, not {text[:40]!r}"
        )
    return min(max(int(text), limits[0]), limits[1])
