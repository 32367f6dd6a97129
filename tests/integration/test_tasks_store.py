"""Runs of one-off tasks in Redis: each step, and who may not make it any more."""

import json

import pytest
from helpers import job_store, new_job
from oneoffs import JOB, W

from ownpod.errors import BadRequest
from ownpod.rules.jobs import JobStatus
from ownpod.rules.task_ending import Ending, failed
from ownpod.rules.task_lines import Chunk, Entry, Final
from ownpod.rules.task_runs import TaskRun
from ownpod.store import keys
from ownpod.store.common import CHUNK_BYTES
from ownpod.store.outputs import Place, new_batch
from ownpod.store.tasks import Kept, TaskRuns

RUN = TaskRun(JOB, 1)
LOG = Entry("logs", {"log": "l", "level": "info", "stream": "stdout"})
DONE = Ending(JobStatus.COMPLETED, '"x"', exit_code=0)


@pytest.fixture
def store(client):
    """A store with a job that runs its first attempt on a task worker of the host ``h``."""
    found = job_store(client)
    found.jobs.create(new_job(JOB))
    found.jobs.claim(JOB, worker_id=W, claim="c", lease_s=60)
    client.hset(keys.managed(W), mapping={"phase": "ready", "host": "h", "role": "task"})
    return found


@pytest.fixture
def runs(store, client):
    made = TaskRuns(client)
    assert made.begin(W, RUN.id)
    return made


def launched(runs):
    assert runs.launch(W, "h", RUN)
    runs.launched(W, RUN, [Entry("worker", {"status": "created"})])


def keep(runs, *items, before="", batch=None, position="1"):
    return runs.append(W, RUN, items, before, Place(batch or new_batch(), position, "{}"))


def journal(client):
    return [json.loads(text)[3:] for text in client.lrange(keys.journal(JOB), 0, -1)]


def test_a_run_begins_once_and_only_on_a_worker_that_takes_one(runs, client):
    assert runs.begin(W, RUN.id)
    assert runs.tasks([W])[W].run == RUN
    assert client.hget(keys.managed(W), "run") == RUN.id
    client.hset(keys.managed(W), "phase", "draining")
    assert runs.begin(W, RUN.id)
    assert not runs.begin(W, "job-2:1")
    with pytest.raises(BadRequest):
        runs.begin("../x", RUN.id)


def test_only_the_workers_host_starts_the_container_and_only_while_the_job_runs(runs, store):
    assert not runs.launch(W, "other", RUN)
    assert not runs.launch(W, "h", TaskRun(JOB, 2))
    assert runs.launch(W, "h", RUN)
    assert runs.launch(W, "h", RUN)
    store.jobs.cancel(JOB, "ep", reason="by its client")
    assert not runs.launch(W, "h", RUN)
    assert runs.tasks([W])[W].is_over


def test_a_new_run_does_not_start_beside_the_container_of_an_earlier_one(runs, store):
    launched(runs)
    store.jobs.requeue(JOB, 1, lost=True, reason="lost")
    store.jobs.claim(JOB, worker_id=W, claim="d", lease_s=60)
    second = TaskRun(JOB, 2)
    assert runs.begin(W, second.id)
    task = runs.tasks([W])[W]
    assert (task.run, task.container, task.ran) == (second, RUN.id, False)
    assert not runs.launch(W, "h", second)
    runs.cleared(W, RUN.id)
    assert runs.launch(W, "h", second)
    # What the earlier agent still has to write is refused.
    assert keep(runs, Chunk('"late"')) is Kept.OVER
    assert not runs.done(W, RUN, DONE)


def test_the_journal_reports_a_start_once(runs, client):
    launched(runs)
    runs.launched(W, RUN, [Entry("worker", {"status": "created"})])
    assert journal(client) == [["worker", {"status": "created"}]]


def test_chunks_entries_and_the_place_are_kept_in_one_step_and_once(runs, client):
    launched(runs)
    batch = new_batch()
    items = (Chunk('"a"'), LOG, Chunk("1"), Final('"whole"'))
    assert keep(runs, *items, batch=batch) is Kept.YES
    assert keep(runs, *items, batch=batch) is Kept.YES
    assert client.lrange(keys.chunks(JOB), 0, -1) == ['"a"', "1"]
    assert journal(client)[1:] == [["logs", dict(LOG.data)]]
    assert runs.place(W) == Place(batch, "1", "{}")
    assert runs.final(W) == '"whole"'
    assert keep(runs, Chunk('"b"'), before="another") is Kept.CONFLICT
    assert keep(runs, Chunk('"b"'), before=batch, position="2") is Kept.YES
    assert runs.chunks(JOB, 1000) == ['"a"', "1", '"b"']


def test_nothing_is_kept_of_a_job_that_is_over_or_has_too_many_chunks(runs, store, client):
    launched(runs)
    client.hset(keys.job(JOB), "chunk_bytes", CHUNK_BYTES)
    assert keep(runs, Chunk('"a"')) is Kept.TOO_MUCH
    assert keep(runs, LOG) is Kept.YES
    store.jobs.cancel(JOB, "ep", reason="by its client")
    assert keep(runs, LOG, before=runs.place(W).batch) is Kept.OVER
    assert client.llen(keys.chunks(JOB)) == 0


def test_a_result_is_stored_once_with_its_exit_code_and_its_word(runs, client):
    launched(runs)
    bad = failed("exit code 3", "handler", 3)
    assert runs.done(W, RUN, bad)
    assert runs.done(W, RUN, bad)
    assert not runs.done(W, RUN, DONE)
    assert runs.state(W).ending == bad
    assert client.hmget(keys.job(JOB), "exit_code", "code") == ["3", "handler"]
    event, data = journal(client)[-1]
    assert (event, data["status"], data["exit_code"], data["worker_id"]) == (
        "worker",
        "error",
        3,
        W,
    )
    assert keep(runs, LOG) is Kept.OVER
    assert not runs.stop(W, RUN.id, "why")


def test_a_stop_has_its_first_reason(runs):
    assert runs.stop(W, RUN.id, "first")
    assert runs.stop(W, RUN.id, "second")
    assert runs.tasks([W])[W].stop == "first"
    assert not runs.stop(W, "job-2:1", "other")


def test_a_worker_that_is_gone_has_no_run(client):
    state = TaskRuns(client).state(W)
    assert (state.phase, state.lives, state.run, state.ending) == ("", False, "", None)
    assert TaskRuns(client).tasks([W])[W].run is None
    assert TaskRuns(client).tasks([]) == {}
