"""The option `--no-skips`, with which CI runs: a test that is skipped on other hosts fails there."""

import subprocess
import sys

import pytest
from helpers import ROOT, environment

ALONE = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

TESTS = """
import pytest

@pytest.fixture
def thing():
    pytest.skip("no thing here")

def test_that_needs_it(thing): pass

@pytest.mark.skipif(True, reason="no other thing")
def test_that_is_marked(): pass

@pytest.mark.xfail(strict=True)
def test_that_is_known_to_fail(): raise AssertionError

def test_that_passes(): pass
"""


def run(directory, *options):
    command = [sys.executable, "-m", "pytest", "-p", "no_skips", "-q", "-ra", *options]
    return subprocess.run(
        [*command, "--rootdir", directory, "-c", "/dev/null", directory],
        cwd=directory,
        # Without other plugins, because their imports take seconds.
        env=environment(PYTHONPATH=ROOT / "tests", PYTEST_ADDOPTS="", **ALONE),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes", [[], ["-p", "xdist", "-n", "1"]], ids=["one process", "xdist"]
)
def test_a_skipped_test_fails_with_its_reason_only_with_the_option(tmp_path, processes):
    (tmp_path / "test_some.py").write_text(TESTS)
    lenient = run(tmp_path, *processes)
    assert lenient.returncode == 0, lenient.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in lenient.stdout
    strict = run(tmp_path, *processes, "--no-skips")
    assert strict.returncode == 1
    assert "no thing here" in strict.stdout
    assert "no other thing" in strict.stdout
    # A skip in a fixture is an error of the set-up.
    assert "1 passed, 1 xfailed, 2 error" in strict.stdout.replace("errors", "error"), strict.stdout


@pytest.mark.slow
def test_a_module_that_skips_itself_fails_with_the_option(tmp_path):
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('not_there')\n")
    (tmp_path / "test_fine.py").write_text("def test_fine(): pass\n")
    assert run(tmp_path).returncode == 0
    strict = run(tmp_path, "--no-skips")
    assert strict.returncode not in {0, 5}
    assert "not_there" in strict.stdout


@pytest.mark.slow
def test_this_suite_knows_the_option():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--no-skips",
            "-p",
            "pytest_timeout",
            "--collect-only",
            __file__,
        ],
        cwd=ROOT,
        env=environment(PYTEST_ADDOPTS="", **ALONE),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
