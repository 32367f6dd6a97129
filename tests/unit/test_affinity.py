"""RunPod's header with which a client names its worker."""

from dataclasses import replace

import pytest

from ownpod.rules.affinity import Affinity, Pin, is_coming, may_resume, parse_pin
from ownpod.rules.managed import ManagedWorker, Phase

W = "aaaaaaaaaaaaaa"


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("", None),
        ("w-1", Pin("w-1", Affinity.SOFT)),
        ("strict w_1", Pin("w_1", Affinity.STRICT)),
        ("strict   w", Pin("w", Affinity.STRICT)),
        ("strict-resume w", Pin("w", Affinity.STRICT_RESUME)),
        ("strict strict", Pin("strict", Affinity.STRICT)),
    ],
)
def test_a_header_names_a_worker_and_how_much_it_is_needed(text, pin):
    assert parse_pin(text) == pin


@pytest.mark.parametrize(
    "text",
    [
        *("strict", "strict-resume", "soft w", "Strict w", "strict w x", "a b", "w:other", "a/b"),
        *("strict ../x", "w\x00", "w\ud800", "é", "w" * 256, "strict\tw", " ", "a ", "a.b", "a*"),
    ],
)
def test_a_header_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="strict-resume <id>"):
        parse_pin(text)


def record(**changes):
    values = {
        "id": W,
        "endpoint": "ep",
        "release": "r",
        "phase": Phase.STOPPED,
        "created_ms": 1,
        "ready_ms": 2,
    }
    return ManagedWorker(**values | changes)


@pytest.mark.parametrize("phase", Phase)
def test_a_worker_comes_while_it_has_not_begun_to_leave(phase):
    found = record(phase=phase)
    leaves = phase in {Phase.DRAINING, Phase.STOPPING, Phase.STOPPED}
    assert is_coming(found, "ep") is not leaves
    assert may_resume(found, "ep", "r") is leaves
    assert not is_coming(found, "other")
    assert not is_coming(None, "ep")


@pytest.mark.parametrize(
    "changes",
    [{"ready_ms": None}, {"failed": True}, {"ended_in": "ready"}, {"endpoint": "other"}],
)
def test_a_worker_that_ended_badly_or_is_anothers_is_not_started_again(changes):
    assert not may_resume(replace(record(), **changes), "ep", "r")


def test_a_worker_of_another_release_is_not_started_again():
    assert not may_resume(record(), "ep", "next")
    assert not may_resume(record(), "ep", None)
    assert not may_resume(None, "ep", "r")
