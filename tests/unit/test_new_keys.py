"""``ownpod keys new``, ``ownpod worker-env`` with digests, and the keys that Flower accepts."""

import re

import pytest
from click.testing import CliRunner
from helpers import load_settings

from ownpod.configuration import load_endpoints
from ownpod.errors import BadRequest, StartError
from ownpod.onehost.flower import door
from ownpod.rules.credentials import digest_of, matches, parse
from ownpod.tools.cli import main
from ownpod.tools.worker_env import _key_of

BOUND = (parse(f"sha256:{digest_of('b')}@ep/w", bound=True),)


def invoke(*options):
    return CliRunner().invoke(main, ["keys", "new", *options])


@pytest.mark.parametrize(
    ("options", "binding", "place"),
    [
        ((), (None, None), "OWNPOD_API_KEYS"),
        (("--admin",), (None, None), "OWNPOD_ADMIN_KEYS_FILE"),
        (("--endpoint", "ep"), (None, None), "apiKeys of ep in workers.yaml"),
        (("--worker",), (None, None), "OWNPOD_WORKER_KEYS"),
        (("--worker", "--bind", "ep"), ("ep", None), "OWNPOD_WORKER_KEYS"),
        (("--worker", "--bind", "ep/gpu-1"), ("ep", "gpu-1"), "RUNPOD_AI_API_KEY"),
    ],
)
def test_a_new_key_fits_the_line_that_is_printed_with_it(options, binding, place):
    said = invoke(*options).output
    key, line = re.search(r"^key: +(\S{43})\nline: +(\S+)\n", said).groups()
    known = parse(line, bound="--worker" in options)
    assert matches(key, [known])
    assert (known.plain, known.endpoint, known.worker) == (None, *binding)
    assert place in said
    assert key not in invoke(*options).output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--admin", "--worker"), "choose one"),
        (("--endpoint", "e", "--admin"), "choose one"),
        (("--bind", "ep"), "--bind: only worker keys"),
        (("--endpoint", "a b"), "--endpoint: 'a b'"),
        (("--worker", "--bind", "a/b/c"), "--bind: 'a/b/c'"),
        (("--worker", "--bind", ""), "--bind: ''"),
    ],
)
def test_options_that_do_not_fit_are_one_line(options, says):
    done = invoke(*options)
    assert done.exit_code == 2
    assert says in done.output
    assert done.output.count("\n") == 1


def test_a_worker_gets_a_plain_key_or_one_that_is_bound_to_it():
    plain = (*BOUND, parse("p", bound=True))
    assert _key_of("ep", "w", None, ()) == "any"
    assert _key_of("ep", "w", None, plain) == "p"
    assert _key_of("ep", "w", "b", BOUND) == "b"
    for endpoint, worker, key, says in (
        ("ep", "w", None, "digests only"),
        ("ep", "w", "x", "must be one of OWNPOD_WORKER_KEYS"),
        ("ep", "x", "b", "bound to another"),
        ("other", "w", "b", "bound to another"),
    ):
        with pytest.raises(BadRequest, match=says):
            _key_of(endpoint, worker, key, BOUND)


@pytest.mark.parametrize(
    ("environ", "keys", "read_only"),
    [
        ({}, [], False),
        ({"OWNPOD_FLOWER_READ_ONLY": "true"}, [], True),
        ({"OWNPOD_API_KEYS": "k"}, ["k"], True),
        ({"OWNPOD_ADMIN_KEYS": "a"}, ["a"], False),
        ({"OWNPOD_API_KEYS": "k", "OWNPOD_ADMIN_KEYS": "a"}, ["a"], False),
    ],
)
def test_flower_takes_admin_keys_or_shows_only(environ, keys, read_only):
    found = door(load_settings(**environ), [])
    assert ([key.plain for key in found.keys], found.read_only) == (keys, read_only)


def test_flower_does_not_start_for_keys_of_single_endpoints(tmp_path):
    file = tmp_path / "workers.yaml"
    file.write_text("endpoints: {a: {apiKeys: [k]}}")
    config = load_settings(OWNPOD_WORKERS_FILE=file)
    with pytest.raises(StartError, match="OWNPOD_ADMIN_KEYS"):
        door(config, load_endpoints(config).values())


def test_key_files_are_read_again_and_a_wrong_one_changes_nothing(tmp_path, monkeypatch):
    from ownpod import settings
    from ownpod.api.serving import server

    file = tmp_path / "keys"
    file.write_text("one\n")
    monkeypatch.setenv("OWNPOD_API_KEYS_FILE", str(file))
    warned = []

    class Log:
        def warning(self, text, error):
            warned.append(text % error)

    class Server:
        log = Log()

    def known():
        return [key.plain for key in settings.current().api_keys]

    settings.current.cache_clear()
    try:
        assert known() == ["one"]
        file.write_text("two\n")
        assert known() == ["one"]
        server.on_reload(Server)
        assert known() == ["two"]
        file.write_text("sha256:wrong\n")
        server.on_reload(Server)
        assert known() == ["two"]
        assert "OWNPOD_API_KEYS_FILE" in warned[0]
    finally:
        settings.current.cache_clear()
