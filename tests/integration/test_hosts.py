"""`ownpod agents`, `ownpod gpus` and the managed workers of `ownpod workers list`, on a real Redis."""

import json

import pytest
from commands import command_environment, running_commands

from ownpod import settings
from ownpod.configuration import load_endpoints
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.templates import GpuNeed, ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed

WORKER = "w0rker00000001"

FIRST = Device(
    *("GPU-11aa", 0, "NVIDIA GeForce RTX 4090", 24564),
    pools=("ADA_24", "low"),
    metrics={"memory_used_mb": 12390, "utilization_percent": 37, "temperature_c": 61},
)
SECOND = Device("GPU-12bb", 1, "NVIDIA GeForce RTX 4090", 24564, problem="lost: GPU is lost")
STAND_IN = Device("cpu-0", 0, "CPU", simulated=True)


@pytest.fixture
def hosts(client):
    return Agents(client)


@pytest.fixture
def managed(client):
    return Managed(client)


@pytest.fixture
def two_hosts(hosts):
    """Tokens of the agents of two hosts, by host."""
    hosts.heartbeat(AgentInfo("alpha", "docker", (FIRST, SECOND), {"zone": "a"}), "t-alpha")
    hosts.heartbeat(
        AgentInfo("beta", "process", (STAND_IN,), problem="GPU 3: GPU is lost"), "t-beta"
    )
    return {"alpha": "t-alpha", "beta": "t-beta"}


@pytest.fixture
def run(redis_server, monkeypatch, tmp_path):
    """Runs a command in this process; its exit code, output and errors."""
    environ = command_environment(tmp_path, redis_server.url, "endpoints: {ep: {}}")
    with running_commands(monkeypatch, **environ) as run:
        yield run


def place(managed, tokens, host="alpha", device="GPU-11aa"):
    spec = ManagedSpec(Template(image="i", command=("c",)), gpu=GpuNeed())
    assert managed.want(WORKER, "ep", spec=spec)
    assert managed.place(WORKER, host, tokens[host], [device])


def silence(client, host):
    """Makes the last heartbeat of a host one of long ago."""
    client.hset(keys.AGENTS_SEEN, host, "1000 t")


# Hosts.


def test_hosts_are_listed_with_their_devices_and_workers(run, managed, two_hosts):
    place(managed, two_hosts)
    done = run("agents", "list", "--json")
    assert done.code == 0
    alpha, beta = json.loads(done.output)
    assert alpha.pop("silentS") < 60
    assert alpha == {
        "host": "alpha",
        "state": "ready",
        "engine": "docker",
        "devices": 2,
        "free": 0,
        "workers": 1,
        "labels": {"zone": "a"},
        "problem": "",
    }
    assert (beta["free"], beta["workers"], beta["problem"]) == (1, 0, "GPU 3: GPU is lost")


def test_the_table_of_hosts_lines_up(run, two_hosts):
    head, *lines = run("agents", "list").output.splitlines()
    assert [line.split()[0] for line in lines] == ["alpha", "beta"]
    at = head.index("ENGINE")
    assert [line[at:].split()[0] for line in lines] == ["docker", "process"]
    assert lines[0].rstrip().endswith("zone=a")


def test_without_agents_the_list_is_empty_and_names_the_command(run, client):
    done = run("agents", "list")
    assert (done.code, len(done.output.splitlines())) == (0, 1)
    assert "`ownpod agent` starts one" in done.errors
    assert json.loads(run("agents", "list", "--json").output) == []


def test_a_host_is_drained_and_resumed(run, hosts, managed, two_hosts):
    place(managed, two_hosts)
    assert "ownpod agents resume alpha" in run("agents", "drain", "alpha").output
    assert run("agents", "drain", "beta").code == 0
    states = {
        row["host"]: row["state"] for row in json.loads(run("agents", "list", "--json").output)
    }
    assert states == {"alpha": "draining", "beta": "drained"}
    assert json.loads(run("gpus", "list", "--json").output)[2]["state"] == "draining"
    assert run("agents", "resume", "alpha").code == 0
    assert [agent.draining for agent in hosts.agents()] == [False, True]


@pytest.mark.parametrize("command", ["drain", "resume", "remove"])
def test_an_unknown_host_is_one_line_with_the_known_ones(run, two_hosts, command):
    done = run("agents", command, "gamma")
    assert (done.code, done.output) == (2, "")
    assert done.errors == "ownpod: host 'gamma' not found; known hosts: alpha, beta\n"


def test_a_host_is_removed_only_when_it_is_silent(run, client, hosts, two_hosts):
    done = run("agents", "remove", "alpha")
    assert done.code == 2
    assert done.errors.startswith("ownpod: host 'alpha' has workers, or its agent runs")
    silence(client, "alpha")
    assert json.loads(run("agents", "list", "--json").output)[0]["state"] == "silent"
    assert run("agents", "remove", "alpha").code == 0
    assert [agent.host for agent in hosts.agents()] == ["beta"]


# Devices.


def test_devices_are_listed_with_what_they_do(run, managed, two_hosts):
    place(managed, two_hosts)
    first, second, stand_in = json.loads(run("gpus", "list", "--json").output)
    assert first == {
        "host": "alpha",
        "id": "GPU-11aa",
        "index": 0,
        "name": "NVIDIA GeForce RTX 4090",
        "simulated": False,
        "memoryMb": 24564,
        "metrics": {"memory_used_mb": 12390, "utilization_percent": 37, "temperature_c": 61},
        "pools": ["ADA_24", "low"],
        "slots": 1,
        "state": "busy",
        "workers": [WORKER],
        "next": [],
        "idleSeconds": None,
        "reason": "",
    }
    assert (second["state"], second["reason"]) == ("unusable", "lost: GPU is lost")
    assert (stand_in["name"], stand_in["simulated"], stand_in["state"]) == ("CPU", True, "free")


def test_the_table_of_devices_lines_up_and_has_figures(run, two_hosts):
    head, first, second, stand_in = run("gpus", "list").output.splitlines()
    columns = {name: head.index(name) for name in head.split()}
    assert first[columns["MEMORY"] :].startswith("12.1 of 24 GB")
    assert first[columns["LOAD"] :].startswith("37 %")
    assert first[columns["TEMP"] :].startswith("61 °C")
    assert first[columns["POOLS"] :].startswith("ADA_24 low")
    assert second[columns["REASON"] :].startswith("lost: GPU is lost")
    assert stand_in[columns["STATE"] :].startswith("free")
    assert stand_in.rstrip().endswith("cpu-0")


def test_the_devices_of_a_silent_host_are_silent(run, client, two_hosts):
    silence(client, "alpha")
    states = [row["state"] for row in json.loads(run("gpus", "list", "--json").output)]
    assert states == ["silent", "silent", "free"]


def test_a_device_is_reserved_for_a_time_and_released(run, two_hosts):
    assert run("gpus", "reserve", "alpha/0", "--for", "2h", "--reason", "games").output == (
        "reserved alpha/GPU-11aa\n"
    )
    first = json.loads(run("gpus", "list", "--json").output)[0]
    assert first["state"] == "reserved"
    assert first["reason"].startswith("games")
    assert "2 h left" in first["reason"]
    assert run("gpus", "release", "GPU-11").output == "released alpha/GPU-11aa\n"
    assert json.loads(run("gpus", "list", "--json").output)[0]["state"] == "free"
    assert run("gpus", "release", "GPU-11").output == "was not reserved: alpha/GPU-11aa\n"


def test_a_reservation_takes_no_worker_away_unless_it_drains_it(run, managed, two_hosts):
    place(managed, two_hosts)
    done = run("gpus", "reserve", "GPU-11aa")
    assert done.output.splitlines()[1] == f"still running there, see --drain: {WORKER}"
    assert managed.get(WORKER).phase == "preparing"
    assert run("gpus", "reserve", "GPU-11aa", "--drain").code == 0
    worker = managed.get(WORKER)
    assert (worker.phase, worker.reason) == ("draining", "its device is reserved")


@pytest.mark.parametrize("command", ["reserve", "release"])
@pytest.mark.parametrize("device", ["0", "alpha/GPU-1", "alpha/9", "gamma/0", ""])
def test_a_device_that_is_unknown_or_not_unique_is_one_line(run, two_hosts, command, device):
    done = run("gpus", command, device)
    assert (done.code, done.output) == (2, "")
    assert done.errors.startswith(f"ownpod: device {device!r} ")
    assert done.errors.count("\n") == 1
    assert "alpha/GPU-11aa" in done.errors


@pytest.mark.parametrize("time", ["0", "2x", "-1h", "1e9", "400d", "0.5s", ""])
def test_a_wrong_time_of_a_reservation_is_refused_with_what_is_allowed(run, two_hosts, time):
    done = run("gpus", "reserve", "alpha/0", "--for", time)
    assert done.code == 2
    assert "a time from 1s to 365d" in done.errors


# Workers.


def test_managed_workers_are_listed_with_phase_host_and_device(run, managed, two_hosts):
    place(managed, two_hosts)
    managed.progress(WORKER, "alpha", "image pull 43 %")
    lines = run("workers", "list").output.splitlines()
    head = next(n for n, line in enumerate(lines) if "PHASE" in line)
    assert lines[head + 1].split()[:3] == [WORKER, "ep", "preparing"]
    assert "alpha/GPU-11aa" in lines[head + 1]
    assert lines[head + 1].rstrip().endswith("image pull 43 %")


def test_a_failed_worker_is_listed_with_its_exit_code(run, managed, two_hosts):
    place(managed, two_hosts)
    assert managed.stopped(
        WORKER, "alpha", exit_code=3, reason="it ended by itself", failed=True, log="boom"
    )
    output = run("workers", "list").output
    assert "it ended by itself, exit code 3" in output


def test_a_long_reason_is_listed_whole_and_one_that_is_too_long_ends_after_a_word(
    run, managed, two_hosts
):
    place(managed, two_hosts)
    long = "word " * 50 + "end"
    managed.progress(WORKER, "alpha", long)
    assert run("workers", "list").output.rstrip().endswith(long)
    managed.progress(WORKER, "alpha", "word " * 100)
    reason = managed.get(WORKER).reason
    assert (reason[-10:], len(reason) <= 300) == ("ord word …", True)
    managed.progress(WORKER, "alpha", "x" * 400)
    assert managed.get(WORKER).reason == "x" * 298 + " …"


def test_a_worker_that_no_job_was_requested_by_is_initializing_and_not_unhealthy(
    run, managed, two_hosts
):
    place(managed, two_hosts)
    (row,) = (
        line.split()
        for line in run("workers", "list").output.splitlines()
        if line.startswith(WORKER) and "initializing" in line
    )
    assert row[:4] == [WORKER, "ep", f"pull:{WORKER}", "initializing"]


def test_an_endpoint_whose_workers_do_not_start_is_listed_with_the_last_lines(
    run, managed, two_hosts, tmp_path, client
):
    template = "{command: [c], image: i}"
    (tmp_path / "workers.yaml").write_text(f"endpoints: {{ep: {{template: {template}}}}}")
    (endpoint,) = load_endpoints(settings.current()).values()
    spec = endpoint.managed
    log = "\n".join(f"line {n}" for n in range(60))
    assert "do not start" not in run("workers", "list").output
    assert managed.want(WORKER, "ep", spec=spec)
    assert managed.place(WORKER, "alpha", two_hosts["alpha"])
    assert managed.stopped(
        WORKER, "alpha", exit_code=3, reason="it ended by itself", failed=True, log=log
    )
    # Until the fifth, an endpoint is shown during the pause before its next start only.
    client.hset(f"{keys.MANAGED_FAILURES}ep", "count", 5)
    lines = run("workers", "list").output.splitlines()
    (at,) = (n for n, line in enumerate(lines) if line.startswith("ep: its workers do not start"))
    assert "exit code 3" in lines[at]
    assert lines[at + 1 :] == [f"  line {n}" for n in range(10, 60)]


def test_a_paused_endpoint_is_listed_with_the_reason(run, tmp_path):
    (tmp_path / "workers.yaml").write_text(
        "endpoints: {ep: {expires: 2026-01-02T03:04:05Z, template: {command: python handler.py}}}"
    )
    output = run("workers", "list").output
    assert "ep: the endpoint is paused: it expired at 2026-01-02T03:04:05Z" in output
