"""Sessions, tasks and devices in the GPU service's words."""

import json

import pytest

from ownpod.rules.gpu_views import describe_device, difficulty_of, overall, resources_of
from ownpod.rules.jobs import Job, JobStatus
from ownpod.rules.managed import AgentInfo, Device, Hold, ManagedWorker, Phase, Role
from ownpod.rules.sessions import Session, Status
from ownpod.rules.task_views import (
    Placed,
    SessionView,
    TaskFacts,
    describe_session,
    describe_task,
    task_facts,
)

MS = 1_790_000_000_123
AT = "2026-09-21T14:13:20.123Z"
DEVICE = Device("GPU-1", 1, "RTX", 24_000, pools=("ADA_24", "high"))


def job(status, **changes):
    values = {"created_ms": MS, "attempt": 1, "retries": 0, **changes}
    return Job("job-1", "m-p", status, **values)


def worker(**changes):
    values = {
        "phase": Phase.READY,
        "role": Role.SESSION,
        "created_ms": MS,
        "about": json.dumps({"model_id": "m", "preset": "p", "difficulty": "high"}),
        **changes,
    }
    return ManagedWorker("abcdefghijklmn", "m-p", "r", **values)


def shown_of(**changes):
    return describe_session(SessionView(Session(worker(**changes))))


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (JobStatus.IN_QUEUE, "pending"),
        (JobStatus.IN_PROGRESS, "running"),
        (JobStatus.COMPLETED, "completed"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.TIMED_OUT, "failed"),
        (JobStatus.CANCELLED, "failed"),
    ],
)
def test_a_task_has_one_of_four_states(state, word):
    assert describe_task(job(state), TaskFacts(), MS)["status"] == word


def test_a_tasks_time_counts_from_its_begin_to_its_end_or_now():
    waits = describe_task(job(JobStatus.IN_QUEUE), TaskFacts(), MS + 9000)
    assert (waits["created_at"], waits["started_at"], waits["elapsed_seconds"]) == (AT, None, 0)
    runs = describe_task(job(JobStatus.IN_PROGRESS, started_ms=MS), TaskFacts(), MS + 2999)
    assert (runs["started_at"], runs["elapsed_seconds"]) == (AT, 2)
    ended = job(JobStatus.COMPLETED, started_ms=MS, finished_ms=MS + 5000)
    assert describe_task(ended, TaskFacts(), MS + 99_000)["elapsed_seconds"] == 5


@pytest.mark.parametrize(
    "text", [None, "", "{", "[1]", '"a"', "[" * 100_000, '{"type": 1, "x": 2, "preset": null}']
)
def test_facts_that_cannot_be_read_are_left_out(text):
    assert task_facts(text) == TaskFacts()


def test_facts_come_back_as_they_were_written():
    facts = TaskFacts("session", "m", "p", "low", 300, "cancel")
    assert task_facts(facts.text()) == facts


def test_a_job_that_is_no_task_is_shown_without_facts():
    shown = describe_task(job(JobStatus.COMPLETED), TaskFacts(), MS)
    assert (shown["task_type"], shown["session_id"], shown["timeout_seconds"]) == (None,) * 3


def test_a_session_has_its_device_and_times():
    view = SessionView(
        Session(
            worker(started_ms=MS - 3500, ready_ms=MS, active_ms=MS, idle_s=300, life_s=1),
            running=("job-1",),
            queued=("job-2", "job-3"),
        ),
        placed=Placed("box", DEVICE),
    )
    shown = describe_session(view)
    assert shown["gpu"] == {
        "host": "box",
        "index": 1,
        "uuid": "GPU-1",
        "name": "RTX",
        "class": "high",
        "simulated": False,
    }
    assert (shown["gpu_device_id"], shown["model_id"], shown["task_preset"]) == (1, "m", "p")
    assert (shown["status"], shown["queue_size"]) == ("working", 2)
    assert shown["current_task_id"] == "job-1"
    assert shown["queued_task_ids"] == ["job-2", "job-3"]
    assert (shown["expires_at"], shown["idle_expires_at"]) == ("2026-09-21T14:13:21.123Z", None)
    assert (shown["load_seconds"], shown["reason"]) == (3.5, None)
    assert "ending" not in shown
    assert "exit_code" not in shown


def test_a_session_that_ends_has_its_reason_and_one_that_has_ended_its_exit_code():
    drains = shown_of(phase=Phase.DRAINING, ending="max_lifetime")
    assert drains["ending"] == drains["reason"] == "max_lifetime"
    over = {"phase": Phase.STOPPED, "stopped_ms": MS, "exit_code": 137, "out_of_memory": True}
    shown = shown_of(**over)
    assert (shown["status"], shown["reason"]) == ("killed", "oom")
    assert "ending" not in shown
    assert (shown["ended_at"], shown["exit_code"], shown["oom"]) == (AT, 137, True)


@pytest.mark.parametrize("about", ["", "{", "[1]", '{"labels": 1}'])
def test_a_session_whose_description_cannot_be_read_is_shown(about):
    assert shown_of(about=about)["model_id"] is None


def test_an_instant_that_no_calendar_has_is_left_out():
    assert shown_of(created_ms=10**17)["created_at"] is None


def test_the_difficulty_of_a_device_is_the_first_of_its_pools_that_is_one():
    assert difficulty_of(DEVICE, ()) == "high"
    assert difficulty_of(DEVICE, ("ADA_24",)) == "ADA_24"
    assert difficulty_of(Device("a", 0, "A"), ("low",)) is None


def described(device=DEVICE, holds=(), sessions=()):
    agent = AgentInfo("box", "docker", (device,))
    return describe_device(agent, device, holds, ("low", "high"), sessions)


def test_a_device_is_free_or_has_a_session_that_may_be_shown():
    assert described()["is_available"]
    hold = Hold("GPU-1", "abcdefghijklmn")
    held = described(holds=[hold], sessions=["abcdefghijklmn"])
    assert (held["is_available"], held["current_session_id"]) == (False, "abcdefghijklmn")
    assert described(holds=[hold])["current_session_id"] is None
    assert described(holds=[Hold("GPU-1", reserved="2 h left")])["state"] == "reserved"


def test_a_device_without_figures_has_nulls_and_a_stand_in_is_a_cpu():
    shown = described(Device("cpu-0", 0, "cpu-0", simulated=True))
    assert (shown["name"], shown["simulated"], shown["memory_total_mb"]) == ("CPU", True, None)
    assert shown["memory_used_mb"] is shown["temperature_celsius"] is None


@pytest.mark.parametrize(
    ("free", "sessions", "word"),
    [
        ([], 0, "unhealthy"),
        ([], 1, "degraded"),
        ([False], 1, "degraded"),
        ([False, True], 0, "healthy"),
    ],
)
def test_health_is_one_of_three_words(free, sessions, word):
    assert overall([{"is_available": each} for each in free], sessions) == word


def test_resources_count_what_is_not_shown_too():
    gpus = [described(), described(Device("x", 0, "X", pools=("mine",)))]
    body = resources_of(
        now_ms=MS,
        gpus=gpus,
        running=3,
        task_ids=[],
        statuses=[Status.WORKING, Status.WAITING, Status.INITIALIZING],
        sessions=[],
    )
    assert body["timestamp"] == AT
    found = body["resource_allocation"]
    assert found["running_tasks"] == {"count": 3, "task_ids": []}
    assert found["sessions"] == {"count": 3, "active": 1, "idle": 1, "details": []}
    assert body["capacity"]["gpus_by_difficulty"] == {"high": 1, "low": 0}
