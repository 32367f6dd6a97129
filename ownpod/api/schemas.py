"""Schemas of requests: they check bodies, and ``/openapi.json`` shows them. Queries are checked here too.

Unknown keys in a body are ignored, as RunPod ignores them.
"""

import json
import math
import re
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from ownpod.configuration import EXECUTION_TIMEOUT_MS, TTL_MS
from ownpod.errors import BadRequest
from ownpod.rules.payload import split
from ownpod.validation import Flag, WholeNumber

Word = TypeVar("Word", bound=StrEnum)

WAIT_MS = (1_000, 300_000)
"""Milliseconds: RunPod's limits of ``?wait=``. A value outside is replaced by the nearest limit."""

WEBHOOK = r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?([/?#][!-~]*)?"
"""Pattern of a webhook's URL; ECMAScript reads it in the same way, because OpenAPI requires that."""

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,30}")
"""A whole number in a query. Its length is bounded, because ``int()`` refuses thousands of digits."""

LARGEST = 2**53 - 1
"""The largest magnitude of a whole number in a query: JSON numbers are exact up to here."""

PLACE = r"[0-9]{1,15}-[A-Za-z0-9_-]{1,255}"
"""Pattern of a page's ``next`` and ``?before=`` in a listing: ms since the epoch, then a job's id."""


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
        "executionTimeout", EXECUTION_TIMEOUT_MS, "ms for which the job may run"
    )
    ttl_ms = _milliseconds(
        "ttl", TTL_MS, "ms from the submission to the job's end, in the queue and on a worker"
    )
    low_priority = Flag(
        data_key="lowPriority",
        load_default=False,
        allow_none=True,
        metadata={"description": "the job waits behind the jobs without this flag"},
    )
    # Without a default, so that bodies under an idempotency key are the same to processes of an earlier version.
    overflow = Flag(
        allow_none=True,
        metadata={"description": "false: the job never goes to a cloud worker"},
    )


class RunSchema(Schema):
    """The body of ``/run`` and ``/runsync``."""

    class Meta:
        unknown = EXCLUDE

    input = fields.Raw(
        required=True,
        allow_none=False,
        error_messages={"required": "is missing; it is passed to the handler", "null": "is null"},
        metadata={
            "description": "passed to the handler; RunPod's SDK accepts objects only",
            "type": ["object", "array", "string", "number", "boolean"],
        },
    )
    webhook = fields.String(
        load_default=None,
        allow_none=True,
        validate=_check_webhook,
        error_messages={"invalid": "must be an http:// or https:// URL"},
        metadata={
            "description": "receives the job as in /status when it has ended",
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
        metadata={"description": "passed to the worker"},
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


def parse_json(body: bytes | str) -> Any:
    """The JSON in a body.

    Raises:
        BadRequest: the body is no JSON, has NaN or a number beyond a double, or is nested too deeply.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except ValueError as error:
        reason = f" ({error})" if body.strip() else ": it is empty"
        raise BadRequest(f"the body must be JSON{reason}") from None


def parse(schema: Schema, body: bytes, *, text: str = "") -> dict[str, Any]:
    """A body checked against a schema. The member named ``text`` stays JSON text, because large inputs are
    forwarded without being parsed.

    Raises:
        BadRequest: with the first wrong field and its problem.
    """
    content, kept = split(body, text, parse_json)
    if kept is not None:
        # The schema refuses a missing input by None, and does not know the text "null".
        content[text] = None if kept == "null" else kept
    if not isinstance(content, dict):
        raise BadRequest('the body must be a JSON object like {"input": {...}}')
    try:
        loaded: dict[str, Any] = schema.load(content)
    except ValidationError as error:
        raise BadRequest(_first(error.normalized_messages())) from None
    return loaded


def _first(messages: Any) -> str:
    # marshmallow nests messages by field; `_schema` has those of an object as a whole.
    place = []
    while isinstance(messages, dict):
        key, messages = next(iter(messages.items()))
        if key != "_schema":
            place.append(str(key))
    return f"{'.'.join(place)}: {messages[0]}"


def one_of(name: str, text: str | None, kind: type[Word]) -> Word | None:
    """A word of the query; None: there is none. Raises: BadRequest, which lists the words of ``kind``."""
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError:
        raise BadRequest(f"{name}: must be one of {', '.join(kind)}, not {text[:40]!r}") from None


def whole_number(name: str, text: str, limits: tuple[int, int]) -> int:
    """A whole number of the query. One outside the limits is replaced by the nearest limit, as RunPod does.

    Raises:
        BadRequest: the text is no whole number, or its magnitude is above :data:`LARGEST`.
    """
    if not WHOLE_NUMBER.fullmatch(text) or abs(int(text)) > LARGEST:
        raise BadRequest(
            f"{name}: must be a whole number from -{LARGEST} to {LARGEST}, not {text[:40]!r}"
        )
    return min(max(int(text), limits[0]), limits[1])
