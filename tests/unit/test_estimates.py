"""How long a job will probably wait."""

import pytest

from ownpod.rules.estimates import MOST_RUNS, Pace, median_ms, wait_s

ENDS = (100, 1000, 5000)
KNOWN = Pace(run_s=10.0, load_s=30.0)


@pytest.mark.parametrize(
    ("counts", "median"),
    [
        ([0, 0, 0, 0], None),
        ([4, 0, 0, 0], 50),
        ([1, 2, 1, 0], 550),
        ([0, 0, 1, 0], 3000),
        ([1, 0, 1, 0], 100),
        ([1, 0, 3, 0], 100 + 900 + 4000 / 3),
        ([0, 0, 0, 7], 5000),
        ([1, 0, 0, 7], 5000),
    ],
)
def test_the_median_of_a_histogram(counts, median):
    assert median_ms(counts, ENDS) == (median if median is None else pytest.approx(median))


@pytest.mark.parametrize(
    ("position", "running", "starting", "seconds"),
    [
        (1, [4.0], [], 6),
        (3, [4.0], [], 26),
        (1, [4.0, 9.5], [], 1),
        (2, [4.0, 9.5], [], 6),
        (3, [4.0, 9.5], [], 11),
        # It has run for longer than usual.
        (1, [99.0], [], 1),
        (2, [99.0], [], 10),
        (1, [], [0.0], 30),
        (2, [], [12.0], 28),
        (1, [], [99.0], 1),
        (1, [4.0], [29.0], 1),
        (1, [], [], None),
        (MOST_RUNS, [1.0], [], None),
    ],
)
def test_a_job_begins_when_those_before_it_have_run(position, running, starting, seconds):
    assert wait_s(position, KNOWN, running=running, starting=starting) == seconds


def test_nothing_is_guessed_of_what_has_not_been_seen():
    loads = Pace(load_s=30.0)
    assert wait_s(1, loads, running=[], starting=[1.0]) == 29
    assert wait_s(2, loads, running=[], starting=[1.0]) is None
    assert wait_s(1, loads, running=[1.0]) is None
    runs = Pace(run_s=10.0)
    assert wait_s(1, runs, running=[1.0], starting=[1.0]) == 9
    assert wait_s(1, runs, running=[], starting=[1.0]) is None
