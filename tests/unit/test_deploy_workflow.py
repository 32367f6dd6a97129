"""The GitHub workflow of ``examples/deploy``: its commands are there, and its variables are those that the script reads."""

import json
import re
import runpy
import shlex
import shutil

import pytest
import yaml
from helpers import ROOT

from ownpod.rules.gpu_types import GPU_TYPES

DIRECTORY = ROOT / "examples" / "deploy"
SCRIPT = DIRECTORY / "deploy.py"
EXPRESSION = re.compile(r"\$\{\{ *(secrets|vars|github)\.([A-Za-z_]+) *\}\}")
READ = re.compile(r"os\.environ\.get\(\"(\w+)\"")
VALUES = {"OWNPOD_ADMIN_KEY": "key", "OWNPOD_URL": "https://gpus.example.com", "sha": "abc"}


@pytest.fixture(scope="module")
def workflow():
    return yaml.safe_load((DIRECTORY / "deploy.yml").read_text())


@pytest.fixture(scope="module")
def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_it_is_a_workflow(workflow, steps):
    # YAML 1.1 reads the key `on` as a truth value.
    assert workflow[True]
    assert all(job["runs-on"] for job in workflow["jobs"].values())
    assert all(("uses" in step) != ("run" in step) for step in steps)


def test_each_command_of_it_exists(steps):
    commands = [line for step in steps for line in step.get("run", "").splitlines()]
    assert commands
    for program, *arguments in map(shlex.split, commands):
        assert shutil.which(program), program
        for path in (word for word in arguments if "/" in word):
            assert (ROOT / path).is_file(), path
    assert any("uses" in step and step["uses"].startswith("actions/checkout@") for step in steps)


def test_the_script_reads_each_variable_of_it(steps):
    read = set(READ.findall(SCRIPT.read_text()))
    given = {name for step in steps for name in step.get("env", {})}
    assert {"RUNPOD_API_KEY", "RUNPOD_REST_URL", "RUNPOD_INVOKE_URL", "IMAGE"} <= given
    assert {name for name in given if not name.startswith("WORKER_ENV_")} <= read


def test_the_script_gets_what_the_workflow_means(steps, monkeypatch):
    for step in steps:
        for name, text in step.get("env", {}).items():
            value = EXPRESSION.sub(lambda found: VALUES.get(found[2], "team/worker"), text)
            assert "${{" not in value
            monkeypatch.setenv(name, value)
    found = runpy.run_path(str(SCRIPT))
    assert found["KEY"] == "key"
    assert found["REST"] == "https://gpus.example.com/v1"
    assert found["INVOKE"] == "https://gpus.example.com/v2"
    assert found["IMAGE"] == "ghcr.io/team/worker:abc"
    assert found["ENV"] == {"MODEL": "small"}
    assert {*found["GPU_TYPES"]} <= GPU_TYPES.keys()
    assert json.loads(found["TEST_INPUT"])
