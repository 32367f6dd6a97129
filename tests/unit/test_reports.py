"""A run that has just been reported is not looked up again, for a short time."""

from types import SimpleNamespace

import pytest

from ownpod.api.workers import reports
from ownpod.api.workers.reports import KnownHeader, Reports


class Offers:
    """Runs with their jobs and attempts, and how often they were asked for."""

    def __init__(self, **runs):
        self.runs, self.asked = runs, []

    def reported(self, worker_id, endpoint, run_id):
        self.asked.append((worker_id, endpoint, run_id))
        return self.runs.get(run_id)

    def all_reported(self, runs):
        self.asked.append(runs)
        return [self.runs.get(run_id) for _, _, run_id in runs]


def test_a_run_is_looked_up_once_for_many_chunks():
    offers = Offers(r=("job", 2))
    found = Reports(offers)
    assert [found.job_of("w", "ep", "r") for _ in range(3)] == [("job", 2)] * 3
    assert offers.asked == [("w", "ep", "r")]


def test_a_run_is_looked_up_again_after_a_while(monkeypatch):
    monkeypatch.setattr(reports, "FRESH_S", 0.0)
    offers = Offers(r=("job", 1))
    found = Reports(offers)
    assert found.job_of("w", "ep", "r") == ("job", 1)
    offers.runs = {}
    assert found.job_of("w", "ep", "r") is None
    assert len(offers.asked) == 2


def test_another_workers_run_is_not_found_by_its_id():
    offers = Offers(r=("job", 1))
    found = Reports(offers)
    found.job_of("w", "ep", "r")
    offers.runs = {}
    assert found.job_of("x", "ep", "r") is None
    assert found.job_of("w", "other", "r") is None
    assert found.job_of("w", "ep", "r") == ("job", 1)


KNOWN = KnownHeader(("w", "ep", "r"), ("job", 1), "id")


def test_a_header_is_known_for_a_while(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(reports, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    found = Reports(Offers())
    assert found.known(b"header") is None
    found.remember(b"header", KNOWN)
    clock[0] += reports.KNOWN_S
    assert found.known(b"header") == KNOWN
    assert found.known(b"Header") is None
    clock[0] += 1
    assert found.known(b"header") is None


def test_a_header_that_is_forgotten_is_not_known():
    found = Reports(Offers())
    found.remember(b"header", KNOWN)
    for _ in range(2):
        found.forget(b"header")
        assert found.known(b"header") is None


def test_the_oldest_headers_are_forgotten_and_push_out_no_run(monkeypatch):
    monkeypatch.setattr(reports, "REMEMBERED", 10)
    offers = Offers(r=("job", 1))
    found = Reports(offers)
    found.job_of("w", "ep", "r")
    headers = [bytes([number]) for number in range(20)]
    for header in headers:
        found.remember(header, KNOWN)
    assert [header for header in headers if found.known(header)] == headers[10:]
    found.job_of("w", "ep", "r")
    assert len(offers.asked) == 1


def test_only_runs_that_were_not_just_reported_are_looked_up_and_all_at_once(monkeypatch):
    offers = Offers(a=("job-a", 1), b=("job-b", 2))
    found = Reports(offers)
    runs = [("w", "ep", name) for name in ("a", "b", "c", "a")]
    found.job_of(*runs[0])
    assert found.not_running(runs) == {runs[2]}
    assert offers.asked == [runs[0], [runs[1], runs[2]]]
    assert found.not_running(runs[:2]) == set()
    assert found.job_of(*runs[1]) == ("job-b", 2)
    assert len(offers.asked) == 2
    monkeypatch.setattr(reports, "FRESH_S", -1.0)
    offers.runs = {}
    assert found.not_running(runs) == set(runs)
    assert offers.asked[2:] == [runs[:3]]


@pytest.mark.parametrize("count", [10, 12])
def test_the_oldest_runs_are_forgotten(monkeypatch, count):
    monkeypatch.setattr(reports, "REMEMBERED", 10)
    offers = Offers(**{f"r{n}": ("job", n) for n in range(count)})
    found = Reports(offers)
    for n in range(count):
        found.job_of("w", "ep", f"r{n}")
    offers.asked.clear()
    found.job_of("w", "ep", f"r{count - 10}")
    assert not offers.asked
    found.job_of("w", "ep", "unknown")
    assert len(offers.asked) == 1
