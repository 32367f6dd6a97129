"""The engine `process`, with real processes."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, wait_until

from ownpod.agent import cgroups, directories, procfs
from ownpod.agent.commands import command_line, environment
from ownpod.agent.directories import Record
from ownpod.agent.engine import EngineError, Launch
from ownpod.agent.processes import ProcessEngine
from ownpod.agent.shell import Shell
from ownpod.processes import die_with_parent
from ownpod.rules.managed import Device
from ownpod.rules.templates import Limits, Protocol, Template

pytestmark = pytest.mark.slow

WORKER = "abcdefghij0123"


def python(code):
    return (sys.executable, "-u", "-c", textwrap.dedent(code))


FOREVER = python("import signal; print('up'); signal.pause()")
STUBBORN = python(
    """
    import signal
    signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM"))
    print("up")
    while True:
        signal.pause()
    """
)


def launch(command=FOREVER, worker_id=WORKER, *, env=None, devices=(), instance="one", **template):
    return Launch(
        worker_id=worker_id,
        endpoint="ep",
        instance=instance,
        template=Template(command=command, **template),
        env=env or {},
        devices=devices,
    )


@pytest.fixture
def engine(tmp_path):
    engine = ProcessEngine(tmp_path, "one")
    yield engine
    for worker_id in ProcessEngine(tmp_path, "one").list():
        engine.stop(worker_id, 0)
        engine.remove(worker_id)
    assert not left_behind(tmp_path)


def left_behind(tmp_path):
    """Processes that work in the test's folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd().startswith(str(tmp_path)):
                found.append(process)
    return found


def folder(tmp_path, worker_id=WORKER):
    return tmp_path / "one" / worker_id


def started(engine, *args, line="up", **kwargs):
    """Starts a worker and waits until it has printed a line."""
    wanted = launch(*args, **kwargs)
    found = engine.start(wanted)
    wait_until(lambda: line in engine.log(wanted.worker_id).splitlines(), what=line)
    return found


def ended(engine, worker_id=WORKER):
    def check():
        found = engine.list()[worker_id]
        return None if found.running else found

    return wait_until(check, what=f"the end of {worker_id}")


def running(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def pids_in(text):
    return [int(word) for word in text.split() if word.isdecimal()]


# --- start, list, stop, remove


def test_a_host_like_this_one_can_start_workers(engine, tmp_path):
    engine.check()
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot make the directory .*/file/one"):
        ProcessEngine(tmp_path / "file", "one").check()


def test_a_worker_runs_until_it_is_stopped_and_is_listed_until_it_is_removed(engine, tmp_path):
    assert engine.list() == {}
    assert started(engine).url is None
    found = engine.list()[WORKER]
    assert found.running
    assert found.exit_code is None
    assert 0 <= found.age_s < 60
    engine.stop(WORKER)
    found = engine.list()[WORKER]
    assert (found.running, found.exit_code, found.out_of_memory) == (False, -15, False)
    assert engine.log(WORKER).splitlines()[0] == "up"
    engine.remove(WORKER)
    assert engine.list() == {}
    assert engine.log(WORKER) == ""
    assert not folder(tmp_path).exists()
    engine.stop(WORKER)
    engine.remove(WORKER)


def test_a_second_start_starts_nothing(engine):
    started(engine, protocol=Protocol.PUSH)
    before = engine.list()[WORKER]
    again = engine.start(launch(protocol=Protocol.PUSH))
    assert again.url
    assert engine.list()[WORKER].age_s >= before.age_s
    assert engine.log(WORKER).count("up") == 1


def test_a_worker_that_runs_is_not_removed(engine):
    started(engine)
    with pytest.raises(EngineError, match="must be stopped before it is removed"):
        engine.remove(WORKER)
    assert engine.list()[WORKER].running


def test_another_instance_sees_and_stops_nothing(engine, tmp_path):
    started(engine)
    other = ProcessEngine(tmp_path, "two")
    assert other.list() == {}
    other.stop(WORKER, 0)
    other.remove(WORKER)
    assert engine.list()[WORKER].running


@pytest.mark.parametrize("worker_id", ["../one", "", "a/b", ".", "x" * 65, "a\n"])
def test_an_id_that_is_a_path_is_refused(engine, worker_id):
    for call in (
        lambda: engine.start(launch(worker_id=worker_id)),
        lambda: engine.stop(worker_id),
        lambda: engine.remove(worker_id),
        lambda: engine.log(worker_id),
    ):
        with pytest.raises(EngineError, match="id may have letters"):
            call()
    with pytest.raises(EngineError, match="id may have letters"):
        ProcessEngine(Path("x"), worker_id)


def test_a_push_worker_gets_a_port_of_its_own(engine):
    script = python("import sys; print(*sys.argv[1:]); print('up'); import signal; signal.pause()")
    url = started(engine, script, protocol=Protocol.PUSH).url
    port = url.removeprefix("http://127.0.0.1:")
    arguments = f"--rp_serve_api --rp_api_host 127.0.0.1 --rp_api_port {port}"
    assert engine.log(WORKER).splitlines()[0] == arguments
    other = started(engine, script, "another0123456", protocol=Protocol.PUSH).url
    assert other != url


def test_each_start_has_an_empty_working_directory(engine):
    code = "import os; print(os.listdir()); open('.runpod_jobs.pkl', 'w').close()"
    for _ in range(2):
        engine.start(launch(python(code)))
        assert ended(engine).exit_code == 0
        assert engine.log(WORKER) == "[]"


def test_a_real_runpod_worker_serves_its_local_api_and_ends_with_its_processes(engine, tmp_path):
    handler = ROOT / "examples" / "managed" / "handler.py"
    env = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_POD_ID": WORKER}
    command = (sys.executable, str(handler))
    url = engine.start(launch(command, env=env, protocol=Protocol.PUSH)).url
    answer = wait_until(lambda: runsync(url, {"text": "a"}), 60, "an answer")
    assert answer["output"] == {"echo": {"text": "a"}, "worker": WORKER}
    engine.stop(WORKER)
    assert not left_behind(tmp_path)


def runsync(url, data):
    body = json.dumps({"input": data}).encode()
    request = urllib.request.Request(f"{url}/runsync", body, {"Content-Type": "application/json"})
    with (
        contextlib.suppress(urllib.error.URLError),
        urllib.request.urlopen(request, timeout=60) as answer,
    ):
        return json.load(answer)
    return None


# --- exit codes


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit(-1)", 255),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 11)", -11),
    ],
)
def test_the_exit_code_of_a_worker_that_ends_by_itself(engine, code, shown):
    engine.start(launch(python(code)))
    assert ended(engine).exit_code == shown


def test_a_worker_whose_shell_was_killed_is_ended(engine, tmp_path):
    started(
        engine, python("import os; print(os.getpid()); print('up'); import signal; signal.pause()")
    )
    pid = pids_in(engine.log(WORKER))[0]
    os.kill(json.loads((folder(tmp_path) / "worker.json").read_text())["pid"], signal.SIGKILL)
    assert ended(engine).exit_code == -9
    assert not running(pid)


def test_wait_returns_when_a_worker_ends(engine, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    engine.start(launch(python(f"open({str(gate)!r}).read()")))
    engines = (engine, ProcessEngine(tmp_path, "one"))
    assert all(watching.list()[WORKER].running for watching in engines)
    gate.write_text("go")
    begin = time.monotonic()
    for watching in engines:
        while watching.list()[WORKER].running:
            watching.wait(60)
    assert time.monotonic() - begin < 30


def test_another_engine_finds_the_variables_of_a_running_worker(engine, tmp_path):
    value = "two lines,\n=both ä"
    started(engine, env={"SECRET": value})
    other = ProcessEngine(tmp_path, "one")
    assert other.list()[WORKER].running
    assert other.env(WORKER)["SECRET"] == value
    engine.stop(WORKER, 0)
    ended(engine)
    assert other.env(WORKER) == other.env("b" * 14) == {}


def test_wait_ends_after_its_time(engine):
    engine.wait(0)
    engine.wait(0.01)
    started(engine)
    engine.list()
    engine.wait(0)
    engine.wait(0.01)


def test_wait_returns_after_a_start_to_wait_for_the_new_worker_too(engine):
    engine.list()
    started(engine)
    engine.wait(600)
    assert engine.list()[WORKER].running


# --- the whole group ends


def test_a_worker_gets_sigterm_once_and_has_time_to_end(engine):
    started(
        engine,
        python(
            """
            import signal, time
            ends = []
            signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM"), ends.append(1)))
            print("up")
            # Not pause(), which would wait for a second signal if the first came a moment before.
            while not ends:
                time.sleep(0.1)
            time.sleep(0.3)
            print("ends")
            raise SystemExit(7)
            """
        ),
    )
    engine.stop(WORKER, 30)
    assert engine.list()[WORKER].exit_code == 7
    assert engine.log(WORKER).splitlines() == ["up", "SIGTERM", "ends"]


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace(engine):
    started(engine, STUBBORN)
    # Long enough for its handler to run on a loaded machine.
    engine.stop(WORKER, 8)
    assert engine.list()[WORKER].exit_code == -9
    assert engine.log(WORKER).splitlines()[:2] == ["up", "SIGTERM"]


def test_a_worker_that_is_stopped_by_sigstop_is_ended(engine):
    started(engine, python("import os; print(os.getpid()); print('up'); os.kill(0, 19)"))
    pid = pids_in(engine.log(WORKER))[0]
    wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    engine.stop(WORKER, 0.1)
    assert engine.list()[WORKER].exit_code == -9


FAMILY = """
    import os, signal, subprocess, sys, time
    # One write for each line, because all of them write to one file.
    ignore = "import os, signal; signal.signal(15, 1); os.write(1, b'ready' + bytes([10])); signal.pause()"
    # A grandchild in the group, one in a group of its own, one in a session of its own, one without its parent.
    for options in ({}, {"process_group": 0}, {"start_new_session": True}):
        child = subprocess.Popen([sys.executable, "-c", ignore], **options)
        os.write(1, b"%d\\n" % child.pid)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(1, b"%d\\n" % os.getpid())
            signal.signal(15, 1)
            os.write(1, b"ready\\n")
            signal.pause()
        os._exit(0)
    os.wait()
"""


def family(engine, rest):
    """Starts a worker with four descendants that ignore SIGTERM; their pids."""
    engine.start(launch(python(FAMILY + "    " + rest)))
    wait_until(lambda: engine.log(WORKER).split().count("ready") == 4)
    return pids_in(engine.log(WORKER))


def test_stop_ends_all_descendants(engine):
    pids = family(engine, "signal.pause()")
    assert len(pids) == 4
    assert all(map(running, pids))
    engine.stop(WORKER, 5)
    # One that was killed may need a moment.
    wait_until(lambda: not any(map(running, pids)))


def test_descendants_are_ended_when_the_worker_ends_by_itself(engine, tmp_path):
    pids = family(engine, "signal.sigwait([10])")
    psutil.Process(shell(tmp_path)).children()[0].send_signal(signal.SIGUSR1)
    ended(engine)
    wait_until(lambda: not any(map(running, pids)))


def shell(tmp_path, worker_id=WORKER):
    return json.loads((folder(tmp_path, worker_id) / "worker.json").read_text())["pid"]


def test_the_group_is_ended_also_without_an_agent(engine, tmp_path):
    """As the SDK's heartbeat process, which survives its worker."""
    child = "import subprocess, sys; c = subprocess.Popen(['sleep', '1000']); print(c.pid)"
    engine.start(launch(python(child)))
    wait_until(lambda: pids_in(engine.log(WORKER)))
    pid = pids_in(engine.log(WORKER))[0]
    wait_until(lambda: not running(pid))
    assert ended(engine).exit_code == 0


# --- adoption


STARTER = """
import sys, time
from pathlib import Path
from ownpod.agent.engine import Launch
from ownpod.agent.processes import ProcessEngine
from ownpod.agent.shell import Shell
from ownpod.rules.templates import Template

engine = ProcessEngine(Path(sys.argv[1]), "one")
for worker_id in sys.argv[3:]:
    launch = Launch(worker_id, "ep", "one", Template(command=("sh", "-c", sys.argv[2])), {})
    engine.start(launch)
print("started", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def another_agent(tmp_path, script, *worker_ids):
    """A process that has started workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), script, *worker_ids],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_workers_survive_the_agent_and_the_next_one_adopts_them(engine, tmp_path):
    other = "zyxwvutsrq9876"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f"echo up; read line <{gate}; echo $line; exit 5"
    with another_agent(tmp_path, script, WORKER) as agent:
        agent.kill()
        agent.wait()
    with another_agent(tmp_path, "echo up; exec sleep 1000", other):
        pass
    assert all(found.running for found in engine.list().values())
    assert set(engine.list()) == {WORKER, other}
    gate.write_text("bye\n")
    assert ended(engine).exit_code == 5
    assert engine.log(WORKER) == "up\nbye"
    engine.stop(other)
    assert engine.list()[other].exit_code == -15


def test_the_exit_code_of_a_worker_that_ended_while_no_agent_ran(engine, tmp_path):
    with another_agent(tmp_path, "echo up; exit 9", WORKER):
        pass
    assert ended(engine).exit_code == 9
    assert engine.log(WORKER) == "up"


def test_a_second_agent_gets_the_url_of_a_worker_that_runs(engine, tmp_path):
    url = started(
        engine, protocol=Protocol.PUSH, command=python("print('up'); import time; time.sleep(1000)")
    ).url
    assert ProcessEngine(tmp_path, "one").start(launch(protocol=Protocol.PUSH)).url == url


def test_a_shell_that_is_not_let_go_starts_nothing(engine, tmp_path):
    """As when the agent is killed after it has started the shell and before it has recorded it."""
    directory = directories.Directory(folder(tmp_path))
    directory.make()
    note = tmp_path / "note"
    shell = Shell(directory, ("/usr/bin/touch", str(note)), {"PATH": os.defpath})
    shell._process.stdin.close()
    assert shell._process.wait(30) == -9
    assert directory.exit_code() == 126
    assert not note.exists()
    assert engine.list() == {}
    engine.start(launch(python("print('again')")))
    assert ended(engine).exit_code == 0


# --- processes of others


@contextlib.contextmanager
def foreign_process():
    process = subprocess.Popen(
        ["sleep", "1000"], start_new_session=True, preexec_fn=die_with_parent
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def fake(tmp_path, worker_id=WORKER, **values):
    """Writes a record, as of an earlier agent."""
    directory = directories.Directory(folder(tmp_path, worker_id))
    directory.make()
    record = Record(worker_id, "ep", 1, 1, procfs.boot_id())
    directory.write(replace(record, **values))
    return directory


def test_a_process_that_has_the_recorded_pid_by_chance_is_left_alone(engine, tmp_path):
    with foreign_process() as other:
        start = procfs.find(other.pid).started
        fake(tmp_path, pid=other.pid, started=start - 1)
        fake(tmp_path, "otherboot", pid=other.pid, started=start, boot="another")
        assert [found.running for found in engine.list().values()] == [False, False]
        for worker_id in (WORKER, "otherboot"):
            engine.stop(worker_id, 0)
            engine.remove(worker_id)
        assert other.poll() is None


def test_after_a_reboot_all_workers_have_ended(engine, tmp_path):
    fake(tmp_path, boot="another")
    fake(tmp_path, "wrote", boot="another").exit.write_text("4\n")
    found = engine.list()
    assert (found[WORKER].running, found[WORKER].exit_code) == (False, None)
    assert found[WORKER].age_s > 0
    assert (found["wrote"].running, found["wrote"].exit_code) == (False, 4)


def test_the_control_group_of_another_program_is_left_alone(engine, tmp_path):
    with foreign_process() as other:
        group = tmp_path / "system.slice"
        group.mkdir()
        (group / "cgroup.procs").write_text(f"{other.pid}\n")
        fake(tmp_path, boot="another", groups=(str(group),))
        engine.list()
        engine.stop(WORKER, 0)
        engine.remove(WORKER)
        assert other.poll() is None
        assert group.exists()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "7", "null", "{}", "\xff", "[" * 100_000),
        '{"pid": 1}',
        json.dumps(
            {
                "worker_id": WORKER,
                "endpoint": "ep",
                "pid": "1",
                "started": 1,
                "boot": "",
            }
        ),
        json.dumps(
            {
                "worker_id": WORKER,
                "endpoint": "ep",
                "pid": -1,
                "started": 1,
                "boot": "",
            }
        ),
        json.dumps(
            {
                "worker_id": "other",
                "endpoint": "ep",
                "pid": 1,
                "started": 1,
                "boot": "",
            }
        ),
        json.dumps(
            {
                "worker_id": WORKER,
                "endpoint": "ep",
                "pid": 1,
                "started": 1,
                "boot": "",
                "groups": 5,
            }
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_logged_once_and_hides_no_other(
    engine, tmp_path, caplog, text
):
    started(engine, worker_id="other")
    folder(tmp_path).mkdir()
    (folder(tmp_path) / "worker.json").write_text(text, encoding="latin-1")
    with caplog.at_level(logging.WARNING):
        assert set(engine.list()) == set(engine.list()) == {"other"}
    # Threads of tests before this one may log, too.
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("ownpod.agent")]
    assert len(lines) == 1
    assert WORKER in lines[0]
    engine.stop(WORKER, 0)
    engine.remove(WORKER)
    assert not folder(tmp_path).exists()


def test_files_that_are_no_workers_are_left_out(engine, tmp_path):
    engine.check()
    (tmp_path / "one" / "file").write_text("")
    (tmp_path / "one" / ".hidden").mkdir()
    (tmp_path / "one" / "empty").mkdir()
    assert engine.list() == {}


def test_what_an_unreadable_record_left_running_is_ended_with_its_removal(engine, tmp_path):
    started(engine)
    pid = shell(tmp_path)
    (folder(tmp_path) / "worker.json").write_text("{")
    other = ProcessEngine(tmp_path, "one")
    assert other.list() == {}
    other.remove(WORKER)
    wait_until(lambda: not running(pid))
    engine.remove(WORKER)


# --- environment and command


SECRETS = {
    "REDIS_URL": "redis://:secret@host",
    "OWNPOD_API_KEYS": "secret",
    "OWNPOD_ADMIN_KEY": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HTTPS_PROXY": "http://user:secret@host",
    "PYTHONPATH": "/secret",
}


def test_the_agents_environment_does_not_leak(engine, monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    show = python("import json, os; print(json.dumps(dict(os.environ)))")
    engine.start(launch(show, env={"MINE": "1", "LANG": "de", "CUDA_VISIBLE_DEVICES": "0,1"}))
    assert ended(engine).exit_code == 0
    env = json.loads(engine.log(WORKER))
    assert not SECRETS.keys() & env.keys()
    assert "secret" not in json.dumps(env)
    assert (env["MINE"], env["LANG"], env["PATH"]) == ("1", "de", os.environ["PATH"])
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert "secret" not in (folder(tmp_path) / "worker.json").read_text()


def test_a_worker_has_no_descriptors_of_the_agent(engine, tmp_path):
    with (tmp_path / "open").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        engine.start(
            launch(
                python(
                    "import os; print(*(os.path.realpath(f'/proc/self/fd/{n}') for n in (0, 1, 2)), len(os.listdir('/proc/self/fd')))"
                )
            )
        )
        assert ended(engine).exit_code == 0
    output = str(folder(tmp_path) / "output.log")
    # The fourth is the one by which the folder itself is read.
    assert engine.log(WORKER).split() == ["/dev/null", output, output, "4"]


def test_secrets_are_not_in_the_error_of_a_worker_that_cannot_be_started(engine):
    for env in ({"KEY": "se\0cret"}, {"A=B": "secret"}, {"KEY": "secret" * 1_000_000}):
        with pytest.raises(EngineError, match=f"worker {WORKER} cannot be started: ") as error:
            engine.start(launch(env=env))
        assert "cret" not in error.value.message
        assert engine.list() == {}


GPU = Device("GPU-1", 0, "RTX")


@pytest.mark.parametrize(
    ("devices", "shown"),
    [
        ((), ""),
        ((GPU, replace(GPU, id="GPU-2")), "GPU-1,GPU-2"),
        ((Device("cpu-0", 0, "stand-in", simulated=True),), ""),
    ],
)
def test_a_worker_sees_its_devices_only(devices, shown):
    env = environment(launch(devices=devices), "mark")
    assert env["CUDA_VISIBLE_DEVICES"] == shown


def test_paths_of_a_command_are_the_agents(tmp_path):
    (tmp_path / "handler.py").write_text("")
    (tmp_path / "folder").mkdir()
    arguments = ("handler.py", "folder", "--x=handler.py", "other.py", "x" * 5000, "/etc/passwd")
    template = Template(entrypoint=("sh",), command=arguments)
    program, *rest = command_line(template, tmp_path, "/usr/bin:/bin")
    assert program.endswith("/bin/sh")
    assert rest == [str(tmp_path / "handler.py"), *arguments[1:]]


def test_a_worker_runs_a_file_of_the_agents_directory(engine, monkeypatch, tmp_path):
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "handler.py").write_text("import os; print(os.getcwd())")
    monkeypatch.chdir(tmp_path)
    engine.start(launch((sys.executable, "examples/handler.py")))
    assert ended(engine).exit_code == 0
    assert engine.log(WORKER) == str(folder(tmp_path) / "work")


def test_a_program_without_a_path_is_not_a_command_of_the_shell(engine):
    engine.start(launch(("echo", "-n", "-e", "a")))
    assert ended(engine).exit_code == 0
    assert engine.log(WORKER) == "a"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((), "starts template.command, and this template has none"),
        (("no-such-program",), "'no-such-program' is not found on the worker's PATH"),
        (("./no-such-program",), "there is no executable file /.*/no-such-program$"),
        (("exit", "3"), "'exit' is not found on the worker's PATH"),
    ],
)
def test_a_command_that_cannot_be_started_is_named(engine, command, message):
    with pytest.raises(EngineError, match=message):
        engine.start(launch(command, image="some/image"))
    assert engine.list() == {}


def test_a_template_without_a_command_is_refused_before_the_start(engine):
    engine.check_template(Template(command=("no-such-program",)))
    with pytest.raises(EngineError, match="an image alone is not enough"):
        engine.check_template(Template(image="some/image"))


# --- output


def disk_bytes(tmp_path):
    """Bytes on the disk of a worker's output."""
    return sum(f.stat().st_blocks * 512 for f in folder(tmp_path).glob("output*"))


@pytest.mark.parametrize("holes", [True, False])
def test_the_output_of_a_worker_that_writes_without_end_is_bounded(
    engine, monkeypatch, tmp_path, holes
):
    monkeypatch.setattr(directories, "OUTPUT_BYTES", 4_000_000)
    monkeypatch.setattr(directories, "KEPT_BYTES", 2_000_000)
    if not holes:
        monkeypatch.setattr(directories, "free_beginning", lambda *_: False)
    parts = 30
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = f"""
        for n in range({parts}):
            open({str(gate)!r}).read()
            print("x" * 800_000, "part", n, sep="\\n")
    """
    engine.start(launch(python(code)))
    for n in range(parts):
        gate.write_text("")
        wait_until(lambda n=n: engine.log(WORKER, 2) == f"part\n{n}")
        engine.list()
        assert disk_bytes(tmp_path) <= 6_200_000
    assert ended(engine).exit_code == 0
    assert (folder(tmp_path) / "output.log.1").exists() is not holes


def test_the_log_has_the_last_lines(engine):
    engine.start(
        launch(
            python(
                "print(*range(100), sep='\\n'); import sys; sys.stdout.buffer.write(b'\\xff\\0end')"
            )
        )
    )
    assert ended(engine).exit_code == 0
    assert engine.log(WORKER, 3) == "98\n99\n\ufffdend"
    assert len(engine.log(WORKER).splitlines()) == 50
    assert engine.log(WORKER, 0) == ""


def test_the_log_goes_on_in_the_part_before_it_was_shortened(tmp_path):
    directory = directories.Directory(tmp_path)
    (tmp_path / "output.log.1").write_text("one\ntwo\n")
    (tmp_path / "output.log").write_text("three\n")
    assert directory.log(2) == "two\nthree"
    (tmp_path / "output.log").write_text("three" * 100_000)
    assert len(directory.log(50)) == directories.TAIL_BYTES


def test_a_folder_that_a_worker_made_read_only_is_removed_and_nothing_that_it_links_to(
    engine, tmp_path
):
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    code = f"""
        import os
        os.makedirs("a/b")
        os.symlink({str(outside)!r}, "a/link")
        os.chmod("a/b", 0)
        os.chmod("a", 0)
        os.symlink({str(outside)!r}, "link")
    """
    engine.start(launch(python(code)))
    assert ended(engine).exit_code == 0
    engine.remove(WORKER)
    assert not folder(tmp_path).exists()
    assert outside.stat().st_mode & 0o777 == 0o500


# --- limits


def test_memory_is_limited(engine):
    eat = python("print('up'); x = [bytearray(10_000_000) for _ in range(100)]; print('all')")
    engine.start(launch(eat, limits=Limits(memory_bytes=200_000_000)))
    found = ended(engine)
    assert found.exit_code != 0
    assert "all" not in engine.log(WORKER).splitlines()
    if groups(engine):
        assert found.out_of_memory
        assert found.exit_code == -9
    else:
        assert "MemoryError" in engine.log(WORKER)


def groups(engine):
    """The control groups of the worker; none where the host does not allow it."""
    return [Path(group) for group in engine._records[WORKER].groups]


def test_processes_are_limited_where_the_host_allows_it(engine, caplog):
    fork = python(
        """
        import os, time
        for n in range(20):
            try:
                if os.fork() == 0:
                    time.sleep(1000)
            except BlockingIOError:
                print("refused", n)
                raise SystemExit(4)
        """
    )
    engine.start(launch(fork, limits=Limits(pids=5)))
    if not groups(engine):
        assert "the engine process does not enforce limits.pids here" in caplog.text
        return
    assert ended(engine).exit_code == 4
    assert engine.log(WORKER) == "refused 4"


def test_control_groups_are_removed_with_the_worker(engine):
    started(engine, limits=Limits(memory_bytes=2**30, pids=100, cpus=0.5))
    made = groups(engine)
    assert all(group.exists() for group in made)
    assert all(
        shell_pid in cgroups.pids((group,))
        for group in made
        for shell_pid in [engine._records[WORKER].pid]
    )
    engine.stop(WORKER)
    engine.remove(WORKER)
    assert not any(group.exists() for group in made)


def test_a_process_that_has_left_session_and_environment_is_ended_by_its_group(engine):
    code = """
        import os, signal, subprocess
        child = subprocess.Popen(["sleep", "1000"], env={}, start_new_session=True)
        print(child.pid)
        print("up")
        signal.pause()
    """
    started(engine, python(code), limits=Limits(pids=100))
    pid = pids_in(engine.log(WORKER))[0]
    if not groups(engine):
        os.kill(pid, signal.SIGKILL)
        return
    engine.stop(WORKER)
    assert not running(pid)


@pytest.mark.parametrize(
    ("own", "delegated", "found"),
    [
        # A user's session: the parent has the controllers.
        ("/app.slice/ownpod.scope", {"app.slice": "memory pids"}, {"memory", "pids"}),
        ("/app.slice/ownpod.scope", {"app.slice": "cpu memory pids"}, {"cpu", "memory", "pids"}),
        ("/app.slice/ownpod.scope", {"app.slice": ""}, set()),
        ("/", {"": "memory"}, {"memory"}),
        ("/", {"": ""}, set()),
        # A container that sees no group of its own.
        ("/../cgroup", {"": "memory"}, set()),
    ],
)
def test_control_groups_of_version_2_are_made_where_they_are_delegated(
    tmp_path, own, delegated, found
):
    mount = tmp_path / "cgroup"
    for place, controllers in delegated.items():
        (mount / place / "ownpod.scope").mkdir(parents=True)
        (mount / place / "cgroup.subtree_control").write_text(f"{controllers}\n")
    line = f"30 23 0:26 / {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_text(f"22 1 0:21 / /proc rw - proc proc rw\n{line}")
    (tmp_path / "self" / "cgroup").write_text(f"0::{own}\n")
    places = cgroups.parents(tmp_path / "self")
    assert places.keys() == found
    assert {place.version for place in places.values()} <= {2}
    assert {place.path for place in places.values()} <= {mount / place for place in delegated}


def test_a_host_without_control_groups_has_no_place_for_them(tmp_path):
    assert cgroups.parents(tmp_path) == {}


def test_what_is_not_enforced_is_logged_once(engine, caplog, monkeypatch):
    monkeypatch.setattr(cgroups, "parents", dict)
    limits = Limits(memory_bytes=2**30, cpus=1, pids=50, shm_bytes=2**20)
    with caplog.at_level(logging.WARNING):
        for worker_id in (WORKER, "other"):
            engine.start(launch(python("print(1)"), worker_id, limits=limits))
    # Threads of tests before this one may log, too.
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("ownpod.agent")]
    assert len(lines) == len(set(lines)) == 4
    assert all(f"limits.{name}" in "".join(lines) for name in ("memory", "cpus", "pids", "shm"))
    for worker_id in (WORKER, "other"):
        assert ended(engine, worker_id).exit_code == 0
