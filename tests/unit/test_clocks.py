"""Which modules may read a host's clock: those that show an instant, none that decides by one."""

import ast
import re
import subprocess
import sys

import pytest
from test_imports import modules

from ownpod.workers.answers import Answer, outcome_in

WALL = {"time", "time_ns", "localtime", "gmtime", "now", "utcnow", "today"}

SHOWN = {
    "tools.tables",  # "5 min ago"
    "tools.jobs",  # how long a job runs so far
    "agent.containers",  # the engine's records have the same host's clock
    "agent.model_fetch",  # since when a model is whole
    "housekeeping.webhooks",  # the instant in a delivery's log and in its signature
}


# Without it, the tree of each module would be searched, which takes a second.
MAYBE = re.compile(rf"\b(?:time|datetime|date)\s*\.\s*(?:{'|'.join(WALL)})\b")


def reads_wall_clock(path):
    text = path.read_text()
    return MAYBE.search(text) is not None and any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"time", "datetime", "date"}
        and node.attr in WALL
        for node in ast.walk(ast.parse(text))
    )


def test_no_module_that_decides_reads_a_hosts_clock():
    assert {name for name, path in modules() if reads_wall_clock(path)} <= SHOWN


@pytest.mark.slow
def test_a_deadline_is_the_same_on_a_host_whose_clock_is_wrong():
    code = (
        "import time\n"
        "time.time = lambda: 0.0\n"
        "time.time_ns = lambda: 0\n"
        "from ownpod.node.slots import _start\n"
        "from helpers import attempt\n"
        "found = _start(attempt(started_ms=5_000, expires_ms=99_000, execution_timeout_ms=9000, ran_ms=4000))\n"
        "left = found.deadline - time.monotonic()\n"
        "assert 4.0 < left <= 5.0, left\n"
        "found = _start(attempt(started_ms=5_000, expires_ms=12_000, execution_timeout_ms=9000, ran_ms=4000))\n"
        "left = found.deadline - time.monotonic()\n"
        "assert 2.0 < left <= 3.0 and 'ttl' in found.too_long, left\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd="tests")


@pytest.mark.parametrize(
    ("figure", "kept"),
    [
        ("12.7", 12),
        ("1e300", 8 * 86_400_000),
        ("-5", 0),
        ("1" + "0" * 18, 8 * 86_400_000),
        ("true", None),
        ('"7"', None),
    ],
)
def test_a_workers_figure_of_its_time_is_a_number_of_ms_that_can_be(figure, kept):
    body = f'{{"id": "r", "status": "COMPLETED", "executionTime": {figure}}}'.encode()
    assert outcome_in(Answer(200, body), "r").execution_ms == kept
