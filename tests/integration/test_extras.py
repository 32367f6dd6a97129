"""Optional packages: without one, its part of OwnPod names the extra, and everything else works."""

import json
import sys
import tomllib

import pytest
from helpers import ROOT, run_command

from ownpod.processes import free_port

# Each test starts a process of its own.
pytestmark = pytest.mark.slow

EXTRAS = {
    "docs": "flask_swagger_ui",
    "flower": "flower",
    "docker": "docker",
    "models": "huggingface_hub",
    "s3": "s3fs",
}
"""Extra, and the package that its part imports."""


def without(package, code, *arguments, **environ):
    """Runs Python code in a process in which a package cannot be imported."""
    blocked = f"import sys; sys.modules[{package!r}] = None\n"
    return run_command(sys.executable, "-c", f"{blocked}{code}", *arguments, **environ)


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_packages_of_extras_are_no_core_dependencies(project):
    extras = project["optional-dependencies"]
    assert set(extras) - {"dev", "bench"} == set(EXTRAS)
    for name, package in EXTRAS.items():
        listed = [line.replace("-", "_") for line in extras[name]]
        assert any(line.startswith(package) for line in listed), name
        core = [line.replace("-", "_") for line in project["dependencies"]]
        assert not any(line.startswith(package) for line in core), name


@pytest.mark.parametrize("command", [["flower"], ["up", "--port", str(free_port()), "--flower"]])
def test_without_flower_its_commands_end_with_one_line_that_names_the_extra(
    redis_server, tmp_path, command
):
    done = without(
        EXTRAS["flower"],
        "from ownpod.tools.cli import main; main(prog_name='ownpod')",
        *command,
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS="http://127.0.0.1:9",
        OWNPOD_DATA_DIR=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "ownpod: Flower is not installed: pip install 'ownpod[flower]'\n"


SERVE = """
import json
from ownpod import settings
from ownpod.api import create_app
api = create_app(settings.current()).test_client()
answers = [api.get(path, follow_redirects=True) for path in ("/docs/", "/docs", "/openapi.json", "/")]
print(json.dumps([[answer.status_code, answer.get_data(as_text=True)] for answer in answers]))
"""


def test_without_the_docs_page_its_url_names_the_extra_and_the_document_is_served(redis_server):
    done = without(
        EXTRAS["docs"],
        SERVE,
        REDIS_URL=redis_server.url,
        OWNPOD_WORKERS="http://127.0.0.1:9",
        OWNPOD_API_KEYS="a-key",
    )
    assert done.returncode == 0, done.stderr
    page, same_page, document, start = json.loads(done.stdout)
    assert page == same_page
    assert page[0] == 501
    missing = "the page at /docs is not installed: pip install 'ownpod[docs]'"
    assert json.loads(page[1]) == {"error": missing}
    assert (document[0], start[0]) == (200, 200)
    assert "/v2/{endpoint_id}/run" in json.loads(document[1])["paths"]


CHOOSE = """
import sys
from pathlib import Path
from ownpod import settings
from ownpod.agent.run import make_engine
print(make_engine(settings.current(), Path(sys.argv[1]), "instance").name)
"""


def test_without_docker_py_an_agent_runs_processes_unless_docker_was_chosen(tmp_path):
    done = without("docker", CHOOSE, str(tmp_path))
    assert (done.stdout, done.returncode) == ("process\n", 0), done.stderr
    done = without("docker", CHOOSE, str(tmp_path), OWNPOD_ENGINE="docker")
    assert "pip install 'ownpod[docker]'" in done.stderr
