"""The keys of an endpoint that depend on the time, and the quota of workers."""

import json
from datetime import UTC, datetime

import pytest
import yaml
from helpers import load_settings
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from ownpod.configuration import (
    keep_endpoints,
    kept_endpoints,
    load_endpoints,
    make_endpoint,
)
from ownpod.errors import ConfigurationError
from ownpod.management.shown import time_of
from ownpod.rules.catalog_changes import time_text
from ownpod.rules.hours import scaling_at
from ownpod.rules.templates import Hours
from ownpod.validation import first_problem

TEMPLATE = {"template": {"command": "x"}}
NIGHT = {"from": "22:00", "to": "6:00", "workersMax": 1}
JULY_MS = int(datetime(2026, 7, 1, tzinfo=UTC).timestamp() * 1000)


def make(**values):
    return make_endpoint("a", {**TEMPLATE, **values}).managed


def problem(**values):
    with pytest.raises(ValidationError) as caught:
        make(**values)
    return ": ".join(first_problem(caught.value.normalized_messages()))


def load(tmp_path, text, **environ):
    file = tmp_path / "workers.yaml"
    file.write_text(text)
    return load_endpoints(load_settings(OWNPOD_WORKERS_FILE=file, **environ))


def test_all_keys_of_hours_are_read_from_the_file(tmp_path):
    text = """
endpoints:
  a:
    template: {command: x}
    hours:
      - {days: mon-fri, from: "08:00", to: "18:00", workersMin: 1, workersMax: 4}
      - {days: sat, from: "10:00", to: "24:00", workersMax: 0}
    timezone: Europe/Berlin
    expires: 2026-12-31T00:00:00Z
"""
    managed = load(tmp_path, text)["a"].managed
    assert managed.hours == (
        Hours((0, 1, 2, 3, 4), 480, 1080, 1, 4),
        Hours((5,), 600, 1440, None, 0),
    )
    assert managed.timezone == "Europe/Berlin"
    assert managed.expires_ms == 1_798_675_200_000


def test_hours_and_expiry_make_no_release():
    assert make(hours=[NIGHT], timezone="UTC", expires="2030-01-01").release == make().release


@pytest.mark.parametrize(
    ("days", "found"),
    [
        ("mon-fri", (0, 1, 2, 3, 4)),
        ("sat", (5,)),
        ("fri-mon", (0, 4, 5, 6)),
        ("mon, wed", (0, 2)),
        ("Mon-Tue,SUN", (0, 1, 6)),
        (["mon", "wed-thu", "mon"], (0, 2, 3)),
        ("sun-sat", tuple(range(7))),
        (None, tuple(range(7))),
    ],
)
def test_days_are_names_spans_and_lists_of_them(days, found):
    values = NIGHT if days is None else {**NIGHT, "days": days}
    assert make(hours=[values]).hours[0].days == found


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [
        ("2026-12-31T00:00:00Z", 1_798_675_200),
        ("2026-12-31T01:00:00+01:00", 1_798_675_200),
        ("2026-12-31 00:00 Z", 1_798_675_200),
        ("2026-12-31", 1_798_675_200),
        ("2026-12-31T00:00:30", 1_798_675_230),
    ],
)
def test_a_moment_is_read_the_same_from_a_text_and_from_yaml(moment, seconds):
    assert make(expires=moment).expires_ms == seconds * 1000
    read = yaml.safe_load(f"x: {moment}")["x"]
    assert make(expires=read).expires_ms == seconds * 1000


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hours": {}}, "hours: must be a list of at most 100 objects"),
        ({"hours": [1]}, "hours.0: must be an object with the keys days, from, to"),
        ({"hours": [NIGHT, NIGHT | {"days": "monday"}]}, "hours.1.days: must be days such as"),
        ({"hours": [NIGHT | {"days": []}]}, "hours.0.days: must be days such as"),
        ({"hours": [NIGHT | {"days": [1]}]}, "hours.0.days: must be days such as"),
        (
            {"hours": [NIGHT | {"from": 1320}]},
            'hours.0.from: must be a time of day such as "08:00"',
        ),
        ({"hours": [NIGHT | {"from": "24:00"}]}, "hours.0.from: must be before 24:00"),
        ({"hours": [NIGHT | {"to": "24:01"}]}, "hours.0.to: must be a time of day"),
        ({"hours": [NIGHT | {"to": "8 am"}]}, "hours.0.to: must be a time of day"),
        ({"hours": [{"from": "1:00", "workersMax": 1}]}, "hours.0.to: must be a time of day"),
        ({"hours": [{"from": "1:00", "to": "2:00"}]}, "hours.0: needs workersMin, workersMax"),
        ({"hours": [NIGHT | {"workersMax": -1}]}, "hours.0.workersMax: must be a whole number"),
        ({"hours": [NIGHT | {"workersMin": True}]}, "hours.0.workersMin: must be a whole number"),
        (
            {"hours": [NIGHT | {"workersMin": 2}]},
            "hours.0.workersMin: must be at most workersMax, which is 1",
        ),
        (
            {"workersMax": 2, "hours": [{"from": "1:00", "to": "2:00", "workersMin": 3}]},
            "hours.0.workersMin: must be at most workersMax, which is 2",
        ),
        ({"hours": [NIGHT | {"cron": "x"}]}, "hours.0.cron: is not a key here; the keys are days"),
        ({"hours": [NIGHT] * 101}, "hours: must be a list of at most 100"),
        ({"hours": [NIGHT], "timezone": "Berlin"}, "timezone: must be the name of a time zone"),
        ({"hours": [NIGHT], "timezone": "../../etc/passwd"}, "timezone: must be the name of"),
        ({"hours": [NIGHT], "timezone": None}, "timezone: must be the name of a time zone"),
        ({"timezone": "UTC"}, "timezone: has no effect without `hours`"),
        ({"expires": "soon"}, "expires: must be a time such as 2026-12-31T00:00:00Z"),
        ({"expires": 1_798_675_200}, "expires: must be a time such as"),
        ({"expires": "2026-02-30"}, "expires: must be a time such as"),
        ({"expires": "0001-01-01T00:00:00+14:00"}, "expires: must be a time such as"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_is_allowed(values, says):
    assert problem(**values).startswith(says)


@pytest.mark.parametrize("key", ["hours", "timezone", "expires"])
def test_a_key_of_time_has_no_effect_without_a_template(key):
    value = {"hours": [NIGHT], "timezone": "UTC", "expires": "2030-01-01"}[key]
    with pytest.raises(ValidationError) as caught:
        make_endpoint("a", {key: value})
    place, says = first_problem(caught.value.normalized_messages())
    assert place == key
    assert "has no effect without" in says


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["mon-fri", "08:00", "24:00", "UTC", "2026-12-31"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["days", "from", "to", "workersMin", "workersMax", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["hours", "timezone", "expires"]), ANY))
def test_any_values_make_numbers_of_workers_or_one_kind_of_error(values):
    try:
        managed = make(**values)
    except ValidationError:
        return
    scaling = scaling_at(managed, JULY_MS)
    assert 0 <= scaling.workers_min <= scaling.workers_max


# The quota


def yaml_of(**most):
    return yaml.safe_dump(
        {"endpoints": {n: {**TEMPLATE, "workersMax": w} for n, w in most.items()}}, sort_keys=False
    )


def test_a_file_above_the_quota_is_refused_in_runpods_words(tmp_path):
    text = yaml_of(a=3, b=1, c=2)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, OWNPOD_WORKER_QUOTA="5")
    assert caught.value.message == (
        f"{tmp_path / 'workers.yaml'}: endpoints.c.workersMax: Max workers across all endpoints must not exceed your "
        "workers quota (5). Reduce the max workers for other endpoints or lower the max worker count for this "
        "endpoint to at most 1."
    )


def test_a_file_at_the_quota_is_taken_and_0_means_any(tmp_path):
    text = yaml_of(a=3, b=0, c=2)
    assert len(load(tmp_path, text, OWNPOD_WORKER_QUOTA="5")) == 3
    assert len(load(tmp_path, text, OWNPOD_WORKER_QUOTA="0")) == 3


def test_the_widest_hours_count_for_the_quota(tmp_path):
    values = {
        **TEMPLATE,
        "workersMax": 1,
        "hours": [{"from": "1:00", "to": "2:00", "workersMax": 9}],
    }
    text = json.dumps({"endpoints": {"a": values}})
    with pytest.raises(ConfigurationError, match="at most 5"):
        load(tmp_path, text, OWNPOD_WORKER_QUOTA="5")


def test_an_endpoint_that_is_paused_fits_into_a_quota_that_is_used_up(tmp_path):
    assert len(load(tmp_path, yaml_of(a=5, b=0), OWNPOD_WORKER_QUOTA="5")) == 2


def test_the_old_endpoints_stay_after_a_change_that_is_above_the_quota(tmp_path):
    """As at SIGHUP."""
    file = tmp_path / "workers.yaml"
    file.write_text(yaml_of(a=3))
    settings = load_settings(OWNPOD_WORKERS_FILE=file, OWNPOD_WORKER_QUOTA="5")
    before = keep_endpoints(settings)
    file.write_text(yaml_of(a=3, b=3))
    with pytest.raises(ConfigurationError, match="workers quota"):
        keep_endpoints(settings)
    assert kept_endpoints(settings) == before


@pytest.mark.parametrize("ms", [1_001, 1_798_675_200_001, 1_798_675_200_999])
def test_a_moment_keeps_its_millisecond(ms):
    # Its seconds are no exact binary number, so cutting their product off loses one.
    assert make(expires=time_text(ms)).expires_ms == ms
    assert time_of(time_text(ms)) == ms
