"""What a request may say. RunPod ignores keys it does not know, so these do too."""

import json
from typing import Any, NoReturn

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ownpod.errors import BadRequest
from ownpod.registry import EXECUTION_TIMEOUT_MS

WAIT_MS = (1_000, 300_000)
"""RunPod's limits of ``?wait=``; values beyond are taken as the nearest."""


class PolicySchema(Schema):
    class Meta:
        unknown = EXCLUDE

    execution_timeout_ms = fields.Integer(
        data_key="executionTimeout",
        strict=True,
        load_default=None,
        allow_none=True,
        validate=validate.Range(
            *EXECUTION_TIMEOUT_MS, error="must be a whole number of ms from {min} to {max}"
        ),
        error_messages={"invalid": "must be a whole number of ms"},
    )


class RunSchema(Schema):
    """The body of ``/run`` and ``/runsync``."""

    class Meta:
        unknown = EXCLUDE

    input = fields.Raw(
        required=True,
        allow_none=False,
        error_messages={"required": "is missing; it is what the handler gets", "null": "is null"},
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
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def parse_json(body: bytes) -> Any:
    """The JSON in a body.

    Raises:
        BadRequest: it is none, or too deep to read.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        reason = f" ({error})" if body.strip() else ": it is empty"
        raise BadRequest(f"the body must be JSON{reason}") from None


def parse(schema: Schema, body: bytes) -> dict[str, Any]:
    """A body checked against a schema.

    Raises:
        BadRequest: with the first field that is wrong, and how.
    """
    try:
        content = parse_json(body)
        if not isinstance(content, dict):
            raise BadRequest('the body must be a JSON object like {"input": {...}}')
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


def milliseconds(name: str, text: str, limits: tuple[int, int]) -> int:
    """A query's whole number of ms, brought into the limits as RunPod does.

    Raises:
        BadRequest: it is no whole number.
    """
    try:
        value = int(text)
    except ValueError:
        raise BadRequest(f"{name}: must be a whole number of ms, not {text[:40]!r}") from None
    return min(max(value, limits[0]), limits[1])
