"""What `ownpod up` says at its start of templates that cannot be, and of those that have to wait."""

import sys

import pytest
from helpers import ROOT, run_command

from ownpod.processes import free_port

pytestmark = pytest.mark.slow

FILE = """
endpoints:
  one: {template: {image: org/worker, command: [sleep, "60"], env: {TOKEN: "{{ SECRET_hub }}"}}, workersMin: 1}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "workers.yaml"
    path.write_text(FILE)
    return path


def test_an_image_that_is_not_allowed_stops_the_start_with_one_line(tmp_path, file):
    done = run_command(
        *(sys.executable, "-m", "ownpod", "up", "--port", free_port()),
        cwd=tmp_path,
        OWNPOD_WORKERS_FILE=file,
        OWNPOD_DATA_DIR=tmp_path / "var",
        OWNPOD_ENGINE="docker",
        OWNPOD_IMAGES="ghcr.io/team/*",
        PYTHONPATH=ROOT,
    )
    assert done.returncode != 0
    (line,) = (done.stdout + done.stderr).splitlines()
    for part in ("'one'", "docker.io/org/worker:latest", "OWNPOD_IMAGES allows ghcr.io/team/*"):
        assert part in line


def test_with_the_engine_process_the_image_is_only_noted_and_one_line_warns_of_the_secret(
    start_ownpod, file
):
    found = start_ownpod(
        OWNPOD_WORKERS_FILE=file, OWNPOD_ENGINE="process", OWNPOD_IMAGES="ghcr.io/team/*"
    )
    before_ready = found.output.partition("| ready: ")[0]
    (line,) = (line for line in before_ready.splitlines() if "warning: the jobs" in line)
    assert "the jobs of one wait: secret 'hub' is not there: use `ownpod secrets set hub`" in line
