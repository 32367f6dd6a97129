"""What a worker's container is created with, and an engine's errors in words."""

import pytest

from ownpod.agent.container_options import SERVE, command_of, name_of, options
from ownpod.agent.docker_api import away_words, podman_version, words
from ownpod.agent.engine import EngineError, Launch
from ownpod.agent.images import Image
from ownpod.rules.managed import Device
from ownpod.rules.templates import Limits, Protocol, Template

IMAGE = Image("docker.io/team/worker:1", "sha256:1", ("/init",), ("python", "-u", "handler.py"))
GPUS = (Device("GPU-1", 0, "RTX"), Device("GPU-2", 1, "RTX"))
STANDIN = (Device("cpu-0", 0, "CPU", simulated=True),)


def launch(devices=(), env=(), **template):
    values = {"image": "team/worker:1", **template}
    return Launch("w" * 14, "ep", "i1", Template(**values), dict(env), devices)


def test_a_container_has_name_labels_and_image_id_of_its_worker():
    made = options(launch(STANDIN, {"A": "1"}), IMAGE)
    assert made.container["name"] == name_of("w" * 14) == "ownpod-wwwwwwwwwwwwww"
    assert made.container["image"] == "sha256:1"
    assert made.container["labels"] == {
        "ownpod": "1",
        "ownpod.instance": "i1",
        "ownpod.worker": "w" * 14,
        "ownpod.endpoint": "ep",
        "ownpod.devices": "cpu-0",
        "ownpod.protocol": "pull",
        "ownpod.image": "docker.io/team/worker:1",
    }
    assert made.container["environment"]["A"] == "1"
    assert not {"command", "entrypoint"} & made.container.keys()


def test_a_container_has_no_rights_and_is_not_restarted_by_the_engine():
    host = options(launch(), IMAGE).host
    assert host["cap_drop"] == ["ALL"]
    assert host["security_opt"] == ["no-new-privileges"]
    assert (host["init"], host["auto_remove"]) == (True, False)
    assert host["restart_policy"] == {"Name": "no"}
    assert host["network_mode"] == "ownpod-workers"
    assert host["log_config"]["config"] == {"max-size": "10m", "max-file": "3"}
    assert not {"mem_limit", "nano_cpus", "binds", "mounts", "privileged"} & host.keys()
    assert (host["pids_limit"], host["shm_size"]) == (4096, 1024**3)


def test_a_container_reaches_its_host_by_the_address_of_its_network():
    assert options(launch(), IMAGE).host["extra_hosts"] == {"host.docker.internal": "host-gateway"}
    host = options(launch(), IMAGE, network="n1", host_address="172.30.0.1").host
    assert (host["network_mode"], host["extra_hosts"]) == (
        "n1",
        {"host.docker.internal": "172.30.0.1"},
    )


def test_limits_are_the_templates():
    host = options(launch(limits=Limits(256 * 2**20, 0.5, 64 * 2**20, 64)), IMAGE).host
    assert host["mem_limit"] == host["memswap_limit"] == 268435456
    assert host["nano_cpus"] == 500_000_000
    assert (host["pids_limit"], host["shm_size"]) == (64, 67108864)


@pytest.mark.parametrize("devices", [(), STANDIN])
def test_a_worker_without_gpu_sees_none_whatever_its_template_asks_for(devices):
    made = options(launch(devices, {"NVIDIA_VISIBLE_DEVICES": "all"}), IMAGE)
    assert "device_requests" not in made.host
    assert made.container["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_gpus_are_requested_by_uuid():
    made = options(launch(GPUS, {"NVIDIA_VISIBLE_DEVICES": "all"}), IMAGE)
    (request,) = made.host["device_requests"]
    assert request == {"device_ids": ["GPU-1", "GPU-2"], "capabilities": [["gpu"]]}
    assert made.container["environment"]["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"


def test_podman_gets_gpus_as_cdi_devices_from_the_version_that_passes_them_on():
    made = options(launch(GPUS), IMAGE, podman=(5, 4, 0))
    (request,) = made.host["device_requests"]
    assert request == {
        "driver": "cdi",
        "device_ids": ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"],
    }
    assert "label=disable" in made.host["security_opt"]
    with pytest.raises(EngineError, match=r"Podman 5\.3\.2 gives no GPU"):
        options(launch(GPUS), IMAGE, podman=(5, 3, 2))
    assert "device_requests" not in options(launch(STANDIN), IMAGE, podman=(4, 3, 1)).host


def test_podmans_own_name_of_the_host_is_used_because_it_does_not_know_host_gateway():
    assert options(launch(), IMAGE).host["extra_hosts"] == {"host.docker.internal": "host-gateway"}
    assert "extra_hosts" not in options(launch(), IMAGE, podman=(5, 4, 0)).host
    # On an internal network it has another address.
    inside = options(launch(), IMAGE, podman=(5, 4, 0), host_address="10.1.0.1")
    assert inside.host["extra_hosts"] == {"host.containers.internal": "10.1.0.1"}


@pytest.mark.parametrize(
    ("template", "command"),
    [
        ({}, []),
        ({"command": ("a", "b")}, ["a", "b"]),
        ({"protocol": Protocol.PUSH}, ["python", "-u", "handler.py", *SERVE]),
        ({"protocol": Protocol.PUSH, "command": ("a",)}, ["a", *SERVE]),
        ({"protocol": Protocol.PUSH, "entrypoint": ("python", "h.py")}, [*SERVE]),
        (
            {"protocol": Protocol.PUSH, "command": ("/bin/sh", "-c", "python h.py")},
            [
                "/bin/sh",
                "-c",
                "python h.py --rp_serve_api --rp_api_host 0.0.0.0 --rp_api_port 8000",
            ],
        ),
    ],
)
def test_a_worker_that_is_pushed_to_gets_the_arguments_of_the_local_api(template, command):
    assert command_of(launch(**template).template, IMAGE) == command


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            "install the NVIDIA Container Toolkit",
        ),
        ("write /var/x: no space left on device", "the disk of the Docker engine is full"),
        (
            "invalid mount config: bind source path does not exist: /models",
            "the directory /models of a mount does not exist",
        ),
        (
            "pull access denied for a, repository does not exist or may require 'docker login'",
            "run docker login",
        ),
        ("manifest for a:b not found: manifest unknown: x", "the registry has no such image"),
        (
            "Get https://x/v2/: dial tcp: lookup x: no such host",
            "the registry cannot be reached",
        ),
        (
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            "not made for the processor of this host, linux/arm64/v8",
        ),
        (
            'runc: exec: "nosuch": executable file not found in $PATH: unknown',
            "the image has no command nosuch",
        ),
        (
            "runc: error during container init: error setting rlimit type 7: operation not permitted: OCI permission denied",
            "may not raise the limits of a container: set default_ulimits",
        ),
        (
            "crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted: OCI permission denied",
            "may not raise the limits of a container: set default_ulimits",
        ),
        (
            'pinging container registry 127.0.0.1:1: Get "https://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused',
            "the registry cannot be reached",
        ),
        (
            "reading manifest 1 in 127.0.0.1:5055/team/none: manifest unknown: manifest unknown",
            "the registry has no such image",
        ),
        ("Not Found", "Podman asks no registry what a tag means"),
        ("something\nnew " + "x" * 1000, "the Docker engine refused: something new xxx"),
    ],
)
def test_an_engines_error_is_one_plain_sentence(message, sentence):
    found = words(message)
    assert sentence in found
    assert "\n" not in found
    assert len(found) < 400


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ("PermissionError(13, 'Permission denied')", "add the user to the group docker"),
        ("FileNotFoundError(2, 'No such file or directory')", "there is no socket"),
        ("ConnectionRefusedError(111, 'Connection refused')", "no Docker engine answers"),
        (
            "('Connection aborted.',\nRemoteDisconnected())",
            "failed: ('Connection aborted.', Remote",
        ),
    ],
)
def test_the_reason_why_no_engine_answers_is_one_plain_sentence(problem, sentence):
    message = f"Error while fetching server API version: ('Connection aborted.', {problem})"
    assert sentence in away_words(problem if "\n" in problem else message)


def test_podman_is_known_by_its_component():
    docker = {"Components": [{"Name": "Engine", "Version": "20.10.24"}], "ApiVersion": "1.41"}
    podman = {"Components": [{"Name": "Podman Engine", "Version": "5.4.1-rc2"}]}
    assert podman_version(docker) is None
    assert podman_version({}) is None
    assert podman_version(podman) == (5, 4, 1)
