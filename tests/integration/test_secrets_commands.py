"""`ownpod secrets` and `ownpod volumes`, on a real Redis."""

import contextlib
import json
import os
import pty
import pwd
import subprocess
import sys

import psutil
import pytest
from commands import command_environment, running_commands
from helpers import environment, run_command, wait_until

from ownpod import settings
from ownpod.rules.managed import AgentInfo, HostVolume
from ownpod.rules.templates import ManagedSpec, Template, VolumeMount
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.store.secrets import Secrets

VALUE = "hunter2-and-more"
FILE = """
endpoints:
  a: {template: {command: [c], env: {TOKEN: "{{ SECRET_hub }}"}}}
  b: {template: {command: [c], env: {TOKEN: "x{{ RUNPOD_SECRET_hub }}"}}}
  c: {}
"""


@pytest.fixture
def environ(redis_server, client, tmp_path):
    return command_environment(tmp_path, redis_server.url, FILE)


@pytest.fixture
def run(environ, monkeypatch):
    """Runs a command in this process; its exit code, output and errors."""
    with running_commands(monkeypatch, **environ) as run:
        yield run


@pytest.fixture
def secrets(client, tmp_path):
    return Secrets(client, tmp_path / "var" / "secrets.key")


def test_a_secret_is_set_from_the_standard_input_and_its_value_is_nowhere(run, secrets, client):
    done = run("secrets", "set", "hub", stdin=f"{VALUE}\n")
    assert (done.code, done.output) == (0, "set hub, used by a, b\n")
    assert f"made the key file {secrets.file.path}" in done.errors
    assert secrets.values(["hub"])[0] == {"hub": VALUE}
    again = run("secrets", "set", "hub", stdin="line 1\nline 2\n")
    assert (again.code, again.errors) == (0, "")
    assert secrets.values(["hub"])[0] == {"hub": "line 1\nline 2"}
    listed = run("secrets", "list")
    shown = json.loads(run("secrets", "list", "--json").output)
    assert [(row["name"], row["usedBy"], row["problem"]) for row in shown] == [
        ("hub", ["a", "b"], "")
    ]
    head, line = listed.output.splitlines()
    assert head.split() == ["NAME", "SET", "USED", "BY", "PROBLEM"]
    assert line.split()[0] == "hub"
    everything = done.output + done.errors + listed.output + str(client.hgetall(keys.SECRETS))
    assert VALUE not in everything
    assert "line 1" not in everything


@pytest.mark.parametrize(
    ("arguments", "stdin", "problem"),
    [
        (("set", "a-b"), "x", "a secret's name has letters, digits and _ only"),
        (("set", "a/../b"), "x", "a secret's name has letters, digits and _ only"),
        (("rm", "a b"), "", "a secret's name has letters, digits and _ only"),
        (("set", "hub"), "", "a secret's value must be 1 to 131071 bytes"),
        (("set", "hub"), "\n", "a secret's value must be 1 to 131071 bytes"),
        (("set", "hub"), VALUE + "x" * 131_072, "a secret's value must be 1 to 131071 bytes"),
        (("set", "hub"), f"{VALUE}\0", "bytes without NUL"),
        (("set", "hub"), VALUE.encode() + b"\xff", "a secret's value must be UTF-8"),
        (("rm", "none"), "", "secret 'none' not found; known secrets: none"),
        (("rotate",), "", "is not there"),
    ],
)
def test_wrong_input_is_one_line_without_the_value(run, client, arguments, stdin, problem):
    done = run("secrets", *arguments, stdin=stdin)
    assert done.code == 2
    assert problem in done.errors
    assert done.errors.count("\n") == 1
    assert VALUE not in done.output + done.errors
    assert not client.exists(keys.SECRETS)


def test_a_value_is_no_argument(run, client):
    done = run("secrets", "set", "hub", VALUE)
    assert done.code == 2
    assert "because other users see arguments" in done.errors
    assert VALUE not in done.output + done.errors
    assert not client.exists(keys.SECRETS)


def test_a_secret_is_removed_also_while_the_endpoints_cannot_be_read(run, secrets, tmp_path):
    secrets.put("hub", VALUE)
    (tmp_path / "workers.yaml").write_text("endpoints: [")
    done = run("secrets", "rm", "hub")
    assert (done.code, done.output) == (0, "removed hub\n")
    assert "the endpoints that use secrets are not known" in done.errors
    assert secrets.all() == []
    assert "`ownpod secrets set NAME` stores one" in run("secrets", "list").errors


def test_a_rotation_makes_another_key(run, secrets):
    secrets.put("hub", VALUE)
    before = secrets.file.path.read_text()
    done = run("secrets", "rotate")
    assert (done.code, done.output) == (0, "encrypted 1 secret with a new key\n")
    assert f"copy {secrets.file.path} to each other host" in done.errors
    assert secrets.file.path.read_text() != before
    assert secrets.values(["hub"])[0] == {"hub": VALUE}


def test_the_audit_log_names_each_change_of_secrets_and_no_value(run, secrets):
    user = pwd.getpwuid(os.getuid()).pw_name
    run("secrets", "set", "hub", stdin=VALUE)
    run("secrets", "set", "hub", stdin=f"{VALUE}2")
    run("secrets", "rotate")
    secrets.put("OWNPOD_REGISTRY_a", VALUE)
    assert run("secrets", "rm", "OWNPOD_REGISTRY_a").code == 0
    assert run("secrets", "rm", "hub").code == 0
    assert run("secrets", "rm", "hub").code == 2
    assert run("secrets", "set", "OWNPOD_REGISTRY_a", stdin=VALUE).code == 2
    shown = run("audit", "--json").output
    assert VALUE not in shown
    assert [(e["by"], e["action"], e["target"], e["diff"]) for e in json.loads(shown)] == [
        (f"ownpod secrets rm ({user})", "delete secret", "hub", {}),
        (f"ownpod secrets rm ({user})", "delete secret", "OWNPOD_REGISTRY_a", {}),
        (
            f"ownpod secrets rotate ({user})",
            "rotate secrets",
            "all",
            {"encrypted again": ["", "1"]},
        ),
        (f"ownpod secrets set ({user})", "update secret", "hub", {}),
        (f"ownpod secrets set ({user})", "create secret", "hub", {}),
    ]


def test_a_key_file_of_another_place_is_used(run, monkeypatch, client, tmp_path):
    path = tmp_path / "elsewhere" / "key"
    monkeypatch.setenv("OWNPOD_SECRETS_KEY_FILE", str(path))
    settings.current.cache_clear()
    assert run("secrets", "set", "hub", stdin=VALUE).code == 0
    assert Secrets(client, path).values(["hub"])[0] == {"hub": VALUE}


@pytest.mark.slow
def test_the_prompt_shows_no_value_and_neither_do_arguments_and_environment(
    environ, secrets, request
):
    main_end, end = pty.openpty()
    command = [sys.executable, "-m", "ownpod", "secrets", "set", "hub"]
    process = subprocess.Popen(
        command,
        env=environment(**environ),
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=_own_terminal,
    )
    os.close(end)
    request.addfinalizer(process.wait)
    request.addfinalizer(process.kill)
    os.set_blocking(main_end, False)
    shown = ""

    def read_until(text):
        def is_there():
            nonlocal shown
            # The terminal's end reports an error while no other process has it open.
            with contextlib.suppress(OSError):
                shown += os.read(main_end, 4096).decode()
            return text in shown

        wait_until(is_there, 40, text)

    read_until("value: ")
    os.write(main_end, f"{VALUE}\n".encode())
    read_until("Repeat for confirmation: ")
    found = psutil.Process(process.pid)
    assert VALUE not in str(found.cmdline()) + str(found.environ())
    os.write(main_end, f"{VALUE}\n".encode())
    read_until("set hub, used by a, b")
    assert process.wait(60) == 0
    os.close(main_end)
    assert VALUE not in shown
    assert secrets.values(["hub"])[0] == {"hub": VALUE}


def _own_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_the_settings_show_no_secret_of_a_template_and_know_its_variable(environ):
    done = run_command(
        *(sys.executable, "-m", "ownpod", "settings", "-v"),
        **environ,
        OWNPOD_SECRET_hub=VALUE,
        OWNPOD_VOLUMES="models=/srv/models",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert VALUE not in done.stdout
    assert "OWNPOD_SECRETS_KEY_FILE" in done.stdout
    assert "models=/srv/models" in done.stdout


# Volumes


def test_volumes_of_all_hosts_are_listed(run, client):
    agents, managed = Agents(client), Managed(client)
    models = HostVolume("models", "directory", "/srv/models", 10_240, 5120)
    gone = HostVolume("gone", "directory", "/srv/gone", problem="/srv/gone does not exist")
    cache = HostVolume("cache", "docker", "my-cache")
    agents.heartbeat(AgentInfo("alpha", "docker", volumes=(models, gone, cache)), "t")
    agents.heartbeat(AgentInfo("beta", "process"), "t")
    spec = ManagedSpec(Template(command=("c",), volumes=(VolumeMount("models"),)))
    assert managed.want("a" * 14, "a", spec=spec)
    assert managed.place("a" * 14, "alpha", "t")
    found = json.loads(run("volumes", "--json").output)
    assert found[0] == {
        "host": "alpha",
        "name": "models",
        "kind": "directory",
        "source": "/srv/models",
        "totalMb": 10_240,
        "freeMb": 5120,
        "problem": "",
        "state": "ready",
        "workers": 1,
    }
    assert [row["workers"] for row in found[1:]] == [0, 0]
    _, first, second, third = run("volumes").output.splitlines()
    assert "5 of 10 GB" in first
    assert second.rstrip().endswith("/srv/gone does not exist")
    assert third.split()[:4] == ["alpha", "cache", "docker", "my-cache"]


def test_without_volumes_the_list_names_the_setting(run, client):
    done = run("volumes")
    assert (done.code, len(done.output.splitlines())) == (0, 1)
    assert "see OWNPOD_VOLUMES" in done.errors
