"""How many managed workers an endpoint has, rule by rule; the schedules by chance are in test_schedules.py."""

import pytest

from ownpod.rules.managed import Phase
from ownpod.rules.scaling import (
    Discard,
    Drain,
    EndpointView,
    Recycle,
    Start,
    WorkerView,
    counts,
    decide,
    start_pause_s,
    unhealthy,
)
from ownpod.rules.templates import ScalerType, Scaling

NOW_MS = 1_000_000
IDLE_S = 5


def worker(name, phase="ready", *, release="new", age_s=1.0, **values):
    created_ms = NOW_MS - int(age_s * 1000)
    return WorkerView(name, Phase(phase), release, created_ms=created_ms, **values)


def view(*workers, low=0, high=3, scaler="QUEUE_DELAY", value=4, **values):
    scaling = Scaling(low, high, IDLE_S, ScalerType(scaler), value)
    return EndpointView("ep", scaling, "new", NOW_MS, workers=workers, **values)


def kinds(actions, kind):
    return [action.worker for action in actions if isinstance(action, kind)]


def started(actions):
    return sum(action.count for action in actions if isinstance(action, Start))


def test_an_endpoint_without_jobs_and_without_a_least_number_has_no_workers():
    assert decide(view()) == ()


@pytest.mark.parametrize("scaler", ["QUEUE_DELAY", "REQUEST_COUNT"])
def test_a_job_that_waits_for_no_worker_at_all_starts_one_at_once(scaler):
    assert decide(view(scaler=scaler, queued=1, oldest_wait_s=0.0)) == (Start(1),)


def test_a_worker_that_is_drained_does_not_count_as_one_for_a_waiting_job():
    assert decide(view(worker("a", "draining"), queued=1)) == (Start(1),)


# QUEUE_DELAY


@pytest.mark.parametrize(
    ("oldest_wait_s", "queued", "coming", "expected"),
    [
        (4.1, 1, 0, 1),
        (4.0, 1, 0, 0),
        (100, 9, 0, 1),
        (100, 1, 1, 0),
        (100, 2, 1, 1),
    ],
)
def test_queue_delay_starts_one_more_while_the_oldest_job_waits_too_long(
    oldest_wait_s, queued, coming, expected
):
    workers = [worker("a", jobs=1), *(worker(f"s{n}", "starting") for n in range(coming))]
    found = decide(view(*workers, high=9, queued=queued, oldest_wait_s=oldest_wait_s, running=1))
    assert started(found) == expected


@pytest.mark.parametrize(("queued", "idle_s", "expected"), [(1, 0.0, 0), (2, 0.0, 1), (1, 5.0, 1)])
def test_a_worker_that_has_just_become_ready_is_not_followed_by_another_for_the_same_job(
    queued, idle_s, expected
):
    found = decide(view(worker("a", idle_s=idle_s), queued=queued, oldest_wait_s=30))
    assert started(found) == expected


def test_queue_delay_never_starts_two_in_one_evaluation():
    assert started(decide(view(high=9, queued=50, oldest_wait_s=100))) == 1


# REQUEST_COUNT


@pytest.mark.parametrize(
    ("queued", "running", "value", "expected"),
    [(1, 0, 4, 1), (4, 0, 4, 1), (5, 0, 4, 2), (3, 2, 1, 5), (100, 0, 1, 8), (0, 0, 1, 0)],
)
def test_request_count_wants_one_worker_for_each_so_many_jobs(queued, running, value, expected):
    found = decide(
        view(scaler="REQUEST_COUNT", value=value, high=8, queued=queued, running=running)
    )
    assert started(found) == expected


def test_request_count_counts_the_workers_that_are_coming():
    workers = [worker("a", jobs=1), worker("b", "starting"), worker("c", "wanted")]
    found = decide(view(*workers, scaler="REQUEST_COUNT", value=1, high=8, queued=3, running=1))
    assert found == (Start(1),)


def test_request_count_drains_idle_workers_only_down_to_what_it_wants():
    workers = [worker("a", jobs=1), worker("b", idle_s=9), worker("c", idle_s=8)]
    found = decide(view(*workers, scaler="REQUEST_COUNT", value=1, queued=1, running=1))
    assert found == (Drain("b", "it was idle for 5 s"),)


# workersMin, workersMax


def test_the_least_number_is_started_at_once_and_without_a_job():
    assert decide(view(low=2)) == (Start(2),)
    assert decide(view(worker("a"), low=2)) == (Start(1),)


@pytest.mark.parametrize("state", ["draining", "stopping"])
def test_a_worker_counts_to_workers_max_until_it_has_stopped(state):
    assert decide(view(worker("a", state), high=1, queued=5, oldest_wait_s=99)) == ()


def test_a_lower_workers_max_takes_those_first_that_do_the_least():
    workers = [
        worker("busy", jobs=1),
        worker("idle", idle_s=1),
        worker("starts", "starting"),
        worker("pulls", "preparing"),
        worker("wanted", "wanted"),
    ]
    found = decide(view(*workers, high=2, queued=9))
    assert found == (
        Discard("wanted", "workersMax is 2"),
        Drain("pulls", "workersMax is 2"),
        Drain("starts", "workersMax is 2"),
    )
    found = decide(view(*workers[:2], high=1, queued=9))
    assert found == (Drain("idle", "workersMax is 1"),)


def test_a_paused_endpoint_drains_all_of_its_workers():
    workers = [worker("a", jobs=1), worker("b"), worker("c", "starting"), worker("d", "wanted")]
    found = decide(view(*workers, low=2, high=0, queued=5, oldest_wait_s=99))
    assert set(kinds(found, Drain)) == {"a", "b", "c"}
    assert kinds(found, Discard) == ["d"]
    assert started(found) == 0
    assert {a.reason for a in found} == {"the endpoint is paused: workersMax is 0"}


# Fewer workers


def test_an_idle_worker_is_drained_after_idle_timeout():
    assert decide(view(worker("a", idle_s=4.9))) == ()
    assert decide(view(worker("a", idle_s=5))) == (Drain("a", "it was idle for 5 s"),)


def test_a_worker_with_a_job_is_not_drained_whatever_its_figures():
    assert decide(view(worker("a", idle_s=99, jobs=1), running=1)) == ()


def test_pinned_workers_leave_for_no_idleness_but_for_the_endpoints_most():
    idle = [worker(name, idle_s=9000) for name in "ab"]
    assert decide(view(*idle, pinned=True)) == ()
    assert len(kinds(decide(view(*idle, pinned=True, high=1)), Drain)) == 1


def test_idle_workers_are_drained_only_down_to_workers_min():
    workers = [worker("a", idle_s=7), worker("b", idle_s=9), worker("c", idle_s=8)]
    assert kinds(decide(view(*workers, low=1)), Drain) == ["b", "c"]


def test_a_worker_that_starts_does_not_replace_a_ready_one_of_workers_min():
    assert decide(view(worker("a", idle_s=7), worker("b", "starting"), low=1)) == ()


def test_the_longest_idle_of_the_fullest_host_leaves_first():
    workers = [
        worker("a", idle_s=9, host="one"),
        worker("b", idle_s=9, host="two"),
        worker("c", idle_s=9, host="two"),
        worker("d", idle_s=10, host="one"),
    ]
    found = decide(view(*workers, low=2, high=9))
    assert kinds(found, Drain) == ["d", "a"]
    found = decide(view(*workers[:3], low=2, high=9))
    assert kinds(found, Drain) == ["b"]


def test_an_idle_worker_stays_while_jobs_wait():
    assert decide(view(worker("a", idle_s=99), queued=1)) == ()


def test_wanted_workers_that_no_job_needs_are_discarded_the_newest_first():
    workers = [
        worker("a", jobs=1),
        worker("b", "wanted", age_s=3),
        worker("c", "wanted", age_s=2),
        worker("d", "starting"),
    ]
    found = decide(view(*workers, high=9, queued=2, running=1))
    assert found == (Discard("c", "no waiting job needs it"),)
    assert kinds(decide(view(*workers, high=9, running=1)), Discard) == ["c", "b"]
    assert kinds(decide(view(*workers, low=4, high=9, running=1)), Discard) == []


# Failures


def test_nothing_starts_within_the_pause_after_a_failed_start():
    values = {"low": 1, "queued": 5, "oldest_wait_s": 99, "failures_count": 1}
    assert decide(view(pause_s=0.1, **values)) == ()
    assert decide(view(pause_s=0.0, **values)) == (Start(1),)


@pytest.mark.parametrize("state", ["wanted", "preparing", "starting"])
def test_after_a_failed_start_one_worker_is_tried_at_a_time(state):
    values = {"low": 3, "queued": 3, "failures_count": 2}
    assert decide(view(**values)) == (Start(1),)
    assert decide(view(worker("a", state), **values)) == ()
    assert decide(view(worker("a"), **values)) == (Start(1),)


def test_the_pause_doubles_up_to_a_minute_and_five_failures_are_unhealthy():
    assert [start_pause_s(count) for count in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [count for count in range(7) if unhealthy(count)] == [5, 6]


# Stuck workers


def test_a_stuck_worker_is_recycled_and_replaced_when_it_has_stopped():
    found = decide(view(worker("a", jobs=1, stuck=True), low=1, high=1))
    assert kinds(found, Recycle) == ["a"]
    assert started(found) == 0
    found = decide(view(worker("a", jobs=1, stuck=True), low=1, high=2))
    assert started(found) == 1


def test_a_stuck_worker_that_is_drained_already_is_recycled():
    assert kinds(decide(view(worker("a", "draining", stuck=True))), Recycle) == ["a"]
    assert kinds(decide(view(worker("a", "stopping", stuck=True))), Recycle) == []


# Releases


def old(name, phase="ready", **values):
    return worker(name, phase, release="old", **values)


def test_idle_workers_of_another_release_leave_at_once():
    reason = "the endpoint has a new release"
    found = decide(view(old("a", idle_s=0.1), old("b", "starting"), old("c", "wanted")))
    assert set(found) == {Drain("a", reason), Drain("b", reason), Discard("c", reason)}


def test_busy_workers_of_another_release_leave_when_a_new_one_is_ready():
    found = decide(view(old("a", jobs=1), high=9, queued=2, running=1))
    assert found == (Start(1),)
    found = decide(view(old("a", jobs=1), worker("b", "starting"), high=9, queued=2, running=1))
    assert found == ()
    found = decide(view(old("a", jobs=1), worker("b", jobs=1), high=9, queued=2, running=1))
    assert kinds(found, Drain) == ["a"]


def test_a_new_release_keeps_workers_min():
    assert decide(view(old("a"), old("b"), low=2, high=9)) == (Start(2),)
    found = decide(view(old("a"), old("b"), worker("c"), worker("d", "starting"), low=2, high=9))
    assert len(kinds(found, Drain)) == 1
    found = decide(view(old("a"), worker("c"), worker("d"), low=2, high=9))
    assert kinds(found, Drain) == ["a"]


def test_a_new_release_without_room_replaces_one_worker_at_a_time():
    found = decide(view(old("a"), old("b", jobs=1), low=2, high=2, running=1))
    assert found == (Drain("a", "the endpoint has a new release"),)
    leaving = [old("a", "draining"), old("b", jobs=1)]
    assert decide(view(*leaving, low=2, high=2, running=1)) == ()
    assert decide(view(old("b", jobs=1), low=2, high=2, running=1)) == (Start(1),)
    coming = [old("b", jobs=1), worker("c", "starting", age_s=99)]
    assert decide(view(*coming, low=2, high=2, running=1)) == ()
    found = decide(view(old("b", jobs=1), worker("c"), low=2, high=2, running=1))
    assert kinds(found, Drain) == ["b"]


def test_an_old_worker_leaves_for_a_new_one_that_gets_no_device():
    for age_s, expected in [(1, []), (6, ["a"])]:
        found = decide(view(old("a"), worker("b", "wanted", age_s=age_s), low=1))
        assert kinds(found, Drain) == expected


@pytest.mark.parametrize("scaler", ["QUEUE_DELAY", "REQUEST_COUNT"])
def test_a_new_worker_that_waits_for_the_device_of_an_old_one_stays_wanted(scaler):
    workers = [old("a", jobs=1), worker("b", "wanted")]
    assert decide(view(*workers, low=1, running=1, scaler=scaler, value=1)) == ()


def test_while_the_new_release_fails_the_old_one_serves():
    workers = [old("a", idle_s=1), old("b", jobs=1)]
    found = decide(view(*workers, queued=3, failures_count=1, pause_s=1))
    assert found == ()
    found = decide(view(*workers, high=9, queued=3, failures_count=1))
    assert found == (Start(1),)


def test_an_idle_old_worker_stays_until_a_trial_shows_that_the_new_release_comes_up():
    trial = {"came_up": False}
    assert decide(view(old("a", idle_s=99), **trial)) == (Start(1),)
    found = decide(view(old("a", idle_s=99), old("b"), **trial))
    assert (kinds(found, Drain), started(found)) == (["a"], 1)
    for phase in ("wanted", "preparing", "starting"):
        for scaler in ("QUEUE_DELAY", "REQUEST_COUNT"):
            assert (
                decide(view(old("a", idle_s=99), worker("b", phase), scaler=scaler, **trial)) == ()
            )
    found = decide(view(old("a", idle_s=99), worker("b"), **trial))
    assert (kinds(found, Drain), started(found)) == (["a"], 0)
    # The next try after a failed one, and none during the pause.
    assert decide(view(old("a", idle_s=99), failures_count=1, **trial)) == (Start(1),)
    assert decide(view(old("a", idle_s=99), failures_count=1, pause_s=1, **trial)) == ()


def test_a_trial_without_room_lets_the_old_worker_leave_first():
    assert kinds(decide(view(old("a"), high=1, came_up=False)), Drain) == ["a"]
    waits = [old("a"), worker("b", "wanted", age_s=6)]
    assert kinds(decide(view(*waits, came_up=False)), Drain) == ["a"]
    assert kinds(decide(view(old("a"), high=0, came_up=False)), Drain) == ["a"]
    # Nothing is started for a release without workers and without jobs.
    assert decide(view(came_up=False)) == ()


def test_of_idle_workers_those_of_another_release_leave_first():
    workers = [old("a", idle_s=6), worker("b", idle_s=60), worker("c", jobs=1)]
    found = decide(view(*workers, running=1, low=2))
    assert kinds(found, Drain) == ["a"]


# States


def test_the_states_are_runpods():
    workers = [
        worker("a", jobs=1),
        worker("b"),
        worker("c", "draining", jobs=1),
        worker("d", "draining"),
        worker("e", "preparing"),
        worker("f", "starting"),
        worker("g", "wanted", age_s=1),
        worker("h", "wanted", age_s=60),
    ]
    found = counts(view(*workers, failures_count=5))
    assert (found.initializing, found.idle, found.ready) == (3, 1, 1)
    assert (found.running, found.throttled, found.unhealthy) == (2, 1, 1)


def test_a_paused_endpoint_without_jobs_counts_no_workers():
    found = counts(view(worker("a", "draining"), worker("b", "stopping"), high=0))
    assert found.idle + found.ready + found.running + found.initializing == 0


# Load-balanced endpoints: their jobs are requests.


def balanced(*workers, value=4, **values):
    return view(*workers, scaler="REQUEST_COUNT", value=value, **values)


@pytest.mark.parametrize(
    ("queued", "running", "wanted"), [(1, 0, 1), (4, 0, 1), (5, 0, 2), (1, 8, 3), (90, 0, 9)]
)
def test_there_is_a_worker_for_each_so_many_requests_that_wait_or_are_open(queued, running, wanted):
    assert started(decide(balanced(high=9, queued=queued, running=running))) == wanted


def test_a_worker_with_an_open_websocket_is_not_drained_while_others_are():
    socket, idle = worker("a", jobs=1), worker("b", idle_s=IDLE_S)
    found = decide(balanced(socket, idle, running=1))
    assert kinds(found, Drain) == ["b"]
    assert decide(balanced(socket, running=1)) == ()


def test_the_last_worker_leaves_once_it_was_idle_for_its_time():
    assert decide(balanced(worker("a", idle_s=IDLE_S - 0.1))) == ()
    assert kinds(decide(balanced(worker("a", idle_s=IDLE_S))), Drain) == ["a"]


def test_a_worker_that_is_wanted_for_requests_that_were_given_up_is_discarded():
    assert kinds(decide(balanced(worker("a", "wanted"))), Discard) == ["a"]


def test_while_no_front_reports_no_worker_leaves_for_having_no_request():
    workers = worker("a", idle_s=900), worker("b", "wanted"), worker("c", idle_s=900)
    assert decide(balanced(*workers, known=False)) == ()
    assert started(decide(balanced(worker("b", "wanted"), low=2, known=False))) == 1


def test_while_no_front_reports_workers_of_an_earlier_release_stay_until_the_new_ones_are_ready():
    old = [worker("a", release="old"), worker("b", release="old")]
    assert decide(balanced(*old, known=False)) == ()
    assert kinds(decide(balanced(*old, worker("c"), known=False)), Drain) == ["a", "b"]
    assert kinds(decide(balanced(*old)), Drain) == ["a", "b"]


def test_an_old_worker_with_open_requests_stays_until_a_new_one_is_ready():
    old = worker("a", release="old", jobs=2)
    assert kinds(decide(balanced(old, running=2)), Drain) == []
    found = decide(balanced(old, worker("b"), running=2))
    assert kinds(found, Drain) == ["a"]


def test_a_worker_that_a_request_wants_back_is_not_discarded_for_another():
    ready, wished = worker("a", jobs=1), worker("b", "wanted", wished=True)
    assert decide(balanced(ready, wished, running=1)) == ()
    assert kinds(decide(balanced(ready, worker("b", "wanted"), running=1)), Discard) == ["b"]
    paused = balanced(ready, wished, running=1, high=0)
    assert kinds(decide(paused), Discard) == ["b"]


def test_a_worker_that_does_not_become_healthy_again_is_recycled_and_replaced():
    found = decide(balanced(worker("a", unhealthy=True), queued=1))
    reason = "its health check has not answered 200 for 120 s"
    assert found == (Recycle("a", reason), Start(1))
    assert kinds(decide(balanced(worker("a", "stopping", unhealthy=True))), Recycle) == []
