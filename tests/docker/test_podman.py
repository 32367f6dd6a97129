"""The engine `docker` on a real Podman, through its Docker API: what works as with Docker, and what Podman does otherwise."""

import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, Process, run_command, wait_until
from test_docker_engine import DEAF, IMAGE, MIB, Lab, archive, docker, inspect, remove_all

from ownpod.agent.containers import ContainerEngine
from ownpod.agent.engine import EngineError
from ownpod.agent.volumes import Volumes
from ownpod.rules.endings import why_ended
from ownpod.rules.templates import Limits, Protocol, VolumeMount
from ownpod.rules.volumes import parse_sources

__all__ = ["archive"]

pytestmark = [
    pytest.mark.timeout(300),
    # docker-py leaves it to the garbage collector to close a socket that could not be connected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

PYTHON = "ownpod-test/python:1"

CONTAINERS = """
[containers]
default_ulimits = {limits}
[network]
network_backend = "netavark"
network_config_dir = "{lab}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{lab}/tmp"
volume_path = "{lab}/volumes"
"""

STORAGE = """
[storage]
driver = "overlay"
graphroot = "{lab}/data"
runroot = "{lab}/run"
"""


def ulimits():
    """Limits that a root without CAP_SYS_RESOURCE may set, too: Podman's own defaults are higher, and no container starts then."""
    processes = int(Path("/proc/sys/kernel/pid_max").read_text())
    most = {"nofile": (resource.RLIMIT_NOFILE, 2**20), "nproc": (resource.RLIMIT_NPROC, processes)}
    found = {}
    for name, (number, highest) in most.items():
        hard = resource.getrlimit(number)[1]
        found[name] = highest if hard == resource.RLIM_INFINITY else min(hard, highest)
    return [f"{name}={value}:{value}" for name, value in found.items()]


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    """The process of Podman's API, in namespaces of its own, so that it leaves no bridges, rules and mounts on this host.

    ``DOCKER_HOST`` names its socket.
    """
    if not shutil.which("podman"):
        pytest.skip("podman is not installed (apt-get install podman catatonit netavark)")
    if os.geteuid() != 0:
        pytest.fail("needs root, as `.ci/engine` does")
    lab = tmp_path_factory.mktemp("podman")
    (lab / "containers.conf").write_text(CONTAINERS.format(lab=lab, limits=json.dumps(ulimits())))
    (lab / "storage.conf").write_text(STORAGE.format(lab=lab))
    host = f"unix://{lab}/podman.sock"
    service = Process(
        *("unshare", "--net", "--mount", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
        *("podman", "system", "service", "--time=0", host),
        log=lab / "log",
        cwd=lab,
        CONTAINERS_CONF=lab / "containers.conf",
        CONTAINERS_STORAGE_CONF=lab / "storage.conf",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", host)
        try:
            version = ("version", "--format", "{{.Server.Version}}")
            wait_until(lambda: docker(*version, check=False) or not service.running, 60)
            assert service.running, service.output
            yield service
            if left := docker("ps", "--all", "--quiet").split():
                docker("rm", "--force", *left)
        finally:
            service.stop(60)


@pytest.fixture
def tiny(podman, archive):
    docker("import", "--change", 'CMD ["true"]', str(archive), IMAGE)


@pytest.fixture
def lab(tiny, request):
    instance = f"test-{os.getpid()}-{request.node.name[:40]}"
    made = Lab(instance)
    yield made
    made.engine.close()
    remove_all(instance)
    # Here, because later tests do not ignore its warnings.
    gc.collect()


def test_a_worker_is_started_adopted_stopped_and_removed(lab):
    launch = lab.launch(env={"GREETING": "hello there"})
    worker = launch.worker_id
    lab.engine.check()
    lab.engine.prepare(launch.template, pytest.fail)
    lab.engine.start(launch)
    first = inspect(f"ownpod-{worker}")
    with contextlib.closing(ContainerEngine(lab.instance)) as other:
        other.start(launch)
        again = inspect(f"ownpod-{worker}")
        assert (again["Id"], again["State"]["Pid"]) == (first["Id"], first["State"]["Pid"])
        assert other.list()[worker].running
        assert other.env(worker)["GREETING"] == "hello there"
        assert other.pids() == {first["State"]["Pid"]}
        wait_until(lambda: "ready" in other.log(worker), what="its trap is set")
        with pytest.raises(EngineError):
            other.remove(worker)
        other.stop(worker)
    assert lab.ended(worker).exit_code == 7
    lab.engine.remove(worker)
    lab.engine.remove(worker)
    lab.engine.stop(worker)
    assert (lab.engine.list(), lab.engine.log(worker)) == ({}, "")


def test_a_worker_that_is_being_stopped_runs_and_its_end_has_the_exit_code(lab):
    worker = lab.start(DEAF)
    wait_until(lambda: "ready" in lab.engine.log(worker), what="its trap is set")
    stops = threading.Thread(target=lab.engine.stop, args=[worker, 2])
    stops.start()

    def state():
        return inspect(f"ownpod-{worker}")["State"]["Status"]

    wait_until(lambda: state() != "running", what="it is being stopped")
    while stops.is_alive():
        found = lab.engine.list()[worker]
        assert found.running or found.exit_code == -signal.SIGKILL
        assert found.running or state() in {"stopped", "exited"}
    stops.join()
    assert lab.ended(worker).exit_code == -signal.SIGKILL


def test_the_end_of_a_worker_is_an_event(lab):
    worker = lab.start()
    wait_until(lambda: "ready" in lab.engine.log(worker), what="its trap is set")
    # The first wait ends once the subscription is made.
    lab.engine.wait(30)
    killed = threading.Thread(target=docker, args=["kill", f"ownpod-{worker}"])
    killed.start()
    lab.engine.wait(250)
    killed.join()
    assert lab.engine._changes.has_ended(inspect(f"ownpod-{worker}")["Id"])


def test_limits_and_restrictions_are_in_force(lab):
    limits = Limits(memory_bytes=128 * MIB, cpus=0.5, shm_bytes=32 * MIB, pids=17)
    read = "grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat /proc/1/cmdline; cat /etc/hosts; grep shm /proc/mounts"
    worker = lab.start(("sh", "-c", read), limits=limits)
    lab.ended(worker)
    log = lab.engine.log(worker)
    for text in ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "podman-init", "size=32768k"):
        assert text in log
    assert "host.containers.internal" in log
    assert "host-gateway" not in log
    host = inspect(f"ownpod-{worker}")["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (128 * MIB, 128 * MIB)
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 17)
    assert (host["RestartPolicy"]["Name"], host["AutoRemove"]) == ("no", False)
    forks = "sleep 5 & " * 40 + "echo all"
    # Not fewer: runc's own threads count, too, and some containers would not start.
    worker = lab.start(("sh", "-c", forks), limits=Limits(pids=17))
    lab.ended(worker)
    assert "fork" in lab.engine.log(worker)
    worker = lab.start(("tail", "/dev/zero"), limits=Limits(memory_bytes=32 * MIB))
    # Whether memory was the reason is reported from version 5.0 on.
    assert lab.ended(worker).exit_code == -signal.SIGKILL


def test_a_command_that_cannot_be_started_is_the_reason(lab):
    launches = {
        "the image does not have the command": lab.launch(("nosuch",)),
        "the command cannot be started: Permission denied": lab.launch(("/tmp",)),
    }
    for words, launch in launches.items():
        lab.engine.start(launch)
        found = lab.ended(launch.worker_id)
        assert why_ended(found.exit_code, log=lab.engine.log(launch.worker_id)) == words
    pushed = lab.launch(("nosuch",), protocol=Protocol.PUSH)
    # The first one is too early where the container has not ended yet.
    with contextlib.suppress(EngineError):
        lab.engine.start(pushed)
        lab.ended(pushed.worker_id)
        with pytest.raises(EngineError, match="ended at once, the image does not have the command"):
            lab.engine.start(pushed)
    assert pushed.worker_id not in lab.engine.list()


def test_a_name_that_is_in_use_is_not_touched_and_the_reason_names_it(lab):
    launch = lab.launch()
    name = f"ownpod-{launch.worker_id}"
    container = docker("run", "--detach", "--name", name, IMAGE, *DEAF)
    with pytest.raises(EngineError, match=f"another program has a container .* {name}"):
        lab.engine.start(launch)
    assert inspect(container)["State"]["Running"]
    docker("rm", "--force", container)


def test_an_image_that_is_not_allowed_is_not_started(lab):
    with (
        contextlib.closing(ContainerEngine(lab.instance, allow=("ubuntu",))) as engine,
        pytest.raises(EngineError, match=f"image docker.io/{IMAGE} is not allowed"),
    ):
        engine.start(lab.launch())
    assert lab.engine.list() == {}


def test_a_directory_that_does_not_exist_is_not_made(lab, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights").write_text("42\n")
    sources = parse_sources(f"there={tmp_path}/there,gone={tmp_path}/gone")
    lab.engine.close()
    lab.engine = ContainerEngine(lab.instance, volumes=Volumes(sources))
    with pytest.raises(EngineError, match=f"the directory {tmp_path}/gone of a mount does not"):
        lab.start(volumes=(VolumeMount("gone"),))
    assert not (tmp_path / "gone").exists()
    read = ("cat", "/runpod-volume/weights")
    worker = lab.start(read, volumes=(VolumeMount("there"),))
    lab.ended(worker)
    assert lab.engine.log(worker) == "42"


# --- `ownpod up`

WORKER = """
import json, os, urllib.request

def ask(name, body=None):
    url = os.environ["RUNPOD_WEBHOOK_" + name].replace("$RUNPOD_POD_ID", os.environ["RUNPOD_POD_ID"])
    if body is not None:
        url = url.replace("$ID", body["id"])
    data = None if body is None else json.dumps(body["sent"]).encode()
    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
        return json.loads(answer.read() or "null")

count = 0
while True:
    if job := ask("GET_JOB"):
        count += 1
        ask("POST_OUTPUT", {"id": job["id"], "sent": {"output": [count, job["input"]]}})
"""
"""What RunPod's SDK does, without what it imports."""


@pytest.fixture
def python(podman, archive, tmp_path):
    """The tiny image with this Python and its standard library."""
    root = tmp_path / "python"
    library = Path(sysconfig.get_paths()["stdlib"])
    program = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    left_out = ("test", "site-packages", "__pycache__", "config-*", "ensurepip", "idlelib")
    shutil.copytree(library, at(root, library), ignore=shutil.ignore_patterns(*left_out))
    extensions = at(root, library).glob("lib-dynload/*.so")
    listed = subprocess.run(
        ["ldd", program, *extensions], capture_output=True, text=True, check=True
    ).stdout
    found = {Path(word) for word in listed.split() if word.startswith("/") and word[-1] != ":"}
    for path in {program, *found}:
        at(root, path).parent.mkdir(parents=True, exist_ok=True)
        if not at(root, path).exists():
            shutil.copy(path, at(root, path))
    subprocess.run(["tar", "-C", root, "-xf", archive], check=True)
    tar = subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True).stdout
    docker("import", "-", PYTHON, input=tar)
    return str(program)


def at(root, path):
    return root / path.relative_to("/")


class Up:
    """``ownpod up`` in the network namespace of Podman, whose bridge is there only."""

    def __init__(self, podman, directory, content):
        self._enter = ("nsenter", f"--net=/proc/{podman.pid}/ns/net")
        self._dir = directory
        (directory / "workers.yaml").write_text(yaml.safe_dump(content))
        self._process = Process(
            *(*self._enter, sys.executable, "-m", "ownpod", "up", "--host", "0.0.0.0"),
            log=directory / "up.log",
            cwd=directory,
            PYTHONPATH=ROOT,
            DOCKER_HOST=os.environ["DOCKER_HOST"],
            OWNPOD_DATA_DIR=directory / "var",
            OWNPOD_ENGINE="docker",
            OWNPOD_DEVICES="cpu:2",
            OWNPOD_FRONT="off",
            OWNPOD_API_KEYS="a-key",
            OWNPOD_SHUTDOWN_GRACE_S=2,
        )
        wait_until(lambda: "| ready: " in self.output or not self._process.running, 60, "ready")

    @property
    def output(self):
        return self._process.output

    def call(self, *command):
        """What a command prints that is run where the API is reached."""
        done = run_command(*self._enter, *command, cwd=self._dir, OWNPOD_API_KEY="a-key")
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def ownpod(self, *command):
        return self.call(sys.executable, "-m", "ownpod", *command)

    def stop(self):
        return self._process.stop(60)


def test_jobs_sessions_and_tasks_of_an_ownpod_run_in_containers_of_podman(podman, python, tmp_path):
    works = {"image": PYTHON, "command": [python, "-c", WORKER]}
    prints = {"image": PYTHON, "command": ["sh", "-c", "cat $OWNPOD_INPUT_FILE"]}
    session = {"idleTimeout": 60}
    content = {
        "endpoints": {"local-ep": {"template": works, "workersMax": 1, "idleTimeout": 1}},
        "models": {
            "m": {
                "presets": {
                    "chat": {
                        **works,
                        "protocol": "runpod",
                        "difficulty": "low",
                        "session": session,
                    },
                    "print": {**prints, "protocol": "stdout", "difficulty": "low"},
                }
            }
        },
    }
    up = Up(podman, tmp_path, content)
    try:
        assert json.loads(up.ownpod("submit", '{"n": 1}', "--wait")) == [1, {"n": 1}]
        # The second task is of the same process.
        for count in (1, 2):
            assert f"[{count}, " in up.ownpod("session", "send", "m/chat", '{"n": 2}', "--json")
        task = {
            "task_type": "oneoff",
            "task_difficulty": "low",
            "model_id": "m",
            "task_preset": "print",
            "metadata": {"text": "printed-by-the-task"},
            "timeout_seconds": 60,
        }
        header = ("-H", "X-API-Key: a-key", "-H", "Content-Type: application/json")
        url = "http://127.0.0.1:8000/api/tasks/submit"
        events = up.call("curl", "-sSN", *header, "-d", json.dumps(task), url)
        assert "printed-by-the-task" in events
        assert '"completed"' in events
        wait_until(lambda: len(workers()) == 1, 60, "only the session is left")
        assert up.stop() == 0
        assert workers() == []
    finally:
        up.stop()
        print(up.output)


def workers():
    return docker("ps", "--all", "--quiet", "--filter", "label=ownpod.worker").split()
