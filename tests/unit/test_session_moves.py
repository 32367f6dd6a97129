"""Which waiting tasks move to an idle session."""

from dataclasses import dataclass, replace

import pytest
from test_session_rules import READY

from ownpod.rules.about import ANY_SESSION, about
from ownpod.rules.managed import Phase, Role
from ownpod.rules.session_moves import moves_to_idle
from ownpod.rules.sessions import MOST_MOVES, Session

LOW = about("m", "p", "low", {})
ANY = about("m", "p", "low", {}, for_task=ANY_SESSION)


@dataclass(frozen=True)
class Job:
    id: str
    movable: bool = True
    moves: int = 0


def session(name, *, queued=(), running=(), **changes):
    values = {"id": name, "owner": "me", "pools": ("low",), "about": LOW} | changes
    return Session(replace(READY, **values), tuple(queued), tuple(running))


def wanted(name, created_ms=1, **changes):
    values = {"phase": Phase.WANTED, "created_ms": created_ms, "about": ANY} | changes
    return session(name, **values)


def found(sessions, **jobs):
    return [
        (move.job, move.old.id, move.new.id, move.last) for move in moves_to_idle(sessions, jobs)
    ]


def test_a_task_that_waits_for_a_device_goes_to_the_idle_session_that_was_used_last():
    idle = [session("long", active_ms=1), session("last", active_ms=9), session("mid", active_ms=5)]
    assert found([wanted("w"), *idle], w=[Job("a")]) == [("a", "w", "last", True)]


def test_the_oldest_tasks_go_first_and_each_idle_session_gets_one():
    sessions = [wanted("young", 2), session("i1", active_ms=1), wanted("old", 1), session("i2")]
    moves = found(sessions, young=[Job("c")], old=[Job("a"), Job("b")])
    assert moves == [("a", "old", "i2", False), ("b", "old", "i1", True)]


def test_a_session_that_has_spilled_waits_for_idle_ones_of_its_difficulty():
    spills = about("m", "p", "low", {}, for_task=ANY_SESSION, spill=["low", "high"])
    one = wanted("w", about=spills, pools=("low", "high"))
    low, high = (session(d, about=about("m", "p", d, {}), pools=(d,)) for d in ("low", "high"))
    assert found([one, high], w=[Job("a")]) == []
    assert found([one, high, low], w=[Job("a")]) == [("a", "w", "low", True)]


@pytest.mark.parametrize(
    "changes",
    [
        {"owner": "other"},
        {"endpoint": "other"},
        {"pools": ("high",)},
        {"phase": Phase.STARTING},
        {"phase": Phase.DRAINING},
        {"restart": 1},
        {"role": Role.TASK},
        {"running": ["j"]},
        {"queued": ["j"]},
    ],
)
def test_a_session_that_the_task_could_not_have_got_is_left_alone(changes):
    assert found([wanted("w"), session("i", **changes)], w=[Job("a")]) == []


@pytest.mark.parametrize(
    ("changes", "job"),
    [
        ({"phase": Phase.PREPARING}, Job("a")),
        # Its client wanted a new session, or has made it before its first task.
        ({"about": about("m", "p", "low", {})}, Job("a")),
        ({"about": ""}, Job("a")),
        ({}, Job("a", movable=False)),
        ({}, Job("a", moves=MOST_MOVES)),
    ],
)
def test_a_task_that_is_to_have_its_session_stays(changes, job):
    assert found([wanted("w", **changes), session("i")], w=[job]) == []


def test_no_task_overtakes_one_that_stays():
    jobs = [Job("named", movable=False), Job("any")]
    assert found([wanted("w"), session("i")], w=jobs) == []
