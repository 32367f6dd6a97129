"""The engine `docker` on a real Docker engine: containers of managed workers, from start to removal."""

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from helpers import Process, load_settings, wait_until

from ownpod.agent.agent import Agent
from ownpod.agent.container_options import name_of
from ownpod.agent.containers import ContainerEngine
from ownpod.agent.devices import Devices
from ownpod.agent.engine import EngineError, Launch
from ownpod.agent.steps import Host
from ownpod.housekeeping.scaler import Scaler
from ownpod.registry import Registry
from ownpod.rules.balancing import Balancing
from ownpod.rules.devices import DeviceChoice
from ownpod.rules.endings import why_ended
from ownpod.rules.endpoints import Endpoint
from ownpod.rules.managed import Device, Phase
from ownpod.rules.output import LONGEST_LINE, Lines
from ownpod.rules.placement import pools_of
from ownpod.rules.templates import Limits, ManagedSpec, Protocol, Scaling, Template
from ownpod.store.agents import Agents, Wakeups
from ownpod.store.fleet import Fleet
from ownpod.store.managed import Managed
from ownpod.store.outputs import Outputs

pytestmark = [
    pytest.mark.timeout(300),
    # docker-py leaves it to the garbage collector to close a socket that could not be connected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

IMAGE = "ownpod-test/tiny:1"
PROGRAMS = ("sh", "bash", "sleep", "tail", "cat", "env", "grep", "true")
MIB = 2**20

WAITS = ("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done")
DEAF = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")


def docker(*command, host=None, check=True, **options):
    environ = os.environ | ({"DOCKER_HOST": host} if host else {})
    done = subprocess.run(
        ["docker", *command],
        env=environ,
        capture_output=True,
        check=False,
        timeout=120,
        **options,
    )
    assert not check or done.returncode == 0, (command, done.stderr)
    return done.stdout.decode(errors="replace").strip()


def inspect(name):
    (found,) = json.loads(docker("inspect", name))
    return found


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A root directory with a shell and few programs of this host, as a tar file: no registry is needed."""
    root = tmp_path_factory.mktemp("root")
    for program in PROGRAMS:
        path = Path(shutil.which(program)).resolve()
        libraries = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        paths = [word for word in libraries.split() if word.startswith("/")]
        for source, target in [(path, f"bin/{program}"), *((p, p[1:]) for p in paths)]:
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / target)
    (root / "tmp").mkdir()
    tar = tmp_path_factory.mktemp("tar") / "tiny.tar"
    subprocess.run(["tar", "-C", root, "-cf", tar, "."], check=True)
    return tar


@pytest.fixture(scope="session")
def tiny(docker_engine, archive):
    docker("import", "--change", 'CMD ["true"]', str(archive), IMAGE)
    yield
    docker("image", "rm", "--force", IMAGE)


def remove_all(instance, host=None):
    listed = docker(
        "ps", "--all", "--quiet", "--filter", f"label=ownpod.instance={instance}", host=host
    )
    if listed:
        docker("rm", "--force", "--volumes", *listed.split(), host=host)


class Lab:
    """An engine of its own instance, and workers in it."""

    def __init__(self, instance):
        self.instance = instance
        self.engine = ContainerEngine(instance)
        self._count = 0

    def launch(self, command=WAITS, *, devices=(), env=(), **template):
        self._count += 1
        worker = f"w{self._count:013}"
        values = {"image": IMAGE, "command": tuple(command), **template}
        return Launch(worker, "ep", self.instance, Template(**values), dict(env), tuple(devices))

    def start(self, command=WAITS, **options):
        launch = self.launch(command, **options)
        self.engine.start(launch)
        return launch.worker_id

    def ended(self, worker):
        def look():
            found = self.engine.list().get(worker)
            return found is not None and not found.running and found

        return wait_until(look, 30, f"{worker} has ended")


@pytest.fixture
def lab(tiny, request):
    instance = f"test-{os.getpid()}-{abs(hash(request.node.name))}"
    made = Lab(instance)
    yield made
    made.engine.close()
    remove_all(instance)
    # Here, because later tests do not ignore its warnings.
    gc.collect()


def test_a_worker_is_started_listed_stopped_and_removed(lab):
    worker = lab.start(env={"GREETING": "hello there"}, command=("sh", "-c", "env; sleep 60"))
    wait_until(lambda: "GREETING=hello there" in lab.engine.log(worker), what="its output")
    assert "NVIDIA_VISIBLE_DEVICES=void" in lab.engine.log(worker)
    found = lab.engine.list()
    assert found.keys() == {worker}
    assert found[worker].running
    assert found[worker].exit_code is None
    assert 0 <= found[worker].age_s < 60
    with pytest.raises(EngineError):
        lab.engine.remove(worker)
    assert lab.engine.env(worker)["GREETING"] == "hello there"
    lab.engine.stop(worker, 0)
    ended = lab.ended(worker)
    assert ended.exit_code in (-signal.SIGTERM, -signal.SIGKILL)
    assert not ended.out_of_memory
    assert "GREETING" in lab.engine.log(worker)
    lab.engine.remove(worker)
    lab.engine.remove(worker)
    lab.engine.stop(worker)
    assert lab.engine.list() == {}
    assert lab.engine.log(worker) == ""
    assert lab.engine.env(worker) == {}


def test_a_second_start_changes_nothing_and_a_new_engine_adopts_the_worker(lab):
    launch = lab.launch()
    lab.engine.start(launch)
    first = inspect(f"ownpod-{launch.worker_id}")
    with contextlib.closing(ContainerEngine(lab.instance)) as other:
        assert other.start(launch).url is None
        assert other.list().keys() == {launch.worker_id}
        again = inspect(f"ownpod-{launch.worker_id}")
        assert (again["Id"], again["State"]["Pid"]) == (first["Id"], first["State"]["Pid"])
        wait_until(lambda: "ready" in other.log(launch.worker_id), what="its trap is set")
        other.stop(launch.worker_id)
        assert lab.ended(launch.worker_id).exit_code == 7


def test_first_starts_at_the_same_time_make_one_network_and_one_container_a_worker(lab):
    docker("network", "rm", "ownpod-workers", check=False)
    engines = [lab.engine, *(ContainerEngine(lab.instance) for _ in range(3))]
    launches, errors = [lab.launch(), lab.launch()], []

    def start(engine):
        try:
            for launch in launches:
                engine.start(launch)
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=[engine]) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in engines[1:]:
        other.close()
    assert errors == []
    assert [found.running for found in lab.engine.list().values()] == [True, True]
    names = docker("network", "ls", "--format", "{{.Name}}").split()
    assert names.count("ownpod-workers") == 1


def test_a_container_that_was_created_and_never_started_is_started(lab):
    launch = lab.launch()
    lab.engine.start(launch)
    made = inspect(f"ownpod-{launch.worker_id}")
    docker("rm", "--force", made["Id"])
    labels = [word for k, v in made["Config"]["Labels"].items() for word in ("--label", f"{k}={v}")]
    docker("create", "--name", f"ownpod-{launch.worker_id}", *labels, IMAGE, *WAITS)
    # It belongs to a start in progress.
    assert lab.engine.list() == {}
    lab.engine.start(launch)
    assert lab.engine.list()[launch.worker_id].running


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(lab):
    worker = lab.start(DEAF)
    wait_until(lambda: "ready" in lab.engine.log(worker), what="its trap is set")
    lab.engine.stop(worker, 1)
    assert lab.ended(worker).exit_code == -9


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("true",), 0, "exit code 0"),
        (("sh", "-c", "exit 3"), 3, "exit code 3"),
        (("nosuch", "x"), 127, "the image has no command nosuch"),
        (("/tmp",), 126, "the command /tmp cannot be started: Permission denied"),
        (("sh", "-c", "kill -TERM $$"), -15, "killed by SIGTERM"),
    ],
)
def test_an_end_has_its_exit_code_and_reason(lab, command, code, words):
    worker = lab.start(command)
    found = lab.ended(worker)
    assert (found.exit_code, found.out_of_memory) == (code, False)
    assert why_ended(code, log=lab.engine.log(worker)) == words


def test_only_a_worker_that_the_kernel_killed_is_out_of_memory(lab):
    small = Limits(memory_bytes=32 * MIB)
    killed = lab.start(("tail", "/dev/zero"), limits=small)
    survives = lab.start(("sh", "-c", "tail /dev/zero; exit 0"), limits=small)
    found = lab.ended(killed)
    assert (found.exit_code, found.out_of_memory) == (-9, True)
    found = lab.ended(survives)
    assert (found.exit_code, found.out_of_memory) == (0, False)


def test_limits_and_restrictions_are_in_force(lab):
    limits = Limits(memory_bytes=128 * MIB, cpus=0.5, shm_bytes=32 * MIB, pids=17)
    read = "grep -E 'CapEff|NoNewPrivs' /proc/self/status; cat /proc/1/cmdline; cat /etc/hosts; grep shm /proc/mounts"
    worker = lab.start(("sh", "-c", read), limits=limits)
    lab.ended(worker)
    log = lab.engine.log(worker)
    assert "CapEff:\t0000000000000000" in log
    assert "NoNewPrivs:\t1" in log
    assert "docker-init" in log
    assert "host.docker.internal" in log
    assert "size=32768k" in log
    host = inspect(f"ownpod-{worker}")["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (128 * MIB, 128 * MIB)
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 17)
    assert (host["RestartPolicy"]["Name"], host["AutoRemove"]) == ("no", False)
    assert host["PortBindings"] in (None, {})


def test_more_processes_than_the_limit_cannot_be_started(lab):
    forks = "sleep 5 & " * 40 + "echo all"
    # Not fewer: runc's own threads count, too, and some containers would not start.
    worker = lab.start(("sh", "-c", forks), limits=Limits(pids=17))
    lab.ended(worker)
    assert "fork" in lab.engine.log(worker)


def test_the_log_has_the_last_lines_of_output_and_errors(lab):
    worker = lab.start(("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; echo no >&2"))
    lab.ended(worker)
    # The order of the two streams is the engine's.
    assert len(lab.engine.log(worker, 3).splitlines()) == 3
    assert set(lab.engine.log(worker).splitlines()) == {*(f"line {i}" for i in range(1, 6)), "no"}


def test_an_image_that_cannot_be_had_is_one_line_that_names_it(lab):
    words = []
    with pytest.raises(EngineError, match=r"image .*no-such-image:9.*") as failed:
        # No server listens there.
        lab.engine.prepare(Template(image="127.0.0.1:1/no-such-image:9"), words.append)
    assert "the registry cannot be reached" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert words == ["image pull"]
    with pytest.raises(EngineError, match="is not on this host any more"):
        lab.engine.start(lab.launch(image="127.0.0.1:1/no-such-image:9"))
    assert (
        docker("ps", "--all", "--quiet", "--filter", f"label=ownpod.instance={lab.instance}") == ""
    )


def test_an_image_that_is_here_is_not_pulled_and_runs_by_its_id(lab):
    words = []
    launch = lab.launch()
    lab.engine.prepare(launch.template, words.append)
    assert words == []
    lab.engine.start(launch)
    made = inspect(f"ownpod-{launch.worker_id}")
    (image,) = json.loads(docker("image", "inspect", IMAGE))
    assert made["Config"]["Image"] == made["Image"] == image["Id"]
    assert made["Config"]["Labels"]["ownpod.image"] == f"docker.io/{IMAGE}"


def test_a_tag_that_moves_after_the_image_was_prepared_changes_nothing(lab, archive):
    tag = "ownpod-test/moves:1"
    docker("tag", IMAGE, tag)
    try:
        launch = lab.launch(image=tag)
        lab.engine.prepare(launch.template, print)
        docker("import", str(archive), tag)
        lab.engine.start(launch)
        (image,) = json.loads(docker("image", "inspect", IMAGE))
        assert inspect(f"ownpod-{launch.worker_id}")["Image"] == image["Id"]
    finally:
        docker("image", "rm", "--force", tag)


def test_a_tag_that_moves_makes_a_release_whose_image_comes_before_its_first_worker(
    lab, archive, client
):
    managed, agents = Managed(client), Agents(client)
    spec = ManagedSpec(Template(image=IMAGE, command=WAITS), Scaling(1, 2))
    endpoint = Endpoint("ep", (), 600_000, 86_400_000, 3, 0, managed=spec)
    registry = Registry({"ep": endpoint}, Fleet(client), load_settings())
    scaler = Scaler(registry, managed, agents, Wakeups(client))
    agent = Agent(
        Host("h", "http://127.0.0.1:1", {}),
        lab.engine,
        Devices(DeviceChoice(stand_ins=2), {}, pools_of=pools_of),
        managed=managed,
        agents=agents,
        outputs=Outputs(client),
        wakeups=Wakeups(client),
        environ={},
    )

    def starting():
        """Turns until a worker starts; its id, and its container's image."""

        def turned():
            scaler.once()
            agent.turn()
            return [w.id for w in managed.list("ep") if w.phase is Phase.STARTING]

        (worker,) = wait_until(turned, 60, "a worker that starts")
        return worker, inspect(f"ownpod-{worker}")["Image"]

    try:
        old, first = starting()
        assert managed.ready(old)
        assert managed.rolled_out("ep").rollout.current.digest == first
        docker("import", "--change", "LABEL moved=1", str(archive), IMAGE)
        managed.releases.look("ep")
        new, second = starting()
        assert first != second
        rollout = managed.rolled_out("ep").rollout
        assert (rollout.current.number, rollout.current.digest) == (2, second)
        assert managed.releases.images("ep", 2)["h"].ready
        assert managed.get(old).phase is Phase.READY
        assert managed.ready(new)
        scaler.once()
        assert managed.get(old).reason == "the endpoint has a new release"
    finally:
        agent.leave()


def test_an_image_that_is_not_allowed_is_neither_pulled_nor_started(lab):
    with contextlib.closing(
        ContainerEngine(lab.instance, allow=("ghcr.io/team/*", "ubuntu"))
    ) as engine:
        launch = lab.launch()
        for refused in (
            lambda: engine.check_template(launch.template),
            lambda: engine.prepare(launch.template, print),
            lambda: engine.start(launch),
        ):
            with pytest.raises(EngineError) as error:
                refused()
            assert str(error.value) == (
                f"image docker.io/{IMAGE} is not allowed: OWNPOD_IMAGES allows ghcr.io/team/*, ubuntu"
            )
        assert engine.list() == {}


def test_a_pull_without_room_on_the_disk_is_refused_before_it_begins(lab):
    with contextlib.closing(ContainerEngine(lab.instance, free_bytes=10**18)) as engine:
        words = []
        with pytest.raises(EngineError, match=r"are free in /.*must stay free"):
            engine.prepare(Template(image="127.0.0.1:1/no-such-image:9"), words.append)
        assert words == []


def test_a_host_without_gpu_support_is_one_plain_sentence_and_nothing_is_left(lab):
    gpu = Device("GPU-00000000-0000-0000-0000-000000000000", 0, "RTX")
    with pytest.raises(EngineError, match="install the NVIDIA Container Toolkit"):
        lab.start(devices=[gpu])
    assert (
        docker("ps", "--all", "--quiet", "--filter", f"label=ownpod.instance={lab.instance}") == ""
    )
    # A stand-in asks the engine for nothing.
    worker = lab.start(devices=[Device("cpu-0", 0, "CPU", simulated=True)])
    assert lab.engine.list()[worker].running


@pytest.mark.parametrize("labels", [{}, {"ownpod": "1", "ownpod.instance": "another"}])
def test_a_foreign_container_with_the_workers_name_is_not_touched(lab, labels):
    launch = lab.launch()
    name = f"ownpod-{launch.worker_id}"
    given = [word for k, v in labels.items() for word in ("--label", f"{k}={v}")]
    container = docker("run", "--detach", "--name", name, *given, IMAGE, *DEAF)
    try:
        with pytest.raises(EngineError, match=f"another program has a container .* {name}"):
            lab.engine.start(launch)
        lab.engine.stop(launch.worker_id, 0)
        lab.engine.remove(launch.worker_id)
        assert lab.engine.log(launch.worker_id) == ""
        assert lab.engine.list() == {}
        assert inspect(container)["State"]["Running"]
    finally:
        docker("rm", "--force", container)


def test_workers_do_not_reach_each_other(lab):
    worker = lab.start()
    (network,) = json.loads(docker("network", "inspect", "ownpod-workers"))
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    assert network["Labels"] == {"ownpod": "1"}
    assert inspect(f"ownpod-{worker}")["Id"] in network["Containers"]


CONNECTS = """
(exec 3<>/dev/tcp/host.docker.internal/$PORT && echo "it reaches the host") &
(exec 3<>/dev/tcp/$BEYOND/80 && echo "it reaches beyond") &
sleep $PATIENCE
echo done
"""
"""A container waits for connections as long as it is patient: a network may drop what it does not let pass."""


@pytest.fixture
def beyond():
    """The address of a server on another host, which is a network namespace beside Docker's networks."""

    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)

    space, link, net = f"ownpod-test-{os.getpid()}", f"oe{os.getpid()}", "198.19.251"
    server = "import socket, time; s = socket.create_server(('', 80)); print(1, flush=True); time.sleep(300)"
    ip("netns", "add", space)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("address", "add", f"{net}.1/24", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", space, "address", "add", f"{net}.2/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        command = ["ip", "netns", "exec", space, sys.executable, "-c", server]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"1\n"
            yield f"{net}.2"
            process.kill()
    finally:
        ip("netns", "delete", space)


def test_a_worker_without_egress_reaches_its_host_and_nothing_beyond(lab, beyond):
    lab.start(egress=False)
    (network,) = json.loads(docker("network", "inspect", "ownpod-workers-internal"))
    assert network["Internal"]
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    for egress, address, patience in ((True, "172.17.0.1", "300"), (False, gateway, "15")):
        with socket.create_server((address, 0)) as server:
            env = {
                "PORT": str(server.getsockname()[1]),
                "BEYOND": beyond,
                "PATIENCE": patience,
            }
            worker = lab.start(("bash", "-c", CONNECTS), env=env, egress=egress)
            for words in ("the host", *(["beyond"] if egress else ["done"])):
                wait_until(lambda w=words, i=worker: w in lab.engine.log(i), 60, words)
        assert ("it reaches beyond" in lab.engine.log(worker)) is egress


def test_a_network_of_that_name_that_leads_out_stops_the_start(lab):
    docker("network", "rm", "ownpod-workers-internal", check=False)
    docker("network", "create", "ownpod-workers-internal")
    try:
        with pytest.raises(EngineError, match="is not internal"):
            lab.start(egress=False)
    finally:
        docker("network", "rm", "ownpod-workers-internal")
    assert lab.engine.list() == {}


def test_the_end_of_a_worker_ends_the_wait(lab):
    worker = lab.start()
    wait_until(lambda: "ready" in lab.engine.log(worker), what="its trap is set")
    # The first wait ends once the subscription is made.
    lab.engine.wait(30)
    threading.Timer(0.2, docker, ["kill", f"ownpod-{worker}"]).start()

    def waited():
        lab.engine.wait(60)
        return not lab.engine.list()[worker].running

    began = time.monotonic()
    wait_until(waited, 60, "the wait ended and the worker is ended")
    assert time.monotonic() - began < 55


def test_without_an_engine_and_without_permission_there_is_one_line(lab, tmp_path):
    with contextlib.closing(ContainerEngine("x", url=f"unix://{tmp_path}/docker.sock")) as engine:
        for call in (engine.check, engine.list):
            with pytest.raises(EngineError, match="there is no socket of a Docker engine here"):
                call()
        engine.wait(0.1)


def test_a_worker_that_is_pushed_to_serves_its_local_api_at_the_url(images, lab):
    launch = lab.launch((), image="ownpod/worker-echo", protocol=Protocol.PUSH)
    url = lab.engine.start(launch).url

    def answers():
        with contextlib.suppress(requests.RequestException):
            return requests.post(f"{url}/runsync", json={"input": {"x": 1}}, timeout=5).json()

    assert wait_until(answers, 60, "an answer")["status"] == "COMPLETED"


def test_a_worker_that_is_pushed_to_and_ends_at_once_is_an_error_with_its_reason(lab):
    def tried():
        launch = lab.launch(("nosuch",), protocol=Protocol.PUSH)
        try:
            lab.engine.start(launch)
        except EngineError as error:
            assert lab.engine.list().get(launch.worker_id) is None
            return str(error)
        # It had not ended yet.
        return None

    assert "ended at once, the image has no command nosuch" in wait_until(tried, 60)


SERVES = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path} at {self.server.server_port} as {os.getuid()}".encode())

health = HTTPServer(("0.0.0.0", int(os.environ["PORT_HEALTH"])), Handler)
Thread(target=health.serve_forever).start()
HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_a_load_balanced_worker_serves_on_the_engines_network_and_nothing_is_published(images, lab):
    template = {"image": "ownpod/worker-echo", "entrypoint": ("python",), "protocol": Protocol.HTTP}
    env = {"PORT": "80", "PORT_HEALTH": "81", "HEALTH_CHECK_PATH": "/ping"}
    launch = lab.launch(("-c", SERVES), env=env, **template)
    launch = replace(launch, balancing=Balancing(80, 81))
    started = lab.engine.start(launch)
    assert started.health_port == 81

    def answer(url):
        with contextlib.suppress(requests.RequestException):
            return requests.get(url, timeout=5).text

    text = wait_until(lambda: answer(f"{started.url}/x"), 60, "an answer")
    assert text.startswith("/x at 80 as ")
    host = urlsplit(started.url).hostname
    assert answer(f"http://{host}:81/ping").startswith("/ping at 81 ")
    found = inspect(name_of(launch.worker_id))
    assert not found["HostConfig"]["PortBindings"]
    assert not any(found["NetworkSettings"]["Ports"].values())
    with contextlib.closing(ContainerEngine(lab.instance)) as later:
        assert later.address(launch.worker_id) == later.start(launch) == started


@pytest.fixture
def own_engine(archive, tmp_path):
    """A Docker engine that a test may kill, in namespaces of its own, so that it leaves no rules and mounts on this host."""
    if os.geteuid() != 0:
        pytest.fail("needs root, as `.ci/engine` does")
    host = f"unix://{tmp_path}/docker.sock"

    def start():
        started = Process(
            *("unshare", "--net", "--mount", "dockerd", "--data-root", tmp_path / "data"),
            *("--exec-root", tmp_path / "exec", "--pidfile", tmp_path / "pid", "--host", host),
            log=tmp_path / "log",
        )
        version = ("version", "--format", "{{.Server.Version}}")
        wait_until(lambda: docker(*version, host=host, check=False), 60, "dockerd answers")
        return started

    running = [start()]

    def kill():
        running[0].send(signal.SIGKILL)
        running[0].wait()

    def restart():
        # A host whose first process does not reap others would keep the dead ones, which dockerd takes for living ones.
        for pid in ("pid", "exec/containerd/containerd.pid"):
            (tmp_path / pid).unlink(missing_ok=True)
        running[0] = start()

    docker("import", str(archive), IMAGE, host=host)
    yield host, kill, restart
    if not running[0].running:
        restart()
    remove_all("killed", host)
    running[0].stop(60)
    gc.collect()


def test_an_engine_that_was_killed_is_an_error_and_then_works_again(own_engine):
    host, kill, restart = own_engine
    lab = Lab("killed")
    with contextlib.closing(ContainerEngine("killed", url=host)) as lab.engine:
        lab.engine.check()
        worker = lab.start()
        lab.engine.wait(30)
        kill()
        for call in (lab.engine.check, lab.engine.list, lambda: lab.engine.stop(worker)):
            with pytest.raises(EngineError, match="Docker engine"):
                call()
        with pytest.raises(EngineError, match="Docker engine"):
            lab.start()
        lab.engine.wait(0.1)
        restart()
        # An engine without live-restore ends the containers that it finds after a crash.
        assert worker in lab.engine.list()
        another = lab.start()
        assert lab.engine.list()[another].running
        lab.engine.stop(another, 0)
        lab.ended(another)


# --- output


def output_of(source, *, parts=10**9):
    """What a source brings, in at most this number of parts, and the position behind it; None: it is at its end."""
    data = b""
    while parts:
        part = source.read(30)
        if part is None:
            return data, None
        data, position, parts = data + part.data, part.position, parts - bool(part.data)
    return data, position


def test_sources_that_follow_each_other_bring_each_line_of_a_container_once(lab):
    script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    worker = lab.start(("sh", "-c", script))
    found, position = b"", ""
    while position is not None:
        with contextlib.closing(lab.engine.follow(worker, position)) as source:
            data, position = output_of(source, parts=3)
            found += data
    lines = found.decode().splitlines()
    assert [line for line in lines if line[:3] == "out"] == [f"out {n}" for n in range(3000)]
    assert [line for line in lines if line[:3] == "err"] == [f"err {n}" for n in range(3000)]
    # A worker of which nothing is left.
    lab.ended(worker)
    lab.engine.remove(worker)
    with contextlib.closing(lab.engine.follow(worker)) as source:
        assert source.read(30) is None


def test_a_long_line_and_a_progress_bar_of_a_container_are_bounded(lab):
    script = (
        'x=x; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do x="$x$x"; done; echo "$x"; '
        "for n in 1 2 3 4 5 6 7 8; do printf '\\r%s %%' $n; done; echo; echo end"
    )
    worker = lab.start(("sh", "-c", script))
    with contextlib.closing(lab.engine.follow(worker)) as source:
        data, _ = output_of(source)
    assert data.startswith(b"x" * 65_536 + b"\n\r1 %\r2 %")
    found = [line.text for line in Lines().feed(data, 0.0)]
    assert [text[:3] for text in found] == ["xxx", "1 %", "8 %", "end"]
    assert len(found[0].encode()) == LONGEST_LINE


def test_the_end_of_a_connection_is_not_the_end_of_a_container(lab):
    worker = lab.start(
        ("sh", "-c", "echo one; while [ ! -f /tmp/go ]; do sleep 0.1; done; echo two")
    )
    with contextlib.closing(lab.engine.follow(worker)) as source:
        data, _ = output_of(source, parts=1)
        assert data == b"one\n"
        source._stream.close()
        docker("exec", f"ownpod-{worker}", "sh", "-c", "echo go > /tmp/go")
        assert output_of(source) == (b"two\n", None)


def test_a_gigabyte_of_a_containers_output_is_bounded(lab):
    script = (
        'x=0123456; for n in 1 2 3 4 5 6 7 8 9 10; do x="$x$x"; done; i=0; '
        'while [ $i -lt 140000 ]; do echo "$x"; i=$((i+1)); done; echo the last words'
    )
    worker = lab.start(("sh", "-c", script))
    path = Path(inspect(f"ownpod-{worker}")["LogPath"])
    lines, found, most = Lines(), [], 0
    with contextlib.closing(lab.engine.follow(worker)) as source:
        while (part := source.read(1)) is not None:
            now_s = time.monotonic()
            if part.skipped:
                lines.skip(max(part.skipped, 0), now_s)
            found += lines.feed(part.data, now_s)
            files = [path, *path.parent.glob("*-json.log.*")]
            with contextlib.suppress(FileNotFoundError):
                most = max(most, sum(file.stat().st_size for file in files))
    found += lines.finish()
    assert most <= 40_000_000
    assert len(found) < 20_000
    assert found[-1].text == "the last words"
    assert any("left out" in line.text for line in found)
