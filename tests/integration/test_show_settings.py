"""`ownpod settings`, and how wrong settings end the other commands."""

import json
import sys

import pytest
from helpers import run_command

# Each test starts whole processes.
pytestmark = pytest.mark.slow

SECRETS = {
    "REDIS_URL": "rediss://user:hunter2@redis.example:7000/2?ssl_cert_reqs=none",
    "OWNPOD_API_KEYS": "hunter2",
    "OWNPOD_WORKER_HEADERS": '{"Authorization": "hunter2"}',
    "OWNPOD_WEBHOOK_SECRET": "hunter2",
}


def run(*command, **environ):
    done = run_command(sys.executable, "-m", "ownpod", *command, **environ)
    return done.returncode, done.stdout, done.stderr


def by_name(**environ):
    code, shown, problems = run("settings", "--json", **environ)
    assert (code, problems) == (0, "")
    return {row["variable"]: row for row in json.loads(shown)}


def test_every_variable_has_its_value_and_where_it_comes_from():
    rows = by_name(OWNPOD_LEASE_S="20", OWNPOD_LOG_LEVEL="")
    assert rows["OWNPOD_LEASE_S"]["value"] == "20"
    assert rows["OWNPOD_LEASE_S"]["source"] == "environment"
    assert rows["OWNPOD_LEASE_S"]["default"] == "15"
    assert rows["OWNPOD_LOG_LEVEL"]["value"] == "INFO"
    assert rows["OWNPOD_LOG_LEVEL"]["source"] == "default"
    assert rows["OWNPOD_HOSTS"]["value"] is None
    assert rows["OWNPOD_LOG_INPUTS"]["value"] == "true"


def test_keys_may_come_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("hunter2\n")
    keys = {"OWNPOD_ADMIN_KEYS_FILE": file, "OWNPOD_API_KEYS_FILE": file, "OWNPOD_API_KEYS": "k"}
    rows = by_name(**keys)
    assert rows["OWNPOD_ADMIN_KEYS"]["value"] == "***"
    assert rows["OWNPOD_ADMIN_KEYS"]["source"] == "OWNPOD_ADMIN_KEYS_FILE"
    assert rows["OWNPOD_API_KEYS"]["source"] == "environment, OWNPOD_API_KEYS_FILE"
    assert rows["OWNPOD_API_KEYS_FILE"]["value"] == str(file)
    assert rows["OWNPOD_WORKER_KEYS"]["value"] is None


@pytest.mark.parametrize("options", [[], ["--json"], ["--verbose"]])
def test_no_secret_is_shown(options):
    code, shown, problems = run("settings", *options, **SECRETS)
    assert code == 0
    assert "hunter2" not in shown + problems
    assert "***" in shown
    assert "rediss://redis.example:7000/2" in shown


def test_the_table_lines_up_and_has_purposes_when_asked():
    lines = run("settings", "-v")[1].splitlines()
    place = lines[0].index("PURPOSE")
    purposes = [line[place:] for line in lines[1:]]
    assert all(purpose[0] not in " `" for purpose in purposes)
    assert len({line[:place].rindex(" ") for line in lines}) == 1
    assert "PURPOSE" not in run("settings")[1]


def test_all_wrong_values_are_reported_in_a_line_each():
    code, shown, problems = run("settings", OWNPOD_LEASE_S="soon", OWNPOD_API_KEYS="a b")
    assert (code, shown) == (2, "")
    first, second = problems.splitlines()
    assert first == "ownpod: OWNPOD_LEASE_S='soon': must be a number from 1 to 3600"
    assert second.startswith("ownpod: OWNPOD_API_KEYS=...: ")


def test_an_unknown_variable_is_a_warning():
    known = {"OWNPOD_URL": "http://a", "OWNPOD_API_KEY": "k"}
    code, shown, warning = run("settings", OWNPOD_LEASES="9", OWNPOD_XYZZY="1", **known)
    assert code == 0
    assert "OWNPOD_LEASE_S" in shown
    assert warning.splitlines() == [
        "ownpod: OWNPOD_LEASES is unknown and has no effect; did you mean OWNPOD_LEASE_S?",
        "ownpod: OWNPOD_XYZZY is unknown and has no effect",
    ]


@pytest.mark.parametrize("command", [["api"], ["dispatch"], ["up"]])
def test_a_wrong_number_of_api_processes_is_one_line(command):
    code, _, problem = run(*command, WEB_CONCURRENCY="many")
    assert code == 2
    assert problem == "ownpod: WEB_CONCURRENCY='many': must be a whole number from 1 to 1000\n"


def test_gunicorn_started_directly_ends_with_the_same_line():
    done = run_command(sys.executable, "-m", "gunicorn", "wsgi:app", OWNPOD_LEASE_S="soon")
    assert done.returncode == 2
    assert done.stderr == "ownpod: OWNPOD_LEASE_S='soon': must be a number from 1 to 3600\n"
