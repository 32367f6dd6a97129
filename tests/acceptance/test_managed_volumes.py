"""Volumes and secrets for real: `ownpod up`, the engine `process`, and a handler of the real SDK that uses both."""

import sys
from pathlib import Path

import pytest
import requests
import yaml
from helpers import run_command, wait_until

from ownpod.rules.managed import Phase
from ownpod.store.client import connect
from ownpod.store.managed import Managed

pytestmark = pytest.mark.timeout(300)

HANDLERS = Path(__file__).with_name("handlers.py")
SECRET = "hunter2-and-more"


@pytest.fixture
def started(start_ownpod, tmp_path):
    """An OwnPod whose workers need the volume ``models`` at ``mounted`` and the secret ``hub``."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "weights.txt").write_text("42")
    template = {
        "command": [sys.executable, str(HANDLERS)],
        "env": {"HANDLER": "sync", "PYTHONUNBUFFERED": "1", "TOKEN": "{{ SECRET_hub }}"},
        "volumes": {"models": str(tmp_path / "mounted")},
    }
    endpoint = {"template": template, "workersMax": 1, "idleTimeout": 1}
    file = tmp_path / "workers.yaml"
    file.write_text(yaml.safe_dump({"endpoints": {"local-ep": endpoint}}))
    return start_ownpod(
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_WORKERS="",
        OWNPOD_ENGINE="process",
        OWNPOD_DEVICES="cpu:1",
        OWNPOD_VOLUMES=f"models={models}",
        OWNPOD_SHUTDOWN_GRACE_S=2,
    )


def ownpod_command(ownpod, tmp_path, *arguments, stdin=""):
    done = run_command(
        *(sys.executable, "-m", "ownpod", *arguments),
        stdin=stdin,
        REDIS_URL=ownpod.redis_url,
        OWNPOD_WORKERS_FILE=tmp_path / "workers.yaml",
        OWNPOD_DATA_DIR=tmp_path / "var",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_handler_reads_its_volume_and_its_secret_is_in_no_kept_output(started, tmp_path):
    ownpod = started
    job = ownpod.submit(do="volume", text="written")
    wait_until(lambda: "`ownpod secrets set hub`" in str(ownpod.status(job)), 60, "why it waits")
    assert "set hub" in ownpod_command(ownpod, tmp_path, "secrets", "set", "hub", stdin=SECRET)
    wait_until(lambda: ownpod.status(job)["status"] == "COMPLETED", 90, "the job")
    mounted = tmp_path / "mounted"
    assert ownpod.status(job)["output"] == {
        "path": str(mounted),
        "weights": "42",
        "length": len(SECRET),
    }
    assert (tmp_path / "models" / "out.txt").read_text() == "written"
    assert "models" in ownpod_command(ownpod, tmp_path, "volumes")
    (host,) = requests.get(f"http://127.0.0.1:{ownpod.port}/agents", timeout=30).json()["agents"]
    (volume,) = [found for found in host["volumes"] if found["name"] != "*"]
    assert (volume["name"], volume["problem"]) == ("models", "")
    with connect(ownpod.redis_url) as client:
        managed = Managed(client)
        wait_until(managed.recent, 60, "the end of the idle worker")
        (worker,) = managed.recent()
        assert worker.phase is Phase.STOPPED
        assert "the secret is ***" in worker.log
        kept = [client.dump(name) for name in client.keys("*")]
        assert SECRET not in str(kept)
    # The link and what the worker has written stay.
    assert mounted.readlink() == tmp_path / "models"
