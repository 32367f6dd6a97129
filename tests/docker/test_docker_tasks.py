"""One-off tasks as containers of a real Docker engine: exit code, memory, input, output, and agents that are replaced."""

import gc
import json

import pytest
from helpers import wait_until
from oneoffs import JOB, Rig, W
from test_docker_engine import IMAGE, MIB, archive, docker, inspect, remove_all, tiny

from ownpod.agent.containers import ContainerEngine
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import Phase
from ownpod.rules.templates import Limits
from ownpod.store import keys

__all__ = ["archive", "tiny"]

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


class DockerRig(Rig):
    """Tasks are scripts of a shell."""

    def submit(self, script, **options):
        super().submit(("sh", "-c", script), image=IMAGE, **options)


@pytest.fixture
def rig(tiny, client):
    made = DockerRig(client, ContainerEngine)
    yield made
    made.end()
    for engine in made.engines:
        engine.close()
    remove_all(made.instance)
    # Here, because later tests do not ignore its warnings.
    gc.collect()


def test_a_tasks_exit_code_and_both_streams_are_its_jobs(rig):
    job = rig.run("echo out; echo err >&2; exit 3")
    assert (job.status, job.error) == (JobStatus.FAILED, "exit code 3\nerr")
    assert (rig.text(), rig.logs()) == ("out\n", ["err"])
    assert rig.client.hget(keys.job(JOB), "exit_code") == "3"
    assert rig.drain()
    wait_until(lambda: rig.managed.get(W).phase is Phase.STOPPED, 30)
    wait_until(lambda: rig.engine.list() == {}, 30)


def test_the_input_is_in_a_file_and_in_the_environment_of_the_container(rig):
    script = 'cat /ownpod/input.json; echo; echo "$OWNPOD_INPUT_FILE $METADATA_WHO $TASK_ID"; env'
    job = rig.run(script, data={"who": "me", "long": "x" * 200_000})
    text = json.loads(job.output)
    given, own, env = text.split("\n", 2)
    assert json.loads(given) == {"who": "me", "long": "x" * 200_000}
    assert own == f"/ownpod/input.json me {JOB}"
    assert "RUNPOD_AI_API_KEY" not in env
    assert "OWNPOD_INPUT=" not in env


def test_a_task_that_needs_more_memory_than_its_limit_fails_with_it(rig):
    job = rig.run("tail /dev/zero", limits=Limits(memory_bytes=64 * MIB))
    assert job.status is JobStatus.FAILED
    assert job.error == "the container was killed: out of memory (limit 64m)"
    assert rig.client.hget(keys.job(JOB), "code") == "oom"


def test_a_silent_task_is_stopped_at_its_timeout(rig):
    job = rig.run("sleep 600", timeout_ms=2000)
    assert job.status is JobStatus.TIMED_OUT
    wait_until(lambda: not rig.runs())


def test_a_container_that_another_program_kills_is_a_lost_attempt(rig):
    rig.submit("echo begun; sleep 600")
    thread = rig.node.start()
    wait_until(rig.text, 30)
    docker("kill", f"ownpod-{W}")
    assert "was killed, and not by OwnPod" in rig.finish(thread).error


def test_a_container_that_another_program_removes_is_a_lost_attempt(rig):
    rig.submit("echo begun; sleep 600")
    thread = rig.node.start()
    wait_until(rig.text, 30)
    docker("rm", "--force", f"ownpod-{W}")
    assert "another program has removed it" in rig.finish(thread).error


COUNT = "n=0; while [ $n -lt 400 ]; do echo $n; echo e $n >&2; n=$((n+1)); sleep 0.01; done"


def test_agents_that_are_replaced_cost_no_line_and_repeat_none(rig):
    rig.submit(COUNT)
    thread = rig.node.start()
    rig.replace_agents(each=50, seconds=30)
    job = rig.finish(thread)
    assert job.status is JobStatus.COMPLETED
    assert rig.text() == "".join(f"{n}\n" for n in range(400))
    assert rig.logs() == [f"e {n}" for n in range(400)]


def test_a_container_that_ended_while_no_agent_ran_has_its_result_from_the_next_one(rig):
    rig.submit("echo begun; sleep 2; echo end; exit 4")
    thread = rig.node.start()
    wait_until(rig.text, 30)
    rig.turning.end()
    rig.turning = None
    wait_until(lambda: inspect(f"ownpod-{W}")["State"]["Status"] == "exited", 30)
    rig.next_agent()
    assert rig.finish(thread).error == "exit code 4"
    assert rig.text() == "begun\nend\n"


def test_much_output_is_whole_and_long_lines_are_not_divided(rig):
    wide = "x" * 100_000
    script = f"n=0; while [ $n -lt 30000 ]; do echo line $n; n=$((n+1)); done; echo {wide} >&2"
    job = rig.run(script)
    assert job.status is JobStatus.COMPLETED
    assert rig.text() == "".join(f"line {n}\n" for n in range(30_000))
    assert rig.logs() == [wide]
