"""What an agent does next, rule by rule; the schedules by chance are in test_schedules.py."""

from dataclasses import replace

import pytest

from ownpod.rules.managed import LOST_GPU, ORPHAN_S, Device, Hold, ManagedWorker, Phase, Role
from ownpod.rules.reconcile import (
    EMPTY_REDIS_S,
    LOST_S,
    Adopt,
    Ended,
    Found,
    Free,
    Knowledge,
    Launch,
    Remove,
    Restart,
    Stop,
    await_front,
    end_reason,
    first_lost,
    first_unknown,
    plan,
    unrecorded,
)


def record(phase, name="w", **values):
    values = {"host": "h", "reason": "why"} | values
    return ManagedWorker(name, "ep", "r", Phase(phase), 0, **values)


def runs(name="w", age_s=10.0):
    return Found(name, running=True, age_s=age_s)


def ended(code=1, **values):
    return Found("w", running=False, age_s=10, exit_code=code, **values)


def steps(phase=None, found=None, holds=(), *, known=True, known_for_s=1e9, **knowledge):
    records = {"w": record(phase)} if phase else {}
    given = Knowledge(**knowledge)
    return plan(
        records,
        {found.worker_id: found} if found else {},
        holds,
        instance_known=known,
        known_for_s=known_for_s,
        knowledge=given,
    )


def test_a_placed_worker_is_launched():
    assert steps("preparing") == [Launch("w")]


def test_a_worker_that_runs_already_is_reported_and_not_launched_again():
    assert steps("preparing", runs()) == [Adopt("w")]


@pytest.mark.parametrize("phase", ["starting", "ready"])
def test_a_worker_that_runs_as_recorded_needs_nothing(phase):
    assert steps(phase, runs()) == []


@pytest.mark.parametrize("phase", ["preparing", "starting", "ready"])
def test_a_worker_that_ended_by_itself_has_failed(phase):
    assert steps(phase, ended(3)) == [Ended("w", "exit code 3", 3, failed=True)]


@pytest.mark.parametrize("phase", ["draining", "stopping"])
def test_a_worker_that_ends_while_it_leaves_has_not_failed(phase):
    assert steps(phase, ended(0)) == [Ended("w", "why", 0)]
    assert steps(phase) == [Ended("w", "why")]


@pytest.mark.parametrize("phase", ["starting", "ready"])
def test_a_worker_that_the_engine_does_not_have_any_more_has_vanished(phase):
    reason = "it vanished: the engine does not have it any more"
    assert steps(phase) == [Ended("w", reason, failed=True)]


@pytest.mark.parametrize(
    ("busy", "paused", "expected"),
    [
        (True, True, []),
        (True, False, []),
        (False, False, []),
        (False, True, [Stop("w", "why", announce=True)]),
    ],
)
def test_a_draining_worker_is_stopped_when_it_can_get_no_job_and_has_none(busy, paused, expected):
    names = {"busy": {"w"} if busy else set(), "paused": {"w"} if paused else set()}
    assert steps("draining", runs(), **names) == expected


@pytest.mark.parametrize("role", [Role.SHARED, Role.SESSION])
@pytest.mark.parametrize("phase", ["starting", "ready"])
def test_a_worker_whose_gpu_is_lost_for_some_time_has_failed(phase, role):
    def after(lost_s):
        known = Knowledge(lost_s={"w": lost_s}, busy={"w"})
        records = {"w": record(phase, role=role)}
        return plan(records, {"w": runs()}, instance_known=True, knowledge=known)

    assert after(LOST_S - 0.1) == []
    (stop,) = after(LOST_S)
    assert (stop.failed, stop.quick, stop.reason[: len(LOST_GPU)]) == (True, True, LOST_GPU)


def test_a_gpu_is_lost_from_when_it_was_first_seen_so():
    devices = [Device("GPU-1", 0, "a", problem="lost: x"), Device("GPU-2", 1, "b", problem="used")]
    workers = [record("ready", name, devices=(f"GPU-{name}",)) for name in "12"]
    first = first_lost({}, workers, devices, 5.0)
    assert first == {"1": 5.0}
    assert first_lost(first, workers, devices, 9.0) == first
    assert first_lost(first, workers, [replace(devices[0], problem="")], 9.0) == {}


@pytest.mark.parametrize(
    ("restart", "found", "busy", "expected"),
    [
        (1, runs(), set(), [Restart("w")]),
        (1, runs(), {"w"}, []),
        # Its handler does not end.
        (3, runs(), {"w"}, [Restart("w")]),
        # Its process has ended by itself, as the SDK's does.
        (1, ended(0), {"w"}, [Restart("w")]),
        (1, None, set(), [Restart("w")]),
        # Its next process runs, and is to ask for a job in time.
        (2, runs(age_s=99), set(), []),
        (
            2,
            runs(age_s=101),
            set(),
            [Stop("w", "it did not ask for a job within 100 s of its start", failed=True)],
        ),
        (2, ended(1), set(), [Ended("w", "exit code 1", 1, failed=True)]),
    ],
)
def test_a_worker_that_has_asked_for_a_restart_is_started_anew_once_it_has_no_job(
    restart, found, busy, expected
):
    records = {"w": record("ready", restart=restart)}
    known = Knowledge(busy=busy, init_timeout_s={"w": 100})
    found = {"w": found} if found else {}
    assert plan(records, found, instance_known=True, knowledge=known) == expected


@pytest.mark.parametrize("phase", ["draining", "stopping"])
def test_a_worker_that_leaves_is_not_started_anew(phase):
    assert plan({"w": record(phase, restart=1)}, {"w": ended(0)}, instance_known=True) == [
        Ended("w", "why", 0)
    ]


def test_a_worker_that_is_being_stopped_is_stopped_again_after_a_crash_of_the_agent():
    assert steps("stopping", runs(), busy={"w"}) == [Stop("w", "why")]


def test_a_session_that_is_being_stopped_gets_less_time_to_end():
    session = record("stopping", role=Role.SESSION)
    found = plan({"w": session}, {"w": runs()}, instance_known=True)
    assert found == [Stop("w", "why", quick=True)]


@pytest.mark.parametrize("phase", ["ready", "draining"])
def test_a_stuck_worker_is_stopped_although_it_is_busy(phase):
    reason = "its executionTimeout has passed, and its handler still runs"
    assert steps(phase, runs(), stuck={"w"}, busy={"w"}) == [Stop("w", reason, announce=True)]


def test_a_worker_that_asks_for_no_job_within_its_time_has_failed():
    limit = {"init_timeout_s": {"w": 30}}
    reason = "it did not ask for a job within 30 s of its start"
    assert steps("starting", runs(age_s=30), **limit) == []
    assert steps("starting", runs(age_s=31), **limit) == [Stop("w", reason, failed=True)]
    assert steps("ready", runs(age_s=31), **limit) == []
    assert steps("starting", runs(age_s=419)) == []
    assert len(steps("starting", runs(age_s=421))) == 1


# Orphans


@pytest.mark.parametrize(
    ("unknown_s", "values", "expected"),
    [
        (ORPHAN_S - 1, {}, False),
        (ORPHAN_S, {}, True),
        (ORPHAN_S, {"known": False}, False),
        (9e9, {"known": False}, False),
        (9e9, {"known_for_s": EMPTY_REDIS_S - 1}, False),
        (9e9, {"known_for_s": EMPTY_REDIS_S}, True),
    ],
)
def test_a_worker_without_a_record_is_removed_only_when_redis_can_be_trusted(
    unknown_s, values, expected
):
    found = steps(None, runs(), unknown_s={"w": unknown_s}, **values)
    reason = f"it has had no record for {ORPHAN_S:.0f} s"
    assert found == ([Remove("w", reason)] if expected else [])


def test_a_worker_that_has_run_for_long_is_no_orphan_at_once():
    assert steps(None, runs(age_s=9e9)) == []


def test_a_worker_whose_record_is_stopped_is_removed_at_once():
    found = steps(None, runs(), ended={"w"}, known_for_s=0)
    assert found == [Remove("w", "its record is STOPPED")]


def test_a_worker_is_unknown_from_when_it_was_first_seen_without_a_record():
    records = {"w": record("ready")}
    found = {"w": runs(), "x": runs("x")}
    first = first_unknown({}, records, found, 10.0)
    assert first == {"x": 10.0}
    assert first_unknown(first, {}, found, 20.0) == {"x": 10.0, "w": 20.0}
    assert first_unknown(first, records, {"w": runs()}, 30.0) == {}


# Holds


def test_devices_of_a_worker_of_which_nothing_is_left_are_freed():
    holds = [Hold("a", "w"), Hold("b", "w"), Hold("c", reserved="2 h left")]
    assert steps(None, None, holds) == [Free("w")]
    assert steps("preparing", None, holds) == [Launch("w")]
    assert steps(None, ended(), holds) == []
    assert steps(None, None, holds, under_way={"w"}) == []


def test_a_device_that_is_used_is_held_although_redis_has_lost_that():
    found = {
        "w": Found("w", running=True, age_s=1, devices=("a", "b")),
        "x": Found("x", running=False, age_s=1, exit_code=0, devices=("c",)),
    }
    assert unrecorded(found, [Hold("a", "w")]) == [Hold("b", "w")]
    assert unrecorded(found, []) == [Hold("a", "w"), Hold("b", "w")]


# Several workers


@pytest.mark.parametrize("phase", ["preparing", "starting", "draining", "stopping", None])
def test_a_worker_that_the_agent_is_busy_with_is_left_alone(phase):
    assert steps(phase, under_way={"w"}) == []
    assert steps(phase, runs(), under_way={"w"}, ended={"w"}) == []


def test_what_frees_devices_comes_before_what_needs_them():
    records = {
        name: record(phase, name)
        for name, phase in [
            ("a", "preparing"),
            ("b", "stopping"),
            ("c", "ready"),
            ("d", "preparing"),
        ]
    }
    found = {"b": runs("b"), "d": runs("d"), "e": runs("e")}
    given = Knowledge(ended={"e"})
    made = plan(records, found, [Hold("x", "f")], instance_known=True, knowledge=given)
    assert [(type(s), s.worker) for s in made] == [
        (Ended, "c"),
        (Free, "f"),
        (Remove, "e"),
        (Stop, "b"),
        (Adopt, "d"),
        (Launch, "a"),
    ]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (ended(0), "exit code 0"),
        (ended(1), "exit code 1"),
        (ended(127), "exit code 127"),
        (ended(-9), "it was ended by SIGKILL"),
        (ended(137), "it was ended by SIGKILL"),
        (ended(143), "it was ended by SIGTERM"),
        (ended(255), "exit code 255"),
        (ended(None), "it ended with an unknown exit code"),
        (ended(137, out_of_memory=True), "it was killed because it reached its memory limit"),
    ],
)
def test_the_end_of_a_worker_in_words(found, reason):
    assert end_reason(found) == reason


# Load-balanced endpoints


def test_a_worker_whose_health_check_is_not_well_within_its_time_has_failed_with_the_front_s_reason():
    values = {"init_timeout_s": {"w": 480}, "probed": {"w"}}
    assert steps("starting", runs(age_s=480), **values) == []
    (step,) = steps("starting", runs(age_s=481), **values)
    assert step.reason == "its health check did not answer 200 within 480 s of its start: why"
    assert step.failed
    (step,) = steps("preparing", runs(age_s=481), **values)
    assert step.reason == "its health check did not answer 200 within 480 s of its start"


def test_a_draining_worker_waits_for_the_front_only_if_it_had_requests():
    served, new = record("draining", "a", ready_ms=1), record("draining", "b")
    queue = record("draining", "c", ready_ms=1)
    silent, draining = {"a", "b", "c"}, [served, new, queue]
    first = await_front({}, silent, draining, {"a", "b"}, 10.0)
    assert first == {"a": 10.0}
    assert await_front(first, silent, draining, {"a", "b"}, 20.0) == {"a": 10.0}
    assert await_front(first, set(), draining, {"a", "b"}, 20.0) == {}
