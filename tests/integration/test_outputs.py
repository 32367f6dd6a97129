"""Output of managed workers: what Redis keeps of it, what agents keep of real processes, and how it is shown."""

import contextlib
import json
import os
import signal
import sys
import textwrap
import threading

import pytest
from click.testing import CliRunner
from helpers import Process, RedisServer, load_settings, wait_until

from ownpod import settings
from ownpod.agent import directories, files
from ownpod.agent.engine import Launch
from ownpod.agent.output import Followers
from ownpod.agent.processes import ProcessEngine
from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.errors import BadRequest
from ownpod.rules.managed import AgentInfo, Phase
from ownpod.rules.output import Line
from ownpod.rules.templates import ManagedSpec, Template
from ownpod.store import keys
from ownpod.store.agents import Agents
from ownpod.store.client import connect
from ownpod.store.managed import Managed
from ownpod.store.outputs import MOST_BYTES, MOST_LINES, Kept, Outputs, Place
from ownpod.tools.cli import main

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
SPEC = ManagedSpec(Template(command=("c",)))
HOUR_MS = 3_600_000


@pytest.fixture
def managed(client):
    Agents(client).heartbeat(AgentInfo("h", "process"), "t")
    found = Managed(client)
    for worker in (W, X):
        assert found.want(worker, "ep", spec=SPEC)
        assert found.place(worker, "h", "t")
    return found


@pytest.fixture
def outputs(client, managed):
    return Outputs(client)


def lines(*texts, run=None):
    return [Line(text, run) for text in texts]


def texts(found):
    return [line.text for line in found]


# --- in Redis


def test_lines_are_kept_once_with_the_place_behind_them(outputs):
    assert outputs.place(W) == Place()
    place = Place("b1", "7", "s")
    for _ in range(2):
        assert outputs.append(W, [Line("a"), Line("b", "job-1")], "", place) is Kept.YES
    assert [(line.text, line.run) for line in outputs.last(W)] == [("a", None), ("b", "job-1")]
    assert outputs.place(W) == place
    # An agent that was frozen meanwhile has read less.
    assert outputs.append(W, lines("c"), "", Place("b2", "9", "s")) is Kept.CONFLICT
    assert outputs.append(W, lines("c"), "b1", Place("b2", "9", "s")) is Kept.YES
    assert texts(outputs.last(W, 2)) == ["b", "c"]
    assert texts(outputs.after(W, outputs.last(W)[0].id)) == ["b", "c"]
    assert texts(outputs.of_job(W, "job-1")) == ["b"]
    assert outputs.append("unknown0000000", lines("c"), "", Place("b")) is Kept.NO_WORKER
    with pytest.raises(BadRequest):
        outputs.append("a:b", lines("c"), "", Place("b"))


def test_what_is_kept_is_bounded_in_lines_and_bytes(outputs, client):
    before = ""
    for number in range(12):
        new = lines(*(f"{number}-{n}" for n in range(150)))
        assert outputs.append(W, new, before, Place(str(number))) is Kept.YES
        before = str(number)
    assert client.xlen(keys.output(W)) == MOST_LINES
    assert outputs.last(W)[-1].text == "11-149"
    for number in range(12, 100):
        assert outputs.append(W, lines("x" * 8000), before, Place(str(number))) is Kept.YES
        before = str(number)
    kept = outputs.last(W)
    assert sum(len(line.text) for line in kept) <= MOST_BYTES
    assert len(kept) == MOST_BYTES // 8000
    assert int(client.hget(keys.output_state(W), "bytes")) == sum(len(line.text) for line in kept)


def test_output_is_kept_for_seven_days_after_the_end(outputs, managed, client):
    both = (keys.output(W), keys.output_state(W))
    outputs.append(W, lines("a"), "", Place("b1"))
    assert [client.pttl(key) for key in both] == [-1, -1]
    assert managed.stopped(W, "h", exit_code=1, reason="r", failed=True, out_of_memory=True)
    assert all(167 * HOUR_MS < client.pttl(key) <= 168 * HOUR_MS for key in both)
    assert managed.lost(X, "its host is silent")
    # A host that was silent brings the rest.
    outputs.append(X, lines("late"), "", Place("b1"))
    assert client.pttl(keys.output(X)) > 167 * HOUR_MS
    worker = managed.get(W)
    assert (worker.out_of_memory, worker.ended_in) == (True, Phase.PREPARING)
    assert {worker.id for worker in managed.crashed("ep")} == {W, X}
    assert managed.crashed("other") == []
    # With the record of the oldest, its output goes.
    client.zadd(keys.MANAGED_STOPPED, {f"{n:014}": 10**13 + n for n in range(200)})
    assert managed.want("cccccccccccccc", "ep", spec=SPEC)
    assert managed.discard("cccccccccccccc", "r")
    assert not client.exists(*both)


def test_lines_that_come_are_waited_for(outputs):
    outputs.append(W, lines("a"), "", Place("b1"))
    (first,) = outputs.last(W)
    found, waits = [], []

    def wait():
        # Each lasts 2 s at most, also if the lines come later on a loaded machine.
        while not found and len(waits) < 10:
            waits.append(1)
            found.extend(outputs.wait(W, first.id))

    thread = threading.Thread(target=wait)
    thread.start()
    outputs.append(W, lines("b"), "b1", Place("b2"))
    thread.join()
    assert texts(found) == ["b"]


# --- of real processes


def python(code):
    return (sys.executable, "-u", "-c", textwrap.dedent(code))


class Lab:
    """The engine ``process``, and agents' followers on it."""

    def __init__(self, directory, client, managed):
        self.directory = directory
        self.managed = managed
        self.outputs = Outputs(client)
        self.engine = ProcessEngine(directory, "one")
        self.followers = self.new_followers(self.engine)
        self.engines = [self.engine]

    def new_followers(self, engine):
        return Followers(engine, self.outputs)

    def start(self, code, worker=W):
        self.engine.start(Launch(worker, "ep", "one", Template(command=python(code)), {}))

    def follow(self, mask=str):
        self.followers.keep({W: mask}, [W])

    def restart_agent(self):
        """Another agent, which knows nothing of the one before it; its threads end like those of a killed one."""
        self.followers.close()
        self.engine = ProcessEngine(self.directory, "one")
        self.engines.append(self.engine)
        self.engine.list()
        self.followers = self.new_followers(self.engine)
        self.follow()

    def texts(self):
        return texts(self.outputs.last(W))

    def end(self):
        wait_until(lambda: not self.engine.list()[W].running, 30, "the end")
        self.followers.finish(W)


@pytest.fixture
def lab(tmp_path, client, managed):
    found = Lab(tmp_path, client, managed)
    yield found
    found.followers.close()
    for worker in found.engine.list():
        found.engine.stop(worker, 0)
    for engine in found.engines:
        # Each one waits for the processes that it has started.
        engine.list()
    for worker in found.engine.list():
        found.engine.remove(worker)


@pytest.mark.slow
def test_a_workers_lines_are_kept_while_it_runs_and_the_last_ones_at_its_end(lab, tmp_path):
    go = tmp_path / "go"
    os.mkfifo(go)
    lab.start(f"print('one'); open({str(go)!r}).read(); print('two', end='')")
    lab.follow(lambda text: text.replace("one", "***"))
    wait_until(lambda: lab.texts() == ["***"])
    go.write_text("")
    lab.end()
    assert lab.texts() == ["***", "two"]


@pytest.mark.slow
def test_agents_that_follow_each_other_lose_and_repeat_no_line_also_when_the_output_is_shortened(
    lab, tmp_path, monkeypatch
):
    monkeypatch.setattr(directories, "OUTPUT_BYTES", 3_000_000)
    monkeypatch.setattr(directories, "KEPT_BYTES", 1_000_000)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    code = f"""
        for n in range(60):
            open({str(gate)!r}).read()
            print(n, "x" * 200_000)
            print(n, end=" half ", flush=True)
            print("line")
    """
    lab.start(code)
    lab.follow()
    for n in range(60):
        gate.write_text("")
        if n % 7 == 3:
            lab.restart_agent()
        wait_until(lambda n=n: texts(lab.outputs.last(W, 1)) == [f"{n} half line"])
        lab.engine.list()
    lab.end()
    # About thirty long lines fit into what is kept.
    kept = [text.partition(" x")[0] for text in lab.texts()]
    expected = [text for n in range(60) for text in (str(n), f"{n} half line")]
    assert kept == expected[-len(kept) :]
    assert len(kept) >= 50


@pytest.mark.slow
def test_redis_that_is_away_costs_no_line(tmp_path):
    server = RedisServer(tmp_path)
    try:
        with connect(server.url) as client:
            Agents(client).heartbeat(AgentInfo("h", "process"), "t")
            managed = Managed(client)
            assert managed.want(W, "ep", spec=SPEC)
            assert managed.place(W, "h", "t")
            lab = Lab(tmp_path / "agent", client, managed)
            go = tmp_path / "go"
            os.mkfifo(go)
            lab.start(f"print(0); open({str(go)!r}).read(); print(*range(1, 5), sep='\\n')")
            lab.follow()
            wait_until(lambda: lab.texts() == ["0"])
            server.process.send(signal.SIGSTOP)
            go.write_text("")
            wait_until(lambda: lab.engine.log(W, 1) == "4")
            server.process.send(signal.SIGCONT)
            lab.end()
            assert lab.texts() == ["0", "1", "2", "3", "4"]
            lab.followers.close()
            lab.engine.remove(W)
    finally:
        server.stop()


@pytest.mark.slow
def test_a_file_that_cannot_be_subscribed_to_is_checked(lab, monkeypatch):
    monkeypatch.setattr(files, "_subscribe", lambda _: None)
    lab.start("import time\nfor n in range(3): print(n); time.sleep(0.3)")
    lab.follow()
    wait_until(lambda: len(lab.texts()) == 3)
    lab.end()


def test_a_file_that_begins_again_is_read_from_its_beginning(tmp_path):
    file = tmp_path / "output"
    file.write_bytes(b"x" * 1000)
    source = files.FileSource(file, "", runs=lambda: False, shorten=lambda: None)
    assert source.read(0).position == "1000"
    file.write_bytes(b"again")
    assert source.read(0).data == b"again"
    assert source.read(0) is None


def test_a_reader_that_is_far_behind_skips_to_the_end(tmp_path):
    file = tmp_path / "output"
    file.write_bytes(b"x" * 20_000_000 + b"end")
    source = files.FileSource(file, "5", runs=lambda: False, shorten=lambda: None)
    part = source.read(0)
    assert part.skipped == 20_000_003 - files.PART_BYTES - 5
    assert (part.position, part.data[-3:]) == ("20000003", b"end")


@pytest.mark.slow
def test_a_gigabyte_of_output_is_bounded(lab):
    code = """
        import os, time
        piece = b"".join(b"%08d %s\\n" % (n, b"x" * 90) for n in range(10_000))
        for n in range(1000):
            os.write(1, piece)
            # A program that does something, too.
            time.sleep(0.05 * (n % 50 == 0))
        print("the last words")
    """
    output = lab.directory / "one" / W / "output.log"
    lab.start(code)
    lab.follow()
    most = 0

    def ended():
        nonlocal most
        with contextlib.suppress(FileNotFoundError):
            most = max(most, output.stat().st_blocks * 512)
        return not lab.engine.list()[W].running

    wait_until(ended, 240, "the end")
    lab.followers.finish(W)
    assert output.stat().st_size >= 1_000_000_000
    assert most < 500_000_000
    assert output.stat().st_blocks * 512 <= directories.OUTPUT_BYTES
    kept = lab.texts()
    assert len(kept) <= MOST_LINES
    assert kept[-1] == "the last words"
    assert any("left out" in text for text in kept)


# --- as it is shown


FILE = "endpoints: {ep: {template: {command: [c]}}, other: {}}"


@pytest.fixture
def api(redis_server, tmp_path, outputs):
    file = tmp_path / "workers.yaml"
    file.write_text(FILE)
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    yield app.test_client()
    services_of(app).notices.stop()


@pytest.fixture
def run(redis_server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("OWNPOD_WORKERS", "")
    settings.reload()
    yield lambda *arguments: CliRunner().invoke(main, arguments)
    monkeypatch.undo()
    settings.current.cache_clear()


@pytest.fixture
def crashed(outputs, managed):
    """A worker that has run two jobs, and was ended by its memory limit."""
    assert managed.started(W, "h")
    assert managed.ready(W)
    found = [*lines("loading"), *lines("one", run="job"), *lines("two", run="job-2"), *lines("3")]
    outputs.append(W, found, "", Place("b"))
    assert managed.stopped(
        *(W, "h"),
        exit_code=-9,
        reason="it reached its memory limit",
        failed=True,
        log="loading\none\ntwo\n3",
        out_of_memory=True,
    )


@pytest.mark.usefixtures("crashed")
def test_the_api_shows_a_worker_that_ended_badly_and_its_lines(api):
    (ended,) = api.get("/v2/ep/workers").json["managed"]["ended"]
    assert (ended["id"], ended["exitCode"], ended["outOfMemory"]) == (W, -9, True)
    assert (ended["endedIn"], ended["log"][-1]) == ("ready", "3")
    assert ended["createdAt"] <= ended["readyAt"] <= ended["stoppedAt"]
    assert api.get("/v2/other/workers").json["managed"]["ended"] == []
    answer = api.get(f"/workers/{W}/logs").json
    assert texts_of(answer) == ["loading", "one", "two", "3"]
    assert (answer["ended"], answer["worker"]["phase"]) == (True, "stopped")
    second = answer["lines"][1]["id"]
    assert texts_of(api.get(f"/workers/{W}/logs?after={second}").json) == ["two", "3"]
    assert texts_of(api.get(f"/workers/{W}/logs?job=job").json) == ["one", "two"]
    nothing = api.get(f"/workers/{W}/logs?after={answer['next']}").json
    assert (nothing["lines"], nothing["next"]) == ([], answer["next"])


def texts_of(answer):
    return [line["text"] for line in answer["lines"]]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("cccccccccccccc", 404, "not found"),
        ("w-1", 404, "not found"),
        (f"{W}?after=x", 400, "after: must be"),
        (f"{W}?after=1-2-3", 400, "after: must be"),
        (f"{W}?job=a:b", 400, "job: must have"),
    ],
)
def test_the_api_refuses_what_is_no_worker_no_line_and_no_job(api, path, status, words):
    worker, _, query = path.partition("?")
    answer = api.get(f"/workers/{worker}/logs?{query}")
    assert (answer.status_code, words in answer.json["error"]) == (status, True)


@pytest.mark.slow
@pytest.mark.usefixtures("crashed")
def test_the_commands_show_a_worker_after_its_end(run, client):
    shown = run("workers", "show", W).output
    for words in ("phase       stopped", "ended in    ready", "exit code   -9", "out of memory"):
        assert words in shown
    assert shown.splitlines()[-4:] == ["  loading", "  one", "  two", "  3"]
    assert json.loads(run("workers", "show", W, "--json").output)["outOfMemory"] is True
    assert run("logs", W).output == "loading\none\ntwo\n3\n"
    assert run("logs", W, "--lines", "1").output == "3\n"
    assert run("logs", W, "--follow", "--job", "job").output == "one\ntwo\n"
    assert json.loads(run("logs", W, "-n", "1", "--json").output)["text"] == "3"
    client.hset(keys.job("job"), mapping={"status": "FAILED", "worker_id": W})
    assert run("logs", "--job", "job").output == "one\ntwo\n"
    client.hset(keys.job("other"), mapping={"status": "FAILED", "worker_id": "mine"})
    for arguments in (
        ("logs",),
        ("logs", "--job", "no"),
        ("logs", "--job", "other"),
        ("logs", X[:3]),
    ):
        done = run(*arguments)
        assert done.exit_code == 2
        assert done.output.count("\n") == 1


@pytest.mark.slow
def test_follow_prints_lines_until_the_worker_ends(outputs, managed, redis_server, tmp_path):
    outputs.append(W, lines("one"), "", Place("b1"))
    command = Process(
        *(sys.executable, "-m", "ownpod", "logs", W, "-f"),
        log=tmp_path / "log",
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS="",
    )
    try:
        wait_until(lambda: command.output == "one\n")
        outputs.append(W, lines("two"), "b1", Place("b2"))
        wait_until(lambda: command.output == "one\ntwo\n")
        assert managed.stopped(W, "h", exit_code=0, reason="r", failed=False)
        assert command.wait() == 0
    finally:
        command.kill()
