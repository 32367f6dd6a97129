"""Schemas of responses about tasks and sessions: documentation only, shown in ``/openapi.json``."""

from marshmallow import INCLUDE, Schema, fields, validate

from ownpod.rules.sessions import Reason, Status

TIME = {"description": "ISO 8601 with Z"}


class TaskErrorSchema(Schema):
    """An error below ``/api``."""

    class Meta:
        unknown = INCLUDE

    detail = fields.String(required=True)
    error = fields.String(required=True)
    code = fields.String(required=True, metadata={"description": "a word for programs"})
    queue_size = fields.Integer()
    queue_max = fields.Integer()


class TaskSubmittedSchema(Schema):
    """The JSON answer to a submission."""

    task_id = fields.String(required=True)
    session_id = fields.String(required=True, allow_none=True)
    status = fields.String(
        required=True,
        validate=validate.OneOf(["queued", "processing", "completed", "failed"]),
    )
    endpoint = fields.String(required=True)
    position = fields.Integer(required=True, allow_none=True)
    estimated_wait_seconds = fields.Integer(required=True, allow_none=True)
    events_url = fields.String(required=True)
    status_url = fields.String(required=True)


class TaskSchema(Schema):
    """A task."""

    class Meta:
        unknown = INCLUDE

    task_id = fields.String(required=True)
    status = fields.String(
        required=True, validate=validate.OneOf(["pending", "running", "completed", "failed"])
    )
    task_type = fields.String(required=True, allow_none=True)
    task_difficulty = fields.String(required=True, allow_none=True)
    model_id = fields.String(required=True, allow_none=True)
    task_preset = fields.String(required=True, allow_none=True)
    session_id = fields.String(required=True, allow_none=True)
    container_id = fields.String(required=True, allow_none=True)
    created_at = fields.String(required=True, allow_none=True, metadata=TIME)
    started_at = fields.String(required=True, allow_none=True, metadata=TIME)
    completed_at = fields.String(required=True, allow_none=True, metadata=TIME)
    elapsed_seconds = fields.Integer(required=True)
    timeout_seconds = fields.Integer(required=True, allow_none=True)
    error_message = fields.String(required=True, allow_none=True)
    recent_logs = fields.List(fields.Dict(), required=True)
    position = fields.Integer(required=True, allow_none=True)
    estimated_wait_seconds = fields.Integer(required=True, allow_none=True)


class TaskCancelledSchema(Schema):
    """The answer to a cancel."""

    success = fields.Boolean(required=True)
    task_id = fields.String(required=True)
    status = fields.String(required=True)
    message = fields.String(required=True)


class SessionSchema(Schema):
    """A session."""

    class Meta:
        unknown = INCLUDE

    session_id = fields.String(required=True)
    status = fields.Enum(Status, by_value=fields.String, required=True)
    gpu_device_id = fields.Integer(required=True, allow_none=True)
    container_id = fields.String(required=True, allow_none=True)
    model_id = fields.String(required=True, allow_none=True)
    created_at = fields.String(required=True, metadata=TIME)
    last_activity = fields.String(required=True, metadata=TIME)
    queue_size = fields.Integer(required=True)
    current_task_id = fields.String(required=True, allow_none=True)
    endpoint = fields.String(required=True)
    phase = fields.String(required=True)
    reason = fields.Enum(Reason, by_value=fields.String, required=True, allow_none=True)
    queue_max = fields.Integer(required=True)
    queued_task_ids = fields.List(fields.String(), required=True)
    idle_expires_at = fields.String(required=True, allow_none=True, metadata=TIME)
    expires_at = fields.String(required=True, allow_none=True, metadata=TIME)


class SessionsSchema(Schema):
    """A list of sessions."""

    sessions = fields.List(fields.Nested(SessionSchema), required=True)
    total = fields.Integer(required=True)


class SessionEndedSchema(Schema):
    """The answer to the end of a session."""

    success = fields.Boolean(required=True)
    session_id = fields.String(required=True)
    message = fields.String(required=True)
    status = fields.Enum(Status, by_value=fields.String, required=True)
    reason = fields.Enum(Reason, by_value=fields.String, required=True, allow_none=True)


class KeptAliveSchema(Schema):
    """The answer to a keepalive."""

    success = fields.Boolean(required=True)
    session_id = fields.String(required=True)
    message = fields.String(required=True)
    last_activity = fields.String(required=True, metadata=TIME)
    idle_expires_at = fields.String(required=True, allow_none=True, metadata=TIME)
    expires_at = fields.String(required=True, allow_none=True, metadata=TIME)


class ResourcesSchema(Schema):
    """The answer of ``/health/resources``."""

    timestamp = fields.String(required=True, metadata=TIME)
    resource_allocation = fields.Dict(required=True)
    capacity = fields.Dict(required=True)


COMPONENTS = {
    "TaskError": TaskErrorSchema,
    "TaskSubmitted": TaskSubmittedSchema,
    "Task": TaskSchema,
    "TaskCancelled": TaskCancelledSchema,
    "Session": SessionSchema,
    "Sessions": SessionsSchema,
    "SessionEnded": SessionEndedSchema,
    "KeptAlive": KeptAliveSchema,
    "Resources": ResourcesSchema,
}
"""The schemas by their names in the document."""
