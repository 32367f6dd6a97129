"""The environment of a managed worker; the words for a job that waits for one."""

import pytest

from ownpod.rules.balancing import Balancing
from ownpod.rules.launching import environment
from ownpod.rules.managed import Device
from ownpod.rules.templates import GIB, Limits, Protocol, Template

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


# Load-balanced endpoints.


def test_a_worker_of_a_load_balanced_endpoint_knows_where_to_listen_and_has_no_jobs_to_ask_for():
    found = made(Template(protocol=Protocol.HTTP), balancing=Balancing(8000))
    assert (found["PORT"], found["PORT_HEALTH"], found["HEALTH_CHECK_PATH"]) == (
        *("8000", "8000"),
        "/ping",
    )
    assert not [name for name in found if name.startswith("RUNPOD_WEBHOOK_")]
    assert found["RUNPOD_ENDPOINT_ID"] == "ep"


def test_the_endpoints_ports_win_over_the_templates_variables():
    template = Template(protocol=Protocol.HTTP, env={"PORT": "1", "PORT_HEALTH": "2"})
    found = made(template, balancing=Balancing(80, 8081, "/healthz"))
    assert (found["PORT"], found["PORT_HEALTH"], found["HEALTH_CHECK_PATH"]) == (
        *("80", "8081"),
        "/healthz",
    )


@pytest.mark.parametrize("protocol", [Protocol.PULL, Protocol.PUSH])
def test_other_workers_get_no_port(protocol):
    assert (
        not {"PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH"} & made(Template(protocol=protocol)).keys()
    )
