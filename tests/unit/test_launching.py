"""The environment of a managed worker; the words for a job that waits for one."""

from dataclasses import dataclass

import pytest

from ownpod.rules.endpoints import Endpoint, WorkerSource, pull_worker
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.launching import environment
from ownpod.rules.managed import Device, Phase
from ownpod.rules.templates import GIB, Limits, ManagedSpec, Protocol, Scaling, Template
from ownpod.rules.waiting import LONGEST_LINE, ManagedState, explain

CARD = Device("GPU-1", 0, "NVIDIA GeForce RTX 4090", 24564, pools=("ADA_24", "low"))
STAND_IN = Device("cpu-0", 0, "cpu", simulated=True)
BASE = "http://10.0.0.5:8000"
URL = f"{BASE}/v2/ep"


def made(template=None, **values):
    given = {"worker_id": "abc", "endpoint": "ep", "base_url": BASE, "key": "secret"}
    return environment(template or Template(), **given | values)


def test_the_urls_have_the_workers_id_as_text_and_the_jobs_id_as_the_sdk_puts_it():
    found = made(devices=[CARD])
    gpu = "gpu=NVIDIA+GeForce+RTX+4090"
    assert found["RUNPOD_WEBHOOK_GET_JOB"] == f"{URL}/job-take/abc?{gpu}"
    assert found["RUNPOD_WEBHOOK_POST_OUTPUT"] == f"{URL}/job-done/abc/$ID?{gpu}"
    assert found["RUNPOD_WEBHOOK_POST_STREAM"] == f"{URL}/job-stream/abc/$ID?{gpu}"
    assert found["RUNPOD_WEBHOOK_PING"] == f"{URL}/ping/abc?{gpu}"


def test_a_worker_with_a_gpu_knows_it():
    found = made(devices=[CARD, CARD])
    assert found["RUNPOD_GPU_COUNT"] == "2"
    assert found["RUNPOD_GPU_NAME"] == "NVIDIA+GeForce+RTX+4090"
    assert found["RUNPOD_GPU_TYPE_ID"] == "NVIDIA GeForce RTX 4090"
    assert found["RUNPOD_GPU_SIZE"] == "ADA_24,low"
    assert found["NVIDIA_VISIBLE_DEVICES"] == found["OWNPOD_GPU_UUIDS"] == "GPU-1,GPU-1"
    assert found["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert "RUNPOD_SKIP_GPU_CHECK" not in found


@pytest.mark.parametrize("devices", [[], [STAND_IN]])
def test_a_worker_without_a_gpu_sees_none_and_skips_the_check(devices):
    found = made(devices=devices)
    assert found["RUNPOD_SKIP_GPU_CHECK"] == "true"
    assert found["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert found["RUNPOD_GPU_COUNT"] == "0"
    assert "RUNPOD_GPU_NAME" not in found
    assert found["RUNPOD_WEBHOOK_PING"].endswith("?gpu=0")


def test_the_template_replaces_suggestions_and_not_what_the_worker_needs():
    given = {
        "RUNPOD_SKIP_GPU_CHECK": "false",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false",
        "RUNPOD_DC_ID": "EU-RO-1",
        "RUNPOD_INIT_TIMEOUT": "800",
        "MODEL": "x",
        "RUNPOD_POD_ID": "stolen",
        "RUNPOD_ENDPOINT_ID": "stolen",
        "RUNPOD_AI_API_ID": "stolen",
        "RUNPOD_AI_API_KEY": "stolen",
        "RUNPOD_PING_INTERVAL": "1",
        "RUNPOD_WEBHOOK_GET_JOB": "http://elsewhere",
        "RUNPOD_WEBHOOK_ANYTHING": "http://elsewhere",
        "NVIDIA_VISIBLE_DEVICES": "all",
    }
    found = made(Template(env=given))
    kept = list(given)[:5]
    assert {name: found[name] for name in kept} == {name: given[name] for name in kept}
    assert found["RUNPOD_POD_ID"] == "abc"
    assert found["RUNPOD_ENDPOINT_ID"] == found["RUNPOD_AI_API_ID"] == "ep"
    assert found["RUNPOD_AI_API_KEY"] == "secret"
    assert found["RUNPOD_PING_INTERVAL"] == "10000"
    assert not {"stolen", "http://elsewhere", "all"} & set(found.values())


def test_a_worker_that_jobs_are_pushed_to_gets_no_webhook():
    given = {"RUNPOD_WEBHOOK_GET_JOB": "http://elsewhere", "A": "1"}
    found = made(Template(protocol=Protocol.PUSH, env=given))
    assert not [name for name in found if name.startswith("RUNPOD_WEBHOOK_")]
    assert found["A"] == "1"
    assert found["RUNPOD_POD_ID"] == "abc"


@pytest.mark.parametrize(
    ("limits", "cpus", "memory"),
    [
        (Limits(memory_bytes=6 * GIB, cpus=1.5), "1", "6"),
        (Limits(memory_bytes=GIB // 2, cpus=0.5), "1", "1"),
        (Limits(), "8", "32"),
    ],
)
def test_a_worker_knows_its_limits_or_those_of_its_host(limits, cpus, memory):
    found = made(Template(limits=limits), cpus=8, memory_bytes=32 * GIB)
    assert (found["RUNPOD_CPU_COUNT"], found["RUNPOD_MEM_GB"]) == (cpus, memory)


def test_the_hosts_label_is_its_data_center():
    assert made()["RUNPOD_DC_ID"] == "LOCAL-1"
    assert made(labels={"datacenter": "attic"})["RUNPOD_DC_ID"] == "attic"


def test_the_other_variables_do_not_have_the_key():
    found = made()
    assert [name for name, value in found.items() if "secret" in value] == ["RUNPOD_AI_API_KEY"]
    assert found["RUNPOD_POD_HOSTNAME"].startswith("abc-")
    assert found["RUNPOD_ENDPOINT_SECRET"] != made(key="other")["RUNPOD_ENDPOINT_SECRET"]


def test_all_values_are_text_that_an_environment_can_hold():
    found = made(devices=[CARD], cpus=8, memory_bytes=32 * GIB)
    assert all(isinstance(value, str) and "\0" not in value for value in found.values())


# Why does a job wait?


@dataclass(frozen=True)
class Failures:
    count: int
    reason: str = ""
    exit_code: int | None = 1
    log: str = ""
    pause_s: float = 0.0


def endpoint(*states, high=3):
    workers = tuple(pull_worker("ep", f"w{n}", 1) for n in range(len(states)))
    assert all(w.source is WorkerSource.PULLED for w in workers)
    managed = ManagedSpec(Template(image="x"), Scaling(workers_max=high))
    found = Endpoint("ep", workers, 1, 1, 1, 0, managed=managed)
    statuses = {
        w.id: WorkerStatus(WorkerState(state), "no node")
        for w, state in zip(workers, states, strict=True)
    }
    return found, statuses


def why(*states, managed=(), failures=None, high=3):
    found, statuses = endpoint(*states, high=high)
    return explain(found, statuses, (), managed, failures)


def state(phase, name="abc", **values):
    return ManagedState(name, Phase(phase), **values)


BUSY = "all 2 GPUs of pool low are busy"
SUCCESSOR = "and its successor starts when it has stopped"
PULL = "image pull 43 %, 2.1 of 4.9 GB"


@pytest.mark.parametrize(
    ("managed", "reason"),
    [
        ([state("wanted", reason=BUSY)], BUSY),
        ([state("wanted")], "worker abc waits for an agent"),
        ([state("preparing", reason=PULL)], PULL),
        ([state("preparing", age_s=3.2)], "worker abc is prepared, 3 s"),
        ([state("starting", age_s=12.4)], "worker abc starts, 12 s"),
        ([state("starting", age_s=12, usual_s=21)], "worker abc starts, 12 s (usually 21 s)"),
        (
            [state("starting", age_s=1), state("starting", "old", age_s=9), state("wanted")],
            "worker old starts, 9 s, and 1 more",
        ),
        (
            [state("draining", reason="workersMax is 1")],
            f"worker abc finishes its jobs, because workersMax is 1, {SUCCESSOR}",
        ),
        ([], "no worker is wanted yet: the scaler in housekeeping starts one within seconds"),
    ],
)
def test_a_job_waits_for_a_managed_worker(managed, reason):
    assert why(managed=managed) == reason
    # Its node has not reached it yet.
    assert why("initializing", managed=managed) == reason


def test_a_paused_endpoint_is_the_first_reason():
    reason = "the endpoint is paused: workersMax is 0"
    assert why("ready", managed=[state("ready")], high=0) == reason


def test_a_healthy_worker_comes_before_one_that_starts():
    found = why("ready", "initializing", managed=[state("ready"), state("starting")])
    assert found == "it waits for a free worker: 1 of 2 are healthy"


def test_a_ready_worker_whose_node_does_not_reach_it_has_its_nodes_reason():
    assert why("unhealthy", managed=[state("ready")]) == "no healthy worker: no node"


def test_failed_starts_are_the_reason_with_the_last_line():
    failures = Failures(5, log="Traceback\n  ImportError: no torch\n\n")
    reason = "its workers do not start: exit code 1, 5 times; last: ImportError: no torch"
    assert why(managed=[state("starting")], failures=failures) == reason
    failures = Failures(1, reason="the image is not there", log="x" * 999)
    reason = f"its workers do not start: the image is not there, once; last: {'x' * LONGEST_LINE}"
    assert why(failures=failures) == reason
    assert why(managed=[state("starting")], failures=failures) == "worker abc starts, 0 s"


def test_an_endpoint_without_a_template_is_explained_as_before():
    found, statuses = endpoint("unhealthy")
    plain = Endpoint("ep", found.workers, 1, 1, 1, 0)
    assert explain(plain, statuses) == "no healthy worker: no node"
