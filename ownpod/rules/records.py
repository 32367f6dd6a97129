"""Frozen dataclasses as JSON texts, and strictly back. Pure."""

import functools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from ownpod.errors import WorkerRecordBroken

T = TypeVar("T")

LARGEST = 2**63
"""No whole number of a record is larger; Python cannot make a float of every larger one."""


def to_text(value: Any, *, without: tuple[str, ...] = ()) -> str:
    """A dataclass as JSON, but without the named fields; ``a.b`` is field ``b`` of field ``a``."""
    values = asdict(value)
    for name in without:
        *path, last = name.split(".")
        holder = values
        for part in path:
            holder = holder[part]
        del holder[last]
    return json.dumps(values, sort_keys=True, default=dict)


def from_text(kind: type[T], text: str | None, *, others: bool = False) -> T:
    """The dataclass in a JSON text. Missing fields have their defaults.

    Args:
        kind: the dataclass, whose fields are str, int, float, bool, enums, tuples, mappings and other dataclasses.
        text: from :func:`to_text`, perhaps of another version of OwnPod.
        others: whether fields that this version does not know are dropped.

    Raises:
        WorkerRecordBroken: the text is no such object. The message has no values, because these may be secrets.
    """
    try:
        values = json.loads(text or "")
    except (ValueError, RecursionError):
        raise WorkerRecordBroken(f"the {kind.__name__} in Redis is not JSON") from None
    found: T = _read(kind, values, kind.__name__, others=others)
    return found


def _read(kind: Any, value: Any, place: str, *, others: bool) -> Any:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    found = value
    if origin in {types.UnionType, typing.Union}:
        (part,) = (part for part in parts if part is not type(None))
        found = None if value is None else _read(part, value, place, others=others)
    elif is_dataclass(kind):
        found = _object(kind, value, place, others=others)
    elif origin is tuple and isinstance(value, list):
        found = tuple(_read(parts[0], part, place, others=others) for part in value)
    elif origin is Mapping and isinstance(value, dict):
        found = {name: _read(parts[1], part, place, others=others) for name, part in value.items()}
    elif type(value) is int and abs(value) > LARGEST:
        raise WorkerRecordBroken(f"{place} in Redis has a number that is too large")
    elif kind is float and type(value) is int:
        found = float(value)
    elif isinstance(kind, type) and issubclass(kind, Enum) and value in [m.value for m in kind]:
        found = kind(value)
    elif type(value) is not kind:
        raise WorkerRecordBroken(f"{place} in Redis has a value of another type")
    return found


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Names and types of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _object(kind: Any, value: Any, place: str, *, others: bool) -> Any:
    if not isinstance(value, dict):
        raise WorkerRecordBroken(f"{place} in Redis is no JSON object")
    hints = _hints(kind)
    if not others and (unknown := value.keys() - hints.keys()):
        raise WorkerRecordBroken(f"{place} in Redis has the unknown field {min(unknown)[:80]!r}")
    found = {
        name: _read(hints[name], value[name], f"{place}.{name}", others=others)
        for name in hints.keys() & value.keys()
    }
    try:
        return kind(**found)
    except TypeError:
        raise WorkerRecordBroken(f"{place} in Redis lacks a field") from None
