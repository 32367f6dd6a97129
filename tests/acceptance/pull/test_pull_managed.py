"""A managed worker with an SDK of each version: OwnPod starts it, and it pulls."""

from pathlib import Path

import pytest
import yaml
from helpers import wait_until

HANDLERS = Path(__file__).parents[1] / "handlers.py"


def workers(ownpod):
    return ownpod.get("/health")["ownpod"]["managed"]["workers"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_jobs_start_a_worker_with_the_sdk_of_the_templates_python(start_ownpod, tmp_path, python):
    template = {
        "command": [str(python), str(HANDLERS)],
        "env": {"HANDLER": "sync", "PYTHONUNBUFFERED": "1"},
    }
    endpoint = {"template": template, "workersMax": 1, "idleTimeout": 1}
    file = tmp_path / "workers.yaml"
    file.write_text(yaml.safe_dump({"endpoints": {"local-ep": endpoint}}))
    ownpod = start_ownpod(OWNPOD_WORKERS_FILE=file, OWNPOD_ENGINE="process", OWNPOD_DEVICES="cpu:1")
    for text in ("a", "b"):
        done = ownpod.ended(ownpod.submit(text=text), 90)
        assert (done["status"], done["output"]["echo"]) == ("COMPLETED", text)
        assert "retries" not in done
        # A worker that is idle ends in time; the next job starts another one.

        wait_until(lambda: not workers(ownpod), 60, "no worker")
