"""Which jobs go to a cloud worker, when, and what they cost."""

from dataclasses import replace
from decimal import Decimal

import pytest
from helpers import attempt

from ownpod.rules.overflow import (
    CloudSpec,
    LanUrls,
    Spent,
    amount,
    cost_micro,
    decide,
    lan_host,
    micro,
    p95_ms,
    refusal,
    reserve_micro,
)
from ownpod.rules.templates import Hours

MONDAY_NOON_MS = 1_767_614_400_000
"""2026-01-05T12:00:00Z."""

SPEC = CloudSpec(
    key="rpa_ABC",
    after_s=30,
    price_micro_per_s=Decimal(340),
    budget_micro_per_day=1_000_000,
    timezone="UTC",
)


def decided(spec=SPEC, **changes):
    values = {
        "oldest_wait_s": 31.0,
        "now_ms": MONDAY_NOON_MS,
        "spent": Spent(),
        "next_reserve": 204_000,
    }
    return decide(spec, **values | changes)


def test_a_job_that_has_waited_long_enough_goes():
    assert decided().sends
    assert decided(oldest_wait_s=30.0).sends


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"oldest_wait_s": None}, "not needed"),
        ({"oldest_wait_s": 29.9}, "not needed"),
        ({"allowed": False}, "`overflow` is never"),
        ({"breaker": "its key was refused"}, "its key was refused"),
        ({"spent": Spent(500_000, 296_001)}, "0.50 spent, 0.296001 reserved"),
    ],
)
def test_what_keeps_jobs_here_has_a_reason(changes, reason):
    found = decided(**changes)
    assert not found.sends
    assert reason in found.reason


def test_the_budget_has_room_to_the_last_micro_unit():
    assert decided(spent=Spent(500_000, 296_000)).sends
    assert decided(replace(SPEC, budget_micro_per_day=None), spent=Spent(10**12)).sends


def test_outside_of_its_hours_no_job_goes():
    morning = replace(SPEC, hours=(Hours(tuple(range(7)), 8 * 60, 12 * 60),))
    assert "hours" in decided(morning).reason
    assert decided(morning, now_ms=MONDAY_NOON_MS - 1).sends
    night = replace(SPEC, hours=(Hours((6,), 22 * 60, 6 * 60),))
    assert decided(night, now_ms=MONDAY_NOON_MS - 7 * 3_600_000).sends


def test_money_is_exact_and_rounded_up():
    assert micro(Decimal("5.00")) == 5_000_000
    assert micro(Decimal("0.0000001")) == 1
    assert cost_micro(1, Decimal(340)) == 1
    assert cost_micro(1000, Decimal("12.5")) == 13
    assert cost_micro(-5, Decimal(340)) == 0
    assert [amount(n) for n in (0, 5_000_000, 340, 4_999_999)] == [
        *("0.00", "5.00", "0.00034", "4.999999")
    ]


def test_a_reservation_is_for_the_longest_time_or_for_the_usual_one():
    price = Decimal(340)
    assert reserve_micro(600_000, None, price) == 204_000
    assert reserve_micro(600_000, 10_000, price) == 5_100
    assert reserve_micro(5_000, 10_000, price) == 1_700


def test_a_percentile_needs_enough_values():
    ends = (100, 1000, 10_000)
    assert p95_ms([19, 0, 0, 0], ends) is None
    assert p95_ms([19, 1, 0, 0], ends) == 100
    assert p95_ms([18, 1, 1, 0], ends) == 1000
    assert p95_ms([10, 0, 0, 10], ends) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stays": True}, "policy.overflow"),
        ({"hops": 1}, "another OwnPod"),
        ({"input": f'"{"x" * (10 * 1024 * 1024)}"'}, "10 MiB"),
        ({"s3_config": "{}"}, "allowSecrets"),
    ],
)
def test_some_jobs_never_go(changes, reason):
    assert reason in refusal(attempt(**changes), SPEC)


def test_a_job_may_go_with_secrets_or_local_addresses_if_that_is_allowed():
    assert refusal(attempt(), SPEC) is None
    assert refusal(attempt(s3_config="{}"), replace(SPEC, allow_secrets=True)) is None
    local = attempt(input='{"image": "http://10.1.2.3/a.png"}')
    assert refusal(local, SPEC) is None
    refuses = replace(SPEC, lan_urls=LanUrls.REFUSE)
    assert "10.1.2.3" in refusal(local, refuses)
    assert refusal(attempt(input='{"image": "https://example.com/a.png"}'), refuses) is None


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ('{"a": "http://192.168.1.5:9000/x"}', "192.168.1.5"),
        ('{"a": ["see http:\\/\\/nas/x"]}', "nas"),
        ('{"a": "\\u0068ttp://localhost/"}', "localhost"),
        ('{"a": {"b": "s3://user:pw@store.internal/x"}}', "store.internal"),
        ('{"a": "http://[fd00::1]/x"}', "fd00::1"),
        ('{"http://2130706433/": 1}', "2130706433"),
        ('{"a": "https://8.8.8.8/ https://example.com:444/x?u=http%3A"}', None),
        ('{"a": "no URL: //nas/x"}', None),
        ('"https://"', None),
    ],
)
def test_addresses_of_this_network_are_found_in_an_input(text, host):
    assert lan_host(text) == host


def test_a_key_is_in_no_text():
    assert "rpa_ABC" not in repr(SPEC)
