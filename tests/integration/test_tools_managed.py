"""`ownpod health` and `ownpod top` with managed workers, through a real API."""

import threading

import pytest
from click.testing import CliRunner
from helpers import load_settings
from werkzeug.serving import make_server

from ownpod.api import create_app
from ownpod.api.services import services_of
from ownpod.rules.managed import AgentInfo, Device
from ownpod.store.agents import Agents
from ownpod.store.managed import Managed
from ownpod.tools.cli import main

W, X = "aaaaaaaaaaaaaa", "bbbbbbbbbbbbbb"
FILE = "endpoints: {ep: {gpu: {count: 1}, template: {command: [c], env: {TOKEN: secret-1}}}}"


@pytest.fixture
def app(client, redis_server, tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text(FILE)
    app = create_app(load_settings(REDIS_URL=redis_server.url, OWNPOD_WORKERS_FILE=file))
    yield app
    services_of(app).notices.stop()


@pytest.fixture
def run(app):
    """Runs a command against the API; its exit code, output and errors."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def run(command, *arguments):
        url = f"http://127.0.0.1:{server.server_port}"
        services_of(app).registry.refresh()
        return CliRunner().invoke(main, [command, "--url", url, "-e", "ep", *arguments])

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def preparing(app, client):
    """A worker whose image is pulled, on a device, after another one that did not start."""
    agents, managed = Agents(client), Managed(client)
    agents.heartbeat(AgentInfo("alpha", "docker", (Device("GPU-1", 0, "RTX 4090", 24_576),)), "t")
    spec = services_of(app).registry.endpoint("ep").managed
    for worker in (X, W):
        assert managed.want(worker, "ep", spec=spec)
        assert managed.place(worker, "alpha", "t", ["GPU-1"])
        if worker == X:
            assert managed.stopped(
                X, "alpha", exit_code=3, reason="it ended by itself", failed=True, log="no model"
            )
    assert managed.progress(W, "alpha", "image pull 43 %")


@pytest.mark.usefixtures("preparing")
@pytest.mark.parametrize(
    ("command", "more", "code"), [("health", (), 1), ("top", ("--count", "1"), 0)]
)
def test_a_worker_that_starts_is_shown_with_phase_place_and_reason(run, command, more, code):
    done = run(command, *more)
    assert done.exit_code == code, done.output
    lines = done.output.splitlines()
    (row,) = (line for line in lines if "preparing" in line)
    assert W in row
    assert "alpha/GPU-1" in row
    assert any("exit code 3" in line for line in lines)
    assert any(line.strip() == "no model" for line in lines)
    # Its node reports only that the worker has requested no job.
    assert any(W in line and "initializing" in line for line in lines)
    assert "secret-1" not in done.output


@pytest.mark.usefixtures("preparing")
def test_top_shows_which_worker_holds_a_device(run):
    lines = run("top", "--count", "1").output.splitlines()
    (device,) = (line for line in lines if "RTX 4090" in line)
    assert "busy" in device
    assert W in device
    (host,) = (line for line in lines if "docker" in line)
    assert "0 of 1" in host


def test_without_managed_workers_health_has_one_table(run):
    output = run("health").output
    assert "PHASE" not in output
    assert "do not start" not in output
