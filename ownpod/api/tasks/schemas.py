"""Schemas of requests about tasks and sessions, the GPU service's. Unknown keys are ignored, as there."""

import re
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ownpod.rules.task_views import OnDisconnect, TaskType
from ownpod.validation import NAME, Flag, WholeNumber

TIMEOUT_S = (10, 86_400)
"""Seconds: limits of ``timeout_seconds``; the setting for the longest one may be lower."""

WAIT_S = (0, 86_400)
"""Seconds: limits of ``wait_seconds``."""

LIFE_S = (1, 30 * 86_400)
"""Seconds: limits of a session's idle time-out and lifetime. Never, with which an idle session holds its device, is for presets only."""

KEEP_S = (1, 30 * 86_400)
"""Seconds: limits of a keepalive; a session takes four times its idle time-out at most."""

LONGEST = 255
"""Characters of a model's id, a preset's name, a difficulty and a label."""

DIFFICULTY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Pattern of a difficulty, which is the name of a pool."""

MOST_LABELS = 32

MOST_VARIABLES, LONGEST_VARIABLE = 256, 32_768
"""Number of variables of a custom task, and characters of a value."""

MOST_ARGUMENTS = 256

VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,127}"


def _text(what: str, *, required: bool = False) -> fields.String:
    options: dict[str, Any] = {"required": True} if required else {"load_default": None}
    return fields.String(
        allow_none=not required,
        validate=validate.Length(1, LONGEST, error="must have {min} to {max} characters"),
        error_messages={
            "required": f"is missing: {what}",
            "null": f"is null: {what}",
            "invalid": "must be a string",
        },
        metadata={"description": what},
        **options,
    )


def _seconds(what: str, limits: tuple[int, int]) -> fields.Integer:
    return WholeNumber(
        strict=True,
        load_default=None,
        allow_none=True,
        validate=validate.Range(
            *limits, error="must be a whole number of seconds from {min} to {max}"
        ),
        error_messages={"invalid": "must be a whole number of seconds"},
        metadata={"description": what},
    )


def _choice(words: type[TaskType] | type[OnDisconnect], what: str, **options: Any) -> fields.String:
    choices = [word.value for word in words]
    return fields.String(
        validate=validate.OneOf(choices, error=f"must be {' or '.join(choices)}"),
        error_messages={
            "required": f"is missing: must be {' or '.join(choices)}",
            "null": f"is null: must be {' or '.join(choices)}",
            "invalid": "must be a string",
        },
        metadata={"description": what},
        **options,
    )


def _difficulty() -> fields.String:
    return fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Regexp(
            f"^{DIFFICULTY}$", error="must be the name of a difficulty, like low or high"
        ),
        error_messages={"invalid": "must be a string"},
        metadata={"description": "the pool of devices; without it, the preset's"},
    )


def _check_object(text: Any) -> None:
    # JSON text: schemas.parse leaves this member unparsed.
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        raise ValidationError("must be an object")


def _metadata() -> fields.Raw:
    return fields.Raw(
        load_default="{}",
        allow_none=True,
        validate=_check_object,
        metadata={
            "description": "the task's parameters, passed to the handler as its input",
            "type": "object",
        },
    )


class _TaskSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    metadata = _metadata()
    timeout_seconds = _seconds("seconds for which the task may run", TIMEOUT_S)
    wait_seconds = _seconds(
        "seconds for which a new session or container may wait for a device; 0: it is refused at once "
        "if none is free or freeable",
        WAIT_S,
    )
    on_disconnect = _choice(
        OnDisconnect,
        "what becomes of the task when the client of its stream has gone",
        load_default=OnDisconnect.CONTINUE.value,
    )


class _MaybeSessionSchema(_TaskSchema):
    session_id = fields.String(
        load_default=None,
        allow_none=True,
        validate=validate.Regexp(f"^{NAME.pattern}$", error="must be the id of a session"),
        error_messages={"invalid": "must be a string"},
        metadata={"description": "the session that is to run the task"},
    )
    create_session = Flag(
        load_default=False,
        allow_none=True,
        metadata={"description": "always a new session, also if an idle one could run the task"},
    )
    task_difficulty = _difficulty()


class SubmitSchema(_MaybeSessionSchema):
    """The body of ``/api/tasks/submit``."""

    task_type = _choice(TaskType, "where the task runs", required=True)
    model_id = _text("the model's id", required=True)
    task_preset = _text("the preset's name", required=True)


class PredefinedSchema(_MaybeSessionSchema):
    """The body of ``/api/tasks/predefined``."""

    task_name = _text(
        "a preset: its name, <model id>/<preset>, or its endpoint's id", required=True
    )
    model_id = _text("the model's id, where several models have a preset of this name")
    task_type = _choice(
        TaskType,
        "where the task runs; without it, a session where one is named or wanted",
        load_default=None,
        allow_none=True,
    )


def _check_variables(variables: dict[str, str]) -> None:
    if len(variables) > MOST_VARIABLES:
        raise ValidationError(f"must have at most {MOST_VARIABLES} variables")
    for name, value in variables.items():
        if not re.fullmatch(VARIABLE, name):
            raise ValidationError(f"{name[:40]!r} must be a name of letters, digits and _")
        if len(value) > LONGEST_VARIABLE or "\0" in value:
            raise ValidationError(
                f"{name} must have at most {LONGEST_VARIABLE} characters, and no NUL"
            )


def _check_arguments(arguments: list[str]) -> None:
    if len(arguments) > MOST_ARGUMENTS or any("\0" in argument for argument in arguments):
        raise ValidationError(f"must be at most {MOST_ARGUMENTS} strings without NUL")


class CustomSchema(_TaskSchema):
    """The body of ``/api/tasks/custom``: an image of the client's, without mounts, network or devices of its choice."""

    docker_image = _text("the image", required=True)
    command = fields.List(
        fields.String(error_messages={"invalid": "must be a string"}),
        load_default=list,
        allow_none=True,
        validate=_check_arguments,
        error_messages={"invalid": "must be a list of strings"},
        metadata={"description": "the command; empty: the image's own", "maxItems": MOST_ARGUMENTS},
    )
    env_vars = fields.Dict(
        keys=fields.String(),
        values=fields.String(error_messages={"invalid": "must be a string"}),
        load_default=dict,
        allow_none=True,
        validate=_check_variables,
        error_messages={"invalid": "must be an object of strings"},
        metadata={"description": "variables of its environment"},
    )
    task_difficulty = _difficulty()
    model_id = _text("a model that is mounted read-only at /models")


def _check_labels(labels: dict[str, str]) -> None:
    if len(labels) > MOST_LABELS or not all(1 <= len(name) <= LONGEST for name in labels):
        raise ValidationError(
            f"must be at most {MOST_LABELS} strings of {LONGEST} characters at most, by name"
        )


class PrewarmSchema(Schema):
    """The body of ``POST /api/sessions``."""

    class Meta:
        unknown = EXCLUDE

    model_id = _text("the model's id", required=True)
    task_preset = _text("the preset's name", required=True)
    task_difficulty = _difficulty()
    idle_timeout_seconds = _seconds(
        "seconds without work until the session ends, at most the preset's; without it, the preset's",
        LIFE_S,
    )
    max_lifetime_seconds = _seconds(
        "seconds from ready until the session ends, at most the preset's; without it, the preset's",
        LIFE_S,
    )
    wait_seconds = _seconds("seconds for which the session may wait for a device", WAIT_S)
    metadata = fields.Dict(
        keys=fields.String(),
        values=fields.String(
            validate=validate.Length(max=LONGEST, error="must have at most {max} characters"),
            error_messages={"invalid": "must be a string"},
        ),
        load_default=dict,
        allow_none=True,
        validate=_check_labels,
        error_messages={"invalid": "must be an object of strings"},
        metadata={"description": "labels of the session, for people"},
    )


class KeepaliveSchema(Schema):
    """The body of a keepalive; it may be empty."""

    class Meta:
        unknown = EXCLUDE

    seconds = _seconds(
        "seconds from now for which the session stays without work, at most four times its idle time-out; "
        "without it, its idle time begins again",
        KEEP_S,
    )
