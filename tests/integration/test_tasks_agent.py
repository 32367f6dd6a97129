"""One-off tasks from claim to result: a node's runner, an agent with plain processes, and a real Redis; no Celery."""

import json
import os
import signal
import sys

import pytest
from helpers import wait_until
from oneoffs import JOB, Rig, W

from ownpod.agent.processes import ProcessEngine
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Phase
from ownpod.rules.presets import OutputMode
from ownpod.rules.templates import Limits, ManagedSpec, Protocol, Template, spec_text
from ownpod.store import keys

pytestmark = pytest.mark.slow


class PythonRig(Rig):
    """Tasks are Python programs."""

    def submit(self, code, **options):
        super().submit((sys.executable, "-c", code), **options)


@pytest.fixture
def rig(client, tmp_path):
    made = PythonRig(client, lambda instance: ProcessEngine(tmp_path, instance))
    yield made
    made.end()


def test_what_a_task_prints_is_its_text_and_its_output(rig):
    job = rig.run("print('hello'); print('world')")
    assert (job.status, json.loads(job.output)) == (JobStatus.COMPLETED, "hello\nworld\n")
    assert rig.text() == "hello\nworld\n"
    statuses = [entry["status"] for entry in rig.journal("worker")]
    assert statuses[-3:] == ["created", "working", "stopped"]
    assert rig.journal("worker")[-1]["exit_code"] == 0


def test_the_worker_and_its_process_leave_when_the_job_has_ended(rig):
    rig.run("print('done')")
    assert rig.drain()
    wait_until(lambda: rig.managed.get(W).phase is Phase.STOPPED, 10)
    wait_until(lambda: rig.engine.list() == {}, 10)


def test_a_task_that_prints_nothing_has_its_exit_code_as_output(rig):
    assert json.loads(rig.run("pass").output) == {"exitCode": 0}


def test_structured_lines_are_text_logs_progress_and_output(rig):
    code = """if True:
        import json
        def say(**values): print(json.dumps(values), flush=True)
        say(type="text_delta", data={"delta": "Hel"})
        say(event="text_delta", delta="lo")
        print("WARNING: noise")
        say(type="log", data={"log": "loaded", "level": "WARN"})
        say(event="progress", progress={"step": 1})
        say(type="output", data={"output": {"n": 1}})
        say(event="finish", status="completed")
    """
    job = rig.run(code)
    assert rig.chunks() == ["Hel", "lo"]
    assert json.loads(job.output) == {"n": 1}
    logs = [(entry["log"], entry["level"]) for entry in rig.journal("logs")]
    assert logs == [("WARNING: noise", "warning"), ("loaded", "warning")]
    assert {"status": "working", "progress": {"step": 1}} in rig.journal("worker")


def test_the_exit_code_and_the_end_of_standard_error_are_the_reason_of_a_failure(rig):
    job = rig.run("import sys; print('x'); print('boom', file=sys.stderr); sys.exit(3)")
    assert (job.status, job.error) == (JobStatus.FAILED, "exit code 3\nboom")
    assert rig.client.hmget(keys.job(JOB), "exit_code", "code") == ["3", "handler"]
    assert rig.logs() == ["boom"]


def test_a_preset_may_have_plain_lines_as_log_lines_only(rig):
    job = rig.run("print('noise')", mode=OutputMode.EVENTS)
    assert (rig.chunks(), rig.logs()) == ([], ["noise"])
    assert json.loads(job.output) == {"exitCode": 0}


def test_a_second_attempt_gets_a_fresh_container(rig, tmp_path):
    code = f"""if True:
        import os, signal
        print("try", flush=True)
        if not os.path.exists({str(tmp_path / "once")!r}):
            open({str(tmp_path / "once")!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    rig.submit(code, most=2)
    rig.finish(rig.node.start())
    wait_until(lambda: rig.job().status is JobStatus.IN_QUEUE, 10)
    job = rig.finish(rig.node.start())
    assert (job.status, job.attempt, rig.text()) == (JobStatus.COMPLETED, 2, "try\n")


def test_a_task_that_needs_more_memory_than_its_limit_fails(rig):
    eat = "x = [bytearray(10_000_000) for _ in range(100)]; print('all')"
    job = rig.run(eat, limits=Limits(memory_bytes=200_000_000))
    assert job.status is JobStatus.FAILED
    assert rig.text() == ""
    code = rig.client.hget(keys.job(JOB), "code")
    # By its control group, or, where the host allows none, by the limit of its address space.
    limited = code == "handler" and "MemoryError" in job.error
    assert limited or (code == "oom" and "out of memory" in job.error), (code, job.error)


def test_a_failure_that_a_task_reports_counts_whatever_its_exit_code_is(rig):
    job = rig.run("""print('{"type": "finish", "data": {"status": "failed", "error": "no"}}')""")
    assert (job.status, job.error) == (JobStatus.FAILED, "no")


def test_the_input_is_in_the_environment_and_in_a_file(rig):
    code = """if True:
        import json, os
        data = json.load(open(os.environ["OWNPOD_INPUT_FILE"]))
        print(json.dumps([data, json.loads(os.environ["OWNPOD_INPUT"]), os.environ["METADATA_PROMPT"],
            os.environ["METADATA_N"], os.environ["TASK_ID"], "RUNPOD_AI_API_KEY" in os.environ]))
    """
    data = {"prompt": "Hi", "n": 2, "deep": {"a": 1}}
    found = json.loads(json.loads(rig.run(code, data=data).output))
    assert found == [data, data, "Hi", "2", JOB, False]


def test_a_client_cannot_have_a_secret_by_its_input(rig):
    code = "import os; print(os.environ['METADATA_X'])"
    job = rig.run(code, data={"x": "{{ SECRET_key }}"})
    assert json.loads(job.output) == "{{ SECRET_key }}\n"


def test_a_task_that_needs_more_memory_than_its_limit_fails_with_it(rig):
    eat = "print('up'); x = [bytearray(10_000_000) for _ in range(100)]; print('all')"
    job = rig.run(eat, limits=Limits(memory_bytes=200 * 1024**2))
    assert job.status is JobStatus.FAILED
    # By a control group, or by the limit of each process.
    assert "out of memory (limit 200m)" in job.error
    assert rig.client.hget(keys.job(JOB), "code") == "oom"
    assert rig.journal("worker")[-1]["oom"]
    assert rig.text() == "up\n"


def test_a_silent_task_ends_by_its_timeout(rig):
    job = rig.run("import time; time.sleep(600)", timeout_ms=1500)
    assert job.status is JobStatus.TIMED_OUT
    assert not rig.runs()


def test_a_cancelled_task_ends(rig):
    rig.submit("import time; print('x', flush=True); time.sleep(600)")
    thread = rig.node.start()
    wait_until(lambda: rig.text() == "x\n", 10)
    assert rig.store.jobs.cancel(JOB, "ep", reason="by its client") is JobStatus.CANCELLED
    rig.node.slots.check_runs()
    assert rig.finish(thread).status is JobStatus.CANCELLED
    wait_until(lambda: not rig.engine.list()[W].running, 15)


def test_the_next_agent_continues_exactly_where_the_killed_one_was(rig):
    code = """if True:
        import sys, time
        for number in range(400):
            print(number, flush=True)
            print("e", number, file=sys.stderr, flush=True)
            time.sleep(0.01)
    """
    rig.submit(code)
    thread = rig.node.start()
    rig.replace_agents(each=100, seconds=10)
    job = rig.finish(thread)
    assert job.status is JobStatus.COMPLETED
    assert rig.text() == "".join(f"{n}\n" for n in range(400))
    assert rig.logs() == [f"e {n}" for n in range(400)]


def test_a_task_that_ended_without_an_agent_has_its_result_from_the_next_one(rig, tmp_path):
    go = tmp_path / "go"
    code = f"""if True:
        import os, time
        print("begun", flush=True)
        while not os.path.exists({str(go)!r}): time.sleep(0.01)
        print("end"); raise SystemExit(7)
    """
    rig.submit(code)
    thread = rig.node.start()
    wait_until(rig.text, 10)
    rig.turning.end()
    rig.turning = None
    go.touch()
    wait_until(lambda: not rig.engine.list()[W].running, 10)
    assert rig.job().status is JobStatus.IN_PROGRESS
    rig.next_agent()
    assert rig.finish(thread).error == "exit code 7"
    assert rig.text() == "begun\nend\n"


def test_a_process_that_another_program_kills_is_a_lost_attempt(rig):
    rig.submit("import time; print('x', flush=True); time.sleep(600)")
    thread = rig.node.start()
    wait_until(rig.text, 10)
    (pid,) = rig.engine.pids()
    os.kill(pid, signal.SIGKILL)
    job = rig.finish(thread)
    assert (job.status, job.error) == (
        JobStatus.FAILED,
        "its container was killed, and not by OwnPod (exit code 137)",
    )


def test_a_command_that_does_not_exist_is_a_failed_task_with_the_reason(rig, client):
    rig.submit("pass")
    spec = ManagedSpec(Template(command=("no-such-program",), protocol=Protocol.CONTAINER))
    client.hset(keys.managed(W), "spec", spec_text(spec))
    job = rig.finish(rig.node.start())
    assert job.status is JobStatus.FAILED
    assert "no-such-program" in job.error
