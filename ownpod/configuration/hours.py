"""The keys of an endpoint that depend on the time: ``hours``, ``timezone`` and ``expires``."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from marshmallow import RAISE, Schema, ValidationError, fields, post_load

from ownpod.rules.hours import MINUTES_OF_A_DAY
from ownpod.rules.templates import Hours

MOST_HOURS = 100
"""Maximum number of an endpoint's hours."""

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

LATEST_MS = 253_402_300_799_000
"""The end of the year 9999, in ms since the epoch."""

_TIME = re.compile(r"([0-9]{1,2}):([0-5][0-9])")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,30}(?:/[A-Za-z][A-Za-z0-9_+-]{0,30}){0,2}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?: ?[Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)


class DaysField(fields.Field[Any]):
    """``mon-fri``, ``sat``, ``fri-mon``, ``mon, wed``, or a list of these; as numbers, Monday is 0."""

    PROBLEM = "must be days such as mon-fri, sat, or [mon, wed]"

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not 1 <= len(parts) <= len(DAYS):
            raise ValidationError(self.PROBLEM)
        try:
            return tuple(sorted({day for part in parts for day in self._span(part)}))
        except (TypeError, ValueError):
            raise ValidationError(self.PROBLEM) from None

    def _span(self, part: Any) -> Iterator[int]:
        if not isinstance(part, str):
            raise TypeError
        first, dash, last = part.strip().lower().partition("-")
        start, end = DAYS.index(first.strip()), DAYS.index((last if dash else first).strip())
        for step in range((end - start) % len(DAYS) + 1):
            yield (start + step) % len(DAYS)


class MinuteOfDayField(fields.Field[Any]):
    """``08:00`` as minutes from midnight."""

    PROBLEM = 'must be a time of day such as "08:00", in quotes, from 00:00 to 24:00'

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM, "required": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        # A number may be an hour, or the minutes that YAML makes of 18:30 without quotes, so it is refused.
        match = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValidationError(self.PROBLEM)
        minute = int(match[1]) * 60 + int(match[2])
        if minute > MINUTES_OF_A_DAY:
            raise ValidationError(self.PROBLEM)
        return minute


class _Workers(fields.Field[Any]):
    """A number of workers, with the limits of ``workersMin`` and ``workersMax``."""

    PROBLEM = "must be a whole number from 0 to 10000"

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not 0 <= value <= 10_000 or value != int(value):
            raise ValidationError(self.PROBLEM)
        return int(value)


_KEYS = "days, from, to, workersMin, workersMax"


class HoursSchema(Schema):
    """One of an endpoint's hours."""

    class Meta:
        unknown = RAISE

    error_messages = {  # noqa: RUF012 - marshmallow's own name
        "unknown": f"is not a key here; the keys are {_KEYS}",
        "type": f"must be an object with the keys {_KEYS}",
    }

    days = DaysField(load_default=tuple(range(len(DAYS))))
    from_min = MinuteOfDayField(data_key="from", required=True)
    to_min = MinuteOfDayField(data_key="to", required=True)
    workers_min = _Workers(data_key="workersMin", load_default=None)
    workers_max = _Workers(data_key="workersMax", load_default=None)

    @post_load
    def _make(self, values: dict[str, Any], **_: Any) -> Hours:
        least, most = values["workers_min"], values["workers_max"]
        if least is None and most is None:
            raise ValidationError("needs workersMin, workersMax, or both")
        if values["from_min"] == MINUTES_OF_A_DAY:
            raise ValidationError({"from": ["must be before 24:00"]})
        if least is not None and most is not None and least > most:
            problem = f"must be at most workersMax, which is {most}"
            raise ValidationError({"workersMin": [problem]})
        return Hours(**values)


class HoursField(fields.Field[Any]):
    """The list of an endpoint's hours."""

    PROBLEM = f"must be a list of at most {MOST_HOURS} objects with the keys {_KEYS}"

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> tuple[Hours, ...]:
        if not isinstance(value, list) or len(value) > MOST_HOURS:
            raise ValidationError(self.PROBLEM)
        found = []
        for number, one in enumerate(value):
            try:
                found.append(HoursSchema().load(one))
            except ValidationError as error:
                raise ValidationError({number: error.normalized_messages()}) from None
        return tuple(found)


def check_hours(hours: Sequence[Hours], workers_max: int) -> None:
    """Checks that hours fit to the endpoint's own numbers, which apply where hours do not give theirs.

    Raises:
        ValidationError: a ``workersMin`` is above the ``workersMax`` that applies with it.
    """
    for number, one in enumerate(hours):
        most = workers_max if one.workers_max is None else one.workers_max
        if one.workers_min is not None and one.workers_min > most:
            problem = f"must be at most workersMax, which is {most}"
            raise ValidationError({"hours": {number: {"workersMin": [problem]}}})


class TimeZoneField(fields.Field[Any]):
    """The name of a time zone."""

    PROBLEM = "must be the name of a time zone such as Europe/Berlin or UTC"

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        # The pattern first, because a name leads to a file.
        if not isinstance(value, str) or not _ZONE.fullmatch(value):
            raise ValidationError(self.PROBLEM)
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError):
            raise ValidationError(self.PROBLEM) from None
        return value


class MomentField(fields.Field[Any]):
    """A moment, in ms since the epoch. YAML reads one without quotes as a time or a date. Without an offset it is in UTC."""

    PROBLEM = "must be a time such as 2026-12-31T00:00:00Z"

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"null": self.PROBLEM}, **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        try:
            moment = self._moment(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            moment_ms = round(moment.timestamp() * 1000)
        except (ValueError, OverflowError):
            raise ValidationError(self.PROBLEM) from None
        if not 0 <= moment_ms <= LATEST_MS:
            raise ValidationError(self.PROBLEM)
        return moment_ms

    def _moment(self, value: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        if not isinstance(value, str) or not _MOMENT.fullmatch(value.strip()):
            raise ValueError
        return datetime.fromisoformat(value.strip().replace(" Z", "Z").replace(" z", "Z"))
