import json

import pytest

from ownpod.rules.jobs import MOVES, Job, JobStatus, new_job_id

TERMINAL = {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.TIMED_OUT}


def job(**changes):
    values = {
        "id": "a",
        "endpoint": "ep",
        "status": JobStatus.IN_QUEUE,
        "created_ms": 1_000,
        "attempt": 0,
        "retries": 0,
    }
    return Job(**values | changes)


def test_terminal_states_absorb():
    assert {status for status in JobStatus if status.terminal} == TERMINAL
    assert not any(MOVES[status] for status in TERMINAL)


def test_every_state_but_the_first_can_be_reached():
    assert set().union(*MOVES.values()) == set(JobStatus)


@pytest.mark.parametrize(("sync", "start"), [(True, "sync-"), (False, "")])
def test_ids_look_like_runpods(sync, start):
    job_id = new_job_id(sync=sync)
    assert job_id.startswith(start)
    assert job_id.endswith("-u1")
    assert len({new_job_id(sync=sync) for _ in range(100)}) == 100


def test_a_waiting_job_is_answered_with_id_and_status():
    assert job().answer() == {"id": "a", "status": "IN_QUEUE"}


def test_a_running_job_is_answered_with_delay_and_worker():
    running = job(status=JobStatus.IN_PROGRESS, started_ms=1_250, worker_id="w", attempt=1)
    assert running.answer() == {
        "id": "a",
        "status": "IN_PROGRESS",
        "delayTime": 250,
        "workerId": "w",
    }


def test_a_completed_job_is_answered_with_times_worker_and_output():
    done = job(
        status=JobStatus.COMPLETED,
        started_ms=1_250,
        finished_ms=1_750,
        worker_id="w",
        output='{"x": [1, null]}',
        retries=1,
    )
    assert json.loads(done.answer_json()) == {
        "id": "a",
        "status": "COMPLETED",
        "delayTime": 250,
        "executionTime": 500,
        "workerId": "w",
        "retries": 1,
        "output": {"x": [1, None]},
    }


def test_the_workers_own_execution_time_wins():
    done = job(status=JobStatus.COMPLETED, started_ms=1, finished_ms=900, execution_ms=7)
    assert done.answer()["executionTime"] == 7


def test_a_clock_that_went_back_gives_no_negative_times():
    done = job(status=JobStatus.FAILED, started_ms=500, finished_ms=400, error="x")
    assert done.answer()["delayTime"] == 0
    assert done.answer()["executionTime"] == 0


def test_a_terminal_answer_always_has_a_worker_id():
    assert job(status=JobStatus.CANCELLED, finished_ms=5).answer()["workerId"] == ""


def test_a_record_is_read_back_as_it_was_written():
    written = job(status=JobStatus.FAILED, started_ms=3, finished_ms=9, error="no", attempt=2)
    values = [getattr(written, name) for name in Job.FIELDS]
    assert Job.from_record([None if v is None else str(v) for v in values]) == written
