"""Which numbers of workers apply at a moment."""

import functools
import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from ownpod.rules.hours import (
    expired,
    most_workers,
    open_again_ms,
    pause_at,
    scaling_at,
)
from ownpod.rules.templates import Hours, ManagedSpec, Scaling, Template

BERLIN = ZoneInfo("Europe/Berlin")
WEEKDAYS = (0, 1, 2, 3, 4)
EVERY_DAY = tuple(range(7))


def spec_of(*hours: Hours, least: int = 0, most: int = 3, expires_ms: int | None = None):
    return ManagedSpec(
        Template(command=("x",)),
        Scaling(workers_min=least, workers_max=most),
        hours=hours,
        timezone="Europe/Berlin",
        expires_ms=expires_ms,
    )


def at(text: str, fold: int = 0) -> int:
    """A time of Berlin's wall clocks in ms."""
    return int(datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp() * 1000)


def numbers(spec: ManagedSpec, now_ms: int) -> tuple[int, int]:
    scaling = scaling_at(spec, now_ms)
    return scaling.workers_min, scaling.workers_max


def test_without_hours_the_endpoints_own_numbers_apply():
    spec = spec_of(least=1, most=2)
    assert scaling_at(spec, 0) is spec.scaling


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-11-30 07:59:59", False),  # a Monday
        ("2026-11-30 08:00:00", True),
        ("2026-11-30 17:59:59", True),
        ("2026-11-30 18:00:00", False),
        ("2026-12-04 12:00:00", True),
        ("2026-12-05 12:00:00", False),  # a Saturday
    ],
)
def test_hours_apply_from_their_first_minute_to_their_last(moment, inside):
    spec = spec_of(Hours(WEEKDAYS, 480, 1080, workers_min=1, workers_max=4))
    assert numbers(spec, at(moment)) == ((1, 4) if inside else (0, 3))


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-12-04 21:59", False),  # a Friday
        ("2026-12-04 22:00", True),
        ("2026-12-05 05:59", True),
        ("2026-12-05 06:00", False),
        ("2026-12-05 23:00", False),
        ("2026-12-06 01:00", False),
    ],
)
def test_hours_over_midnight_belong_to_the_day_on_which_they_begin(moment, inside):
    spec = spec_of(Hours((4,), 22 * 60, 6 * 60, workers_max=9))
    assert numbers(spec, at(moment))[1] == (9 if inside else 3)


def test_sundays_hours_go_on_into_monday():
    spec = spec_of(Hours((6,), 22 * 60, 6 * 60, workers_max=9))
    assert numbers(spec, at("2026-11-30 03:00"))[1] == 9


def test_hours_that_end_when_they_begin_last_a_day():
    spec = spec_of(Hours((0,), 480, 480, workers_max=9))
    assert numbers(spec, at("2026-11-30 07:59"))[1] == 3
    assert numbers(spec, at("2026-11-30 08:00"))[1] == 9
    assert numbers(spec, at("2026-12-01 07:59"))[1] == 9
    assert numbers(spec, at("2026-12-01 08:00"))[1] == 3


def test_the_first_hours_that_apply_decide():
    lunch = Hours(EVERY_DAY, 720, 780, workers_max=0)
    day = Hours(EVERY_DAY, 480, 1080, workers_min=2, workers_max=8)
    spec = spec_of(lunch, day)
    assert numbers(spec, at("2026-11-30 12:30")) == (0, 0)
    assert numbers(spec, at("2026-11-30 13:00")) == (2, 8)


def test_a_number_that_hours_do_not_give_is_the_endpoints():
    assert numbers(spec_of(Hours(EVERY_DAY, 0, 1440, workers_min=2), most=5), 0) == (2, 5)
    assert numbers(spec_of(Hours(EVERY_DAY, 0, 1440, workers_max=1), least=2), 0) == (1, 1)


def test_hours_of_the_missing_hour_are_left_out_when_clocks_go_forward():
    """29 March 2026, 02:00 is 03:00 in Berlin."""
    spec = spec_of(Hours(EVERY_DAY, 150, 210, workers_max=9))
    just_before = at("2026-03-29 01:59:59")
    assert numbers(spec, just_before)[1] == 3
    assert numbers(spec, just_before + 1000)[1] == 9, "it is 03:00 now"
    assert numbers(spec, just_before + 30 * 60_000)[1] == 9
    assert numbers(spec, just_before + 31 * 60_000)[1] == 3


def test_hours_come_twice_when_clocks_go_back():
    """25 October 2026, 03:00 is 02:00 again in Berlin."""
    spec = spec_of(Hours(EVERY_DAY, 150, 165, workers_max=9))
    for fold in (0, 1):
        assert numbers(spec, at("2026-10-25 02:29", fold))[1] == 3
        assert numbers(spec, at("2026-10-25 02:30", fold))[1] == 9
        assert numbers(spec, at("2026-10-25 02:45", fold))[1] == 3


def test_a_night_lasts_an_hour_more_when_clocks_go_back():
    spec = spec_of(Hours((5,), 22 * 60, 6 * 60, workers_max=9))
    start, end = at("2026-10-24 22:00"), at("2026-10-25 06:00")
    assert end - start == 9 * 3_600_000
    assert all(numbers(spec, t)[1] == 9 for t in range(start, end, 600_000))
    assert numbers(spec, end)[1] == numbers(spec, start - 1)[1] == 3


def test_an_expired_endpoint_has_no_workers_whatever_its_hours():
    end = at("2026-12-31 12:00")
    spec = spec_of(Hours(EVERY_DAY, 0, 1440, workers_min=1, workers_max=4), least=1, expires_ms=end)
    assert not expired(spec, end - 1)
    assert numbers(spec, end - 1) == (1, 4)
    assert expired(spec, end)
    assert numbers(spec, end) == (0, 0)


def test_the_pause_of_an_expired_endpoint_says_when_it_expired():
    spec = spec_of(most=0, expires_ms=at("2026-12-31 01:00"))
    pause = pause_at(spec, at("2027-01-01 00:00"))
    assert pause is not None
    assert pause.expired
    assert pause.reason == "it expired at 2026-12-31T00:00:00Z"
    assert pause.detail.startswith("It expired at 2026-12-31T00:00:00Z.")


def test_an_endpoint_whose_own_maximum_is_0_is_paused_in_runpods_words_only():
    pause = pause_at(spec_of(most=0), 0)
    assert pause is not None
    assert (pause.reason, pause.detail) == ("its workersMax is 0", "")


def test_a_pause_by_hours_says_until_when():
    spec = spec_of(
        Hours((4, 5, 6), 18 * 60, 8 * 60, workers_max=0), Hours((5, 6), 0, 1440, workers_max=0)
    )
    assert pause_at(spec, at("2026-12-04 17:59")) is None
    pause = pause_at(spec, at("2026-12-04 18:00"))
    assert pause is not None
    assert "until Mon 2026-12-07 08:00 (Europe/Berlin)" in pause.reason
    assert "until Mon 2026-12-07 08:00 (Europe/Berlin)" in pause.detail
    assert not pause.expired


def test_a_pause_by_hours_that_never_ends_names_no_moment():
    pause = pause_at(spec_of(Hours(EVERY_DAY, 0, 1440, workers_max=0)), 0)
    assert pause is not None
    assert "until" not in pause.reason


def test_an_endpoint_that_expires_before_its_pause_ends_names_no_moment():
    spec = spec_of(Hours(EVERY_DAY, 0, 480, workers_max=0), expires_ms=at("2026-12-01 07:00"))
    assert open_again_ms(spec, at("2026-12-01 06:00")) is None
    assert open_again_ms(spec, at("2026-11-30 06:00")) == at("2026-11-30 08:00")


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24", "2026-12-02"])
@pytest.mark.parametrize(
    "closed",
    [(0, 150), (130, 150), (150, 135), (120, 180), (1410, 145), (60, 0)],
    ids=str,
)
def test_the_end_of_a_pause_is_the_first_open_minute_also_when_clocks_are_set(day, closed):
    spec = spec_of(Hours(EVERY_DAY, *closed, workers_max=0))
    is_paused = functools.cache(lambda minute: pause_at_all(spec, minute))
    midnight = at(f"{day} 20:00")
    minutes = range(
        midnight, midnight + int(timedelta(hours=14) / timedelta(milliseconds=1)), 60_000
    )
    paused = [minute for minute in minutes if is_paused(minute)]
    assert paused or day == "2026-03-28", "clocks go over these hours on that day only"
    for minute in paused[::7]:
        opened = open_again_ms(spec, minute)
        assert opened is not None
        assert all(is_paused(t) for t in range(minute, opened, 60_000))
        assert not is_paused(opened)


def pause_at_all(spec: ManagedSpec, now_ms: int) -> bool:
    return scaling_at(spec, now_ms).workers_max == 0


def test_the_zone_of_the_process_counts_where_none_is_given():
    spec = ManagedSpec(
        Template(command=("x",)), hours=(Hours(EVERY_DAY, 480, 1080, workers_max=9),)
    )
    noon = int(time.mktime((2026, 11, 30, 12, 0, 0, 0, 0, -1))) * 1000
    assert scaling_at(spec, noon).workers_max == 9
    assert scaling_at(spec, noon + 12 * 3_600_000).workers_max == 3
    assert pause_at(
        ManagedSpec(Template(command=("x",)), hours=(Hours(EVERY_DAY, 480, 1080, workers_max=0),)),
        noon,
    )


def test_the_most_workers_are_those_of_the_widest_hours():
    assert most_workers(spec_of(most=2)) == 2
    assert (
        most_workers(
            spec_of(Hours(EVERY_DAY, 0, 60, workers_max=7), Hours(EVERY_DAY, 60, 90), most=2)
        )
        == 7
    )
    assert most_workers(spec_of(Hours(EVERY_DAY, 0, 60, workers_max=1), most=2)) == 2
