"""`ownpod session` against the API over HTTP; agents, nodes and workers are played by the test."""

import json
import threading

import pytest
from click.testing import CliRunner
from helpers import job_store, load_settings, wait_until
from werkzeug.serving import make_server

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.jobs import JobStatus
from ownpod.rules.managed import AgentInfo, Device
from ownpod.rules.runs import Outcome
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.tools.cli import main
from ownpod.tools.client import ApiError, ApiRefused, Client
from ownpod.tools.task_events import follow

FILE = """
models:
  llama:
    chat: {docker_image: "llm:latest", oneOff: false, session: {idleTimeout: 60, queue: 1}}
"""


@pytest.fixture
def server(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(FILE)
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    found = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=found.serve_forever, args=(0.05,))
    thread.start()
    device = Device("GPU-0", 0, "RTX", 24_000, pools=("low",))
    Agents(client).heartbeat(AgentInfo("box", "docker", (device,)), "token")
    yield found
    services_of(app).notices.stop()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def run(url):
    def run(*arguments, stdin=""):
        done = CliRunner().invoke(main, ["session", *arguments, "--url", url], input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done

    return run


@pytest.fixture
def store(client):
    return job_store(client)


@pytest.fixture
def ready(client):
    """The host has started a session, and its worker has requested a task."""

    def ready(session):
        managed = Managed(client)
        assert managed.place(session, "box", "token", ["GPU-0"])
        managed.started(session, "box")
        assert managed.ready(session)

    return ready


@pytest.fixture
def session(run, ready):
    (session_id,) = run("start", "llama", "chat", "--no-wait").stdout.split()
    ready(session_id)
    return session_id


def play(store, session, chunks, outcome, level="info"):
    """Runs the next task of a session, in a thread, as its node and worker do."""

    def next_task():
        waiting = store.client.zrange("ownpod:endpoint:llama-chat:private", 0, 0)
        return waiting[0] if waiting else None

    def work():
        task_id = wait_until(next_task, 20, "a task")
        task_id = task_id.decode() if isinstance(task_id, bytes) else task_id
        attempt = store.jobs.claim(task_id, worker_id=session, claim="t", lease_s=60)
        store.chunks.add(task_id, 1, [json.dumps(chunk) for chunk in chunks[:1]])
        store.journal.add(task_id, "logs", {"log": "thinks", "level": level}, attempt=1)
        store.chunks.add(task_id, 1, [json.dumps(chunk) for chunk in chunks[1:]])
        store.jobs.finish(attempt, outcome)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def completed(output):
    return Outcome(JobStatus.COMPLETED, output=json.dumps(output))


def test_start_waits_until_the_model_is_loaded_and_shows_what_it_waits_for(run, client, ready):
    def start_it():
        (wanted,) = wait_until(lambda: Managed(client).list("llama-chat"), 20, "the session")
        Managed(client).waits(wanted.id, "no device is free")
        ready(wanted.id)

    thread = threading.Thread(target=start_it)
    thread.start()
    done = run("start", "llama", "chat", "--idle", "30", "--label", "who=me")
    thread.join()
    assert done.exit_code == 0, done.output
    (session,) = done.stdout.split()
    assert "its model was loaded in" in done.stderr
    found = json.loads(run("list", "--json").stdout)["sessions"]
    assert [one["session_id"] for one in found] == [session]
    assert (found[0]["idle_timeout_seconds"], found[0]["labels"]) == (30, {"who": "me"})


def test_a_task_prints_its_text_and_everything_else_goes_to_standard_error(run, store, session):
    thread = play(store, session, ["Hel", "lo"], completed(["Hel", "lo"]))
    done = run("send", session, '{"prompt": "Hi"}')
    thread.join()
    assert (done.exit_code, done.stdout) == (0, "Hello\n"), done.output
    assert "logs: info thinks" in done.stderr
    assert "task_finish: completed after" in done.stderr
    thread = play(store, session, ["Hel", "lo"], completed("Hello"), level="debug")
    done = run("send", session, "{}")
    thread.join()
    assert (done.stdout, "thinks" in done.stderr) == ("Hello\n", False)
    thread = play(store, session, ["Hel", "lo"], completed("Hello"), level="debug")
    done = run("send", session, "{}", "--verbose")
    thread.join()
    assert (done.stdout, "logs: debug thinks" in done.stderr) == ("Hello\n", True)
    thread = play(store, session, [], completed({"n": 1}))
    # By model and preset: the idle session of before.
    done = run("send", "llama/chat", "--prompt", "Hi", "--quiet")
    thread.join()
    assert (done.exit_code, done.stdout, done.stderr) == (0, '{"n": 1}\n', "")
    assert json.loads(run("list", "--json").stdout)["sessions"][0]["tasks_done"] == 4


def test_json_has_each_event_with_its_id(run, store, session):
    thread = play(store, session, ["a"], completed("a"))
    lines = [json.loads(line) for line in run("send", session, "{}", "--json").stdout.splitlines()]
    thread.join()
    names = [line["event"] for line in lines]
    assert (names[0], names[-1]) == ("connection", "task_finish")
    assert len({line["id"] for line in lines}) == len(lines)


def test_a_task_that_fails_and_one_that_is_refused_exit_with_1(run, store, session, url):
    thread = play(store, session, ["par"], Outcome(JobStatus.FAILED, error="no memory"))
    done = run("send", session, "{}", "-q")
    thread.join()
    assert (done.exit_code, done.stdout) == (1, "par\n")
    assert "failed after" in done.stderr
    assert "no memory" in done.stderr
    body = {
        "task_type": "session",
        "session_id": session,
        "model_id": "llama",
        "task_preset": "chat",
    }
    client = Client(url, None, "llama-chat", repeat_503=False)
    headers = {"Prefer": "respond-async"}
    client.json("POST", "/api/tasks/submit", json=body, headers=headers)
    with pytest.raises(ApiRefused) as refused:
        client.json("POST", "/api/tasks/submit", json=body, headers=headers)
    # At once, though Retry-After names some seconds.
    assert refused.value.status == 503
    assert "queue" in str(refused.value)
    done = run("send", session, "{}")
    assert done.exit_code == 2
    assert "queue" in done.stderr


def test_list_and_kill(run, session):
    assert session in run("list").stdout
    assert "llama" in run("list").stdout
    assert "no sessions" in run("list", "--model", "other").stdout
    done = run("kill", session, "aaaaaaaaaaaaaa")
    assert done.exit_code == 1
    assert f"{session}: " in done.stdout
    assert "aaaaaaaaaaaaaa" in done.stderr
    assert "manual" in run("list", "--all").stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["send", "llama/chat"], "give INPUT or --prompt"),
        (["send", "llama/chat", "{}", "-p", "x"], "give INPUT or --prompt"),
        (["send", "llama/chat", "{no"], "the input must be JSON"),
        (["send", "aaaaaaaaaaaaaa", "{}"], "aaaaaaaaaaaaaa"),
        (["start", "llama", "nothing", "--no-wait"], "chat"),
        (["start", "llama", "chat", "--label", "x"], "NAME=VALUE"),
        (["start", "llama", "chat", "--idle", "-1"], "idle_timeout_seconds"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(run, arguments, problem):
    done = run(*arguments)
    assert done.exit_code == 2
    assert problem in done.stderr


def test_a_stream_over_broken_connections_has_each_event_once(store, session, url, server):
    """Each answer is cut behind some bytes, in the middle of an event as well."""
    whole, sizes = server.app, iter(range(150, 3000, 17))

    def cut(environ, start_response):
        answer = whole(environ, start_response)
        if not environ["PATH_INFO"].endswith("/events"):
            return answer

        def pieces():
            left = next(sizes)
            for piece in answer:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    answer.close()
                    return

        return pieces()

    server.app = cut
    client = Client(url, None, "llama-chat", repeat_503=False)
    headers = {"Prefer": "respond-async"}
    body = {
        "task_type": "session",
        "session_id": session,
        "model_id": "llama",
        "task_preset": "chat",
    }
    task = client.json("POST", "/api/tasks/submit", json=body, headers=headers)["task_id"]
    thread = play(store, session, [f"{n} " for n in range(20)], completed("x"))
    found = list(follow(client, task, pause=lambda _: None))
    thread.join()
    deltas = [event.data["delta"] for event in found if event.event == "text_delta"]
    assert deltas == [f"{n} " for n in range(20)]
    assert [event.event for event in found].count("task_finish") == 1
    assert len({event.id for event in found}) == len(found)


def test_following_ends_when_the_api_is_away_for_long():
    client = Client("http://127.0.0.1:1", None, "ep", repeat_503=False)
    with pytest.raises(ApiError, match="no event of task t for 0 s: .*cannot be reached"):
        list(follow(client, "t", give_up_s=0, pause=lambda _: None))
