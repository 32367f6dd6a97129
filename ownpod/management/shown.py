"""What the management APIs share when they show a row: what was sent is read back as it was, times as text."""

import datetime as dt
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ownpod.errors import BadRequest
from ownpod.rules.catalog import Door, EndpointRow, TemplateRow, VolumeRow
from ownpod.rules.catalog_changes import time_text

R = TypeVar("R", EndpointRow, TemplateRow, VolumeRow)

__all__ = ["USER_ID", "as_sent", "keep_sent", "time_of", "time_text"]

_ABSENT = object()

USER_ID = "user_ownpod"
"""The one user that RunPod's APIs show as the owner of everything."""


def keep_sent(row: R, door: Door, values: Mapping[str, Any]) -> R:
    """The row with the fields of a request as they were sent through ``door``, besides those of its earlier requests."""
    before = json.loads(row.sent.get(door, "{}"))
    return replace(row, sent={**row.sent, door: json.dumps({**before, **values})})


def as_sent(
    row: R,
    door: Door,
    shown: dict[str, Any],
    apply: Callable[[R, Mapping[str, Any]], R],
    optional: Collection[str] = (),
) -> dict[str, Any]:
    """The fields of ``shown``, with those values that were sent through ``door`` and still mean the same.

    A client such as Terraform sees a difference in any value that is not read back as it was sent.

    Args:
        row: the row.
        door: the API that shows it.
        shown: the row in the API's shape.
        apply: changes a row by fields of the API; a value that changes nothing still means the same.
        optional: fields that the API has, and ``shown`` only where they have a value.
    """
    sent = json.loads(row.sent.get(door, "{}"))
    for name, value in sent.items():
        is_field = name in shown or name in optional
        if is_field and shown.get(name, _ABSENT) != value and apply(row, {name: value}) == row:
            shown[name] = value
    return shown


def time_of(text: str) -> int | None:
    """A time of ISO 8601 in ms since the epoch, UTC where it names no zone; "" is None. Raises: BadRequest."""
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest("expires: must be a time such as 2026-12-31T00:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return round(moment.timestamp() * 1000)
