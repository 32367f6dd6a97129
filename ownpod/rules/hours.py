"""Which numbers of workers apply at a moment: an endpoint's hours, and its expiry. Pure.

The wall clock of the endpoint's time zone decides. So part of a window is left out on the day on which clocks go forward,
and a part may come twice on the day on which they go back.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ownpod.rules.templates import Hours, ManagedSpec, Scaling

MINUTES_OF_A_DAY = 24 * 60

LOOK_AHEAD_DAYS = 8
"""Days in which the next change of hours is searched: they repeat each week, and begin at another minute after clocks
were set.
"""

QUARTER_MS = 15 * 60 * 1000
"""Clocks are set at quarters of an hour only."""


@dataclass(frozen=True)
class Pause:
    """Why an endpoint with a template takes no jobs at a moment.

    Attributes:
        reason: continues "the endpoint is paused: ".
        expired: it has expired; otherwise its ``workersMax`` is 0, of the endpoint or by its hours.
        detail: sentences for the caller whose job is refused; "": it is paused by the endpoint's own ``workersMax``.
    """

    reason: str
    expired: bool = False
    detail: str = ""


def expired(spec: ManagedSpec, now_ms: int) -> bool:
    """Whether the endpoint has expired; ``now_ms`` since the epoch."""
    return spec.expires_ms is not None and now_ms >= spec.expires_ms


def scaling_at(spec: ManagedSpec, now_ms: int) -> Scaling:
    """The scaling that applies at a moment: the endpoint's, with the numbers of the first of its hours that applies.

    An endpoint that has expired has no workers. A ``workersMin`` above ``workersMax`` is lowered to that.

    Args:
        spec: of the endpoint.
        now_ms: the moment, in ms since the epoch.
    """
    if expired(spec, now_ms):
        return replace(spec.scaling, workers_min=0, workers_max=0)
    hours = hours_at(spec, now_ms)
    if hours is None:
        return spec.scaling
    most, least = hours.workers_max, hours.workers_min
    most = spec.scaling.workers_max if most is None else most
    least = spec.scaling.workers_min if least is None else least
    return replace(spec.scaling, workers_min=min(least, most), workers_max=most)


def hours_at(spec: ManagedSpec, now_ms: int) -> Hours | None:
    """The first of the endpoint's hours that applies; None: none does."""
    return first_at(spec.hours, spec.timezone, now_ms)


def first_at(hours: Iterable[Hours], timezone: str, now_ms: int) -> Hours | None:
    """The first of these hours that applies at a moment, in ms since the epoch; None: none does. ``timezone``: "" is that of
    the process.
    """
    local = datetime.fromtimestamp(now_ms / 1000, _zone(timezone))
    minute = local.hour * 60 + local.minute
    return next((h for h in hours if _applies(h, local.weekday(), minute)), None)


def _applies(hours: Hours, weekday: int, minute: int) -> bool:
    if hours.from_min < hours.to_min:
        return weekday in hours.days and hours.from_min <= minute < hours.to_min
    # It ends on the day after.
    before = (weekday - 1) % 7
    return (weekday in hours.days and minute >= hours.from_min) or (
        before in hours.days and minute < hours.to_min
    )


def most_workers(spec: ManagedSpec) -> int:
    """The largest ``workersMax`` that an endpoint ever has, in whole or in some of its hours."""
    return max(
        [
            spec.scaling.workers_max,
            *(h.workers_max for h in spec.hours if h.workers_max is not None),
        ]
    )


def pause_at(spec: ManagedSpec, now_ms: int) -> Pause | None:
    """Why the endpoint takes no jobs at a moment, in ms since the epoch; None: it takes jobs."""
    if spec.expires_ms is not None and expired(spec, now_ms):
        when = utc_text(spec.expires_ms)
        return Pause(
            f"it expired at {when}",
            expired=True,
            detail=f"It expired at {when}. Set a later `expires` to accept work.",
        )
    if scaling_at(spec, now_ms).workers_max > 0:
        return None
    if hours_at(spec, now_ms) is None:
        return Pause("its workersMax is 0")
    until_ms = open_again_ms(spec, now_ms)
    if until_ms is None:
        return Pause("its workersMax is 0 in its hours", detail="Its `hours` set workersMax to 0.")
    until = local_text(spec, until_ms)
    return Pause(
        f"its workersMax is 0 in its hours until {until}",
        detail=f"Its `hours` set workersMax to 0 until {until}.",
    )


def open_again_ms(spec: ManagedSpec, now_ms: int) -> int | None:
    """When the endpoint takes jobs again because of its hours, in ms since the epoch; None: not within a week, or not
    before it expires.
    """
    for moment_ms in _changes(spec, now_ms):
        if expired(spec, moment_ms):
            return None
        if scaling_at(spec, moment_ms).workers_max > 0:
            return moment_ms
    return None


def _changes(spec: ManagedSpec, now_ms: int) -> Iterator[int]:
    """Moments after ``now_ms`` at which other hours may begin to apply, in order."""
    zone = _zone(spec.timezone)
    first = datetime.fromtimestamp(now_ms / 1000, zone).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    minutes = {m for hours in spec.hours for m in (hours.from_min, hours.to_min)}
    found = set(_clock_changes(zone, now_ms))
    for day in range(LOOK_AHEAD_DAYS + 1):
        date = first + timedelta(days=day)
        for minute in minutes:
            local = date + timedelta(minutes=minute)
            # On the day on which clocks go back, both of the moments that the clock shows this time.
            found.update(int(local.replace(fold=fold).timestamp() * 1000) for fold in (0, 1))
    return iter(sorted(moment for moment in found if moment > now_ms))


def _clock_changes(zone: ZoneInfo | None, now_ms: int) -> Iterator[int]:
    """Moments at which clocks are set."""
    start = now_ms - now_ms % QUARTER_MS
    before = _offset(zone, start)
    for moment in range(start, start + LOOK_AHEAD_DAYS * 86_400_000, QUARTER_MS):
        offset = _offset(zone, moment)
        if offset != before:
            yield moment
        before = offset


def _offset(zone: ZoneInfo | None, moment_ms: int) -> timedelta | None:
    local = datetime.fromtimestamp(moment_ms / 1000, zone)
    return (local if zone is not None else local.astimezone()).utcoffset()


def utc_text(moment_ms: int) -> str:
    """A moment as clients see it, for example ``2026-12-31T00:00:00Z``."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_text(spec: ManagedSpec, moment_ms: int) -> str:
    """A moment by the clock of the endpoint's time zone, for example ``Mon 2026-11-30 08:00 (Europe/Berlin)``."""
    zone = _zone(spec.timezone)
    local = datetime.fromtimestamp(moment_ms / 1000, zone)
    name = spec.timezone if zone is not None else local.astimezone().tzname()
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[local.weekday()]
    return f"{day} {local:%Y-%m-%d %H:%M} ({name})"


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo | None:
    """None: the time zone of the process."""
    return ZoneInfo(name) if name else None
