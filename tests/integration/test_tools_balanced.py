"""Commands for load-balanced endpoints; what fronts publish is written by hand."""

import sys
import threading

import pytest
from click.testing import CliRunner
from helpers import load_settings, run_command, wait_until
from werkzeug.serving import make_server

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.balancing import RouteReading, ServerReading
from ownpod.rules.fleet import WorkerState, WorkerStatus
from ownpod.rules.homes import Front
from ownpod.store.fleet import Fleet
from ownpod.store.fronts import Fronts
from ownpod.tools.cli import main

FILE = """
endpoints:
  web: {type: LB, workers: [{url: "http://127.0.0.1:1", id: a}, {url: "http://127.0.0.1:2", id: b}]}
"""


@pytest.fixture
def file(tmp_path):
    found = tmp_path / "workers.yaml"
    found.write_text(FILE)
    return found


@pytest.fixture
def front(client):
    """A front that publishes, and what it has read."""
    reading = RouteReading(requests=5, total=9, servers={"a": ServerReading(2, 1, 9)})
    ended = threading.Event()

    def beat():
        while not ended.wait(0.2):
            Fronts(client).beat(Front("f"), {"web": reading})

    thread = threading.Thread(target=beat)
    thread.start()
    wait_until(lambda: Fronts(client).living()[0])
    yield
    ended.set()
    thread.join()


@pytest.fixture
def run(client, redis_server, file):
    """Runs a command against the API; its exit code and output."""
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def run(command, *arguments, endpoint=("-e", "web")):
        url = f"http://127.0.0.1:{server.server_port}"
        done = CliRunner().invoke(main, [command, "--url", url, *endpoint, *arguments])
        return done.exit_code, done.output

    yield run
    server.shutdown()
    thread.join()
    server.server_close()
    services_of(app).notices.stop()


@pytest.fixture
def command(redis_server, file):
    """Runs a command on the host of OwnPod; its output."""

    def run(*arguments):
        environ = {"OWNPOD_WORKERS_FILE": file, "REDIS_URL": redis_server.url}
        done = run_command(sys.executable, "-m", *arguments, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def publish(client, worker_id, state, reason=""):
    status = WorkerStatus(state, reason, 1)
    Fleet(client).publish_status(worker_id, status, node="front@host", ttl_s=60)


def cells(run, expected):
    """The cells of the output's lines, once it has a text; a front's heartbeat is valid for two seconds only."""

    def output():
        code, text = run()
        return code == 0 and expected in text and text

    return [line.split() for line in wait_until(output, 30, expected).splitlines()]


@pytest.mark.usefixtures("front")
def test_health_and_top_show_requests_and_reasons(run, client):
    publish(client, "a", WorkerState.READY)
    publish(client, "b", WorkerState.UNHEALTHY, "404 on /ping")
    lines = cells(lambda: run("health"), "web: waiting 3, open 2, total 9")
    assert ["a", "ready", "2/any"] in lines
    assert ["b", "unhealthy", "0/any", "404", "on", "/ping"] in lines
    lines = cells(lambda: run("top", "--count", "1"), "2/any")
    assert ["web", "LB", "3", "2", "0.0", "1/2"] in lines
    assert ["web", "a", "ready", "2/any"] in lines


def test_health_fails_without_a_front_and_names_the_remedy(run):
    code, text = run("health")
    assert code == 1
    assert "no front runs: see ownpod doctor" in text


def test_health_without_an_endpoint_shows_the_only_one(run):
    assert run("health", endpoint=())[1].startswith("web: waiting 0")
    code, text = run("health", endpoint=("-e", "local-ep"))
    assert code == 2
    assert "'local-ep' not found; known endpoints: web" in text


def test_health_without_an_endpoint_lists_several(file, request):
    file.write_text("endpoints: {one: {}, two: {}}")
    run = request.getfixturevalue("run")
    code, text = run("health", endpoint=())
    assert code == 2
    assert "-e/--endpoint: must name an endpoint, one of one, two" in text


@pytest.mark.slow
@pytest.mark.usefixtures("front")
@pytest.mark.parametrize(
    "program", [("ownpod", "workers", "list"), ("celery", "-A", "ownpod", "workers")]
)
def test_both_lists_of_workers_show_open_requests(command, client, program):
    publish(client, "a", WorkerState.READY)
    publish(client, "b", WorkerState.PAUSED, "drained")
    lines = cells(lambda: (0, command(*program)), "2/any")
    assert ["a", "web", "http://127.0.0.1:1", "ready", "2/any"] in lines
    assert ["b", "web", "http://127.0.0.1:2", "paused", "0/any", "drained"] in lines


@pytest.mark.slow
def test_an_added_worker_has_no_limit_unless_one_is_given(command, client):
    command("ownpod", "workers", "add", "http://127.0.0.1:3", "-e", "web", "--id", "c")
    limited = ("http://127.0.0.1:4", "-e", "web", "--id", "d", "--capacity", "5")
    command("ownpod", "workers", "add", *limited)
    text = command("ownpod", "workers", "list")
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert [lines[name][4] for name in "cd"] == ["0/any", "0/5"]
    command("ownpod", "workers", "drain", "c")
    assert Fleet(client).paused("c") == "drained"
    command("ownpod", "workers", "resume", "c")
    assert Fleet(client).paused("c") is None
