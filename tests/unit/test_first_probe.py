import pytest

from ownpod.errors import RedisUnavailable, WorkerUnavailable
from ownpod.node.first_probe import FirstProbe


def raise_next(errors, calls):
    """A function that raises these errors, one a call, and then returns; None: it returns."""

    def call():
        calls.append(None)
        if errors and (error := errors.pop(0)) is not None:
            raise error

    return call


def test_only_the_first_good_probe_is_reported():
    probes, reports = [], []
    probe = FirstProbe(raise_next([WorkerUnavailable()], probes), raise_next([], reports))
    with pytest.raises(WorkerUnavailable):
        probe()
    assert reports == []
    for _ in range(3):
        probe()
    assert (len(probes), len(reports)) == (4, 1)


def test_a_report_that_failed_is_repeated_with_the_next_probe():
    reports = []
    probe = FirstProbe(lambda: None, raise_next([RedisUnavailable()], reports))
    for _ in range(3):
        probe()
    assert len(reports) == 2
