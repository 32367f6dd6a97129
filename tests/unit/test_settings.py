import ast
import re
import types
import typing
from pathlib import Path

import pytest

from ownpod import settings
from ownpod.api.limits import VIEWS
from ownpod.errors import ConfigurationError
from ownpod.settings import VARIABLES
from ownpod.settings.kinds import OPERATIONS

ROOT = Path(__file__).parents[2]


def test_defaults_need_no_environment():
    found = settings.load({})
    assert found.workers is None
    assert found.result_ttl_s == 1800
    assert found.runsync_timeout_ms == 30000
    assert found.worker_verify_tls is True
    assert found.worker_status_timeout_s == 15
    assert found.data_dir == Path("./var")


def test_an_empty_value_counts_as_unset():
    assert settings.load({"OWNPOD_WORKERS": "", "OWNPOD_LEASE_S": ""}) == settings.load({})


def test_workers_are_a_list_of_urls():
    found = settings.load({"OWNPOD_WORKERS": " http://a:1 , https://b/x "})
    assert found.workers == ("http://a:1", "https://b/x")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("OWNPOD_WORKERS", "localhost:18000", "http:// or https://"),
        ("OWNPOD_WORKERS", "http://a,ftp://b", "ftp://b"),
        ("OWNPOD_WORKERS", " , ", "comma-separated"),
        ("OWNPOD_WORKERS", "http://a:x1", "http:// or https://"),
        ("REDIS_URL", "http://a", "redis://"),
        ("OWNPOD_IMAGES", " , ", "comma-separated"),
        ("OWNPOD_IMAGES", "ghcr.io/a,b c", "'b c' must be an image like"),
        ("OWNPOD_RESULT_TTL_SEC", "soon", "whole number from 1 to 2592000"),
        ("OWNPOD_RESULT_TTL_SEC", "0", "whole number from 1 to 2592000"),
        ("OWNPOD_RUNSYNC_TIMEOUT_MS", "999", "whole number from 1000 to 300000"),
        ("OWNPOD_WORKER_VERIFY_TLS", "perhaps", "true or false"),
        ("OWNPOD_WORKER_CA_BUNDLE", "/no/such/file", "file that exists"),
        ("OWNPOD_WORKER_HEADERS", "X: y", "JSON object"),
        ("OWNPOD_WORKER_HEADERS", '{"X": 1}', "JSON object"),
        ("OWNPOD_WORKER_HEADERS", '{"X": "a\\r\\nb"}', "one line of ASCII"),
        ("OWNPOD_WORKER_HEADERS", '{"X y": "a"}', "a header's name"),
        ("OWNPOD_WORKER_HEADERS", '{"content-LENGTH": "5"}', "none of connection"),
        ("OWNPOD_WORKER_CONNECT_TIMEOUT_S", "nan", "number from 0.1 to 300"),
        ("OWNPOD_WORKER_STATUS_TIMEOUT_S", "-1", "number from 0.1 to 3600"),
        ("OWNPOD_RATE_LIMITS", '{"run": "fast"}', "JSON object"),
        ("OWNPOD_RATE_LIMITS", '{"fly": "1/second"}', "of run, runsync, status"),
        ("OWNPOD_RATE_LIMITS", '{"run": 5}', "JSON object"),
        ("OWNPOD_API_KEYS_FILE", "/no/such/file", "file that exists"),
        ("OWNPOD_WEBHOOK_TRIES", "0", "whole number from 1 to 20"),
        ("OWNPOD_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR"),
        ("OWNPOD_DEVICES", "all", "auto, cpu:<number of stand-ins>, or a comma-separated list"),
        ("OWNPOD_DEVICES", "cpu:5000", "at most 1000 stand-ins"),
        ("OWNPOD_ENGINE", "podman", "auto, docker, process"),
        ("OWNPOD_LABELS", "zone", "<name>=<value>"),
        ("OWNPOD_LABELS", "pool=low,pool=high", "pool=low+fast"),
        ("OWNPOD_LABELS", "slots=many", "whole number from 1 to 1000"),
        ("OWNPOD_AGENT_NAME", "a/b", "letters, digits, dots"),
        ("OWNPOD_FRONT_ADDRESS", "gpu-1", "must be <host>:<port>"),
        ("OWNPOD_FRONT_METRICS", "127.0.0.1:99999", "a port from 1 to 65535"),
        ("OWNPOD_WORKERS_ON_STOP", "kill", "stop, keep"),
        ("OWNPOD_WORKER_API_URL", "localhost:8000", "http:// or https://"),
        ("WEB_CONCURRENCY", "0", "whole number from 1 to 1000"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it_and_what_is_allowed(name, value, allowed):
    with pytest.raises(ConfigurationError) as caught:
        settings.load({name: value})
    line = str(caught.value)
    assert line.startswith(f"{name}=")
    assert allowed in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "name", ["REDIS_URL", "OWNPOD_WORKER_HEADERS", "OWNPOD_API_KEYS", "OWNPOD_WORKER_KEYS"]
)
def test_a_secret_value_is_not_shown(name):
    with pytest.raises(ConfigurationError) as caught:
        settings.load({name: "hunter 2"})
    assert str(caught.value).startswith(f"{name}=...: ")
    assert "hunter" not in str(caught.value)


def test_keys_come_from_the_variable_and_the_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("three\n\n four \n")
    found = settings.load({"OWNPOD_API_KEYS": "one, two", "OWNPOD_API_KEYS_FILE": str(file)})
    assert [key.plain for key in found.api_keys] == ["one", "two", "three", "four"]


def test_no_secret_is_in_the_repr(tmp_path):
    found = settings.load(
        {
            "REDIS_URL": "redis://:hunter2@h/0",
            "OWNPOD_API_KEYS": "hunter2",
            "OWNPOD_WEBHOOK_SECRET": "hunter2",
            "OWNPOD_WORKER_HEADERS": '{"X": "hunter2"}',
        }
    )
    assert "hunter2" not in repr(found)


def test_without_redis_url_the_embedded_one_is_found_by_its_file(tmp_path):
    found = settings.load({"OWNPOD_DATA_DIR": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="REDIS_URL is not set"):
        found.broker_url()
    (tmp_path / "redis.url").write_text("redis://127.0.0.1:5/0\n")
    assert found.broker_url() == "redis://127.0.0.1:5/0"


def test_the_settings_of_an_agent_are_read():
    found = settings.load(
        {
            "OWNPOD_DEVICES": "cpu:2",
            "OWNPOD_LABELS": "pool=low+fast, zone=a",
            "OWNPOD_AGENT_NAME": "x",
        }
    )
    assert found.devices.stand_ins == 2
    assert found.labels == {"pool": "low+fast", "zone": "a"}
    assert (found.agent_host, found.engine, found.workers_on_stop) == ("x", "auto", "stop")


def test_an_agent_without_a_name_has_the_name_of_its_host(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "über host.example_1")
    assert settings.load({}).agent_host == "ber-host.example_1"
    monkeypatch.setattr("socket.gethostname", lambda: "")
    assert settings.load({}).agent_host == "localhost"


def test_every_value_has_the_type_of_its_declaration():
    given = {
        "REDIS_URL": "redis://h",
        "OWNPOD_WORKERS": "http://a",
        "OWNPOD_CALLBACK_URL": "http://a/",
        "OWNPOD_WORKER_CA_BUNDLE": __file__,
        "OWNPOD_WEBHOOK_SECRET": "s",
        "OWNPOD_API_KEYS": "k",
        "OWNPOD_HOSTS": "a.b",
        "OWNPOD_LEASE_S": "20",
        "OWNPOD_AGENT_NAME": "h",
        "OWNPOD_DEVICES": "0,GPU-1",
        "OWNPOD_LABELS": "zone=a",
        "OWNPOD_WORKER_API_URL": "http://a",
        "OWNPOD_RATE_LIMITS": '{"run": "1/second"}',
    }
    hints = typing.get_type_hints(settings.Settings)
    for found in (settings.load({}), settings.load(given)):
        for name, hint in hints.items():
            parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else [hint]
            kinds = [typing.get_origin(part) or part for part in parts]
            value = getattr(found, name)
            # bool is an int, but no number.
            assert any(isinstance(value, kind) for kind in kinds), (name, value)
            assert isinstance(value, bool) == (kinds == [bool]), (name, value)


def test_a_variable_is_declared_once_and_has_a_purpose():
    names = [variable.name for variable in VARIABLES]
    assert len(names) == len(set(names))
    for variable in VARIABLES:
        assert variable.purpose, variable.name
        assert not set(variable.purpose + variable.unset) & set("|\n"), variable.name


def test_all_wrong_variables_are_found_at_once():
    wrong = settings.problems({"OWNPOD_LEASE_S": "0", "OWNPOD_API_KEYS": "hunter 2"})
    assert [line.partition(":")[0] for line in wrong] == [
        "OWNPOD_LEASE_S='0'",
        "OWNPOD_API_KEYS=...",
    ]
    assert settings.problems({}) == []


def test_every_operation_that_can_be_limited_has_its_views():
    assert {*VIEWS, "management"} == set(OPERATIONS)


# Modules outside the settings that may read the environment, with the reason.
ENVIRONMENT = {
    "agent": "`ownpod agent --engine` and its other options set the variables of this process",
    "run": "templates name secrets of the agent's environment",
    "alive": "runs every few seconds as a health check; the settings would cost more than the check",
    "cli": "`ownpod up --workers` sets OWNPOD_WORKERS for itself and its child processes",
    "commands": "gives few variables of the agent's environment to managed workers",
    "flower": "gives its own environment to a child process",
    "show_settings": "`ownpod settings` shows the environment itself",
    "up": "gives its own environment to child processes",
}


def test_only_the_settings_know_the_environment():
    users, client_variables = set(), set()
    for path in (ROOT / "ownpod").rglob("*.py"):
        text = path.read_text()
        # A tree takes long to search, and few modules have these words.
        nodes = (
            ast.walk(ast.parse(text)) if re.search(r"environ|getenv|putenv|envvar", text) else ()
        )
        for node in nodes:
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                names = [alias.name for alias in node.names]
            if {"environb", "getenv", "putenv"}.intersection(names) or (
                "environ" in names
                # Flask's `request.environ` is another thing.
                and (isinstance(node, ast.ImportFrom) or ast.unparse(node) == "os.environ")
            ):
                users.add("settings" if path.parent.name == "settings" else path.stem)
            if isinstance(node, ast.keyword) and node.arg == "envvar":
                client_variables.add(node.value.value)
    assert users == {"settings", *ENVIRONMENT}
    assert client_variables <= set(settings.CLIENT_VARIABLES)


def test_a_redis_may_be_a_unix_socket_with_a_whole_path():
    url = "unix:///run/redis.sock?db=1"
    assert settings.load({"REDIS_URL": url}).broker_url() == url
    with pytest.raises(ConfigurationError, match="unix:/// URL"):
        settings.load({"REDIS_URL": "unix://redis.sock"})


def test_an_alias_is_read_with_its_own_form_and_the_variable_wins():
    found = settings.load(
        {"GPU_DEVICE_IDS": "0,1", "TASK_CPU_QUOTA": "50000", "INTERNAL_API_KEY": "k"}
    )
    assert found.devices.gpus == ("0", "1")
    assert found.devices.instead == (0, 1)
    assert found.task_cpus == 0.5
    assert len(found.api_keys) == 1
    both = settings.load({"GPU_DEVICE_IDS": "no list", "OWNPOD_DEVICES": "cpu:1"})
    assert both.devices.stand_ins == 1
    assert settings.load({"SESSION_QUEUE_MAX_SIZE": ""}).session_queue == 5


def test_an_alias_is_declared_once_and_is_no_variable():
    aliases = [variable.alias.name for variable in VARIABLES if variable.alias]
    assert len({*aliases, *(variable.name for variable in VARIABLES)}) == len(aliases) + len(
        VARIABLES
    )


def test_whether_the_list_of_images_is_set_is_known():
    assert not settings.load({}).images_given
    assert settings.load({"OWNPOD_IMAGES": "**"}).images_given
    assert settings.load({"ALLOWED_DOCKER_IMAGES": "a/b:*"}).images_given
