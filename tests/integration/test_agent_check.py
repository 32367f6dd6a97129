"""What `ownpod doctor` reports about managed workers."""

from dataclasses import replace

import pynvml
import pytest
from fake_nvml import Card, Driver
from helpers import load_settings

from ownpod.agent.engine import EngineError
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.presets import Preset
from ownpod.rules.templates import GpuNeed, ManagedSpec, Protocol, Template
from ownpod.tools.agent_check import examine

NONE = Driver(error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
AWAY = EngineError("there is no socket of a Docker engine here")
PLAIN = Endpoint("ep", (), execution_timeout_ms=0, ttl_ms=1, max_attempts=1, max_queue_depth=0)
INFO = {"ServerVersion": "28.3.0", "CgroupDriver": "systemd"}


def endpoint(*, image="team/image", command=("python",), gpu=False):
    template = Template(image=image, command=command)
    spec = ManagedSpec(template, gpu=GpuNeed() if gpu else None)
    return replace(PLAIN, managed=spec)


@pytest.fixture
def found(tmp_path):
    """Findings as (kind, part, text), for endpoints, an answer of Docker, a driver and settings."""

    def found(*endpoints, docker=AWAY, nvml=NONE, links=tmp_path, **settings):
        def info():
            if isinstance(docker, Exception):
                raise docker
            return docker

        results = examine(
            load_settings(**settings),
            {each.id: each for each in endpoints},
            docker=info,
            nvml=nvml,
            links=links,
        )
        return [(each.kind, each.what, each.says) for each in results]

    return found


def test_without_templates_no_engine_is_asked_and_a_missing_gpu_is_no_problem(found):
    assert found(PLAIN) == [("ok", "devices", "no GPU, because NVML's library is not found")]


def test_an_engine_that_was_chosen_and_does_not_answer_is_bad(found):
    assert found(OWNPOD_ENGINE="docker")[1] == (
        "bad",
        "engine",
        "docker, as OWNPOD_ENGINE has it: there is no socket of a Docker engine here",
    )


def test_without_docker_workers_are_processes_and_the_reason_is_there(found):
    kind, part, text = found(endpoint())[1]
    assert (kind, part) == ("ok", "engine")
    assert (
        text == "process, because Docker cannot be used: there is no socket of a Docker engine here"
    )


@pytest.mark.parametrize("settings", [{}, {"OWNPOD_ENGINE": "process"}])
def test_a_template_without_a_command_is_bad_for_processes(found, settings):
    kind, part, text = found(endpoint(command=()), **settings)[-1]
    assert (kind, part) == ("bad", "templates")
    assert text.startswith("ep: the engine process needs template.command")


def test_docker_is_used_where_it_answers(found):
    findings = found(endpoint(), docker=INFO)
    assert ("ok", "engine", "docker: Docker 28.3.0 answers") in findings
    assert any(kind == "note" and "allows all images" in text for kind, _, text in findings)


def test_podman_has_its_name_and_what_it_lacks(found):
    def findings(version, *endpoints, gpus=(), **info):
        text = ".".join(map(str, version))
        answer = {**INFO, "ServerVersion": text, "Podman": version, **info}
        listed = found(*endpoints, docker=answer, nvml=Driver(*gpus) if gpus else NONE)
        return [(kind, text) for kind, part, text in listed if part == "engine"]

    old = findings((4, 3, 1), endpoint(gpu=True), gpus=[Card("GPU-1")])
    assert old[0] == ("ok", "docker: Podman 4.3.1 answers")
    assert old[1][0] == "bad"
    assert "Podman 4.3.1 gives no GPU" in old[1][1]
    assert [kind for kind, _ in old[2:]] == ["note", "note"]
    assert "does not report exhausted memory" in old[2][1]
    new = findings((5, 4, 0), endpoint(gpu=True), gpus=[Card("GPU-1")])
    assert [kind for kind, _ in new] == ["ok", "note"]
    assert "reaching each other" in new[1][1]


def test_a_worker_with_a_port_is_bad_on_podman_without_root_and_limits_need_cgroup_v2(found):
    pushed = endpoint()
    template = replace(pushed.managed.template, protocol=Protocol.PUSH)
    pushed = replace(pushed, managed=replace(pushed.managed, template=template))
    podman = {**INFO, "Podman": (5, 4, 0), "Rootless": False, "CgroupVersion": "1"}
    rootless = {**podman, "Rootless": True}
    text = "ep: this host cannot reach workers of Podman without root, so only protocol: pull works"
    assert ("bad", "engine", text) in found(pushed, docker=rootless)
    assert ("bad", "engine", text) not in found(pushed, docker=podman)
    assert ("bad", "engine", text) not in found(endpoint(), docker=rootless)
    ignored = "Podman without root ignores the limits of workers, because this host has cgroup v1"
    assert ("note", "engine", ignored) in found(endpoint(), docker=rootless)
    assert ("note", "engine", ignored) not in found(endpoint(), docker=podman)
    second = {**rootless, "CgroupVersion": "2"}
    assert ("note", "engine", ignored) not in found(endpoint(), docker=second)


def test_an_image_outside_the_list_is_bad_and_named(found):
    findings = found(endpoint(), docker=INFO, OWNPOD_IMAGES="ghcr.io/team/*")
    assert findings[-2] == ("ok", "images", "OWNPOD_IMAGES allows ghcr.io/team/*")
    assert findings[-1] == (
        "bad",
        "images",
        "ep: docker.io/team/image:latest is not in OWNPOD_IMAGES",
    )
    assert found(endpoint(image=None), docker=INFO)[-1][0] == "bad"
    assert (
        found(endpoint(image="ghcr.io/team/a"), docker=INFO, OWNPOD_IMAGES="ghcr.io/team/*")[-1]
        == findings[-2]
    )


def test_gpus_are_listed_with_memory_and_pools(found):
    assert found(nvml=Driver(Card("GPU-1"))) == [
        ("ok", "devices", "0 NVIDIA GeForce RTX 4090 GPU-1, 24 GB, pools ADA_24")
    ]


def test_stand_ins_are_shown_as_such(found):
    assert found(OWNPOD_DEVICES="cpu:1", OWNPOD_LABELS="pool=low") == [
        ("ok", "devices", "0 CPU cpu-0, a stand-in for a GPU, pools low")
    ]


def test_an_endpoint_that_needs_a_gpu_on_a_host_without_one_is_a_note(found):
    kind, _, text = found(endpoint(gpu=True))[0]
    assert kind == "note"
    assert "the workers of ep wait for a device of another host" in text


def test_an_error_of_nvml_is_bad_where_a_gpu_is_needed(found):
    broken = Driver(error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert found(nvml=broken) == [("note", "devices", "NVML cannot be used: Driver Not Loaded")]
    assert found(endpoint(gpu=True), nvml=broken)[0][0] == "bad"
    assert found(nvml=NONE, OWNPOD_DEVICES="0")[0] == (
        "bad",
        "devices",
        "NVML's library is not found",
    )


def test_the_cgroup_driver_of_systemd_is_a_note_unless_gpus_are_kept(found, tmp_path):
    def notes(**options):
        findings = found(endpoint(), nvml=Driver(Card("GPU-1")), **options)
        return [text for _, part, text in findings if part == "engine" and "systemd" in text]

    assert len(notes(docker=INFO)) == 1
    assert notes(docker={**INFO, "CgroupDriver": "cgroupfs"}) == []
    cdi = [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]
    assert notes(docker={**INFO, "DiscoveredDevices": cdi}) == []
    links = tmp_path / "char"
    links.mkdir()
    (links / "195:0").symlink_to("../nvidia0")
    assert notes(docker=INFO, links=links) == []
    # A host without a GPU loses none.
    assert not any("systemd" in text for _, _, text in found(endpoint(), docker=INFO))


def preset(**values):
    return replace(endpoint(image="team/runner"), id="m-p", preset=Preset("m", "p", **values))


def test_presets_give_devices_a_difficulty_and_missing_ones_are_noted(found):
    lines = found(preset(), OWNPOD_DEVICES="cpu:2", GPU_DEVICE_DIFFICULTY="1:low")
    assert ("ok", "devices", "0 CPU cpu-0, a stand-in for a GPU, pools low") in lines
    problem = "no device of this host is of difficulty high: its tasks wait for another host"
    assert ("note", "presets", problem) in lines


def test_the_images_of_presets_are_allowed_besides_the_list(found):
    lines = found(preset(), endpoint(image="other/x"), docker=INFO, OWNPOD_IMAGES="team/b")
    bad = [text for kind, _, text in lines if kind == "bad"]
    assert bad == ["ep: docker.io/other/x:latest is not in OWNPOD_IMAGES"]
