"""`ownpod env` and `ownpod rewrite`: what directs RunPod's clients and scripts to OwnPod."""

import re

import pytest
from click.testing import CliRunner
from helpers import ROOT

from ownpod.rules.moving import CLIENTS, rewritten, variables
from ownpod.tools.cli import main

SCRIPT = """\
curl https://rest.runpod.io/v1/endpoints -H "Authorization: Bearer $KEY"\r
curl "https://api.runpod.io/graphql?api_key=$KEY"
curl 'https://api.runpod.ai/v2/abc/runsync' # https://api.runpod.io/v2/serverless
API=https://rest.runpod.io
curl https://abc123.api.runpod.ai/ping https://docs.runpod.io/x
curl https://rest.runpod.io.evil.example/v1 https://pod-8000.proxy.runpod.net"""


def run(*arguments, stdin=""):
    done = CliRunner().invoke(main, arguments, prog_name="ownpod", input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_runpods_hosts_become_ownpods_url_and_nothing_else_changes():
    made = rewritten(SCRIPT, "http://gpu:8000/")
    lines = made.text.split("\n")
    assert lines[0] == 'curl http://gpu:8000/v1/endpoints -H "Authorization: Bearer $KEY"\r'
    assert lines[1] == 'curl "http://gpu:8000/graphql?api_key=$KEY"'
    assert lines[2] == "curl 'http://gpu:8000/v2/abc/runsync' # http://gpu:8000/v2/serverless"
    assert lines[3] == "API=http://gpu:8000"
    assert lines[4:] == SCRIPT.split("\n")[4:]
    assert made.count == 5
    assert made.left == (
        (5, "https://abc123.api.runpod.ai"),
        (6, "https://pod-8000.proxy.runpod.net"),
    )


def test_a_second_time_changes_nothing():
    once = rewritten(SCRIPT, "${OWNPOD_URL}")
    again = rewritten(once.text, "${OWNPOD_URL}")
    assert (again.text, again.count) == (once.text, 0)
    assert "curl ${OWNPOD_URL}/v1/endpoints" in once.text


def test_files_are_changed_only_where_that_is_asked_for(tmp_path):
    file, other = tmp_path / "deploy.sh", tmp_path / "other"
    file.write_bytes(SCRIPT.encode())
    other.write_text("echo")
    shown = run("rewrite", str(file), str(other), "--url", "http://gpu:8000")
    assert shown.exit_code == 0
    assert "+API=http://gpu:8000\n" in shown.stdout
    assert f"{file}:5: stays: https://abc123.api.runpod.ai" in shown.stderr
    assert f"{other}: no URL of RunPod's APIs" in shown.stderr
    assert file.read_bytes() == SCRIPT.encode()
    done = run("rewrite", str(file), "--url", "http://gpu:8000", "--write")
    assert done.stdout == f"{file}: 5 URLs\n"
    assert file.read_bytes().decode() == rewritten(SCRIPT, "http://gpu:8000").text


@pytest.mark.parametrize("name", ["$H", "${OWNPOD_URL}", "${{ vars.OWNPOD_URL }}"])
def test_a_variable_of_the_script_may_have_the_url(tmp_path, name):
    file = tmp_path / "x"
    file.write_text("https://rest.runpod.io/v1")
    assert run("rewrite", str(file), "--url", name, "--write").exit_code == 0
    assert file.read_text() == f"{name}/v1"
    assert run("env", "--url", name).exit_code == 2


def test_one_file_that_cannot_be_read_keeps_all_as_they_are(tmp_path):
    file, latin = tmp_path / "deploy.sh", tmp_path / "latin"
    file.write_text(SCRIPT)
    latin.write_bytes(b"\xe9")
    for other in (latin, tmp_path / "missing", tmp_path):
        done = run("rewrite", str(file), str(other), "--write")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "cannot be read" in done.stderr
    assert "rest.runpod.io/v1" in file.read_text()


@pytest.mark.parametrize(
    "url", ["gpu:8000", "http://user:pw@gpu", "http://gpu/?x", "http://a b", "$(id)"]
)
def test_a_url_that_is_none_is_one_line(tmp_path, url):
    (tmp_path / "x").write_text("")
    for arguments in (("env",), ("rewrite", str(tmp_path / "x"))):
        done = run(*arguments, "--url", url)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("ownpod: --url: must be")
        assert "pw" not in done.stderr


def test_the_variables_are_lines_for_a_shell_or_for_a_file():
    shell = run("env", "--url", "http://gpu:8000").stdout
    assert "export RUNPOD_API_BASE_URL=http://gpu:8000\n" in shell
    assert "export RUNPOD_ENDPOINT_BASE_URL=http://gpu:8000/v2\n" in shell
    file = run("env", "--url", "http://gpu:8000", "--form", "file").stdout
    assert file.splitlines() == [line.removeprefix("export ") for line in shell.splitlines()]


def test_the_page_for_clients_has_the_same_variables():
    page = (ROOT / "docs" / "howto" / "management.md").read_text()
    told = dict(re.findall(r"`(RUNPOD_[A-Z0-9_]+)=H([a-z0-9/]*)`", page))
    told = {name: path for name, path in told.items() if not name.startswith("RUNPOD_API_KEY")}
    known = {name: path for names in CLIENTS.values() for name, path in names.items()}
    assert {name: path for name, path in known.items() if name.startswith("RUNPOD_")} == told
    assert variables("H").keys() == known.keys()
