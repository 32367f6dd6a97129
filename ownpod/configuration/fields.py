"""Fields whose errors say in words what is allowed, and never the value, which may be a secret."""

import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields


class Parsed(fields.Field[Any]):
    """A field that a function parses. The error names what is allowed, and never the value, which may be a secret.

    Args:
        parse: returns the value, or raises ValueError or TypeError.
        allowed: follows "must be" in the error.
    """

    def __init__(self, parse: Callable[[Any], Any], allowed: str, **options: Any) -> None:
        self._parse = parse
        self._problem = f"must be {allowed}"
        super().__init__(error_messages={"null": self._problem}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            return self._parse(value)
        except (ValueError, TypeError, OverflowError):
            raise ValidationError(self._problem) from None


def whole(low: int, high: int, unit: str = "", **options: Any) -> Parsed:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not low <= value <= high or value != int(value):
            raise ValueError
        return int(value)

    return Parsed(parse, f"a whole number{unit} from {low} to {high}", **options)


def number(low: float, high: float, **options: Any) -> Parsed:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Parsed(parse, f"a number from {low:g} to {high:g}", **options)


def flag(**options: Any) -> Parsed:
    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise TypeError
        return value

    return Parsed(parse, "true or false", **options)


def choice(kind: type[StrEnum], *, without: StrEnum | None = None, **options: Any) -> Parsed:
    """One of the values of ``kind``; ``without``: the one that is not allowed here."""
    return one_of({value.value: value for value in kind if value is not without}, **options)


def one_of(names: Mapping[str, Any], **options: Any) -> Parsed:
    """One of these names; the value is what the name stands for."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return names[value]

    return Parsed(parse, f"one of {', '.join(names)}", **options)


def matching(pattern: re.Pattern[str], allowed: str, **options: Any) -> Parsed:
    """A text that matches a pattern as a whole."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError
        return value

    return Parsed(parse, allowed, **options)


class Keys(Schema):
    """An object whose errors list its keys. The class that inherits sets ``error_messages`` with :func:`listing`."""

    class Meta:
        unknown = RAISE


def listing(*names: str) -> dict[str, str]:
    """The errors of an object with these keys."""
    keys = ", ".join(names)
    return {
        "unknown": f"is not a key here; the keys are {keys}",
        "type": f"must be an object with the keys {keys}",
    }


def nested(schema: type[Keys], **options: Any) -> fields.Nested:
    """An object within an object."""
    problem = schema.error_messages["type"]
    return fields.Nested(schema, error_messages={"null": problem}, **options)
