"""When sessions and one-off tasks' workers end, and what clients see of them."""

from dataclasses import replace

import pytest

from ownpod.errors import BadRequest
from ownpod.rules.about import ANY_SESSION, about
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import LOST_GPU, SERVING, ManagedWorker, Phase, Role
from ownpod.rules.presets import Preset, SessionLimits
from ownpod.rules.sessions import (
    HOPELESS,
    MISSING_JOB_S,
    MOST_MOVES,
    End,
    Reason,
    Session,
    Status,
    again,
    code_of,
    decide,
    ended_in_words,
    may_move,
    reason_of,
    wish_for,
)
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template

NOW = 1_000_000_000
READY = ManagedWorker(
    id="aaaaaaaaaaaaaa",
    endpoint="llama-chat",
    release="r",
    phase=Phase.READY,
    created_ms=NOW - 900_000,
    started_ms=NOW - 800_000,
    ready_ms=NOW - 600_000,
    active_ms=NOW - 100_000,
    role=Role.SESSION,
    idle_s=300,
    life_s=3600,
)
SPEC = ManagedSpec(Template(image="i:1"), gpu=GpuNeed((), 2))
ENDPOINT = Endpoint("llama-chat", (), 1, 1, 3, 0, managed=SPEC, preset=Preset("llama", "chat"))


def session(queued=(), running=(), **changes):
    return Session(replace(READY, **changes), tuple(queued), tuple(running), NOW)


def reason(found):
    return None if found is None else found.reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"active_ms": NOW - 299_999}, None),
        ({"active_ms": NOW - 300_000}, Reason.IDLE_TIMEOUT),
        # It was never used: its idle time counts from ready.
        ({"active_ms": None, "ready_ms": NOW - 299_999}, None),
        ({"active_ms": None, "ready_ms": NOW - 300_000}, Reason.IDLE_TIMEOUT),
        ({"active_ms": 1, "keep_ms": NOW + 1}, None),
        ({"active_ms": 1, "keep_ms": NOW}, Reason.IDLE_TIMEOUT),
        ({"active_ms": 1, "idle_s": 0}, None),
        ({"active_ms": 1, "phase": Phase.STARTING}, None),
        ({"active_ms": 1, "restart": 2}, None),
        ({"active_ms": 1, "queued": ["job"]}, None),
        ({"active_ms": 1, "running": ["job"]}, None),
    ],
)
def test_a_session_ends_when_it_had_no_work_for_its_idle_time(changes, expected):
    assert reason(decide(session(**changes))) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ready_ms": NOW - 3_599_999}, None),
        ({"ready_ms": NOW - 3_600_000}, Reason.MAX_LIFETIME),
        # A long load must not eat the lifetime.
        ({"created_ms": NOW - 9_000_000}, None),
        ({"created_ms": NOW - 9_000_000, "from_created": True}, Reason.MAX_LIFETIME),
        (
            {"phase": Phase.WANTED, "ready_ms": None, "created_ms": 1, "from_created": True},
            Reason.MAX_LIFETIME,
        ),
        ({"ready_ms": 1, "life_s": 0}, None),
        ({"ready_ms": 1, "running": ["job"], "queued": ["other"]}, Reason.MAX_LIFETIME),
    ],
)
def test_a_sessions_lifetime_ends_it_with_work_or_without(changes, expected):
    found = decide(session(**changes))
    assert reason(found) is expected
    assert found is None or not found.at_once


def test_a_hard_lifetime_ends_the_running_task_too():
    assert decide(session(ready_ms=1, hard_life=True)).at_once


@pytest.mark.parametrize(
    ("wait_s", "waited_s", "expected"),
    [(60, 59, None), (60, 60, Reason.NO_DEVICE), (0, 10**5, None)],
)
def test_a_session_waits_for_a_device_as_long_as_its_client_does(wait_s, waited_s, expected):
    found = session(
        phase=Phase.WANTED, ready_ms=None, created_ms=NOW - waited_s * 1000, wait_s=wait_s
    )
    assert reason(decide(found)) is expected


def test_a_session_whose_model_is_fetched_waits_for_no_device_meanwhile():
    waits = {"phase": Phase.WANTED, "ready_ms": None, "created_ms": NOW - 900_000, "wait_s": 60}
    assert decide(session(**waits, fetched_ms=NOW - 59_000)) is None
    assert reason(decide(session(**waits, fetched_ms=NOW - 60_000))) is Reason.NO_DEVICE
    failed = "host h cannot start it: model llama: its source answers 404"
    assert reason(decide(session(**waits, reason=failed))) is Reason.MODEL_FAILED
    for wait_s in (60, 0):
        task = session(**waits | {"wait_s": wait_s}, reason=failed, role=Role.TASK)
        assert reason(decide(task, job_over=False)) is Reason.MODEL_FAILED
    # It waits as long as its job, but not for a model that cannot be had.
    for age_s, why in ((59, failed), (10**6, "all 2 devices of pool low are busy")):
        young = waits | {"created_ms": NOW - age_s * 1000, "wait_s": 0, "reason": why}
        assert decide(session(**young, role=Role.TASK), job_over=False) is None


@pytest.mark.parametrize(
    ("over", "age_s", "ends"),
    [
        (False, 10**6, False),
        (True, 1, True),
        (None, MISSING_JOB_S - 1, False),
        (None, MISSING_JOB_S + 1, True),
    ],
)
def test_the_worker_of_a_task_ends_with_its_job(over, age_s, ends):
    worker = session(role=Role.TASK, created_ms=int(NOW - age_s * 1000), active_ms=1, ready_ms=1)
    found = decide(worker, job_over=over)
    assert isinstance(found, End) is ends


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in SERVING])
def test_what_ends_already_is_not_ended_again(phase):
    for role in (Role.SESSION, Role.TASK):
        assert decide(session(phase=phase, active_ms=1, role=role), job_over=True) is None


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"phase": Phase.WANTED}, Status.INITIALIZING),
        ({"phase": Phase.STARTING, "queued": ["job"]}, Status.INITIALIZING),
        ({"restart": 1, "queued": ["job"]}, Status.INITIALIZING),
        ({"restart": 2, "phase": Phase.DRAINING}, Status.WAITING),
        ({}, Status.WAITING),
        ({"queued": ["job"]}, Status.WORKING),
        ({"running": ["job"]}, Status.WORKING),
        ({"phase": Phase.DRAINING}, Status.WAITING),
        ({"phase": Phase.DRAINING, "running": ["job"]}, Status.WORKING),
        ({"phase": Phase.STOPPED}, Status.KILLED),
    ],
)
def test_clients_see_four_states(changes, status):
    assert session(**changes).status is status


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ending": "evicted"}, Reason.EVICTED),
        ({"ending": "idle_timeout", "failed": True}, Reason.IDLE_TIMEOUT),
        ({"failed": True}, Reason.CRASHED),
        ({"failed": True, "out_of_memory": True}, Reason.OOM),
        ({"failed": True, "reason": f"{LOST_GPU}: NVML has"}, Reason.GPU_LOST),
        ({"failed": True, "ready_ms": None, "reason": "exit code 1"}, Reason.START_FAILED),
        (
            {
                "failed": True,
                "ready_ms": None,
                "reason": "it did not ask for a job within 5 s of its start",
            },
            Reason.START_TIMEOUT,
        ),
        (
            {"failed": True, "ready_ms": None, "reason": "image x:1 is not on this host any more"},
            Reason.IMAGE_MISSING,
        ),
        ({"ended_in": "ready", "reason": "its host h has been silent for 60 s"}, Reason.HOST_LOST),
        ({"reason": "OwnPod was stopped"}, Reason.SHUTDOWN),
        ({"reason": "an operator drained it"}, Reason.MANUAL),
        ({"ending": "a word of a later version"}, Reason.MANUAL),
    ],
)
def test_why_a_session_ended_is_one_of_a_closed_list(changes, expected):
    assert reason_of(replace(READY, phase=Phase.STOPPED, **changes)) is expected
    assert reason_of(replace(READY, **changes)) is None


def test_the_error_of_a_task_names_the_session_and_the_reason():
    ended = replace(READY, phase=Phase.STOPPED, failed=True, reason="exit code 3")
    assert ended_in_words(ended) == "session aaaaaaaaaaaaaa ended: crashed (exit code 3)"
    assert code_of(ended) == "session_ended"
    killed = replace(
        READY, phase=Phase.STOPPED, ending="manual", reason="it was ended by its client"
    )
    assert ended_in_words(killed) == "session aaaaaaaaaaaaaa ended: manual"
    never = replace(ended, ready_ms=None, reason="exit code 3")
    assert code_of(never) == "start_failed"


def test_a_task_moves_only_when_its_client_named_no_session_and_another_could_help():
    ended = replace(READY, phase=Phase.STOPPED, ending="max_lifetime")
    assert may_move(ended, movable=True, moves=0)
    assert not may_move(ended, movable=False, moves=0)
    assert not may_move(ended, movable=True, moves=MOST_MOVES)
    for hopeless in HOPELESS:
        assert not may_move(replace(ended, ending=hopeless), movable=True, moves=0)


def test_a_wish_has_the_presets_limits_and_the_pools_of_its_difficulty():
    limits = SessionLimits(7, 8, 9)
    endpoint = replace(
        ENDPOINT, preset=Preset("llama", "chat", "low", session=limits, spill={"low": ("high",)})
    )
    wish = wish_for(endpoint, labels={"who": "x"})
    assert (wish.idle_s, wish.life_s, wish.queue_max, wish.difficulty) == (7, 8, 9, "low")
    assert wish.spec.gpu == GpuNeed(("low", "high"), 2)
    assert wish_for(endpoint, "high", idle_s=1, life_s=2).spec.gpu == GpuNeed(("high",), 2)
    worker = replace(READY, about=wish.about, idle_s=1, life_s=2, queue_max=3)
    same = again(worker, endpoint)
    assert (same.idle_s, same.life_s, same.queue_max) == (1, 2, 3)
    assert wish.about == about("llama", "chat", "low", {"who": "x"})
    # It is made for a task that has moved once already.
    assert same == replace(wish, idle_s=1, life_s=2, queue_max=3, for_task=ANY_SESSION)


@pytest.mark.parametrize(
    "endpoint",
    [
        replace(ENDPOINT, preset=None),
        replace(ENDPOINT, managed=None),
        replace(ENDPOINT, preset=Preset("llama", "chat", session=None)),
    ],
)
def test_an_endpoint_without_sessions_refuses_one(endpoint):
    with pytest.raises(BadRequest, match="has no sessions"):
        wish_for(endpoint)


@pytest.mark.parametrize("text", ["", "no JSON", "[1]", "1" * 5000])
def test_what_is_not_known_of_a_session_is_nothing(text):
    assert Session(replace(READY, about=text)).about == {}
