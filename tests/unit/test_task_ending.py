"""How a one-off task has ended, and what its container gets of its job."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ownpod.errors import AttemptLost
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import ManagedWorker, Phase, Role
from ownpod.rules.presets import OutputMode
from ownpod.rules.reconcile import Ended, Found, Knowledge, Launch, Stop, plan
from ownpod.rules.runs import Outcome
from ownpod.rules.task_ending import (
    LONGEST_TEXT,
    Ending,
    amount,
    ending,
    failed,
    lost,
    output_of,
    shell_code,
)
from ownpod.rules.task_input import MOST_INPUT_BYTES, variables
from ownpod.rules.task_lines import Finish
from ownpod.rules.task_runs import TaskRun

W = "aaaaaaaaaaaaaa"


def found(code=0, *, oom=False, running=False):
    return Found(W, running=running, age_s=1.0, exit_code=code, out_of_memory=oom)


def test_the_output_is_what_the_task_has_written_or_its_text_or_its_exit_code():
    assert ending(found(), output='"x"').outcome() == Outcome(JobStatus.COMPLETED, output='"x"')
    assert json.loads(ending(found()).output) == {"exitCode": 0}


@pytest.mark.parametrize(
    ("options", "error", "code", "exit_code"),
    [
        ({"found": found(3)}, "exit code 3", "handler", 3),
        ({"found": found(3), "tail": ["a", "b"]}, "exit code 3\na\nb", "handler", 3),
        ({"found": found(-11)}, "exit code 139", "handler", 139),
        ({"found": found(-15)}, "exit code 143", "handler", 143),
        ({"found": found(), "finish": Finish(True, "no")}, "no", "handler", 0),
        (
            {"found": found(2), "finish": Finish(True)},
            "the task reported that it failed",
            "handler",
            2,
        ),
        ({"found": found(2), "finish": Finish(False)}, "exit code 2", "handler", 2),
        ({"found": found(-9, oom=True)}, "the container was killed: out of memory", "oom", 137),
        (
            {"found": found(-9, oom=True), "memory_bytes": 16 * 1024**3},
            "the container was killed: out of memory (limit 16g)",
            "oom",
            137,
        ),
        ({"found": found(-9), "stopped": True}, "its container was stopped", "stopped", 137),
    ],
)
def test_a_failure_has_its_reason_a_word_for_programs_and_the_exit_code(
    options, error, code, exit_code
):
    end = ending(**options)
    assert end.outcome() == Outcome(JobStatus.FAILED, error=error)
    assert (end.code, end.exit_code, end.event()["status"]) == (code, exit_code, "error")
    assert Ending.read(end.text()) == end


@pytest.mark.parametrize(
    ("last", "is_memory"),
    [
        ("MemoryError", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("sh: 1: Cannot fork: Cannot allocate memory", True),
        ("memory allocation of 1000000000 bytes failed", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("ValueError: no MemoryError here", False),
    ],
)
def test_a_task_whose_own_limit_refused_it_memory_has_run_out_of_memory(last, is_memory):
    end = ending(found(1), tail=["Traceback", last, ""], memory_bytes=512 * 1024**2)
    assert (end.out_of_memory, end.code) == (is_memory, "oom" if is_memory else "handler")
    if is_memory:
        assert end.error == f"out of memory (limit 512m): {last}"
        assert end.event()["oom"]
    # Without a limit, or where the task has handled it, its words are no more than words.
    assert not ending(found(1), tail=[last]).out_of_memory
    assert not ending(found(0), tail=[last], memory_bytes=1024**3).out_of_memory


def test_a_task_that_was_stopped_but_had_ended_well_is_completed():
    assert ending(found(0), stopped=True).status == JobStatus.COMPLETED


@pytest.mark.parametrize("code", [137, -9, None])
def test_a_container_that_ownpod_did_not_kill_is_a_lost_attempt(code):
    with pytest.raises(AttemptLost):
        ending(found(code)).outcome()


@given(st.text())
def test_a_result_that_cannot_be_read_is_a_lost_attempt(text):
    with pytest.raises(AttemptLost):
        Ending.read(text).outcome()


def test_texts_are_joined_and_cut_with_a_note():
    assert output_of('{"a": 1}', ['"x"']) == '{"a": 1}'
    assert output_of("", ['"a"', "1", '"b\\n"']) == '"ab\\n"'
    assert output_of("", ["1", '{"a": 2}']) == '[1, {"a": 2}]'
    assert output_of("", []) == ""
    long = json.loads(output_of("", [json.dumps("x" * 16_000)] * 100))
    assert len(long) < LONGEST_TEXT + 100
    assert long.endswith("(truncated: the whole text is in the task's chunks)")


def test_amounts_and_exit_codes_are_as_users_write_and_see_them():
    assert [amount(n) for n in (1024**3, 512 * 1024**2, 1024, 1000)] == ["1g", "512m", "1k", "1000"]
    assert [shell_code(n) for n in (0, 3, -9, None)] == [0, 3, 137, None]


def test_a_run_has_an_id_that_reads_back():
    run = TaskRun("sync-a:b-u1", 3)
    assert TaskRun.read(run.id) == run
    assert [TaskRun.read(text) for text in ("", "a", ":1", "a:", "a:x", "a:²")] == [None] * 6


# The input.


def test_plain_values_of_the_input_are_variables():
    values = {
        "prompt": "Hi",
        "n": 1.5,
        "on": True,
        "none": None,
        "deep": {},
        "list": [1],
        "a-b": "x",
    }
    env = variables("job-1", json.dumps(values))
    assert {name: v for name, v in env.items() if name.startswith("METADATA_")} == {
        "METADATA_PROMPT": "Hi",
        "METADATA_N": "1.5",
        "METADATA_ON": "true",
    }
    assert (env["TASK_ID"], json.loads(env["OWNPOD_INPUT"])) == ("job-1", values)


@pytest.mark.parametrize(
    "key", ["path", "LD_PRELOAD", "cuda_x", "nvidia_y", "runpod_z", "", "ß ", "ä"]
)
def test_names_that_are_reserved_or_none_are_left_out(key):
    assert set(variables("j", json.dumps({key: "x"}))) == {"TASK_ID", "OWNPOD_INPUT"}


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_what_the_environment_cannot_have_is_left_out(value):
    assert "METADATA_X" not in variables("j", json.dumps({"x": value}))


def test_an_input_that_is_too_long_is_in_the_file_only():
    env = variables("j", json.dumps({"a": "x" * MOST_INPUT_BYTES + "x", "b": "y"}))
    assert set(env) == {"TASK_ID"}


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_input_makes_an_environment_that_a_process_can_have(value):
    for name, text in variables("j", json.dumps(value)).items():
        assert "\0" not in name + text
        assert "=" not in name
        text.encode()


# The steps of the agent.


def record(phase, **changes):
    return ManagedWorker(W, "ep", "r", phase, 1, host="h", role=Role.TASK, reason="why", **changes)


def steps(phase, has=None, **knowledge):
    return plan(
        {W: record(phase)},
        {} if has is None else {W: has},
        instance_known=True,
        knowledge=Knowledge(**knowledge),
    )


def test_a_task_worker_is_prepared_and_then_waits_for_its_job_without_a_container():
    assert steps(Phase.PREPARING) == [Launch(W)]
    for phase in (Phase.STARTING, Phase.READY):
        assert steps(phase) == []


def test_a_task_worker_keeps_its_ended_container_until_it_drains():
    for phase in (Phase.STARTING, Phase.READY):
        assert steps(phase, found(3)) == []
        assert steps(phase, found(None, running=True)) == []
    assert steps(Phase.DRAINING, found(3)) == [Ended(W, "why", 3)]
    assert steps(Phase.DRAINING) == [Ended(W, "why")]


def test_a_draining_task_worker_ends_when_its_node_has_the_result():
    assert steps(Phase.DRAINING, found(3), busy={W}) == []
    running = found(None, running=True)
    assert steps(Phase.DRAINING, running, busy={W}) == []
    assert steps(Phase.DRAINING, running) == [Stop(W, "why", announce=True)]
    assert steps(Phase.STOPPING, running, busy={W}) == [Stop(W, "why")]
    assert steps(Phase.STOPPING, found(-9), busy={W}) == [Ended(W, "why", -9)]


def test_the_modes_of_output_are_those_of_presets():
    assert [mode.value for mode in OutputMode] == ["auto", "text", "events"]


def test_words_of_an_ending():
    assert failed("e", "start").event() == {"status": "error", "code": "start", "error": "e"}
    assert lost("e", 137).event() == {
        "status": "error",
        "code": "lost",
        "error": "e",
        "exit_code": 137,
    }
    assert ending(found()).event() == {"status": "stopped", "exit_code": 0}
