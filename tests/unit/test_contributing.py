"""What contributors rely on: workflows, hooks, the locks, the version, and the files that the guide names."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from coverage_figure import by_folder, svg, table

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-bench.txt")


def workflow(name):
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def targets():
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_pull_requests_are_tested_on_every_python_that_the_package_names():
    matrix = workflow("test.yml")["jobs"]["fast"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["project"]["classifiers"] if prefix in c]
    assert matrix["python"] == named
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
    assert f"Python {named[0]} to {named[-1]}" in (ROOT / "Makefile").read_text()


def test_pull_requests_are_tested_on_redis_6_7_and_8_by_the_variable_that_the_tests_read():
    job = workflow("test.yml")["jobs"]["fast"]
    assert [version[0] for version in job["strategy"]["matrix"]["redis"]] == ["6", "7", "8"]
    environ = next(s["env"] for s in job["steps"] if "test-fast" in s.get("run", ""))
    helpers = (ROOT / "tests/helpers.py").read_text()
    assert environ.keys() == {"TEST_REDIS_SERVER", "TEST_REDIS_VERSION"}
    assert "TEST_REDIS_SERVER" in helpers


@pytest.mark.parametrize("name", ["test.yml", "nightly.yml"])
def test_workflows_call_targets_and_scripts_that_are_there_and_use_whole_versions(name):
    for job in workflow(name)["jobs"].values():
        assert job["timeout-minutes"]
        for command in commands(job):
            if made := re.match(r"make ([a-z][a-z-]*)", command):
                assert made[1] in targets()
            if command.startswith(".ci/"):
                assert (ROOT / command).exists()
        for step in job["steps"]:
            if "uses" in step:
                assert re.search(r"@v\d+\.\d+\.\d+$", step["uses"]), step["uses"]


def test_the_nightly_workflow_runs_everything_and_chaos():
    found = [c for job in workflow("nightly.yml")["jobs"].values() for c in commands(job)]
    assert ".ci/run" in found
    assert any(command.startswith("make chaos") for command in found)


def test_hooks_run_the_programs_that_make_check_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    programs = {hook["entry"].partition(" ")[0] for hook in repo["hooks"]}
    check = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    assert programs == {f".venv/bin/{name}" for name in re.findall(r"\$\(BIN\)/(\w+)", check)}


def test_every_file_and_target_that_the_guide_names_is_there():
    text = "".join((ROOT / n).read_text() for n in ("CONTRIBUTING.md", "SECURITY.md"))
    for name in re.findall(r"`([\w.-]+/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert list((ROOT / "tests").rglob(name)), name
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    for line in re.findall(r"`make ([a-z -]+)", text):
        assert set(line.split()) <= targets(), line


def test_the_version_is_that_of_pyproject_and_of_the_last_release_in_changes():
    released = re.findall(r"^## (\d+\.\d+\.\d+) ", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)
    assert released[0] == PROJECT["project"]["version"]
    assert version("ownpod") == PROJECT["project"]["version"], "run make install"
    supported = PROJECT["project"]["version"].rpartition(".")[0]
    assert f"the last release ({supported})" in (ROOT / "SECURITY.md").read_text()


def locked(name):
    """Package: the entry in a lock."""
    text = (ROOT / name).read_text()
    entries = re.findall(r"^(\S.*(?:\n +--hash.*)*)", text, re.MULTILINE)
    return {re.split(r"[=\[ ]", entry)[0]: entry for entry in entries if entry[0] != "#"}


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_of_a_lock_has_an_exact_version_and_hashes(name):
    for package, entry in locked(name).items():
        assert re.match(rf"{re.escape(package)}==[\w.]+", entry), entry
        assert re.search(r"\n    --hash=sha256:[0-9a-f]{64}", entry), package
    assert "://" not in (ROOT / name).read_text()
    assert "--index" not in (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("extras", "locks"),
    [
        ([], LOCKS[:1]),
        (["docs", "flower"], LOCKS[:1]),
        (["dev"], LOCKS[:2]),
        (["bench"], LOCKS),
    ],
)
def test_the_locks_have_what_pyproject_asks_for(extras, locks):
    project = PROJECT["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    known = set().union(*map(locked, locks))
    missing = {re.split(r"[\[>=<]", line)[0] for line in wanted} - known
    assert not missing, "run make lock"


def test_the_figure_of_coverage_sums_by_folder():
    counts = {"ownpod/api/a.py": (9, 10), "ownpod/api/b.py": (0, 10), "ownpod/log.py": (5, 5)}
    files = {
        name: {"summary": {"covered_lines": run, "num_statements": lines}}
        for name, (run, lines) in counts.items()
    }
    rows = by_folder({"files": files})
    assert rows == [("ownpod", 5, 5), ("ownpod/api", 9, 20), ("all", 14, 25)]
    assert "ownpod/api               20      9   45.0%" in table(rows)
    assert "45.0 % of 20" in svg(rows)
