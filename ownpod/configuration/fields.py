"""Fields whose errors say in words what is allowed, and never the value, which may be a secret."""

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from marshmallow import ValidationError, fields


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


def choice(kind: type[StrEnum], **options: Any) -> Parsed:
    return Parsed(kind, f"one of {', '.join(kind)}", **options)
